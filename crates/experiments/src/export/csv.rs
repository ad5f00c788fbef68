//! Comma-separated values.

use std::fmt::Write;

use nextword_train::MetricsLine;

use super::METRICS;

/// The metrics as CSV with a header: one row per line of `metrics.jsonl`, empty cells for what it does not have.
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
    let mut text = "step,tokens,elapsed".to_string();
    for (name, ..) in METRICS {
        text.push(',');
        text.push_str(name);
    }
    text.push('\n');
    for line in lines {
        // Writing to a string cannot fail.
        let _ = write!(text, "{},{},{}", line.step, line.tokens, line.elapsed);
        for (.., value) in METRICS {
            let cell = value(line).map_or_else(String::new, |value| value.to_string());
            text.push(',');
            text.push_str(&cell);
        }
        text.push('\n');
    }
    text
}
