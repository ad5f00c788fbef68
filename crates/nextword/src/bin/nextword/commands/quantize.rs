//! `nextword quantize MODEL --out FOLDER`.

use std::fs;
use std::path::PathBuf;

use clap::{Args, ValueHint};
use nextword_model::{Architecture, BaseModel, Bits, ModelDir};
use serde_json::json;

use crate::args::{BaseArgs, parse_bits};
use crate::commands::merge::{merged_change, refuse_quantized_base};
use crate::format::bytes;
use crate::{exit, models, output, output_file};

/// `quantize MODEL|RUN --out FOLDER`.
#[derive(Debug, Args)]
pub(crate) struct QuantizeArgs {
    /// Model folder, adapter folder, checkpoint, run folder (the run's best model is used), or GGUF file
    #[arg(value_hint = ValueHint::AnyPath)]
    model: PathBuf,
    /// Output folder
    #[arg(long, short, value_hint = ValueHint::DirPath)]
    out: PathBuf,
    /// Bits per weight: 8, plus half a bit for the scales, or 4, plus a bit for scales and minimums
    #[arg(long, default_value = "8", value_name = "N", value_parser = parse_bits)]
    bits: Bits,
    /// Bits per weight of token embedding and output layer: 8 or 4; with 4, the loss grows more than by
    /// all other weights
    #[arg(long, default_value = "8", value_name = "N", value_parser = parse_bits)]
    embedding_bits: Bits,
    #[command(flatten)]
    base: BaseArgs,
    /// Use a run's last model instead of its best
    #[arg(long)]
    last: bool,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

/// Writes a copy of a model with weights of 8 or 4 bits.
pub(crate) fn run(args: &QuantizeArgs) -> anyhow::Result<()> {
    let dir = args.base.open(&args.model, args.last)?;
    refuse_quantized_base(&dir)?;
    if dir.bits()?.0.is_some() {
        return Err(exit::usage(format!(
            "`{}` is already quantized; hint: pass the original model",
            dir.path.display()
        )));
    }
    output_file::check_folder(&args.out)?;
    if args.out.exists() {
        return Err(exit::usage(format!(
            "`{}` already exists; hint: choose another folder with --out, or remove it",
            args.out.display()
        )));
    }
    dir.card.check_templates()?;
    let file = dir.tokenizer_path();
    let tokenizer = match dir.tokenizer_json() {
        Some(json) => json.to_string(),
        None => fs::read_to_string(&file)
            .map_err(|e| exit::bad_file(format!("cannot read `{}`: {e}", file.display())))?,
    };
    let model = dir.load(&models::open_device("flex")?)?;
    let mut card = dir.card.clone();
    if let (Some(base), Some(adapter)) = (dir.base(), model.adapter()) {
        card.merged_change = merged_change(&adapter, base)?;
    }
    let full = model.into_merged()?;
    let model = full.clone().quantize_with(args.bits, args.embedding_bits);
    let lost = lost_adapter(card.merged_change, || full.rounding_error(&model));
    drop(full);
    if dir.base().is_none() {
        card.made_from = Some(BaseModel::of(&dir)?.weights_sha256);
    }
    ModelDir::save(&args.out, &model, &tokenizer, &card)?;
    let size = |path| fs::metadata(path).map_or(0, |file| file.len());
    let (before, after) = (
        size(dir.weights_path()),
        size(args.out.join("model.safetensors")),
    );
    let number = |bits| match bits {
        Bits::Int8 => 8,
        Bits::Int4 => 4,
    };
    let (bits, embedding_bits) = (number(args.bits), number(args.embedding_bits));
    if args.json {
        return output::print_json(&json!({
            "path": args.out, "bits": bits, "embedding_bits": embedding_bits, "bytes_before": before,
            "bytes": after,
        }));
    }
    let embedding = if bits == embedding_bits {
        String::new()
    } else {
        format!(" ({embedding_bits} in embedding and output layer)")
    };
    output::print_line(&format!(
        "{}: {bits} bits per weight{embedding}, {} (was {})",
        args.out.display(),
        bytes(after),
        bytes(before)
    ))?;
    if let Some(warning) = lost {
        output::eprint_line(&format!("warning: {warning}"));
    }
    output::eprint_line(&next_command(dir.config.architecture, args));
    Ok(())
}

/// What to do next with a quantized model of this architecture.
fn next_command(architecture: Architecture, args: &QuantizeArgs) -> String {
    let (out, model) = (args.out.display(), args.model.display());
    match architecture {
        Architecture::Decoder | Architecture::Prefix => {
            format!("compare with the original: nextword eval {out} TEXT --against {model}")
        }
        Architecture::Encoder => {
            format!(
                "compare with the original: nextword fill {out} TEXT, nextword fill {model} TEXT"
            )
        }
        Architecture::EncoderDecoder => format!(
            "compare with the original: nextword generate {out} TEXT --temperature 0, nextword generate {model} TEXT \
             --temperature 0"
        ),
    }
}

/// The warning if rounding changes the weights more than the adapter that was merged into them did, both relative to
/// the weights.
fn lost_adapter(change: Option<f64>, rounding_error: impl FnOnce() -> f64) -> Option<String> {
    let change = change?;
    let error = rounding_error();
    (error > change).then(|| {
        format!(
            "rounding changes the weights by {:.2} %, the adapter that was merged into them by {:.2} % only, so that much \
             of its effect may be lost; hint: use --bits 8, or quantize the base and train an adapter of it",
            100.0 * error,
            100.0 * change
        )
    })
}

#[cfg(test)]
mod tests {
    use super::lost_adapter;

    #[test]
    fn only_a_change_below_the_rounding_error_is_warned_of() {
        assert_eq!(lost_adapter(None, || 1.0), None);
        assert_eq!(lost_adapter(Some(0.02), || 0.01), None);
        let warning = lost_adapter(Some(0.004), || 0.08).unwrap_or_default();
        assert!(
            warning.contains("8.00 %") && warning.contains("0.40 %"),
            "{warning}"
        );
    }
}
