//! `nextword quantize MODEL --out FOLDER`.

use std::fs;
use std::path::{Path, PathBuf};

use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueHint};
use nextword_data::{Packing, SourceConfig, Sources};
use nextword_eval::{input_squares, text_windows};
use nextword_generate::open_tokenizer;
use nextword_model::{Architecture, BaseModel, Bits, InputSquares, ModelDir, Transformer};
use serde_json::json;

use crate::args::{BaseArgs, MappingArgs, parse_bits};
use crate::commands::eval::ProgressLine;
use crate::commands::merge::{merged_change, refuse_quantized_base};
use crate::format::bytes;
use crate::{exit, models, output, output_file};

/// Tokens of a window of the text of `--calibrate`.
const CALIBRATION_WINDOW: usize = 512;

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
    /// Calibration text like that which the model will read, .txt or .jsonl: with 4 bits, rounding minimizes the error of
    /// the layers' outputs on it; token embedding and output layer are not calibrated
    #[arg(long, value_name = "FILE", value_hint = ValueHint::AnyPath)]
    calibrate: Option<PathBuf>,
    /// Maximum number of calibration tokens, from windows spread evenly over the text
    #[arg(
        long,
        value_name = "N",
        default_value_t = 32_768,
        requires = "calibrate"
    )]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    calibration_tokens: usize,
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    mapping: MappingArgs,
    /// Use a run's last model instead of its best
    #[arg(long)]
    last: bool,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

/// Writes a copy of a model with weights of 8 or 4 bits.
pub(crate) fn run(args: &QuantizeArgs) -> anyhow::Result<()> {
    let dir = args.mapping.apply(args.base.open(&args.model, args.last)?);
    refuse_quantized_base(&dir)?;
    if dir.bits()?.0.is_some() {
        return Err(exit::usage(format!(
            "`{}` is already quantized; hint: pass the original model",
            dir.path.display()
        )));
    }
    if args.calibrate.is_some() {
        check_calibration(args, &dir)?;
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
    let inputs = match &args.calibrate {
        Some(file) => {
            let inputs = calibrate(args, file, &full, &dir)?;
            let name = file.file_name().unwrap_or(file.as_os_str());
            let tokens = inputs.tokens();
            card.calibrated_on = Some(format!("{} ({tokens} tokens)", name.to_string_lossy()));
            inputs
        }
        None => InputSquares::default(),
    };
    let model = full
        .clone()
        .quantize_for_inputs(args.bits, args.embedding_bits, &inputs);
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
    let (bits, embedding_bits) = (args.bits.number(), args.embedding_bits.number());
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

/// Refuses a calibration that would have no effect, or is not possible.
fn check_calibration(args: &QuantizeArgs, dir: &ModelDir) -> anyhow::Result<()> {
    if args.bits != Bits::Int4 {
        return Err(exit::usage(
            "--calibrate requires --bits 4, because 8-bit weights are rounded without a search; hint: add --bits 4, or \
             leave out --calibrate",
        ));
    }
    let supported = [Architecture::Decoder, Architecture::Prefix];
    Ok(dir.config.require(&supported, "be calibrated on a text")?)
}

/// Runs `model` over the text of `--calibrate`.
fn calibrate(
    args: &QuantizeArgs,
    file: &Path,
    model: &Transformer,
    dir: &ModelDir,
) -> anyhow::Result<InputSquares> {
    let sources = Sources::open(&SourceConfig {
        paths: vec![file.to_path_buf()],
        ..SourceConfig::default()
    })?;
    let tokenizer = open_tokenizer(dir)?;
    let windows = text_windows(
        &*tokenizer,
        &dir.card.special,
        sources.chunks_for(tokenizer.text_cuts()),
        Packing::Packed,
        CALIBRATION_WINDOW
            .min(dir.config.context_length)
            .min(args.calibration_tokens),
    )?;
    let mut progress = ProgressLine::new();
    let inputs = input_squares(model, windows, args.calibration_tokens, &mut |step| {
        progress.update(step);
    });
    output::eprint_progress("");
    Ok(inputs?)
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
