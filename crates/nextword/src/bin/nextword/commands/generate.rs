//! `nextword generate MODEL|RUN [PROMPT]`.

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueHint};
use nextword_data::{SpecialTokens, unknown_note};
use nextword_generate::{
    Completion, FinishReason, PROMPT_PLACEHOLDER, SamplingConfig, TextGenerator, TextOptions,
};
use nextword_model::{DEFAULT_TEMPLATE, ModelCard};
use serde_json::json;

use crate::args::{BaseArgs, DecodingArgs, MappingArgs, SeedArgs, TemperatureArgs};
use crate::console::{program, shell_quote};
use crate::format::{count, sanitize, short};
use crate::{exit, models, output, prompt};

/// `generate MODEL|RUN [PROMPT]`.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools)] // Independent flags.
pub(crate) struct GenerateArgs {
    /// Model folder, adapter folder, checkpoint, run folder (the run's best model is used), or GGUF file
    #[arg(value_hint = ValueHint::AnyPath)]
    model: PathBuf,
    /// Text to continue; `--` goes before one that begins with a dash [default: standard input unless it is a
    /// terminal, else empty]
    prompt: Option<String>,
    /// Maximum number of tokens to generate
    #[arg(long, short, default_value_t = 256, value_name = "N")]
    max_tokens: usize,
    #[command(flatten)]
    sampling: TemperatureArgs,
    /// Penalize tokens that occur in the prompt or the completion; 1 disables
    #[arg(
        long,
        default_value_t = 1.0,
        value_name = "X",
        allow_hyphen_values = true
    )]
    repetition_penalty: f64,
    /// Value subtracted from the logits of tokens already generated
    #[arg(
        long,
        default_value_t = 0.0,
        value_name = "X",
        allow_hyphen_values = true
    )]
    presence_penalty: f64,
    /// Value subtracted from a token's logit for each time it has been generated
    #[arg(
        long,
        default_value_t = 0.0,
        value_name = "X",
        allow_hyphen_values = true
    )]
    frequency_penalty: f64,
    /// Stop generating before this text (repeatable) [default: none]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    #[command(flatten)]
    seed: SeedArgs,
    #[command(flatten)]
    decoding: DecodingArgs,
    /// Number of completions to generate
    #[arg(long, short = 'n', default_value_t = 1, value_name = "N")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    samples: usize,
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
    /// Use the prompt verbatim, without the model's prompt template
    #[arg(long)]
    raw: bool,
    /// Print one JSON object per completion
    #[arg(long)]
    json: bool,
    /// Print only errors to standard error
    #[arg(long, short)]
    quiet: bool,
}

/// Generates text from a prompt.
pub(crate) fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    let options = options(args)?;
    let dir = args.mapping.apply(args.base.open(&args.model, args.last)?);
    let device = if args.quiet {
        models::open_device(&args.device)?
    } else {
        models::open_and_name_device(&args.device)?
    };
    let generator = TextGenerator::open(&dir, &device)?;
    let generator = args.decoding.apply(generator, &device, args.mapping)?;
    let prompt = prompt::read(args.prompt.as_deref())?;
    let prompts = vec![prompt.as_str(); args.samples];
    let streams = args.samples == 1 && !args.json;
    if streams && options.prompt_template.is_none() && dir.card.prompt_template.is_none()
        || streams && args.raw
    {
        echo_prompt(&prompt);
    }

    let mut first_token = None;
    let to_terminal = std::io::stdout().is_terminal();
    let mut write_error = None;
    let completions = generator.generate(&prompts, &options, |_, delta| {
        // Called after every token, also while its text is held back.
        first_token.get_or_insert_with(Instant::now);
        if !streams {
            return ControlFlow::Continue(());
        }
        match output::print(&for_output(delta, to_terminal)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => {
                write_error = Some(e);
                ControlFlow::Break(())
            }
        }
    })?;
    let seconds = first_token.map(|first: Instant| first.elapsed().as_secs_f64());
    if let Some(error) = write_error {
        return Err(error);
    }
    for (index, completion) in completions.iter().enumerate() {
        print_completion(
            args,
            options.sampling.seed,
            &prompt,
            index,
            completion,
            to_terminal,
        )?;
    }
    if !args.quiet {
        let seed = (options.sampling.temperature > 0.0).then_some(options.sampling.seed);
        let special = generator.tokenizer().special_tokens();
        print_notes(args, &completions, special, seed, seconds);
        if !args.json && !args.raw && formats_conversations(&dir.card) {
            let model = shell_quote(&args.model.display().to_string());
            output::eprint_line(&sanitize(&format!(
                "note: this model has a chat template, which `generate` does not use; talk to it with: {} chat {model}",
                program()
            )));
        }
    }
    Ok(())
}

fn options(args: &GenerateArgs) -> anyhow::Result<TextOptions> {
    let seed = args.seed.value();
    let sampling = SamplingConfig {
        repetition_penalty: args.repetition_penalty,
        presence_penalty: args.presence_penalty,
        frequency_penalty: args.frequency_penalty,
        ..args.sampling.config(seed)
    };
    sampling.validate()?;
    if args.stop.iter().any(String::is_empty) {
        return Err(exit::usage(
            "--stop must not be empty; hint: omit it to generate without stop strings",
        ));
    }
    Ok(TextOptions {
        sampling,
        max_tokens: args.max_tokens,
        stop: args.stop.clone(),
        prompt_template: args.raw.then(|| PROMPT_PLACEHOLDER.to_string()),
        ..TextOptions::default()
    })
}

/// Whether the model formats conversations, and prompts by themselves are not what it was trained on.
fn formats_conversations(card: &ModelCard) -> bool {
    card.chat_templates.contains_key(DEFAULT_TEMPLATE) && card.prompt_template.is_none()
}

/// Shows the prompt before its continuation on a terminal. It is not part of the output.
fn echo_prompt(prompt: &str) {
    if std::io::stdout().is_terminal() {
        output::eprint_progress(&sanitize(prompt));
    }
}

/// Sanitizes `text` if it is printed to a terminal.
fn for_output(text: &str, to_terminal: bool) -> String {
    if to_terminal {
        sanitize(text)
    } else {
        text.to_string()
    }
}

/// Prints the part of a completion that was not streamed.
fn print_completion(
    args: &GenerateArgs,
    seed: u64,
    prompt: &str,
    index: usize,
    completion: &Completion,
    to_terminal: bool,
) -> anyhow::Result<()> {
    if args.json {
        return output::print_json(&json!({
            "prompt": prompt, "text": completion.text, "finish_reason": completion.finish,
            "prompt_tokens": completion.prompt_ids.len(), "tokens": completion.ids.len(),
            "ids": completion.ids, "unknown": completion.unknown, "truncated": completion.truncated,
            "seed": seed, "sample": index, "peak_memory_bytes": nextword_model::peak_memory(),
        }));
    }
    if args.samples > 1 {
        output::print_line(&format!("=== {} of {}", index + 1, args.samples))?;
        output::print(&for_output(&completion.text, to_terminal))?;
    }
    if completion.text.ends_with('\n') {
        Ok(())
    } else {
        output::print("\n")
    }
}

/// Prints warnings and statistics to standard error. `seed` is `None` if nothing was random; `seconds` is
/// the time from the first token to the end.
fn print_notes(
    args: &GenerateArgs,
    completions: &[Completion],
    special: SpecialTokens,
    seed: Option<u64>,
    seconds: Option<f64>,
) {
    let Some(first) = completions.first() else {
        return;
    };
    if !first.unknown.is_empty() {
        let note = unknown_note("the prompt has text that is", &first.unknown, special);
        output::eprint_line(&format!("note: {note}"));
    }
    if first.truncated > 0 {
        output::eprint_line(&format!(
            "note: the prompt exceeds the model's context; dropped {} from its start",
            count(first.truncated as u64, "token")
        ));
    }
    let tokens: usize = completions
        .iter()
        .map(|completion| completion.ids.len())
        .sum();
    let reasons: Vec<String> = completions
        .iter()
        .map(|completion| finish_reason(&completion.finish, args))
        .collect();
    let reason = if reasons.iter().all(|r| *r == reasons[0]) {
        reasons[0].clone()
    } else {
        format!("finished: {}", reasons.join("; "))
    };
    let mut parts = vec![count(tokens as u64, "token")];
    parts.extend(decode_speed(tokens, completions.len(), seconds));
    parts.extend(seed.map(|seed| format!("seed {seed}")));
    output::eprint_line(&format!("[{reason}; {}]", parts.join(", ")));
}

/// Returns the speed of decoding: of all tokens but the first of each completion, which the prompt's
/// forward pass and the start take part in. `None` if there are too few.
fn decode_speed(tokens: usize, completions: usize, seconds: Option<f64>) -> Option<String> {
    let decoded = tokens.saturating_sub(completions);
    let seconds = seconds.filter(|seconds| decoded > 0 && *seconds > 0.0)?;
    Some(format!("{} tok/s", short(decoded as f64 / seconds)))
}

fn finish_reason(finish: &FinishReason, args: &GenerateArgs) -> String {
    match finish {
        FinishReason::Eos => "stopped at the EOS token".to_string(),
        FinishReason::Stop(text) => format!("stopped at {text:?}"),
        FinishReason::Length => format!("stopped after --max-tokens {}", args.max_tokens),
        FinishReason::ContextFull => "stopped: the context is full".to_string(),
        FinishReason::Cancelled => "cancelled".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speed_excludes_the_first_token() {
        assert_eq!(decode_speed(11, 1, Some(0.5)).as_deref(), Some("20 tok/s"));
        assert_eq!(decode_speed(20, 4, Some(0.5)).as_deref(), Some("32 tok/s"));
        assert_eq!(decode_speed(1, 1, Some(0.5)), None);
        assert_eq!(decode_speed(11, 1, None), None);
    }
}
