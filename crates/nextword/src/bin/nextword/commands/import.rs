//! `nextword import FOLDER|FILE|hf:OWNER/NAME --out MODEL`.

use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use nextword_convert::{ImportOptions, import_peft, is_peft_folder};
use nextword_hub::HubReference;
use serde_json::json;

use crate::console::{program, shell_quote};
use crate::format::{count, sanitize};
use crate::{exit, hub_models, models, output, output_file};

/// `import FOLDER|FILE|hf:OWNER/NAME --out MODEL`.
#[derive(Debug, Args)]
#[allow(clippy::doc_markdown)] // Doc comments are help texts, shown verbatim.
pub(crate) struct ImportArgs {
    /// Folder with config.json, model.safetensors (or its shards and index) and tokenizer.json; a GGUF file; a
    /// model on the Hugging Face Hub, hf:OWNER/NAME[@REVISION][:FILE], which is downloaded into Hugging Face's cache;
    /// or the folder of a PEFT adapter, with adapter_config.json and adapter_model.safetensors
    #[arg(value_name = "FOLDER|FILE|hf:OWNER/NAME", value_hint = ValueHint::AnyPath)]
    source: PathBuf,
    /// Model folder (of an adapter, adapter folder) to write; an existing one is replaced
    #[arg(long, short, value_name = "MODEL", value_hint = ValueHint::DirPath)]
    out: PathBuf,
    /// Print the imported model's details as JSON
    #[arg(long)]
    json: bool,
    /// Write the quantized matrices of a GGUF file as floats, to train the model further
    #[arg(long)]
    dequantize: bool,
    /// Model that a PEFT adapter was trained on
    #[arg(long, value_name = "MODEL", value_hint = ValueHint::AnyPath)]
    base: Option<PathBuf>,
}

/// Converts a Hugging Face folder or a GGUF file into a model folder. A model on the Hub is downloaded first.
pub(crate) fn run(args: &ImportArgs) -> anyhow::Result<()> {
    output_file::check_folder(&args.out)?;
    if is_peft_folder(&args.source) {
        return import_adapter(args);
    }
    if args.base.is_some() {
        let problem = "--base applies only to the folder of a PEFT adapter, with adapter_config.json; hint: leave it out";
        return Err(exit::usage(problem));
    }
    let mut options = ImportOptions {
        origin: None,
        dequantize: args.dequantize,
    };
    let imported = match args
        .source
        .to_str()
        .filter(|text| HubReference::is_reference(text))
    {
        Some(text) => {
            let (path, origin) = hub_models::download(&text.parse()?, &args.out)?;
            options.origin = Some(origin);
            nextword_convert::import_with(&path, &args.out, &options)?
        }
        None => nextword_convert::import_with(&args.source, &args.out, &options)?,
    };
    if args.json {
        return output::print_json(&json!({
            "path": args.out, "model_type": imported.model_type, "config": imported.config,
            "card": imported.card, "chat_template": imported.has_chat_template,
            "guessed_eos": imported.guessed_eos,
            "eos_outside_vocabulary": imported.eos_outside_vocabulary,
        }));
    }
    let outside = &imported.eos_outside_vocabulary;
    if !outside.is_empty() {
        let outside: Vec<String> = outside.iter().map(ToString::to_string).collect();
        output::eprint_line(&format!(
            "note: EOS ids outside the vocabulary are left out: {}",
            outside.join(", ")
        ));
    }
    if let Some(eos) = &imported.guessed_eos {
        output::eprint_line(&sanitize(&format!(
            "note: no file of the folder declares an EOS token; `{eos}` is used because of its name"
        )));
    }
    let (chat, next, prompt) = if imported.has_chat_template {
        (", with its chat template", "chat", "")
    } else {
        ("", "generate", " 'Once upon a time'")
    };
    output::eprint_line(&sanitize(&format!(
        "{}: {} ({}{chat}); next: {} {next} {}{prompt}",
        args.out.display(),
        count(imported.card.parameters, "parameter"),
        imported.model_type,
        program(),
        shell_quote(&args.out.display().to_string()),
    )));
    Ok(())
}

/// Converts the folder of a PEFT adapter into an adapter folder.
fn import_adapter(args: &ImportArgs) -> anyhow::Result<()> {
    let Some(base) = &args.base else {
        return Err(exit::usage(format!(
            "`{}` is an adapter of PEFT; hint: name the model that it was trained on with --base MODEL",
            args.source.display()
        )));
    };
    if args.dequantize {
        let problem = "--dequantize applies only to GGUF files; hint: leave it out";
        return Err(exit::usage(problem));
    }
    let imported = import_peft(&args.source, &models::open(base, false)?, &args.out)?;
    let modules = &imported.adapter.modules;
    if args.json {
        return output::print_json(&json!({
            "path": args.out, "model_type": imported.model_type, "lora": imported.adapter.config,
            "card": imported.card, "chat_template": !imported.card.chat_templates.is_empty(),
            "modules": modules.keys().collect::<Vec<_>>(),
            "saved": imported.adapter.saved.keys().collect::<Vec<_>>(),
        }));
    }
    output::eprint_line(&sanitize(&format!(
        "{}: an adapter of {} in {} of {} ({}){}",
        args.out.display(),
        count(imported.card.parameters, "parameter"),
        count(modules.len() as u64, "module"),
        shown(base),
        imported.model_type,
        if imported.card.chat_templates.is_empty() {
            String::new()
        } else {
            format!("; next: {} chat {}", program(), shown(&args.out))
        },
    )));
    Ok(())
}

fn shown(path: &Path) -> String {
    shell_quote(&path.display().to_string())
}
