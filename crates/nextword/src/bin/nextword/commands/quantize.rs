//! `nextword quantize MODEL --out FOLDER`.

use std::fs;

use nextword_model::{Bits, ModelDir, weights};
use serde_json::json;

use crate::args::QuantizeArgs;
use crate::format::bytes;
use crate::{exit, models, output};

/// Writes a copy of a model with weights of 8 or 4 bits.
pub(crate) fn run(args: &QuantizeArgs) -> anyhow::Result<()> {
    let dir = models::open(&args.model, args.last)?;
    let file = dir.weights_path();
    if weights::bits(&file)?.is_some() {
        return Err(exit::usage(format!(
            "`{}` is already quantized; hint: pass the original model",
            dir.path.display()
        )));
    }
    if args.out.exists() {
        return Err(exit::usage(format!(
            "`{}` already exists; hint: choose another folder with --out, or remove it",
            args.out.display()
        )));
    }
    let tokenizer = dir.tokenizer_path();
    let tokenizer = fs::read_to_string(&tokenizer)
        .map_err(|e| exit::bad_file(format!("cannot read `{}`: {e}", tokenizer.display())))?;
    let model = dir.load(&models::open_device("flex")?)?;
    let model = model.quantize(bits(args.bits));
    ModelDir::save(&args.out, &model, &tokenizer, &dir.card)?;
    let size = |path| fs::metadata(path).map_or(0, |file| file.len());
    let (before, after) = (size(file), size(args.out.join("model.safetensors")));
    if args.json {
        return output::print_json(&json!({
            "path": args.out, "bits": args.bits, "bytes_before": before, "bytes": after,
        }));
    }
    output::print_line(&format!(
        "{}: {} bits per weight, {} (was {})",
        args.out.display(),
        args.bits,
        bytes(after),
        bytes(before)
    ))?;
    output::eprint_line(&format!(
        "compare with the original: nextword eval {} TEXT --against {}",
        args.out.display(),
        args.model.display()
    ));
    Ok(())
}

/// Converts a number of bits that the command line has checked: 8 or 4.
pub(crate) fn bits(number: u8) -> Bits {
    match number {
        4 => Bits::Int4,
        _ => Bits::Int8,
    }
}
