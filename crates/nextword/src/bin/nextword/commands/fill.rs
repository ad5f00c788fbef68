//! `nextword fill MODEL|RUN [TEXT]`.

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueHint};
use nextword_generate::{FilledText, TextGenerator};

use crate::args::{BaseArgs, MappingArgs};
use crate::format::sanitize;
use crate::{models, output, prompt};

/// `fill MODEL|RUN [TEXT]`.
#[derive(Debug, Args)]
pub(crate) struct FillArgs {
    /// Model folder, adapter folder, checkpoint or run folder of an encoder (of a run, the best model is used)
    #[arg(value_hint = ValueHint::AnyPath)]
    model: PathBuf,
    /// Text with blanks: ___ or the model's mask token stands for one token [default: standard input]
    text: Option<String>,
    /// Number of tokens to show for each blank
    #[arg(long, short = 'k', default_value_t = 5, value_name = "K")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=1000))]
    top_k: usize,
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
    /// Print JSON: the filled text, and the tokens of each blank with their probabilities
    #[arg(long)]
    json: bool,
}

/// Predicts the tokens in the blanks of a text.
pub(crate) fn run(args: &FillArgs) -> anyhow::Result<()> {
    let dir = args.mapping.apply(args.base.open(&args.model, args.last)?);
    let device = models::open_and_name_device(&args.device)?;
    let generator = TextGenerator::open(&dir, &device)?;
    let text = prompt::read(args.text.as_deref())?;
    let filled = generator.fill(&text, args.top_k)?;
    if args.json {
        return output::print_json(&filled);
    }
    let lines = lines(&filled);
    lines.iter().try_for_each(|line| output::print_line(line))
}

/// The filled text, then the candidates of each blank.
fn lines(filled: &FilledText) -> Vec<String> {
    let mut lines = vec![sanitize(&filled.text)];
    for (number, blank) in filled.blanks.iter().enumerate() {
        lines.push(String::new());
        if filled.blanks.len() > 1 {
            lines.push(format!("blank {}", number + 1));
        }
        for candidate in &blank.candidates {
            let text = sanitize(candidate.text.trim());
            lines.push(format!("  {:5.1} %  {text}", 100.0 * candidate.probability));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use nextword_generate::{Blank, FillCandidate};

    use super::*;

    #[test]
    fn each_blank_has_a_line_for_each_candidate() {
        let candidate = |text: &str, probability| FillCandidate {
            id: 1,
            text: text.to_string(),
            probability,
        };
        let blank = Blank {
            position: 1,
            candidates: vec![candidate(" cat", 0.75), candidate(" dog", 0.2)],
        };
        let mut filled = FilledText {
            text: "the cat sat".to_string(),
            blanks: vec![blank.clone()],
        };
        let expected = ["the cat sat", "", "   75.0 %  cat", "   20.0 %  dog"];
        assert_eq!(lines(&filled), expected);
        filled.blanks.push(blank);
        assert_eq!(lines(&filled).len(), 9);
        assert_eq!(lines(&filled)[6], "blank 2");
    }
}
