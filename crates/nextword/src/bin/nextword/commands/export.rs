//! `nextword export MODEL --format hf|gguf --out PATH`.

use nextword_convert::{GgufType, export_gguf, export_hf};
use nextword_model::weights::FloatType;

use crate::args::{ExportArgs, ExportDtype, ExportFormat};
use crate::{exit, models, output};

/// Writes a model in another program's format.
pub(crate) fn run(args: &ExportArgs) -> anyhow::Result<()> {
    let dir = models::open(&args.model, args.last)?;
    let out = args.out.display();
    match args.format {
        ExportFormat::Hf => {
            let dtype = match args.dtype {
                ExportDtype::F32 => FloatType::F32,
                ExportDtype::F16 => FloatType::F16,
                ExportDtype::Bf16 => FloatType::Bf16,
                ExportDtype::Q8_0 | ExportDtype::Q4_0 => {
                    let hint = "Hugging Face folders support only f32, f16 and bf16; hint: use --format gguf";
                    return Err(exit::usage(hint));
                }
            };
            let kind = export_hf(&dir, dtype, &args.out)?;
            output::eprint_line(&format!("{out}: a `{kind}` model for transformers"));
        }
        ExportFormat::Gguf => {
            let dtype = match args.dtype {
                ExportDtype::F32 => GgufType::F32,
                ExportDtype::F16 => GgufType::F16,
                ExportDtype::Bf16 => GgufType::Bf16,
                ExportDtype::Q8_0 => GgufType::Q8_0,
                ExportDtype::Q4_0 => GgufType::Q4_0,
            };
            let kind = export_gguf(&dir, dtype, &args.out)?;
            output::eprint_line(&format!("{out}: a `{kind}` model for llama.cpp"));
        }
    }
    Ok(())
}
