//! `nextword chat RECORD|RUN`.

use std::io::{BufRead, IsTerminal};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, ValueHint};
use nextword_generate::{PROMPT, TextGenerator, TextOptions};
use nextword_server::{ChatTemplate, Message};

use crate::args::CutArgs;
use crate::commands::generate::new_seed;
use crate::format::harmless;
use crate::{output, records};

/// `chat RECORD|RUN`.
#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// A record, a checkpoint, or a run's folder (its best record is used)
    #[arg(value_hint = ValueHint::DirPath)]
    model: PathBuf,
    /// What the model is told before the conversation; needs a chat template
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// The most tokens of an answer
    #[arg(long, short, default_value_t = 256, value_name = "N")]
    max_tokens: usize,
    /// Divides the logits: 0 is greedy, 1 follows the model's own probabilities
    #[arg(
        long,
        short,
        default_value_t = 0.8,
        value_name = "X",
        allow_hyphen_values = true
    )]
    temperature: f64,
    #[command(flatten)]
    cuts: CutArgs,
    /// Ends an answer before this text (repeatable) [default: none]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// The same seed gives the same answers [default: a new one each time]
    #[arg(long, short)]
    seed: Option<u64>,
    /// Device: auto, flex, ndarray, wgpu, wgpu:N, wgpu:software, vulkan, metal, cuda, rocm
    #[arg(long, short, default_value = "flex")]
    device: String,
    /// Uses the last record of a run instead of the best
    #[arg(long)]
    last: bool,
}

/// How what is typed is put to the model.
enum Way {
    /// By the record's chat template.
    Template(Box<ChatTemplate>),
    /// By the card's prompt template: each line by itself.
    Single,
    /// As text that goes on.
    Plain,
}

impl Way {
    fn words(&self) -> &'static str {
        match self {
            Self::Template(_) => "the record's chat template puts what you type to the model",
            Self::Single => {
                "the record's prompt template puts each line to the model by itself: it remembers nothing"
            }
            Self::Plain => {
                "the record has no chat template: the model was not taught to answer, it continues what you type, \
                 with all before it"
            }
        }
    }
}

/// Reads lines and answers them.
pub(crate) fn run(args: &ChatArgs) -> anyhow::Result<()> {
    let record = records::open(&args.model, args.last)?;
    let device = records::device(&args.device)?;
    let generator = TextGenerator::open(&record, &device)?;
    let template = ChatTemplate::open(&record.path.join("chat_template.jinja"))?;
    let way = match (template, &record.card.prompt_template) {
        (Some(template), _) => Way::Template(Box::new(template)),
        (None, Some(_)) => Way::Single,
        (None, None) => Way::Plain,
    };
    let mut chat = Chat {
        options: options(args)?,
        generator,
        messages: Vec::new(),
        text: String::new(),
        stop: stop_flag()?,
        way,
        args,
    };
    chat.reset();
    let mut input = std::io::stdin().lock();
    let asks = input.is_terminal();
    output::note(&format!("note: {}", chat.way.words()));
    output::note("/reset begins anew, /quit leaves, Ctrl-C ends an answer");
    loop {
        if asks {
            output::text("> ")?;
        }
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.trim_end_matches(['\n', '\r']) {
            "/quit" | "/exit" => return Ok(()),
            "/reset" => {
                chat.reset();
                output::note("the conversation begins anew");
            }
            "" => {}
            said => chat.answer(said)?,
        }
    }
}

fn options(args: &ChatArgs) -> anyhow::Result<TextOptions> {
    let seed = args.seed.unwrap_or_else(new_seed);
    let sampling = args.cuts.sampling(args.temperature, seed);
    sampling.validate()?;
    Ok(TextOptions {
        sampling,
        max_tokens: args.max_tokens,
        stop: args.stop.clone(),
        ..TextOptions::default()
    })
}

/// Raised by Ctrl-C, which does not end the program.
fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let raised = flag.clone();
    ctrlc::set_handler(move || {
        if raised.swap(true, Ordering::SeqCst) {
            output::note("\n/quit leaves");
        }
    })?;
    Ok(flag)
}

/// A conversation.
struct Chat<'a> {
    args: &'a ChatArgs,
    generator: TextGenerator,
    options: TextOptions,
    way: Way,
    messages: Vec<Message>,
    text: String,
    stop: Arc<AtomicBool>,
}

impl Chat<'_> {
    fn reset(&mut self) {
        self.text.clear();
        self.messages.clear();
        if let Some(system) = &self.args.system {
            self.say("system", system.clone());
        }
    }

    fn say(&mut self, role: &str, content: String) {
        let role = role.to_owned();
        self.messages.push(Message { role, content });
    }

    /// Shows the answer to `said` as it comes, and remembers both.
    fn answer(&mut self, said: &str) -> anyhow::Result<()> {
        self.say("user", said.to_owned());
        let prompt = match &self.way {
            Way::Template(template) => {
                let tokenizer = self.generator.tokenizer();
                let eos = tokenizer
                    .specials()
                    .eos
                    .and_then(|eos| tokenizer.piece(eos));
                template.render(&self.messages, "", &eos.unwrap_or_default())?
            }
            Way::Single => said.to_owned(),
            Way::Plain => {
                if !self.text.is_empty() && !self.text.ends_with('\n') {
                    self.text.push('\n');
                }
                self.text.push_str(said);
                self.text.clone()
            }
        };
        self.options.prompt_template = match self.way {
            Way::Single => None,
            Way::Template(_) | Way::Plain => Some(PROMPT.to_owned()),
        };
        self.stop.store(false, Ordering::SeqCst);
        let mut trouble = None;
        let answers = self
            .generator
            .generate(&[prompt], &self.options, |_, piece| {
                if self.stop.load(Ordering::SeqCst) {
                    return ControlFlow::Break(());
                }
                match output::text(&harmless(piece)) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(e) => {
                        trouble = Some(e);
                        ControlFlow::Break(())
                    }
                }
            })?;
        if let Some(error) = trouble {
            return Err(error);
        }
        output::text("\n")?;
        if let Some(answer) = answers.into_iter().next() {
            if answer.truncated > 0 && !matches!(self.way, Way::Single) {
                output::note(
                    "note: the beginning of the conversation no longer fits the model's context",
                );
            }
            self.text.push_str(&answer.text);
            self.say("assistant", answer.text);
        }
        // Each answer draws its own numbers.
        self.options.first_sequence += 1;
        Ok(())
    }
}
