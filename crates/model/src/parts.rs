//! A backward pass that hands over the gradients of each block as soon as they are known, without computing anything
//! twice.
//!
//! Burn returns gradients when the whole backward pass is done. So the graph is cut at the inputs of the blocks: each
//! block has a graph of its own, and the gradient of its output enters it as the factor of a product.

use burn::module::Module;
use burn::tensor::{Gradients, Int, Tensor};

use crate::{ForwardContext, NoProbe, Transformer};

impl Transformer {
    /// Whether [`loss_in_parts`](Self::loss_in_parts) computes this model with the bits of
    /// [`loss_sum`](Self::loss_sum), where all operations are fused: not with a soft cap on scores, and not an encoder
    /// with a decoder, each of whose blocks reads the encoder's output.
    pub fn supports_loss_in_parts(&self) -> bool {
        self.config().supports_loss_in_parts()
    }

    /// Computes what [`loss_with_recompute`](Self::loss_with_recompute) computes, with the same calls of `on_gradients`,
    /// but saves all activations as [`loss_sum`](Self::loss_sum) does, instead of recomputing them.
    ///
    /// # Panics
    /// If there are not `batch * seq` targets, or the model [cannot be divided](Self::supports_loss_in_parts).
    pub fn loss_in_parts(
        &self,
        tokens: Tensor<2, Int>,
        targets: &[u32],
        divisor: f64,
        context: impl Fn() -> ForwardContext<'static, NoProbe>,
        mut on_gradients: impl FnMut(Gradients),
    ) -> Tensor<1> {
        assert!(
            self.supports_loss_in_parts(),
            "the model can be divided into parts"
        );
        let lowest = self.lowest_trained_part();
        // The input of the lowest trained part needs no gradient.
        let track = |x: Tensor<3>, part: usize| {
            let needs_grad = lowest.is_none_or(|lowest| part > lowest);
            Tensor::from_inner(x).set_require_grad(needs_grad)
        };
        let frozen = self.valid();
        let embedded = lowest
            .is_none()
            .then(|| self.embed(tokens.clone(), &mut context()));
        let mut x = match &embedded {
            Some(embedded) => embedded.clone().inner(),
            None => frozen.embed(tokens, &mut context()),
        };
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for layer in 0..self.blocks.len() {
            if lowest.is_some_and(|lowest| layer < lowest) {
                x = frozen.forward_block(layer, x, &mut context());
                continue;
            }
            let input = track(x, layer);
            let output = self.forward_block(layer, input.clone(), &mut context());
            x = output.clone().inner();
            blocks.push((input, output));
        }
        drop(frozen);

        let x = track(x, self.blocks.len());
        let loss = self.loss_from_residual(x.clone(), targets, &mut context()) / divisor;
        let mut gradients = loss.backward();
        let mut upstream = x.grad_remove(&mut gradients);
        on_gradients(gradients);
        while let Some((input, output)) = blocks.pop() {
            let Some(gradient) = upstream.take() else {
                break; // The loss does not depend on this block's output, or nothing below is trained.
            };
            let mut gradients = (output * Tensor::from_inner(gradient)).sum().backward();
            upstream = input.grad_remove(&mut gradients);
            on_gradients(gradients);
        }
        if let (Some(gradient), Some(embedded)) = (upstream, embedded) {
            on_gradients((embedded * Tensor::from_inner(gradient)).sum().backward());
        }
        loss.inner()
    }
}
