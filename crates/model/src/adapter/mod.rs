//! Low-rank adapters (`LoRA`, Hu et al. 2021, arXiv 2106.09685): a small update of a frozen model.
//!
//! The adapter of a linear layer adds `scale * (x A) B` to `x W + bias`; `A` is `[d_in, rank]` and `B` is
//! `[rank, d_out]`. Only `A` and `B` are trained.
//!
//! | to | call |
//! |---|---|
//! | attach an untrained adapter | [`Transformer::with_new_adapter`](crate::Transformer::with_new_adapter) |
//! | attach a trained one | [`Transformer::with_adapter`](crate::Transformer::with_adapter) |
//! | read it back | [`Transformer::adapter`](crate::Transformer::adapter) |
//! | add it to the weights | [`Transformer::merge_adapter`](crate::Transformer::merge_adapter) |
//! | use it for some rows of a batch | [`RowAdapter`](crate::RowAdapter) |
//! | store it | [`AdapterDir`] |

mod attach;
mod base_model;
mod change;
mod check;
mod config;
mod dir;
mod merge;
mod opened;
mod row;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use base_model::BaseModel;
pub use change::WeightChange;
pub use config::linear_modules;
pub use dir::AdapterDir;

use crate::{LoraConfig, LowRank};

/// An adapter in host memory.
///
/// # Example
///
/// ```
/// use burn::tensor::Device;
/// use nextword_model::{LoraConfig, presets};
///
/// let model = presets::shakespeare_char_cpu(65).init(&Device::flex(), 1)?;
/// let config = LoraConfig { rank: 4, ..LoraConfig::default() };
/// let adapter = model.with_new_adapter(&config, 7)?.adapter().unwrap();
/// let query = &adapter.modules["blocks.0.attention.query"];
/// assert_eq!((query.d_in, query.rank, query.d_out), (128, 4, 128));
/// assert_eq!(query.scale, 8.0); // alpha / rank
/// assert!(query.b.iter().all(|value| *value == 0.0)); // so that training starts from the base model
/// # Ok::<(), nextword_model::ModelError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Adapter {
    /// The low-rank updates by module: the path of a linear layer without `.weight`, such as
    /// `blocks.0.attention.query`.
    pub modules: BTreeMap<String, LowRank>,
    /// Parameters that replace those of the base model, by their names in a weights file.
    pub saved: BTreeMap<String, SavedTensor>,
    /// The settings that the adapter was made with. Rank and scale of a module are in [`modules`](Self::modules).
    pub config: LoraConfig,
}

/// A parameter of which an adapter has a full copy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SavedTensor {
    /// Shape as in [`weights::layout`](crate::weights::layout).
    pub shape: Vec<usize>,
    /// Values in row-major order.
    pub values: Vec<f32>,
}

impl Adapter {
    /// Number of trained parameters.
    pub fn parameters(&self) -> usize {
        let modules = self.modules.values();
        let modules = modules
            .map(|m| m.a.len() + m.b.len() + m.magnitude.as_ref().map_or(0, Vec::len))
            .sum::<usize>();
        let saved = self.saved.values().map(|saved| saved.values.len());
        modules + saved.sum::<usize>()
    }
}
