//! `nextword export RECORD --format hf|gguf --out PATH`.

use nextword_convert::{GgufType, export_gguf, export_hf};
use nextword_model::weights::FloatType;

use crate::args::{ExportArgs, ExportFormat, ExportType};
use crate::{exit, output, records};

/// Writes a record in another program's format.
pub(crate) fn run(args: &ExportArgs) -> anyhow::Result<()> {
    let record = records::open(&args.model, args.last)?;
    let shown = args.out.display();
    match args.format {
        ExportFormat::Hf => {
            let float = match args.dtype {
                ExportType::F32 => FloatType::F32,
                ExportType::F16 => FloatType::F16,
                ExportType::Bf16 => FloatType::Bf16,
                ExportType::Q8_0 | ExportType::Q4_0 => {
                    let hint = "a Hugging Face folder holds f32, f16 or bf16; hint: --format gguf";
                    return Err(exit::usage(hint));
                }
            };
            let kind = export_hf(&record, float, &args.out)?;
            output::note(&format!("{shown}: a `{kind}` model for transformers"));
        }
        ExportFormat::Gguf => {
            let numbers = match args.dtype {
                ExportType::F32 => GgufType::F32,
                ExportType::F16 => GgufType::F16,
                ExportType::Bf16 => GgufType::Bf16,
                ExportType::Q8_0 => GgufType::Q8_0,
                ExportType::Q4_0 => GgufType::Q4_0,
            };
            let kind = export_gguf(&record, numbers, &args.out)?;
            output::note(&format!("{shown}: a `{kind}` model for llama.cpp"));
        }
    }
    Ok(())
}
