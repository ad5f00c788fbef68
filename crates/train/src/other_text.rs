//! Forgetting: the loss of texts that a run does not train on.

use nextword_data::{EvalWindows, Packing, SourceConfig, Sources, Tokenizer};
use nextword_eval::text_windows;
use nextword_model::ModelTokens;
use serde::{Deserialize, Serialize};

use crate::{RunConfig, TrainError};

/// An increase of the loss, in nats per token, from which a run warns.
const MAX_INCREASE: f64 = 0.05;

/// The loss of a text that a run does not train on.
///
/// ```
/// use nextword_train::OtherTextLoss;
///
/// let text = OtherTextLoss { name: "general".to_string(), loss: 2.963, start: 2.958 };
/// assert!((text.change() - 0.005).abs() < 1e-9);
/// assert_eq!(text.warning(), None); // it forgets less than 0.05 nats per token
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OtherTextLoss {
    /// The name of the text in `validation.also`.
    pub name: String,
    /// The loss, nats per token.
    pub loss: f64,
    /// The loss before the first step.
    pub start: f64,
}

impl OtherTextLoss {
    /// How much the loss has increased, nats per token.
    pub fn change(&self) -> f64 {
        self.loss - self.start
    }

    /// A warning about a large increase.
    pub fn warning(&self) -> Option<String> {
        let change = self.change();
        (change > MAX_INCREASE).then(|| {
            format!(
                "the loss of {} has increased by {change:.3} nats per token, to {:.3}: the model forgets what it knew; \
                 hint: lower schedule.learning_rate, train fewer steps, or train an adapter ([lora])",
                self.name, self.loss
            )
        })
    }
}

/// A text that a run does not train on, as windows.
#[derive(Clone, Debug)]
pub(crate) struct OtherTextWindows {
    pub(crate) name: String,
    pub(crate) windows: EvalWindows,
}

/// Reads the texts of `validation.also`. They are evaluated as by `nextword eval`, in windows as long as those of the
/// validation.
pub(crate) fn read(
    config: &RunConfig,
    tokenizer: &dyn Tokenizer,
    special: &ModelTokens,
) -> Result<Vec<OtherTextWindows>, TrainError> {
    let length = config.sequence_length();
    let mut texts = Vec::new();
    for text in &config.validation.also {
        let sources = Sources::open(&SourceConfig {
            paths: vec![text.path.clone()],
            ..SourceConfig::default()
        })?;
        let chunks = sources.chunks_for(tokenizer.text_cuts());
        let windows = text_windows(tokenizer, special, chunks, Packing::Packed, length)?;
        texts.push(OtherTextWindows {
            name: text.name.clone(),
            windows: match config.validation.windows {
                0 => windows,
                limit => windows.limit(limit),
            },
        });
    }
    Ok(texts)
}
