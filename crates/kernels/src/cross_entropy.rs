//! The output layer and softmax cross-entropy, joined.

use burn::tensor::Tensor;

use crate::Precision;

/// A target that counts for nothing: padding, or a token that is not to be learned.
pub const IGNORE: u32 = u32::MAX;

/// From hidden numbers to logits.
#[derive(Clone, Debug)]
pub struct OutputLayer {
    /// `[d_model, vocab]`, or `[vocab, d_model]` if it is a table.
    pub weight: Tensor<2>,
    /// Whether the weight is an embedding's table.
    pub is_table: bool,
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
        let logits = if self.is_table {
            crate::linear_table(self.precision, hidden, self.weight, self.bias)
        } else {
            crate::linear_in(self.precision, hidden, self.weight, self.bias)
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

    use burn::tensor::Tensor;

    use super::OutputLayer;
    use crate::cpu::columns::add_column_sums;
    use crate::cpu::cross_entropy::{self as kernel, RowResults, Task};
    use crate::cpu::elementwise::scale;
    use crate::fused::{Buffer, Kept, Op, apply};
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
        let [d_0, d_1] = layer.weight.dims();
        let (d_in, d_out, stored) = if layer.is_table {
            (d_1, d_0, Stored::OutIn)
        } else {
            (d_0, d_1, Stored::InOut)
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
            Some(bias) => apply(op, [hidden.into(), layer.weight.into(), bias.into()], [1]),
            None => apply(op, [hidden.into(), layer.weight.into()], [1]),
        }
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
