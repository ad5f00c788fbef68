//! Output layer fused with softmax cross-entropy.

use burn::tensor::Tensor;

use crate::{Precision, QuantizedMatrix};

/// Weight of an output layer.
#[derive(Clone, Debug)]
pub enum OutputWeight {
    /// `[d_model, vocab]`.
    Matrix(Tensor<2>),
    /// An embedding table, `[vocab, d_model]`.
    Table(Tensor<2>),
    /// `[d_model, vocab]` in 8 or 4 bits, for inference only: it has no gradients.
    Quantized(QuantizedMatrix),
}

impl OutputWeight {
    /// `[d_model, vocab]`.
    #[cfg(feature = "flex")]
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
/// stored at once.
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
    let logits = layer.logits(hidden);
    let vocab = logits.dims()[2];
    crate::reference::cross_entropy_sum(logits.reshape([batch * seq, vocab]), targets)
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

#[cfg(feature = "flex")]
mod fast {
    use std::sync::Arc;

    use burn::backend::Flex;
    use burn::tensor::Tensor;

    use super::{OutputLayer, OutputWeight, loss_chunk_rows};
    use crate::QuantizedMatrix;
    use crate::cpu::cross_entropy::{self as kernel, RowLosses, Task};
    use crate::cpu::elementwise::scale;
    use crate::cpu::reduce::add_column_sums;
    use crate::fused::{self, BackwardContext, Buffer, Op, apply};
    use crate::linear::fast::{LinearOp, WeightLayout};

    #[derive(Clone, Debug)]
    struct CrossEntropy {
        linear: LinearOp,
        targets: Arc<Vec<u32>>,
        soft_cap: Option<f32>,
    }

    /// Gradients of hidden states, weight and bias for an output gradient of 1.
    type Gradients = [Buffer; 3];

    pub(super) fn cross_entropy_sum(
        hidden: Tensor<3>,
        layer: OutputLayer,
        targets: &[u32],
    ) -> Tensor<1> {
        let [d_in, d_out] = layer.weight.shape();
        let (weight, layout) = match layer.weight {
            OutputWeight::Matrix(weight) => (weight, WeightLayout::InOut),
            OutputWeight::Table(table) => (table, WeightLayout::OutIn),
            OutputWeight::Quantized(weight) => {
                let (bias, soft_cap) = (layer.bias, layer.soft_cap);
                return quantized_loss(hidden, &weight, bias, soft_cap, targets);
            }
        };
        let op = CrossEntropy {
            linear: LinearOp {
                rows: targets.len(),
                d_in,
                d_out,
                layout,
                use_matvec: false,
                precision: layer.precision,
            },
            targets: Arc::new(targets.to_vec()),
            soft_cap: layer.soft_cap.map(|cap| cap as f32),
        };
        match layer.bias {
            Some(bias) => apply(op, [hidden.into(), weight.into(), bias.into()], [1]),
            None => apply(op, [hidden.into(), weight.into()], [1]),
        }
    }

    /// The loss without gradients.
    fn quantized_loss(
        hidden: Tensor<3>,
        weight: &QuantizedMatrix,
        bias: Option<Tensor<1>>,
        soft_cap: Option<f64>,
        targets: &[u32],
    ) -> Tensor<1> {
        let [d_in, d_out] = weight.shape();
        let (hidden, bias) = (
            fused::into_contiguous(hidden),
            bias.map(fused::into_contiguous),
        );
        let (hidden, bias) = (fused::values(&hidden), bias.as_ref().map(fused::values));
        let chunk_rows = loss_chunk_rows(d_out).min(targets.len().max(1));
        let mut logits = Buffer::new(chunk_rows * d_out);
        let (mut loss, mut lse) = (Buffer::new(chunk_rows), Buffer::new(chunk_rows));
        let mut sum = 0.0;
        for (x, targets) in hidden
            .chunks(chunk_rows * d_in)
            .zip(targets.chunks(chunk_rows))
        {
            let rows = targets.len();
            let logits = &mut logits[..rows * d_out];
            weight.matmul(x, rows, bias, logits);
            let task = Task {
                vocab: d_out,
                targets,
                soft_cap: soft_cap.map(|cap| cap as f32),
            };
            let losses = RowLosses {
                loss: &mut loss[..rows],
                lse: &mut lse[..rows],
            };
            sum += kernel::forward(&task, logits, losses);
        }
        Tensor::from_primitive::<Flex>(fused::from_buffer(Buffer::from_slice(&[sum as f32]), [1]))
    }

    impl CrossEntropy {
        fn run(&self, [x, weight, bias]: [&[f32]; 3], requires_grad: bool) -> (Buffer, Gradients) {
            let LinearOp {
                rows, d_in, d_out, ..
            } = self.linear;
            let chunk_rows = loss_chunk_rows(d_out).min(rows.max(1));
            let mut logits = Buffer::new(chunk_rows * d_out);
            let (mut loss, mut lse) = (Buffer::new(chunk_rows), Buffer::new(chunk_rows));
            let len = |len: usize| if requires_grad { len } else { 0 };
            let mut grads = [
                Buffer::new(len(x.len())),
                Buffer::new(len(weight.len())),
                Buffer::zeros(len(bias.len())),
            ];
            if rows == 0 {
                grads[1].fill(0.0);
            }
            let mut sum = 0.0;
            for first in (0..rows).step_by(chunk_rows) {
                let n = chunk_rows.min(rows - first);
                let linear = LinearOp {
                    rows: n,
                    ..self.linear
                };
                let x = &x[first * d_in..(first + n) * d_in];
                let logits = &mut logits[..n * d_out];
                linear.forward(x, weight, bias, logits);
                let task = Task {
                    vocab: d_out,
                    targets: &self.targets[first..first + n],
                    soft_cap: self.soft_cap,
                };
                let losses = RowLosses {
                    loss: &mut loss[..n],
                    lse: &mut lse[..n],
                };
                if !requires_grad {
                    sum += kernel::forward(&task, logits, losses);
                    continue;
                }
                sum += kernel::forward_backward_in_place(&task, logits, 1.0, losses);
                let [dx, dw, db] = &mut grads;
                linear.input_gradient(logits, weight, &mut dx[first * d_in..(first + n) * d_in]);
                linear.weight_gradient(x, logits, dw, first > 0);
                if !bias.is_empty() {
                    add_column_sums(logits, db);
                }
            }
            (Buffer::from_slice(&[sum as f32]), grads)
        }

        /// Multiplies the gradients by the output gradient.
        fn scale_gradients(
            mut gradients: Gradients,
            grad: &[f32],
            needs_grad: [bool; 3],
        ) -> [Option<Buffer>; 3] {
            for gradient in &mut gradients {
                scale(gradient, grad[0]);
            }
            let mut needs_grad = needs_grad.into_iter();
            gradients.map(|gradient| needs_grad.next().unwrap_or(false).then_some(gradient))
        }
    }

    impl Op<2> for CrossEntropy {
        type Saved = Gradients;
        const SAVES_INPUT: [bool; 2] = [false; 2];

        fn forward(&self, [x, weight]: [&[f32]; 2], requires_grad: bool) -> (Buffer, Gradients) {
            self.run([x, weight, &[]], requires_grad)
        }

        fn backward(&self, ctx: BackwardContext<'_, Gradients, 2>) -> [Option<Buffer>; 2] {
            let [need_x, need_w] = ctx.needs_grad;
            let [dx, dw, _] = Self::scale_gradients(ctx.saved, ctx.grad, [need_x, need_w, false]);
            [dx, dw]
        }
    }

    impl Op<3> for CrossEntropy {
        type Saved = Gradients;
        const SAVES_INPUT: [bool; 3] = [false; 3];

        fn forward(&self, inputs: [&[f32]; 3], requires_grad: bool) -> (Buffer, Gradients) {
            self.run(inputs, requires_grad)
        }

        fn backward(&self, ctx: BackwardContext<'_, Gradients, 3>) -> [Option<Buffer>; 3] {
            Self::scale_gradients(ctx.saved, ctx.grad, ctx.needs_grad)
        }
    }
}
