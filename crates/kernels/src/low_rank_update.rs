//! The low-rank update of a linear layer.

use burn::tensor::Tensor;

use crate::DropoutMask;

/// A low-rank update of a linear layer: `scale * (dropout(x) A) B`.
#[derive(Clone, Debug)]
pub struct LowRankUpdate {
    /// `[d_in, rank]`.
    pub a: Tensor<2>,
    /// `[rank, d_out]`.
    pub b: Tensor<2>,
    /// Factor on the update.
    pub scale: f32,
    /// Dropout on the input of the update.
    pub dropout: Option<DropoutMask>,
}
