//! Linear layers with a low-rank adapter (`LoRA`, Hu et al. 2021, arXiv 2106.09685).

#[cfg(feature = "flex")]
mod fast;
mod rows;
#[cfg(all(test, feature = "flex"))]
mod tests;

use burn::tensor::Tensor;

pub use rows::add_row_updates;

use crate::{LowRankUpdate, Precision, QuantizedMatrix};

/// A low-rank update and the rows of the batch that it is for.
#[derive(Clone, Debug)]
pub struct RowUpdate {
    /// Indices of rows, each below the batch size and at most once in all updates.
    pub rows: Vec<usize>,
    /// The update. Dropout is for training, where all rows have the same update: its mask is not used.
    pub update: LowRankUpdate,
}

/// The weight of a linear layer.
#[allow(clippy::large_enum_variant)] // A temporary value, one per call.
#[derive(Clone, Debug)]
pub enum LinearWeight {
    /// `[d_in, d_out]`.
    Matrix(Tensor<2>),
    /// `[d_in, d_out]` in 2 to 8 bits. It has no gradient.
    Quantized(QuantizedMatrix),
}

impl LinearWeight {
    /// `[d_in, d_out]`.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Matrix(weight) => weight.dims(),
            Self::Quantized(weight) => weight.shape(),
        }
    }
}

/// `x W + bias + scale * (dropout(x) A) B`: `[batch, seq, d_in]` to `[batch, seq, d_out]`. The product with `W` is
/// in `precision`, those with `A` and `B` in f32; `A B` is never formed.
///
/// # Panics
/// If the shapes do not match.
///
/// # Example
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use nextword_kernels::{LinearWeight, LowRankUpdate, Precision, linear, linear_lora};
///
/// let device = Device::flex();
/// let random = |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Default, &device);
/// let (x, weight) = (random([5, 16]).unsqueeze::<3>(), random([16, 32]));
/// let (a, b, scale) = (random([16, 4]), random([4, 32]), 2.0);
/// let update = LowRankUpdate { a: a.clone(), b: b.clone(), scale, dropout: None };
/// let adapted = linear_lora(
///     Precision::F32, x.clone(), LinearWeight::Matrix(weight.clone()), None, update,
/// );
/// let merged = linear(x, weight + a.matmul(b) * scale, None);
/// assert!(adapted.all_close(merged, None, Some(1e-4)));
/// ```
pub fn linear_lora(
    precision: Precision,
    x: Tensor<3>,
    weight: LinearWeight,
    bias: Option<Tensor<1>>,
    update: LowRankUpdate,
) -> Tensor<3> {
    let [d_in, d_out] = weight.shape();
    crate::linear::check_shapes(&x, [d_in, d_out], bias.as_ref());
    let ([a_in, rank], b) = (update.a.dims(), update.b.dims());
    assert!(
        a_in == d_in && b == [rank, d_out],
        "an update of shapes [{a_in}, {rank}] and {b:?} does not fit a weight of shape [{d_in}, {d_out}]"
    );
    #[cfg(feature = "flex")]
    if crate::fused::is_flex_f32(&x) {
        return fast::linear_lora(precision, x, weight, bias, update);
    }
    #[cfg(feature = "gpu")]
    if crate::gpu::is_gpu_f32(&x) {
        return by_operations(precision, x, weight, bias, update);
    }
    by_reference(precision, x, weight, bias, update)
}

/// Separate operations of this crate.
#[cfg(feature = "gpu")]
fn by_operations(
    precision: Precision,
    x: Tensor<3>,
    weight: LinearWeight,
    bias: Option<Tensor<1>>,
    update: LowRankUpdate,
) -> Tensor<3> {
    let y = match weight {
        LinearWeight::Matrix(weight) => {
            crate::linear_with_precision(precision, x.clone(), weight, bias)
        }
        LinearWeight::Quantized(weight) => crate::linear_quantized(x.clone(), &weight, bias),
    };
    let x = match update.dropout {
        Some(mask) => crate::dropout(x, mask),
        None => x,
    };
    y + crate::linear(crate::linear(x, update.a, None), update.b, None) * update.scale
}

/// The reference, with the dequantized values of a quantized weight.
fn by_reference(
    precision: Precision,
    x: Tensor<3>,
    weight: LinearWeight,
    bias: Option<Tensor<1>>,
    update: LowRankUpdate,
) -> Tensor<3> {
    let weight = match weight {
        LinearWeight::Matrix(weight) => weight,
        LinearWeight::Quantized(weight) => weight.to_tensor(&x.device()),
    };
    crate::reference::linear_lora(precision, x, weight, bias, update)
}
