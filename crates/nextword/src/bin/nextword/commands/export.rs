//! `nextword export MODEL --format hf|gguf --out PATH`.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum, ValueHint};
use nextword_convert::{
    GgufType, export_gguf, export_gguf_lora, export_gguf_with_embedding, export_hf, export_peft,
    export_peft_with_base_name, find_base, gguf_differences, hf_differences,
};
use nextword_model::AdapterDir;
use nextword_model::weights::FloatType;

use crate::args::BaseArgs;
use crate::commands::merge::refuse_quantized_base;
use crate::format::sanitize;
use crate::output_file::{self, ForceArgs, Kind};
use crate::{exit, models, output};

/// `export MODEL|RUN|ADAPTER --format hf|gguf|peft|gguf-lora --out PATH`.
#[derive(Debug, Args)]
#[allow(clippy::doc_markdown)] // Doc comments are help texts, shown verbatim.
pub(crate) struct ExportArgs {
    /// Model folder, adapter folder, checkpoint, run folder (the run's best model is used), or GGUF file; for peft and
    /// gguf-lora an adapter folder, or a run that trained an adapter
    #[arg(value_hint = ValueHint::AnyPath)]
    model: PathBuf,
    /// Target format
    #[arg(long, short, value_enum)]
    format: ExportFormat,
    /// Data type of the weights: f32, f16, bf16; for gguf also q8_0, q4_0, q4_1. In a gguf file, quantized
    /// matrices keep their blocks
    #[arg(long, value_enum, default_value = "f32", value_name = "TYPE")]
    dtype: ExportDtype,
    /// Data type of token embedding and output layer in a gguf file [default: q8_0 for q4_0 and q4_1,
    /// otherwise that of the weights]
    #[arg(long, value_enum, value_name = "TYPE")]
    embedding_dtype: Option<ExportDtype>,
    /// Folder (hf, peft) or file (gguf, gguf-lora) to write
    #[arg(long, short, value_hint = ValueHint::AnyPath)]
    out: PathBuf,
    #[command(flatten)]
    force: ForceArgs,
    #[command(flatten)]
    base: BaseArgs,
    /// Name or path under which PEFT finds the base model: a repository of the Hugging Face Hub or a folder (peft)
    /// [default: the repository that the base was downloaded from, else its name]
    #[arg(long, value_name = "NAME")]
    base_name: Option<String>,
    /// Use a run's last model instead of its best
    #[arg(long)]
    last: bool,
}

/// Target formats of `export`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ExportFormat {
    /// Folder for Hugging Face transformers
    Hf,
    /// File for llama.cpp
    Gguf,
    /// Folder of an adapter for PEFT and vLLM
    Peft,
    /// File of an adapter for llama.cpp's --lora
    GgufLora,
}

impl ExportFormat {
    fn is_folder(self) -> bool {
        matches!(self, Self::Hf | Self::Peft)
    }

    fn is_adapter(self) -> bool {
        matches!(self, Self::Peft | Self::GgufLora)
    }
}

/// Data types of an exported model's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(non_camel_case_types)] // GGUF's own names.
enum ExportDtype {
    /// 32-bit float
    F32,
    /// 16-bit float, 11 significant bits
    F16,
    /// 16-bit float, 8 significant bits and the range of f32
    Bf16,
    /// 8-bit blocks of 32 weights with a scale
    #[value(name = "q8_0")]
    Q8_0,
    /// 4-bit blocks of 32 weights with a scale; token embedding and output layer have 8 bits
    #[value(name = "q4_0")]
    Q4_0,
    /// 4-bit blocks of 32 weights with a scale and a minimum; token embedding and output layer have 8 bits
    #[value(name = "q4_1")]
    Q4_1,
}

impl ExportDtype {
    fn to_gguf(self) -> GgufType {
        match self {
            Self::F32 => GgufType::F32,
            Self::F16 => GgufType::F16,
            Self::Bf16 => GgufType::Bf16,
            Self::Q8_0 => GgufType::Q8_0,
            Self::Q4_0 => GgufType::Q4_0,
            Self::Q4_1 => GgufType::Q4_1,
        }
    }
}

/// The error of a base name for another format.
const BASE_NAME_FORMATS: &str = "--base-name applies only to --format peft; hint: leave it out";

/// Writes a model in another program's format.
pub(crate) fn run(args: &ExportArgs) -> anyhow::Result<()> {
    if args.format.is_folder() {
        if args.force.force {
            let hint = "--force applies only to formats that are one file, gguf and gguf-lora; hint: leave it out";
            return Err(exit::usage(hint));
        }
        output_file::check_folder(&args.out)?;
    } else {
        output_file::check(&args.out, Kind::Gguf, args.force)?;
    }
    if args.format.is_adapter() {
        return export_adapter(args);
    }
    if args.base_name.is_some() {
        return Err(exit::usage(BASE_NAME_FORMATS));
    }
    let dir = args.base.open(&args.model, args.last)?;
    refuse_quantized_base(&dir)?;
    let out = args.out.display();
    match args.format {
        ExportFormat::Hf if args.embedding_dtype.is_some() => {
            let hint = "--embedding-dtype applies only to --format gguf; hint: leave it out";
            return Err(exit::usage(hint));
        }
        ExportFormat::Hf => {
            let dtype = match args.dtype {
                ExportDtype::F32 => FloatType::F32,
                ExportDtype::F16 => FloatType::F16,
                ExportDtype::Bf16 => FloatType::Bf16,
                ExportDtype::Q8_0 | ExportDtype::Q4_0 | ExportDtype::Q4_1 => {
                    let hint = "Hugging Face folders support only f32, f16 and bf16; hint: use --format gguf";
                    return Err(exit::usage(hint));
                }
            };
            let kind = export_hf(&dir, dtype, &args.out)?;
            output::eprint_line(&format!("{out}: a `{kind}` model for transformers"));
            print_notes(&hf_differences(&dir)?);
        }
        _ => {
            let dtype = args.dtype.to_gguf();
            let kind = match args.embedding_dtype {
                None => export_gguf(&dir, dtype, &args.out)?,
                Some(embedding) => {
                    export_gguf_with_embedding(&dir, dtype, embedding.to_gguf(), &args.out)?
                }
            };
            output::eprint_line(&format!("{out}: a `{kind}` model for llama.cpp"));
            print_notes(&gguf_differences(&dir)?);
        }
    }
    Ok(())
}

/// Writes an adapter in another program's format.
fn export_adapter(args: &ExportArgs) -> anyhow::Result<()> {
    if args.dtype != ExportDtype::F32 || args.embedding_dtype.is_some() {
        let hint = "adapters are exported in f32; hint: leave out --dtype and --embedding-dtype";
        return Err(exit::usage(hint));
    }
    let adapter = open_adapter(&args.model, args.last)?;
    let base = find_base(&adapter, args.base.path())?;
    let out = args.out.display();
    if args.format == ExportFormat::GgufLora {
        if args.base_name.is_some() {
            return Err(exit::usage(BASE_NAME_FORMATS));
        }
        let kind = export_gguf_lora(&adapter, &base, &args.out)?;
        output::eprint_line(&format!(
            "{out}: an adapter of a `{kind}` model for llama.cpp"
        ));
        return Ok(());
    }
    let exported = match &args.base_name {
        Some(name) => export_peft_with_base_name(&adapter, &base, name, &args.out)?,
        None => export_peft(&adapter, &base, &args.out)?,
    };
    let kind = exported.model_type;
    output::eprint_line(&format!("{out}: an adapter of a `{kind}` model for PEFT"));
    if args.base_name.is_none() && base.card.origin.is_none() {
        output::eprint_line(&sanitize(&format!(
            "note: PEFT looks for the base model as `{}`; --base-name NAME writes the folder or the repository where \
             it will be, such as what `nextword export {} --format hf` writes",
            adapter.base.name,
            base.path.display()
        )));
    }
    print_notes(&exported.notes);
    Ok(())
}

fn print_notes(notes: &[String]) {
    for note in notes {
        output::eprint_line(&sanitize(&format!("note: {note}")));
    }
}

/// Opens the adapter folder `path`, or the adapter of the run `path`.
fn open_adapter(path: &Path, last: bool) -> anyhow::Result<AdapterDir> {
    let order = if last {
        ["last", "best"]
    } else {
        ["best", "last"]
    };
    let in_run = order.map(|name| path.join(name));
    let mut folders = [path.to_path_buf()].into_iter().chain(in_run);
    let Some(folder) = folders.find(|folder| AdapterDir::is_adapter(folder)) else {
        if !path.exists() {
            return Err(models::missing(path, "an adapter, or the run of one"));
        }
        return Err(exit::usage(format!(
            "`{}` is not an adapter (adapter.json is missing); hint: export a model with --format hf or gguf",
            path.display()
        )));
    };
    Ok(AdapterDir::open(&folder)?)
}
