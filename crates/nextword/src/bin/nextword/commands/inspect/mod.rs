//! `nextword inspect MODEL|RUN`.

mod adapter;

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, ValueHint};
use nextword_model::{AdapterDir, ModelCard, ModelDir, TokenSource, weights};
use nextword_train::plan::Parameters;
use serde_json::{Value, json};

use crate::args::BaseArgs;
use crate::format::{bytes, count, grouped, sanitize};
use crate::{exit, models, output};

/// `inspect MODEL|RUN`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Model folder, adapter folder, checkpoint, run folder (the run's best model is used), or GGUF file
    #[arg(value_hint = ValueHint::AnyPath)]
    model: PathBuf,
    #[command(flatten)]
    base: BaseArgs,
    /// Use a run's last model instead of its best
    #[arg(long)]
    last: bool,
    /// List every tensor with its shape
    #[arg(long)]
    tensors: bool,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

/// Prints a model's details.
pub(crate) fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let path = models::find(&args.model, args.last)?;
    if AdapterDir::is_adapter(&path) {
        return adapter::run(args, &path);
    }
    let dir = args.base.open(&args.model, args.last)?;
    let file = dir.weights_path();
    let size = std::fs::metadata(&file)
        .map_err(|e| exit::bad_file(format!("{}: cannot read: {e}", file.display())))?
        .len();
    if args.json {
        return output::print_json(&to_json(args, &dir, size)?);
    }
    for line in to_lines(args, &dir, size)? {
        output::print_line(&sanitize(&line))?;
    }
    Ok(())
}

fn to_json(args: &InspectArgs, dir: &ModelDir, size: u64) -> anyhow::Result<Value> {
    let modules: BTreeMap<String, usize> = modules(dir).into_iter().collect();
    let mut value = json!({
        "path": dir.path, "card": dir.card, "config": dir.config,
        "parameters": Parameters::from(dir.config.parameter_counts()), "modules": modules,
        "weights_bytes": size,
    });
    if args.tensors {
        let tensors = weights::layout(&dir.config).into_iter();
        let tensors = tensors.map(|(name, shape)| json!({"name": name, "shape": shape}));
        value["tensors"] = tensors.collect();
    }
    let formats = dir.block_formats()?.into_iter();
    value["formats"] = formats
        .map(|(format, values)| (format.name().to_string(), json!(values)))
        .collect();
    Ok(value)
}

fn to_lines(args: &InspectArgs, dir: &ModelDir, size: u64) -> anyhow::Result<Vec<String>> {
    let mut lines = vec![dir.path.display().to_string()];
    card_lines(&dir.card, &mut lines);
    let parameters = Parameters::from(dir.config.parameter_counts());
    let total = count(parameters.total as u64, "parameter");
    let formats = dir.block_formats()?;
    let bits = match dir.bits()? {
        // Of other formats than one for the embedding and one for the rest.
        (Some(_), _) if formats.len() > 2 => {
            let bits = 8.0 * size as f64 / parameters.total.max(1) as f64;
            format!(", {bits:.1} bits per weight on average")
        }
        (Some(bits), Some(embedding)) if bits != embedding => {
            format!(", {bits} bits per weight ({embedding} in embedding and output layer)")
        }
        (Some(bits), _) => format!(", {bits} bits per weight"),
        (None, _) => String::new(),
    };
    lines.push(format!("\n{total}, {} on disk{bits}", bytes(size)));
    let parts: Vec<String> = formats
        .iter()
        .map(|(format, n)| {
            let share = 100.0 * *n as f64 / parameters.total.max(1) as f64;
            format!("{} ({share:.1}%)", format.name())
        })
        .collect();
    if !parts.is_empty() {
        lines.push(format!("  quantized to {}", parts.join(", ")));
    }
    for (part, n) in parameters.parts() {
        let share = 100.0 * n as f64 / parameters.total.max(1) as f64;
        lines.push(format!(
            "  {part:<22}{:>14}  {share:>5.1}%",
            grouped(n as u64)
        ));
    }
    lines.push("\nmodules".to_string());
    for (module, n) in modules(dir) {
        lines.push(format!("  {module:<22}{:>14}", grouped(n as u64)));
    }
    lines.push("\nconfig".to_string());
    let config = toml::to_string(&dir.config)?;
    lines.extend(
        config
            .lines()
            .filter(|line| !line.is_empty())
            .map(|line| format!("  {line}")),
    );
    if args.tensors {
        lines.push("\ntensors".to_string());
        for (name, shape) in weights::layout(&dir.config) {
            lines.push(format!("  {name:<44} {shape:?}"));
        }
    }
    Ok(lines)
}

fn card_lines(card: &ModelCard, lines: &mut Vec<String>) {
    let mut push = |name: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("  {name:<14}{value}"));
        }
    };
    let loss = |loss: Option<f64>| loss.map_or_else(String::new, |loss| format!("{loss:.4}"));
    push("name", card.name.clone());
    push("trained on", card.trained_on.clone());
    let origin = card.origin.as_ref();
    push(
        "origin",
        origin.map_or_else(String::new, ToString::to_string),
    );
    push(
        "calibrated on",
        card.calibrated_on.clone().unwrap_or_default(),
    );
    push("steps", grouped(card.step));
    push("train tokens", grouped(card.tokens));
    push("loss", loss(card.train_loss));
    push("validation", loss(card.validation_loss));
    push("seed", card.seed.to_string());
    push(
        "prompt format",
        card.prompt_template.clone().unwrap_or_default(),
    );
    let special = &card.special;
    let source = match special.source {
        Some(TokenSource::Trained) | None => "",
        Some(TokenSource::Declared) => " (declared by the imported files)",
        Some(TokenSource::Guessed) => " (guessed by name)",
    };
    let list = |ids: &[u32]| {
        ids.iter()
            .map(u32::to_string)
            .collect::<Vec<_>>()
            .join(", ")
    };
    if !special.eos_ids.is_empty() {
        push("EOS ids", list(&special.eos_ids) + source);
    }
    push(
        "BOS id",
        special.bos_id.map_or_else(String::new, |id| id.to_string()),
    );
    push("text prefix", list(special.prefix()));
    push("written by", format!("nextword {}", card.version));
}

/// Returns the parameters by module, in the order of the forward pass.
fn modules(dir: &ModelDir) -> Vec<(String, usize)> {
    let mut modules: Vec<(String, usize)> = Vec::new();
    for (name, shape) in weights::layout(&dir.config) {
        let stack = usize::from(name.starts_with("encoder."));
        let depth = stack + if weights::is_in_block(&name) { 2 } else { 1 };
        let module: Vec<&str> = name.split('.').take(depth).collect();
        let (module, n) = (module.join("."), shape.iter().product::<usize>());
        match modules.last_mut() {
            Some((last, sum)) if *last == module => *sum += n,
            _ => modules.push((module, n)),
        }
    }
    modules
}
