//! The output layer and softmax cross-entropy, joined.

use burn::tensor::Tensor;

use crate::{Precision, QuantizedMatrix};

/// A target that counts for nothing: padding, or a token that is not to be learned.
pub const IGNORE: u32 = u32::MAX;

/// The weight of an output layer.
#[derive(Clone, Debug)]
pub enum OutputWeight {
    /// `[d_model, vocab]`.
    Matrix(Tensor<2>),
    /// An embedding's table, `[vocab, d_model]`.
    Table(Tensor<2>),
    /// `[d_model, vocab]` in 8 or 4 bits. Nothing flows back.
    Quantized(QuantizedMatrix),
}

/// From hidden numbers to logits.
#[derive(Clone, Debug)]
pub struct OutputLayer {
    /// What multiplies.
    pub weight: OutputWeight,
    /// `[vocab]`.
    pub bias: Option<Tensor<1>>,
    /// Logits are squashed into (-c, c) by `c * tanh(x / c)`.
    pub soft_cap: Option<f64>,
    /// The arithmetic of its product.
    pub precision: Precision,
}

impl OutputLayer {
    /// `[batch, seq, d_model]` to logits, `[batch, seq, vocab]`.
    pub fn logits(self, hidden: Tensor<3>) -> Tensor<3> {
        let (precision, bias) = (self.precision, self.bias);
        let logits = match self.weight {
            OutputWeight::Matrix(weight) => crate::linear_in(precision, hidden, weight, bias),
            OutputWeight::Table(table) => crate::linear_table(precision, hidden, table, bias),
            OutputWeight::Quantized(weight) => crate::linear_quantized(hidden, &weight, bias),
        };
        match self.soft_cap {
            Some(cap) => crate::reference::soft_cap(logits, cap),
            None => logits,
        }
    }
}

/// The sum of `-ln p(target)` in nats over all places whose target is not [`IGNORE`].
///
/// `hidden` is `[batch, seq, d_model]`, `targets` `batch * seq` ids row by row. The fast body works
/// through the places in portions: logits for all of them are never stored.
///
/// # Panics
/// If there are not `batch * seq` targets.
pub fn cross_entropy_sum(hidden: Tensor<3>, layer: OutputLayer, targets: &[u32]) -> Tensor<1> {
    let [batch, seq, _] = hidden.dims();
    assert_eq!(targets.len(), batch * seq, "one target for each place");
    #[cfg(feature = "flex")]
    if crate::fused::is_fast(&hidden) {
        return fast::cross_entropy_sum(hidden, layer, targets);
    }
    let logits = layer.logits(hidden);
    let vocab = logits.dims()[2];
    crate::reference::cross_entropy_sum(logits.reshape([batch * seq, vocab]), targets)
}

#[cfg(feature = "flex")]
mod fast {
    use std::sync::Arc;

    use burn::backend::Flex;
    use burn::tensor::Tensor;

    use super::{OutputLayer, OutputWeight};
    use crate::QuantizedMatrix;
    use crate::cpu::columns::add_column_sums;
    use crate::cpu::cross_entropy::{self as kernel, RowResults, Task};
    use crate::cpu::elementwise::scale;
    use crate::fused::{self, Buffer, Kept, Op, apply};
    use crate::linear::fast::{Product, Stored};

    /// Logits that are held at once: 32 MB.
    const PORTION: usize = 8 << 20;

    /// Fewer places at once would read the whole weight for too little work.
    const LEAST: usize = 128;

    #[derive(Clone, Debug)]
    struct Loss {
        product: Product,
        targets: Arc<Vec<u32>>,
        soft_cap: Option<f32>,
    }

    /// Gradients of hidden numbers, weight and bias for a gradient of 1.
    type Gradients = [Buffer; 3];

    pub(super) fn cross_entropy_sum(
        hidden: Tensor<3>,
        layer: OutputLayer,
        targets: &[u32],
    ) -> Tensor<1> {
        let (weight, [d_in, d_out], stored) = match layer.weight {
            OutputWeight::Matrix(weight) => {
                let shape = weight.dims();
                (weight, shape, Stored::InOut)
            }
            OutputWeight::Table(weight) => {
                let [d_out, d_in] = weight.dims();
                (weight, [d_in, d_out], Stored::OutIn)
            }
            OutputWeight::Quantized(weight) => {
                let (bias, soft_cap) = (layer.bias, layer.soft_cap);
                return quantized(hidden, &weight, bias, soft_cap, targets);
            }
        };
        let op = Loss {
            product: Product {
                rows: targets.len(),
                d_in,
                d_out,
                stored,
                few: false,
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

    /// The loss alone, always by the product for many places: how a text is cut into batches must not
    /// change its bits.
    fn quantized(
        hidden: Tensor<3>,
        weight: &QuantizedMatrix,
        bias: Option<Tensor<1>>,
        soft_cap: Option<f64>,
        targets: &[u32],
    ) -> Tensor<1> {
        let [d_in, d_out] = weight.shape();
        let (hidden, bias) = (fused::plain(hidden), bias.map(fused::plain));
        let (hidden, bias) = (fused::values(&hidden), bias.as_ref().map(fused::values));
        let portion = (PORTION / d_out).max(LEAST).min(targets.len().max(1));
        let mut logits = Buffer::new(portion * d_out);
        let (mut loss, mut lse) = (Buffer::new(portion), Buffer::new(portion));
        let mut sum = 0.0;
        for (x, targets) in hidden.chunks(portion * d_in).zip(targets.chunks(portion)) {
            let rows = targets.len();
            let logits = &mut logits[..rows * d_out];
            weight.multiply(x, rows, bias, logits);
            let task = Task {
                vocab: d_out,
                targets,
                soft_cap: soft_cap.map(|cap| cap as f32),
            };
            let results = RowResults {
                loss: &mut loss[..rows],
                lse: &mut lse[..rows],
            };
            sum += kernel::forward(&task, logits, results);
        }
        Tensor::from_primitive::<Flex>(fused::tensor(Buffer::of(&[sum as f32]), [1]))
    }

    impl Loss {
        fn run(&self, [x, weight, bias]: [&[f32]; 3], keep: bool) -> (Buffer, Gradients) {
            let Product {
                rows, d_in, d_out, ..
            } = self.product;
            let portion = (PORTION / d_out).max(LEAST).min(rows.max(1));
            let mut logits = Buffer::new(portion * d_out);
            let (mut loss, mut lse) = (Buffer::new(portion), Buffer::new(portion));
            let len = |len: usize| if keep { len } else { 0 };
            let mut grads = [
                Buffer::new(len(x.len())),
                Buffer::new(len(weight.len())),
                Buffer::zeros(len(bias.len())),
            ];
            if rows == 0 {
                grads[1].fill(0.0);
            }
            let mut sum = 0.0;
            for first in (0..rows).step_by(portion) {
                let n = portion.min(rows - first);
                let product = Product {
                    rows: n,
                    ..self.product
                };
                let x = &x[first * d_in..(first + n) * d_in];
                let logits = &mut logits[..n * d_out];
                product.forward(x, weight, bias, logits);
                let task = Task {
                    vocab: d_out,
                    targets: &self.targets[first..first + n],
                    soft_cap: self.soft_cap,
                };
                let results = RowResults {
                    loss: &mut loss[..n],
                    lse: &mut lse[..n],
                };
                if !keep {
                    sum += kernel::forward(&task, logits, results);
                    continue;
                }
                sum += kernel::forward_backward_in_place(&task, logits, 1.0, results);
                let [dx, dw, db] = &mut grads;
                product.input_gradient(logits, weight, &mut dx[first * d_in..(first + n) * d_in]);
                product.weight_gradient(x, logits, dw, first > 0);
                if !bias.is_empty() {
                    add_column_sums(logits, db);
                }
            }
            (Buffer::of(&[sum as f32]), grads)
        }

        /// The gradients, times that of the sum.
        fn scaled(
            mut gradients: Gradients,
            grad: &[f32],
            wanted: [bool; 3],
        ) -> [Option<Buffer>; 3] {
            for gradient in &mut gradients {
                scale(gradient, grad[0]);
            }
            let mut wanted = wanted.into_iter();
            gradients.map(|gradient| wanted.next().unwrap_or(false).then_some(gradient))
        }
    }

    impl Op<2> for Loss {
        type Saved = Gradients;
        const KEEPS: [bool; 2] = [false; 2];

        fn forward(&self, [x, weight]: [&[f32]; 2], keep: bool) -> (Buffer, Gradients) {
            self.run([x, weight, &[]], keep)
        }

        fn backward(&self, kept: Kept<'_, Gradients, 2>) -> [Option<Buffer>; 2] {
            let [wx, ww] = kept.wanted;
            let [dx, dw, _] = Self::scaled(kept.saved, kept.grad, [wx, ww, false]);
            [dx, dw]
        }
    }

    impl Op<3> for Loss {
        type Saved = Gradients;
        const KEEPS: [bool; 3] = [false; 3];

        fn forward(&self, inputs: [&[f32]; 3], keep: bool) -> (Buffer, Gradients) {
            self.run(inputs, keep)
        }

        fn backward(&self, kept: Kept<'_, Gradients, 3>) -> [Option<Buffer>; 3] {
            Self::scaled(kept.saved, kept.grad, kept.wanted)
        }
    }
}
