//! The result of a sweep as a table.

use nextword_experiments::{ArmReport, Metric, SweepReport};

use crate::format::{bytes, count, duration, grouped, sanitize, short, signed};

/// The lines of the table, with one for each arm.
pub(super) fn lines(report: &SweepReport) -> Vec<String> {
    let metric = match report.metric {
        Metric::ValidationLoss => "validation loss",
        Metric::TrainingLoss => "training loss (there is no validation data)",
    };
    let seeds = count(report.seeds.len() as u64, "seed");
    // What an adapter has of its own: its base is the same for all of them.
    let trains_adapters = report
        .arms
        .iter()
        .any(|arm| arm.trained_parameters.is_some());
    let parameters = if trains_adapters {
        "trained"
    } else {
        "parameters"
    };
    let mut rows = vec![
        [
            "arm",
            "loss",
            "difference",
            "95 % interval",
            parameters,
            "tokens/s",
            "memory",
            "time",
        ]
        .map(str::to_string),
    ];
    rows.extend(report.arms.iter().map(row));
    let title = format!("{}: {metric} in nats per token over {seeds}", report.name);
    let mut lines = vec![sanitize(&title)];
    lines.extend(aligned(&rows));
    lines.push(
        "loss: mean ± standard deviation; difference: to the first arm with the same seeds (Student's t)"
            .to_string(),
    );
    let diverged = |arm: &ArmReport| {
        let results = arm.runs.iter().filter_map(|run| run.result.as_ref());
        results.filter(|run| run.diverged.is_some()).count()
    };
    for arm in report.arms.iter().filter(|arm| diverged(arm) > 0) {
        let runs = count(diverged(arm) as u64, "run");
        lines.push(sanitize(&format!(
            "{}: {runs} diverged and left out",
            arm.name
        )));
    }
    lines
}

fn row(arm: &ArmReport) -> [String; 8] {
    let none = || "–".to_string();
    let loss = arm.loss.map_or_else(none, |loss| {
        let deviation = loss.standard_deviation;
        let deviation = deviation.map_or_else(String::new, |sd| format!(" ±{sd:.4}"));
        format!("{:.4}{deviation}", loss.mean)
    });
    let interval = arm.difference.map_or_else(none, |difference| {
        let [lower, upper] = [difference.lower, difference.upper].map(|end| signed(end, 4));
        format!("{lower} to {upper}")
    });
    let measured = &arm.measured;
    [
        sanitize(&arm.name),
        loss,
        arm.mean_difference
            .map_or_else(none, |mean| signed(mean, 4)),
        interval,
        arm.trained_parameters
            .or(arm.parameters)
            .map_or_else(none, |n| grouped(n as u64)),
        measured.tokens_per_second.map_or_else(none, short),
        measured.peak_memory.map_or_else(none, bytes),
        duration(measured.seconds),
    ]
}

/// Pads each column to its widest cell: the first one to the right, numbers to the left.
pub(crate) fn aligned<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(column, (cell, width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let row = |a: &str, b: &str| [a.to_string(), b.to_string()];
        let lines = aligned(&[row("arm", "x"), row("longer", "12.5")]);
        assert_eq!(lines, ["arm        x", "longer  12.5"]);
    }
}
