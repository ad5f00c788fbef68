//! Metrics of a run in the formats of other tools.

mod crc32c;
mod csv;
mod tensorboard;

use nextword_train::MetricsLine;

pub use csv::to_csv;
pub use tensorboard::to_tensorboard;

/// A metric that may be absent from a line.
type Value = fn(&MetricsLine) -> Option<f64>;

/// All metrics: name in CSV, tag in `TensorBoard`, value.
const METRICS: [(&str, &str, Value); 7] = [
    ("loss", "loss/train", |line| line.loss),
    ("val_loss", "loss/validation", |line| line.val_loss),
    ("lr", "optimizer/learning_rate", |line| line.lr),
    ("grad_norm", "optimizer/gradient_norm", |line| {
        line.grad_norm
    }),
    ("tokens_per_second", "speed/tokens_per_second", |line| {
        line.tokens_per_second
    }),
    ("ended", "completions/ended", |line| line.ended),
    ("exact", "completions/exact", |line| line.exact),
];
