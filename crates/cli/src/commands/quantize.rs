//! `nextword quantize RECORD --out FOLDER`.

use std::fs;

use nextword_model::{Bits, Record, weights};
use serde_json::json;

use crate::args::QuantizeArgs;
use crate::format::bytes;
use crate::{exit, output, records};

/// Writes a record with the same model in 8 or 4 bits a weight.
pub(crate) fn run(args: &QuantizeArgs) -> anyhow::Result<()> {
    let record = records::open(&args.model, args.last)?;
    let file = record.weights_path();
    if weights::bits(&file)?.is_some() {
        return Err(exit::usage(format!(
            "`{}` is quantized already; hint: give the record that it was made from",
            record.path.display()
        )));
    }
    if args.out.exists() {
        return Err(exit::usage(format!(
            "`{}` is there already; hint: name another folder with --out, or remove it",
            args.out.display()
        )));
    }
    let tokenizer = record.tokenizer_path();
    let tokenizer = fs::read_to_string(&tokenizer)
        .map_err(|e| exit::bad_file(format!("`{}`: cannot read: {e}", tokenizer.display())))?;
    let model = record.load(&records::device("flex")?)?;
    let model = model.quantize(bits(args.bits));
    Record::save(&args.out, &model, &tokenizer, &record.card)?;
    let size = |path| fs::metadata(path).map_or(0, |file| file.len());
    let (before, after) = (size(file), size(args.out.join("model.safetensors")));
    if args.json {
        return output::json(&json!({
            "path": args.out, "bits": args.bits, "bytes_before": before, "bytes": after,
        }));
    }
    output::line(&format!(
        "{}: {} bits a weight, {} of {}",
        args.out.display(),
        args.bits,
        bytes(after),
        bytes(before)
    ))?;
    output::note(&format!(
        "what it costs: nextword eval {} TEXT --against {}",
        args.out.display(),
        args.model.display()
    ));
    Ok(())
}

/// 8 or 4, as the command line has checked.
pub(crate) fn bits(number: u8) -> Bits {
    match number {
        4 => Bits::Int4,
        _ => Bits::Int8,
    }
}
