//! `nextword chat MODEL|RUN`.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, ValueHint};
use nextword_chat::{Message, PromptEncoder, RenderOptions};
use nextword_data::{Encoding, unknown_note};
use nextword_generate::{
    Completion, GenerateError, PROMPT_PLACEHOLDER, TextGenerator, TextOptions,
};
use nextword_server::open_chat_template;

use crate::args::{BaseArgs, DecodingArgs, MappingArgs, SeedArgs, TemperatureArgs};
use crate::chat_input::{ChatInput, Line};
use crate::format::sanitize;
use crate::{exit, models, output};

const HELP: &str = "/retry regenerates the last reply, /undo removes the last exchange, /probs shows the \
                    last reply's token probabilities, /reset clears the conversation, /quit exits, \
                    Ctrl-C stops a reply";

/// `chat MODEL|RUN`.
#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// Model folder, adapter folder, checkpoint, run folder (the run's best model is used), or GGUF file
    #[arg(value_hint = ValueHint::AnyPath)]
    model: PathBuf,
    /// System prompt; requires a chat template
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Maximum number of tokens per reply
    #[arg(long, short, default_value_t = 256, value_name = "N")]
    max_tokens: usize,
    #[command(flatten)]
    sampling: TemperatureArgs,
    /// Stop a reply before this text (repeatable) [default: none]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    #[command(flatten)]
    seed: SeedArgs,
    #[command(flatten)]
    decoding: DecodingArgs,
    /// Device to run on: auto, flex, ndarray, wgpu, wgpu:N, wgpu:software, vulkan, metal, cuda, rocm
    #[arg(long, short, default_value = "flex")]
    device: String,
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    mapping: MappingArgs,
    /// Use a run's last model instead of its best
    #[arg(long)]
    last: bool,
}

/// How user input is formatted as a prompt.
enum PromptStyle {
    /// With the model's chat template.
    Template(Box<PromptEncoder>),
    /// With the model's prompt template, each line independently.
    SingleTurn,
    /// As a source that an encoder reads, without earlier ones.
    Source,
    /// As plain text that the model continues.
    Continuation,
}

impl PromptStyle {
    fn description(&self) -> &'static str {
        match self {
            Self::Template(_) => "your input is formatted with the model's chat template",
            Self::SingleTurn => {
                "each line is formatted with the model's prompt template on its own; no conversation history is kept"
            }
            Self::Source => {
                "each line is a source on its own, which the encoder reads; no conversation history is kept"
            }
            Self::Continuation => {
                "the model has no chat template and was not trained to reply; it continues your text, including \
                 everything before it"
            }
        }
    }
}

/// Reads lines from standard input and generates replies.
pub(crate) fn run(args: &ChatArgs) -> anyhow::Result<()> {
    let dir = args.mapping.apply(args.base.open(&args.model, args.last)?);
    if !dir.config.architecture.generates() {
        return Err(GenerateError::Encoder.into());
    }
    let device = models::open_and_name_device(&args.device)?;
    let generator = TextGenerator::open(&dir, &device)?;
    let generator = args.decoding.apply(generator, &device, args.mapping)?;
    let (bos, eos) = (generator.bos_text(), generator.eos_text());
    let template = open_chat_template(&dir, &bos, &eos)?;
    let tokens = generator.further_token_texts();
    let template = template.map(|template| template.with_tokens(tokens));
    let style = match (template, &dir.card.prompt_template) {
        (Some(template), _) => {
            let (tokenizer, start) = (generator.tokenizer().clone(), generator.start_id());
            PromptStyle::Template(Box::new(PromptEncoder::new(template, tokenizer, start)))
        }
        (None, Some(_)) => PromptStyle::SingleTurn,
        // An encoder reads a source, which is not the beginning of the reply.
        (None, None) if dir.config.has_encoder() => PromptStyle::Source,
        (None, None) => PromptStyle::Continuation,
    };
    let mut chat = Chat {
        options: options(args)?,
        generator,
        turns: Vec::new(),
        last_reply: None,
        stop: stop_flag()?,
        style,
        args,
    };
    if args.system.is_some() && !matches!(chat.style, PromptStyle::Template(_)) {
        return Err(exit::usage(
            "--system requires a chat template, which this model does not have; hint: omit it",
        ));
    }
    let mut input = ChatInput::open()?;
    output::eprint_line(&format!("note: {}", chat.style.description()));
    output::eprint_line(HELP);
    loop {
        match input.next_line()? {
            Line::End => return Ok(()),
            Line::Interrupted => output::eprint_line("type /quit or press Ctrl-D to exit"),
            Line::NotUtf8(offset) => {
                let place = offset.map_or(String::new(), |offset| format!(" (at byte {offset})"));
                output::eprint_line(&format!(
                    "error: this line is not valid UTF-8{place} and was skipped; hint: convert the input to UTF-8"
                ));
            }
            Line::Text(line) if line == "/quit" || line == "/exit" => return Ok(()),
            Line::Text(line) => chat.handle_line(&line)?,
        }
    }
}

fn options(args: &ChatArgs) -> anyhow::Result<TextOptions> {
    let seed = args.seed.value();
    let sampling = args.sampling.config(seed);
    sampling.validate()?;
    Ok(TextOptions {
        sampling,
        max_tokens: args.max_tokens,
        stop: args.stop.clone(),
        ..TextOptions::default()
    })
}

/// Returns a flag that Ctrl-C raises instead of ending the program.
fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let handler_flag = flag.clone();
    ctrlc::set_handler(move || {
        if handler_flag.swap(true, Ordering::SeqCst) {
            output::eprint_line("\ntype /quit to exit");
        }
    })?;
    Ok(flag)
}

/// A user message and the reply.
struct Turn {
    user: String,
    reply: String,
}

/// A conversation.
struct Chat<'a> {
    args: &'a ChatArgs,
    generator: TextGenerator,
    options: TextOptions,
    style: PromptStyle,
    turns: Vec<Turn>,
    /// The last reply with its tokens.
    last_reply: Option<Completion>,
    stop: Arc<AtomicBool>,
}

impl Chat<'_> {
    /// Runs the command in `line`, or replies to it. Fails only if the output is closed.
    fn handle_line(&mut self, line: &str) -> anyhow::Result<()> {
        match line {
            "" => {}
            "/help" => output::eprint_line(HELP),
            "/probs" => return self.print_probabilities(),
            "/reset" => {
                self.turns.clear();
                self.last_reply = None;
                output::eprint_line("conversation cleared");
            }
            "/undo" => match self.turns.pop() {
                Some(turn) => output::eprint_line(&format!("removed: {}", sanitize(&turn.user))),
                None => output::eprint_line("nothing to undo"),
            },
            "/retry" => match self.turns.pop() {
                Some(turn) if !self.reply(&turn.user)? => self.turns.push(turn),
                Some(_) => {}
                None => output::eprint_line("no reply yet"),
            },
            command if command.starts_with('/') && !command.contains(' ') => {
                output::eprint_line(&format!("unknown command {}; {HELP}", sanitize(command)));
            }
            message => {
                self.reply(message)?;
            }
        }
        Ok(())
    }

    /// Returns the prompt for the reply to `message`, including the conversation so far.
    fn prompt(&self, message: &str) -> anyhow::Result<Encoding> {
        match &self.style {
            PromptStyle::SingleTurn | PromptStyle::Source => {
                Ok(self.generator.encode_prompt(message, &self.options)?)
            }
            PromptStyle::Continuation => {
                let mut text = String::new();
                for turn in &self.turns {
                    start_new_line(&mut text);
                    text.push_str(&turn.user);
                    text.push_str(&turn.reply);
                }
                start_new_line(&mut text);
                text.push_str(message);
                Ok(self.generator.encode_prompt(&text, &self.options)?)
            }
            PromptStyle::Template(prompts) => {
                let system = self.args.system.iter();
                let mut messages: Vec<Message> = system.map(Message::system).collect();
                for turn in &self.turns {
                    messages.push(Message::user(&turn.user));
                    messages.push(Message::assistant(&turn.reply));
                }
                messages.push(Message::user(message));
                let prompt = prompts.encode(&messages, &RenderOptions::default())?;
                Ok(prompt.encoding)
            }
        }
    }

    /// Streams the reply to `message`, and adds both to the conversation. Returns whether there was a
    /// reply: an error of the model or its template is printed and leaves the conversation unchanged.
    fn reply(&mut self, message: &str) -> anyhow::Result<bool> {
        self.options.prompt_template = match self.style {
            PromptStyle::SingleTurn | PromptStyle::Source | PromptStyle::Template(_) => None,
            PromptStyle::Continuation => Some(PROMPT_PLACEHOLDER.to_owned()),
        };
        self.stop.store(false, Ordering::SeqCst);
        let mut write_error = None;
        let completions = self.prompt(message).and_then(|prompt| {
            let on_text = |_, delta: &str| {
                if self.stop.load(Ordering::SeqCst) {
                    return ControlFlow::Break(());
                }
                match output::print(&sanitize(delta)) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(e) => {
                        write_error = Some(e);
                        ControlFlow::Break(())
                    }
                }
            };
            let prompts = vec![prompt];
            Ok(self
                .generator
                .generate_encoded(prompts, &self.options, on_text)?)
        });
        if let Some(error) = write_error {
            return Err(error);
        }
        let completion = match completions {
            Ok(completions) => completions.into_iter().next(),
            Err(error) => {
                output::eprint_line(&format!("error: {error:#}"));
                return Ok(false);
            }
        };
        output::print("\n")?;
        // Each reply samples from its own random stream.
        self.options.first_sequence += 1;
        let Some(completion) = completion else {
            return Ok(false);
        };
        if !completion.unknown.is_empty() {
            let special = self.generator.tokenizer().special_tokens();
            let note = unknown_note(
                "the conversation has text that is",
                &completion.unknown,
                special,
            );
            output::eprint_line(&format!("note: {note}"));
        }
        if completion.truncated > 0
            && !matches!(self.style, PromptStyle::SingleTurn | PromptStyle::Source)
        {
            output::eprint_line(
                "note: the start of the conversation no longer fits the model's context",
            );
        }
        self.turns.push(Turn {
            user: message.to_owned(),
            reply: completion.text.clone(),
        });
        self.last_reply = Some(completion);
        Ok(true)
    }

    /// Prints the probability of each token of the last reply.
    fn print_probabilities(&self) -> anyhow::Result<()> {
        let Some(reply) = &self.last_reply else {
            output::eprint_line("no reply yet");
            return Ok(());
        };
        let tokenizer = self.generator.tokenizer();
        for (id, logprob) in reply.ids.iter().zip(&reply.logprobs) {
            let token = tokenizer.token_text(*id).unwrap_or_default();
            output::print_line(&format!("{:6.2} %  {token:?}", 100.0 * logprob.exp()))?;
        }
        Ok(())
    }
}

/// Appends a line break unless `text` is empty or ends with one.
fn start_new_line(text: &mut String) {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
}
