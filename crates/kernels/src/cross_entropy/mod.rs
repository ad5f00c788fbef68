//! Output layer fused with softmax cross-entropy.

#[cfg(feature = "flex")]
mod fast;
#[cfg(feature = "flex")]
mod rows;
#[cfg(feature = "flex")]
mod sequences;
#[cfg(all(test, feature = "flex"))]
mod tests;

use burn::tensor::Tensor;

use crate::{Precision, QuantizedMatrix};

/// Weight of an output layer.
#[derive(Clone, Debug)]
pub enum OutputWeight {
    /// `[d_model, vocab]`.
    Matrix(Tensor<2>),
    /// An embedding table, `[vocab, d_model]`.
    Table(Tensor<2>),
    /// `[d_model, vocab]` in 2 to 8 bits. It has no gradient of its own.
    Quantized(QuantizedMatrix),
}

impl OutputWeight {
    /// `[d_model, vocab]`.
    #[cfg(any(feature = "flex", feature = "gpu"))]
    fn shape(&self) -> [usize; 2] {
        match self {
            Self::Matrix(weight) => weight.dims(),
            Self::Table(table) => {
                let [vocab, d_model] = table.dims();
                [d_model, vocab]
            }
            Self::Quantized(weight) => weight.shape(),
        }
    }

    /// The weight on a GPU, and whether it is a table.
    #[cfg(feature = "gpu")]
    fn on_gpu(&self, like: &Tensor<3>) -> (Tensor<2>, bool) {
        match self {
            Self::Matrix(weight) => (weight.clone(), false),
            Self::Table(table) => (table.clone(), true),
            Self::Quantized(weight) => (weight.table_on_gpu(like), true),
        }
    }
}

/// Maps hidden states to logits.
#[derive(Clone, Debug)]
pub struct OutputLayer {
    /// The projection to the vocabulary.
    pub weight: OutputWeight,
    /// Bias, `[vocab]`.
    pub bias: Option<Tensor<1>>,
    /// Soft cap of the logits: maps them to (-c, c) by `c * tanh(x / c)`.
    pub soft_cap: Option<f64>,
    /// Arithmetic of the matrix product.
    pub precision: Precision,
}

impl OutputLayer {
    /// Whether the kernels for GPUs compute the loss: in f32.
    #[cfg(feature = "gpu")]
    fn has_gpu_kernel(&self, hidden: &Tensor<3>) -> bool {
        let is_f32 = match &self.weight {
            OutputWeight::Matrix(weight) | OutputWeight::Table(weight) => {
                self.precision == Precision::F32 && crate::gpu::is_gpu_f32(weight)
            }
            OutputWeight::Quantized(_) => true,
        };
        is_f32 && crate::gpu::output_layer::supports(hidden, self.weight.shape())
    }

    /// Maps hidden states, `[batch, seq, d_model]`, to logits, `[batch, seq, vocab]`.
    ///
    /// # Panics
    /// If the shapes do not match.
    pub fn logits(self, hidden: Tensor<3>) -> Tensor<3> {
        let (precision, bias) = (self.precision, self.bias);
        let logits = match self.weight {
            OutputWeight::Matrix(weight) => {
                crate::linear_with_precision(precision, hidden, weight, bias)
            }
            OutputWeight::Table(table) => crate::linear_table(precision, hidden, table, bias),
            OutputWeight::Quantized(weight) => crate::linear_quantized(hidden, &weight, bias),
        };
        match self.soft_cap {
            Some(cap) => crate::reference::soft_cap(logits, cap),
            None => logits,
        }
    }
}

/// Sum of `-ln p(target)`, in nats, over all positions whose target is not
/// [`IGNORE`](crate::IGNORE).
///
/// `hidden` is `[batch, seq, d_model]`; `targets` are `batch * seq` ids in row-major order. The
/// fast implementation processes the positions in chunks, so the logits of all positions are never
/// stored at once, and multiplies only those that count. It makes only the gradients that are needed: none for
/// frozen weights.
///
/// # Panics
/// If `targets` does not have `batch * seq` elements, or the shapes of `hidden`, weight and bias do not
/// match.
///
/// # Example
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use nextword_kernels::{IGNORE, OutputLayer, OutputWeight, Precision, cross_entropy_sum};
///
/// let device = Device::flex();
/// let hidden = Tensor::<3>::ones([1, 3, 4], &device); // [batch, seq, d_model]
/// let layer = OutputLayer {
///     weight: OutputWeight::Matrix(Tensor::ones([4, 10], &device)), // ten equal logits
///     bias: None,
///     soft_cap: None,
///     precision: Precision::F32,
/// };
/// let loss = cross_entropy_sum(hidden, layer, &[7, 2, IGNORE]);
/// assert!((f64::from(loss.into_scalar::<f32>()) - 2.0 * 10f64.ln()).abs() < 1e-5);
/// ```
pub fn cross_entropy_sum(hidden: Tensor<3>, layer: OutputLayer, targets: &[u32]) -> Tensor<1> {
    let [batch, seq, _] = hidden.dims();
    assert_eq!(targets.len(), batch * seq, "one target for each position");
    #[cfg(feature = "flex")]
    if crate::fused::is_flex_f32(&hidden) {
        crate::linear::check_shapes(&hidden, layer.weight.shape(), layer.bias.as_ref());
        return fast::cross_entropy_sum(hidden, layer, targets);
    }
    #[cfg(feature = "gpu")]
    if layer.has_gpu_kernel(&hidden) {
        crate::linear::check_shapes(&hidden, layer.weight.shape(), layer.bias.as_ref());
        let weight = layer.weight.on_gpu(&hidden);
        let (bias, soft_cap) = (layer.bias, layer.soft_cap);
        return crate::gpu::output_layer::cross_entropy_sum(
            hidden, weight, bias, soft_cap, targets,
        );
    }
    let logits = layer.logits(hidden);
    let vocab = logits.dims()[2];
    let logits = logits.reshape([batch * seq, vocab]);
    #[cfg(feature = "gpu")]
    if crate::gpu::is_gpu_f32(&logits) && batch * seq * vocab > 0 {
        return crate::gpu::cross_entropy::cross_entropy_sum(logits, targets);
    }
    crate::reference::cross_entropy_sum(logits, targets)
}

/// Sum of `-ln p(target)` of each sequence, in nats, `[batch]`, over its positions whose target is not
/// [`IGNORE`](crate::IGNORE).
///
/// Arguments and panics are those of [`cross_entropy_sum`]. It is for losses that are not a sum over tokens, such as
/// those of preferences: the gradient of a sequence depends on its whole loss. The fast implementation therefore
/// computes the logits a second time in the backward pass, in chunks, and stores none of them.
///
/// # Example
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use nextword_kernels::{IGNORE, OutputLayer, OutputWeight, Precision, cross_entropy_per_sequence};
///
/// let device = Device::flex();
/// let layer = OutputLayer {
///     weight: OutputWeight::Matrix(Tensor::ones([4, 10], &device)), // ten equal logits
///     bias: None,
///     soft_cap: None,
///     precision: Precision::F32,
/// };
/// let hidden = Tensor::<3>::ones([2, 2, 4], &device); // [batch, seq, d_model]
/// let losses = cross_entropy_per_sequence(hidden, layer, &[7, IGNORE, 2, 3]);
/// let losses: Vec<f32> = losses.into_data().try_to_vec().unwrap();
/// assert!((losses[0] - 10f32.ln()).abs() < 1e-5 && (losses[1] - 2.0 * 10f32.ln()).abs() < 1e-5);
/// ```
pub fn cross_entropy_per_sequence(
    hidden: Tensor<3>,
    layer: OutputLayer,
    targets: &[u32],
) -> Tensor<1> {
    let [batch, seq, _] = hidden.dims();
    assert_eq!(targets.len(), batch * seq, "one target for each position");
    #[cfg(feature = "flex")]
    if crate::fused::is_flex_f32(&hidden) {
        crate::linear::check_shapes(&hidden, layer.weight.shape(), layer.bias.as_ref());
        return sequences::cross_entropy_per_sequence(hidden, layer, targets);
    }
    crate::reference::cross_entropy_per_sequence(layer.logits(hidden), targets)
}

/// Rows of the logits that the fused [`cross_entropy_sum`] computes at a time with `vocab` columns, which
/// determine its memory.
///
/// ```
/// use nextword_kernels::loss_chunk_rows;
///
/// assert_eq!(loss_chunk_rows(8192), 1024);
/// assert_eq!(loss_chunk_rows(1 << 30), 128);
/// ```
pub fn loss_chunk_rows(vocab: usize) -> usize {
    /// Logits in memory at once: 32 MB.
    const CHUNK_LOGITS: usize = 8 << 20;
    /// With fewer rows, reading the whole weight dominates.
    const MIN_CHUNK_ROWS: usize = 128;
    (CHUNK_LOGITS / vocab.max(1)).max(MIN_CHUNK_ROWS)
}
