//! Comma-separated values.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use nextword_train::MetricsLine;

use super::{METRICS, further};

/// The metrics as CSV with a header: one row per line of `metrics.jsonl`, empty cells for what it does not have. Metrics that
/// only some runs have, as rewards, are columns if a line has them.
///
/// ```
/// use nextword_experiments::export::to_csv;
/// use nextword_train::MetricsLine;
///
/// let line = MetricsLine { step: 10, tokens: 640, loss: Some(2.5), elapsed: 0.5, ..MetricsLine::default() };
/// let csv = to_csv(&[line]);
/// assert_eq!(csv.lines().next(), Some("step,tokens,elapsed,loss,val_loss,lr,grad_norm,tokens_per_second,ended,exact"));
/// assert_eq!(csv.lines().nth(1), Some("10,640,0.5,2.5,,,,,,"));
/// ```
pub fn to_csv(lines: &[MetricsLine]) -> String {
    let further: Vec<BTreeMap<String, f64>> = lines.iter().map(further).collect();
    let columns: BTreeSet<&String> = further.iter().flat_map(BTreeMap::keys).collect();
    let mut text = "step,tokens,elapsed".to_string();
    for (name, ..) in METRICS {
        text.push(',');
        text.push_str(name);
    }
    for name in &columns {
        text.push(',');
        text.push_str(&quoted(name));
    }
    text.push('\n');
    for (line, further) in lines.iter().zip(&further) {
        // Writing to a string cannot fail.
        let _ = write!(text, "{},{},{}", line.step, line.tokens, line.elapsed);
        let known = METRICS.iter().map(|(.., value)| value(line));
        let others = columns.iter().map(|name| further.get(*name).copied());
        for value in known.chain(others) {
            let cell = value.map_or_else(String::new, |value| value.to_string());
            text.push(',');
            text.push_str(&cell);
        }
        text.push('\n');
    }
    text
}

/// `name` as a cell: in quotes if it has a comma, a quote or a line break.
fn quoted(name: &str) -> String {
    if name.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", name.replace('"', "\"\""))
    } else {
        name.to_string()
    }
}

#[cfg(test)]
mod tests {
    use nextword_train::PreferenceMetrics;

    use super::*;

    #[test]
    fn metrics_of_some_runs_are_further_columns() {
        let lines = [
            MetricsLine {
                step: 1,
                preferences: PreferenceMetrics {
                    margin: Some(0.5),
                    ..PreferenceMetrics::default()
                },
                ..MetricsLine::default()
            },
            MetricsLine {
                step: 2,
                other_text: [("a, b".to_string(), 3.25)].into(),
                ..MetricsLine::default()
            },
        ];
        let csv = to_csv(&lines);
        let rows: Vec<&str> = csv.lines().collect();
        assert!(rows[0].ends_with(",exact,\"other_text/a, b\",rewards/margins"));
        assert!(rows[1].ends_with(",,,0.5"), "{}", rows[1]);
        assert!(rows[2].ends_with(",,3.25,"), "{}", rows[2]);
    }
}
