//! `nextword inspect ADAPTER`: what an adapter changes, and which model it belongs to.

use std::path::Path;

use nextword_convert::{describe_base, find_base};
use nextword_model::weights::{WeightSource, dequantized_values};
use nextword_model::{Adapter, AdapterDir, LowRank, ModelDir};
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
    /// The norm of each module's update divided by that of its weights, largest first.
    changes: Vec<(String, f64)>,
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
        let changes = found.map(|details| details.changes.iter().cloned());
        let changes: Option<serde_json::Map<_, _>> =
            changes.map(|all| all.map(|(name, change)| (name, change.into())).collect());
        return output::print_json(&json!({
            "path": adapter.path, "card": adapter.card, "lora": adapter.config, "base": adapter.base,
            "base_path": found.map(|details| &details.base.path),
            "trained_parameters": found.map(|details| details.trained),
            "relative_changes": changes, "weights_bytes": size,
        }));
    }
    for line in lines(&adapter, size, &details) {
        output::print_line(&sanitize(&line))?;
    }
    Ok(())
}

fn details(adapter: &AdapterDir, base: ModelDir) -> anyhow::Result<Details> {
    let values = adapter.load(&base.config)?;
    let changes = changes(&values, &*base.open_weights()?)?;
    Ok(Details {
        trained: values.parameters(),
        changes,
        base,
    })
}

fn changes(adapter: &Adapter, base: &dyn WeightSource) -> anyhow::Result<Vec<(String, f64)>> {
    let mut changes = Vec::new();
    for (name, module) in &adapter.modules {
        let weight = format!("{name}.weight");
        let values = match dequantized_values(base, &weight, &[module.d_in, module.d_out])? {
            Some(values) => values,
            None => base.values(&weight)?,
        };
        let norm = sum_of_squares(&values).sqrt();
        changes.push((
            name.clone(),
            update_norm(module) / norm.max(f64::MIN_POSITIVE),
        ));
    }
    changes.sort_by(|a, b| b.1.total_cmp(&a.1));
    Ok(changes)
}

fn sum_of_squares(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum()
}

/// The Frobenius norm of `scale * a b`, from products of the size of the rank.
fn update_norm(module: &LowRank) -> f64 {
    let LowRank {
        a, b, rank, d_out, ..
    } = module;
    let mut square = 0.0;
    for i in 0..*rank {
        for j in 0..*rank {
            // Column i of a times column j, and row i of b times row j.
            let columns = a
                .chunks_exact(*rank)
                .map(|row| f64::from(row[i]) * f64::from(row[j]));
            let (first, second) = (&b[i * d_out..][..*d_out], &b[j * d_out..][..*d_out]);
            let rows = first
                .iter()
                .zip(second)
                .map(|(x, y)| f64::from(*x) * f64::from(*y));
            square += columns.sum::<f64>() * rows.sum::<f64>();
        }
    }
    f64::from(module.scale).abs() * square.max(0.0).sqrt()
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
            lines.push("\nlargest changes, relative to the weights".to_string());
            let shown = details.changes.iter().take(SHOWN_CHANGES);
            lines.extend(
                shown.map(|(name, change)| format!("  {name:<40}{:>9.4}%", 100.0 * change)),
            );
        }
        Err(problem) => {
            push("base", format!("{base}{bits}, not found"));
            push("on disk", bytes(size));
            lines.push(format!("\n{problem}"));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_norm_of_an_update_is_that_of_the_product() {
        let module = LowRank {
            a: vec![1.0, -2.0, 0.5, 3.0, 4.0, -1.0], // [3, 2]
            b: vec![2.0, 1.0, -1.0, 0.5],            // [2, 2]
            rank: 2,
            d_in: 3,
            d_out: 2,
            scale: -2.0,
            magnitude: None,
        };
        let mut product = vec![0.0; 6];
        module.add_to(&mut product);
        let expected = sum_of_squares(&product).sqrt();
        assert!((update_norm(&module) - expected).abs() < 1e-5 * expected);
    }
}
