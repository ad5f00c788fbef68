//! `nextword inspect RECORD|RUN`.

use std::collections::BTreeMap;

use nextword_model::{Bits, Card, Record, weights};
use serde_json::{Value, json};

use crate::args::InspectArgs;
use crate::format::{bytes, grouped, harmless};
use crate::planning::Parameters;
use crate::{exit, output, records};

/// Shows a record.
pub(crate) fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let record = records::open(&args.model, args.last)?;
    let file = record.weights_path();
    let size = std::fs::metadata(&file)
        .map_err(|e| exit::bad_file(format!("{}: cannot read: {e}", file.display())))?
        .len();
    if args.json {
        return output::json(&as_json(args, &record, size));
    }
    for line in lines(args, &record, size)? {
        output::line(&harmless(&line))?;
    }
    Ok(())
}

fn as_json(args: &InspectArgs, record: &Record, size: u64) -> Value {
    let modules: BTreeMap<String, usize> = modules(record).into_iter().collect();
    let mut value = json!({
        "path": record.path, "card": record.card, "config": record.config,
        "parameters": Parameters::from(record.config.counts()), "modules": modules,
        "weights_bytes": size,
    });
    if args.tensors {
        let tensors = weights::layout(&record.config).into_iter();
        let tensors = tensors.map(|(name, shape)| json!({"name": name, "shape": shape}));
        value["tensors"] = tensors.collect();
    }
    value
}

fn lines(args: &InspectArgs, record: &Record, size: u64) -> anyhow::Result<Vec<String>> {
    let mut lines = vec![record.path.display().to_string()];
    card(&record.card, &mut lines);
    let parameters = Parameters::from(record.config.counts());
    let total = grouped(parameters.total as u64);
    let bits = match weights::bits(&record.weights_path())? {
        Some(Bits::Int8) => ", 8 bits a weight",
        Some(Bits::Int4) => ", 4 bits a weight",
        None => "",
    };
    lines.push(format!(
        "\n{total} parameters, {} on disk{bits}",
        bytes(size)
    ));
    for (part, n) in parameters.parts() {
        let share = 100.0 * n as f64 / parameters.total.max(1) as f64;
        lines.push(format!(
            "  {part:<22}{:>14}  {share:>5.1}%",
            grouped(n as u64)
        ));
    }
    lines.push("\nmodules".to_string());
    for (module, n) in modules(record) {
        lines.push(format!("  {module:<22}{:>14}", grouped(n as u64)));
    }
    lines.push("\nconfig".to_string());
    let config = toml::to_string(&record.config)?;
    lines.extend(
        config
            .lines()
            .filter(|line| !line.is_empty())
            .map(|line| format!("  {line}")),
    );
    if args.tensors {
        lines.push("\ntensors".to_string());
        for (name, shape) in weights::layout(&record.config) {
            lines.push(format!("  {name:<44} {shape:?}"));
        }
    }
    Ok(lines)
}

fn card(card: &Card, lines: &mut Vec<String>) {
    let mut fact = |name: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("  {name:<14}{value}"));
        }
    };
    let loss = |loss: Option<f64>| loss.map_or_else(String::new, |loss| format!("{loss:.4}"));
    fact("name", card.name.clone());
    fact("trained on", card.trained_on.clone());
    fact("steps", grouped(card.step));
    fact("tokens seen", grouped(card.tokens));
    fact("loss", loss(card.train_loss));
    fact("validation", loss(card.validation_loss));
    fact("seed", card.seed.to_string());
    fact(
        "prompts put",
        card.prompt_template.clone().unwrap_or_default(),
    );
    fact("written by", format!("nextword {}", card.version));
}

/// Parameters by module, in the order in which data meets them.
fn modules(record: &Record) -> Vec<(String, usize)> {
    let mut found: Vec<(String, usize)> = Vec::new();
    for (name, shape) in weights::layout(&record.config) {
        let depth = if name.starts_with("blocks.") { 2 } else { 1 };
        let module: Vec<&str> = name.split('.').take(depth).collect();
        let (module, n) = (module.join("."), shape.iter().product::<usize>());
        match found.last_mut() {
            Some((last, sum)) if *last == module => *sum += n,
            _ => found.push((module, n)),
        }
    }
    found
}
