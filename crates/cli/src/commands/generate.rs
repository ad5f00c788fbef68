//! `nextword generate RECORD|RUN [PROMPT]`.

use std::io::{IsTerminal, Read};
use std::ops::ControlFlow;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use nextword_generate::{Answer, FinishReason, PROMPT, SamplingConfig, TextGenerator, TextOptions};
use serde_json::json;

use crate::args::GenerateArgs;
use crate::bench::machine;
use crate::format::{harmless, short};
use crate::{exit, output, records};

/// Unknown characters that are shown in a notice.
const SHOWN: usize = 10;

/// Continues a prompt.
pub(crate) fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    let options = options(args)?;
    let record = records::open(&args.model, args.last)?;
    let device = records::device(&args.device)?;
    let generator = TextGenerator::open(&record, &device)?;
    let prompt = prompt(args)?;
    let prompts = vec![prompt.as_str(); args.samples];
    let streams = args.samples == 1 && !args.json;
    if streams && options.prompt_template.is_none() && record.card.prompt_template.is_none()
        || streams && args.raw
    {
        echo(&prompt);
    }

    let begin = Instant::now();
    let to_terminal = std::io::stdout().is_terminal();
    let mut trouble = None;
    let answers = generator.generate(&prompts, &options, |_, piece| {
        if !streams {
            return ControlFlow::Continue(());
        }
        match output::text(&shown(piece, to_terminal)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => {
                trouble = Some(e);
                ControlFlow::Break(())
            }
        }
    })?;
    let seconds = begin.elapsed().as_secs_f64();
    if let Some(error) = trouble {
        return Err(error);
    }
    for (number, answer) in answers.iter().enumerate() {
        write(
            args,
            options.sampling.seed,
            &prompt,
            number,
            answer,
            to_terminal,
        )?;
    }
    if !args.quiet {
        notices(args, &answers, options.sampling.seed, seconds);
    }
    Ok(())
}

fn options(args: &GenerateArgs) -> anyhow::Result<TextOptions> {
    let seed = args.seed.unwrap_or_else(new_seed);
    let sampling = SamplingConfig {
        repetition_penalty: args.repetition_penalty,
        presence_penalty: args.presence_penalty,
        frequency_penalty: args.frequency_penalty,
        ..args.cuts.sampling(args.temperature, seed)
    };
    sampling.validate()?;
    if args.stop.iter().any(String::is_empty) {
        return Err(exit::usage(
            "--stop is empty; hint: leave it out to stop nowhere",
        ));
    }
    Ok(TextOptions {
        sampling,
        max_tokens: args.max_tokens,
        stop: args.stop.clone(),
        prompt_template: args.raw.then(|| PROMPT.to_string()),
        ..TextOptions::default()
    })
}

/// Another one each time, short enough to be typed again.
pub(crate) fn new_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::from(now.subsec_nanos()) ^ now.as_secs()) % 1_000_000
}

fn prompt(args: &GenerateArgs) -> anyhow::Result<String> {
    if let Some(prompt) = &args.prompt {
        return Ok(prompt.clone());
    }
    let mut input = std::io::stdin().lock();
    if input.is_terminal() {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    input.read_to_end(&mut bytes)?;
    let mut text = String::from_utf8(bytes).map_err(|e| {
        let place = e.utf8_error().valid_up_to();
        exit::bad_file(format!(
            "the prompt on standard input is no UTF-8 text (byte {place}); hint: give it as an argument"
        ))
    })?;
    // `echo` and editors end a text with a line break that nobody means.
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

/// Shows the prompt before its continuation to a reader at a terminal, and keeps it out of the
/// result.
fn echo(prompt: &str) {
    if std::io::stdout().is_terminal() {
        output::progress(&harmless(prompt));
    }
}

fn shown(text: &str, to_terminal: bool) -> String {
    if to_terminal {
        harmless(text)
    } else {
        text.to_string()
    }
}

/// Writes what was not streamed of an answer.
fn write(
    args: &GenerateArgs,
    seed: u64,
    prompt: &str,
    number: usize,
    answer: &Answer,
    to_terminal: bool,
) -> anyhow::Result<()> {
    if args.json {
        return output::json(&json!({
            "prompt": prompt, "text": answer.text, "finish_reason": answer.finish,
            "prompt_tokens": answer.prompt_ids.len(), "tokens": answer.ids.len(),
            "ids": answer.ids, "unknown": answer.unknown, "truncated": answer.truncated,
            "seed": seed, "sample": number, "peak_memory_bytes": machine::peak_memory(),
        }));
    }
    if args.samples > 1 {
        output::line(&format!("=== {} of {}", number + 1, args.samples))?;
        output::text(&shown(&answer.text, to_terminal))?;
    }
    if answer.text.ends_with('\n') {
        Ok(())
    } else {
        output::text("\n")
    }
}

/// What the reader should know beside the text.
fn notices(args: &GenerateArgs, answers: &[Answer], seed: u64, seconds: f64) {
    let Some(first) = answers.first() else { return };
    if !first.unknown.is_empty() {
        output::note(&unknown_notice(&first.unknown));
    }
    if first.truncated > 0 {
        output::note(&format!(
            "note: the prompt is longer than the model's context; its first {} tokens were left out",
            first.truncated
        ));
    }
    let tokens: usize = answers.iter().map(|answer| answer.ids.len()).sum();
    let reasons: Vec<String> = answers.iter().map(|a| reason(&a.finish, args)).collect();
    let reason = if reasons.iter().all(|r| *r == reasons[0]) {
        reasons[0].clone()
    } else {
        format!("stopped each: {}", reasons.join("; "))
    };
    output::note(&format!(
        "[{reason}; {tokens} tokens, {} tok/s, seed {seed}]",
        short(tokens as f64 / seconds.max(1e-9))
    ));
}

fn reason(finish: &FinishReason, args: &GenerateArgs) -> String {
    match finish {
        FinishReason::Eos => "stopped at the end token".to_string(),
        FinishReason::Stop(text) => format!("stopped at {text:?}"),
        FinishReason::Length => format!("stopped after --max-tokens {}", args.max_tokens),
        FinishReason::ContextFull => "stopped: the context is full".to_string(),
        FinishReason::Cancelled => "cancelled".to_string(),
    }
}

fn unknown_notice(unknown: &[String]) -> String {
    let shown: Vec<String> = unknown
        .iter()
        .take(SHOWN)
        .map(|piece| format!("{piece:?}"))
        .collect();
    let more = match unknown.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "note: the model's vocabulary does not have {}{more}; left out or replaced by the unknown token",
        shown.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_names_unknown_pieces_and_counts_the_rest() {
        let unknown: Vec<String> = (0..12).map(|n| format!("é{n}")).collect();
        let notice = unknown_notice(&unknown);
        assert!(notice.contains("\"é0\", \"é1\""), "{notice}");
        assert!(notice.contains("and 2 more"), "{notice}");
        assert!(!unknown_notice(&unknown[..1]).contains("more"));
    }
}
