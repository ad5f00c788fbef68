//! `nextword chat RECORD|RUN`.

use std::io::{BufRead, IsTerminal};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, ValueHint};
use nextword_generate::{Answer, PROMPT, TextGenerator, TextOptions};
use nextword_server::{ChatTemplate, Message};

use crate::args::CutArgs;
use crate::commands::generate::new_seed;
use crate::format::harmless;
use crate::{output, records};

const HELP: &str = "/retry answers anew, /undo forgets the last exchange, /probs shows the last answer's \
                    probabilities, /reset begins anew, /quit leaves, Ctrl-C ends an answer";

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
    let template = ChatTemplate::open(&record, &**generator.tokenizer())?;
    let way = match (template, &record.card.prompt_template) {
        (Some(template), _) => Way::Template(Box::new(template)),
        (None, Some(_)) => Way::Single,
        (None, None) => Way::Plain,
    };
    let mut chat = Chat {
        options: options(args)?,
        generator,
        turns: Vec::new(),
        last: None,
        stop: stop_flag()?,
        way,
        args,
    };
    let mut input = std::io::stdin().lock();
    let asks = input.is_terminal();
    output::note(&format!("note: {}", chat.way.words()));
    output::note(HELP);
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
            line => chat.take(line)?,
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

/// What was said, and the answer.
struct Turn {
    said: String,
    answer: String,
}

/// A conversation.
struct Chat<'a> {
    args: &'a ChatArgs,
    generator: TextGenerator,
    options: TextOptions,
    way: Way,
    turns: Vec<Turn>,
    /// The last answer with its tokens.
    last: Option<Answer>,
    stop: Arc<AtomicBool>,
}

impl Chat<'_> {
    /// Does what a line asks for, or answers it. Only a lost output is an error.
    fn take(&mut self, line: &str) -> anyhow::Result<()> {
        match line {
            "" => {}
            "/help" => output::note(HELP),
            "/probs" => return self.probabilities(),
            "/reset" => {
                self.turns.clear();
                self.last = None;
                output::note("the conversation begins anew");
            }
            "/undo" => match self.turns.pop() {
                Some(turn) => output::note(&format!("forgotten: {}", harmless(&turn.said))),
                None => output::note("there is nothing to forget"),
            },
            "/retry" => match self.turns.pop() {
                Some(turn) if !self.answer(&turn.said)? => self.turns.push(turn),
                Some(_) => {}
                None => output::note("there is no answer yet"),
            },
            command if command.starts_with('/') && !command.contains(' ') => {
                output::note(&format!("there is no {}; {HELP}", harmless(command)));
            }
            said => {
                self.answer(said)?;
            }
        }
        Ok(())
    }

    /// All that the model is shown before its answer to `said`.
    fn prompt(&self, said: &str) -> anyhow::Result<String> {
        match &self.way {
            Way::Single => Ok(said.to_owned()),
            Way::Plain => {
                let mut text = String::new();
                for turn in &self.turns {
                    begin_line(&mut text);
                    text.push_str(&turn.said);
                    text.push_str(&turn.answer);
                }
                begin_line(&mut text);
                Ok(text + said)
            }
            Way::Template(template) => {
                let message = |role: &str, content: &str| Message {
                    role: role.to_owned(),
                    content: content.to_owned(),
                };
                let system = self.args.system.iter();
                let mut messages: Vec<Message> =
                    system.map(|text| message("system", text)).collect();
                for turn in &self.turns {
                    messages.push(message("user", &turn.said));
                    messages.push(message("assistant", &turn.answer));
                }
                messages.push(message("user", said));
                Ok(template.render(&messages)?)
            }
        }
    }

    /// Shows the answer to `said` as it comes, and remembers both; whether there is one. What a model
    /// or its template cannot do is told, and the conversation is as it was.
    fn answer(&mut self, said: &str) -> anyhow::Result<bool> {
        self.options.prompt_template = match self.way {
            Way::Single => None,
            Way::Template(_) | Way::Plain => Some(PROMPT.to_owned()),
        };
        self.stop.store(false, Ordering::SeqCst);
        let mut trouble = None;
        let answers = self.prompt(said).and_then(|prompt| {
            let show = |_, piece: &str| {
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
            };
            Ok(self.generator.generate(&[prompt], &self.options, show)?)
        });
        if let Some(error) = trouble {
            return Err(error);
        }
        let answer = match answers {
            Ok(answers) => answers.into_iter().next(),
            Err(error) => {
                output::note(&format!("error: {error:#}"));
                return Ok(false);
            }
        };
        output::text("\n")?;
        // Each answer draws its own numbers.
        self.options.first_sequence += 1;
        let Some(answer) = answer else {
            return Ok(false);
        };
        if answer.truncated > 0 && !matches!(self.way, Way::Single) {
            output::note(
                "note: the beginning of the conversation no longer fits the model's context",
            );
        }
        self.turns.push(Turn {
            said: said.to_owned(),
            answer: answer.text.clone(),
        });
        self.last = Some(answer);
        Ok(true)
    }

    /// Shows how likely the model found each token of its last answer.
    fn probabilities(&self) -> anyhow::Result<()> {
        let Some(answer) = &self.last else {
            output::note("there is no answer yet");
            return Ok(());
        };
        let tokenizer = self.generator.tokenizer();
        for (id, logprob) in answer.ids.iter().zip(&answer.logprobs) {
            let token = tokenizer.token(*id).unwrap_or_default();
            output::line(&format!("{:6.2} %  {token:?}", 100.0 * logprob.exp()))?;
        }
        Ok(())
    }
}

/// Ends the last line of `text`, if it has begun one.
fn begin_line(text: &mut String) {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
}
