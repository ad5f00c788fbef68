//! `nextword inspect ADAPTER`: what an adapter changes, and which model it belongs to.

use std::path::Path;

use nextword_convert::{describe_base, find_base};
use nextword_model::{AdapterDir, ModelDir, WeightChange};
use serde_json::json;

use super::{InspectArgs, card_lines};
use crate::format::{bytes, count, grouped, sanitize, trained_share};
use crate::{exit, output};

/// Number of modules whose change is shown.
const SHOWN_CHANGES: usize = 10;

/// What is known only if the base model was found.
struct Details {
    base: ModelDir,
    trained: usize,
    /// The norms of each module's update and of its weights, those with the largest ratio first.
    changes: Vec<WeightChange>,
}

/// Prints an adapter's details. Its base need not exist.
pub(super) fn run(args: &InspectArgs, path: &Path) -> anyhow::Result<()> {
    let adapter = AdapterDir::open(path)?;
    let file = adapter.tensors_path();
    let size = std::fs::metadata(&file)
        .map_err(|e| exit::bad_file(format!("{}: cannot read: {e}", file.display())))?
        .len();
    let found = find_base(&adapter, args.base.path()).map_err(anyhow::Error::from);
    let details = match found {
        Ok(base) => Ok(details(&adapter, base)?),
        Err(error) => Err(exit::message(&error)),
    };
    if args.json {
        let found = details.as_ref().ok();
        let of_modules = |value: &dyn Fn(&WeightChange) -> serde_json::Value| {
            let changes = found.map(|details| details.changes.iter());
            let values =
                changes.map(|all| all.map(|change| (change.module.clone(), value(change))));
            values.map(serde_json::Map::from_iter)
        };
        return output::print_json(&json!({
            "path": adapter.path, "card": adapter.card, "lora": adapter.config, "base": adapter.base,
            "base_path": found.map(|details| &details.base.path),
            "trained_parameters": found.map(|details| details.trained),
            "relative_changes": of_modules(&|change| change.ratio().into()),
            "norms": of_modules(&|change| {
                json!({"update": change.update_norm, "weights": change.weight_norm})
            }),
            "weights_bytes": size,
        }));
    }
    for line in lines(&adapter, size, &details) {
        output::print_line(&sanitize(&line))?;
    }
    Ok(())
}

fn details(adapter: &AdapterDir, base: ModelDir) -> anyhow::Result<Details> {
    let values = adapter.load(&base.config)?;
    let mut changes = values.weight_changes(&*base.open_weights()?)?;
    changes.sort_by(|a, b| b.ratio().total_cmp(&a.ratio()));
    Ok(Details {
        trained: values.parameters(),
        changes,
        base,
    })
}

fn lines(adapter: &AdapterDir, size: u64, details: &Result<Details, String>) -> Vec<String> {
    let mut lines = vec![adapter.path.display().to_string()];
    card_lines(&adapter.card, &mut lines);
    let config = &adapter.config;
    let method = match (config.use_dora, config.use_rslora) {
        (true, _) => "DoRA",
        (false, true) => "LoRA, rank-stabilized",
        (false, false) => "LoRA",
    };
    let mut push = |name: &str, value: String| lines.push(format!("  {name:<14}{value}"));
    let scale = config.scale();
    push(
        "method",
        format!("{method}: rank {}, scale {scale}", config.rank),
    );
    if !config.modules_to_save.is_empty() {
        push("full copies", config.modules_to_save.join(", "));
    }
    let base = describe_base(&adapter.base);
    let bits = adapter.base.bits;
    let bits = bits.map_or_else(String::new, |bits| format!(", {bits} bits per weight"));
    match details {
        Ok(details) => {
            let parameters = details.base.config.parameter_counts().total();
            push(
                "base",
                format!("{base}{bits}, found in {}", details.base.path.display()),
            );
            push(
                "trained",
                format!(
                    "{} of {} ({}), {} on disk",
                    grouped(details.trained as u64),
                    count((parameters + details.trained) as u64, "parameter"),
                    trained_share(details.trained, parameters),
                    bytes(size)
                ),
            );
            lines.push(
                "\nlargest changes, relative to the weights (norm of the update / of the weights)"
                    .to_string(),
            );
            let shown = details.changes.iter().take(SHOWN_CHANGES);
            lines.extend(shown.map(|change| {
                let WeightChange {
                    module,
                    update_norm,
                    weight_norm,
                } = change;
                let percent = 100.0 * change.ratio();
                format!("  {module:<40}{percent:>9.4}%  ({update_norm:.3e} / {weight_norm:.3e})")
            }));
        }
        Err(problem) => {
            push("base", format!("{base}{bits}, not found"));
            push("on disk", bytes(size));
            lines.push(format!("\n{problem}"));
        }
    }
    lines
}
