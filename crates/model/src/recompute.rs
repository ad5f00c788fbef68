//! Activation checkpointing: a backward pass that saves only the input of each block and recomputes
//! the rest.
//!
//! Chen et al. 2016 (arXiv 1604.06174): activation memory falls from all values of every block to
//! the inputs of all blocks plus all values of one, for a third more computation. The results agree;
//! they are bitwise equal if all operations are fused (on flex, without a soft cap on scores).

use burn::module::Module;
use burn::tensor::{Gradients, Int, Tensor};

use crate::{Dropout, ForwardContext, NoProbe, Transformer};

impl Transformer {
    /// Computes the loss of [`loss_sum`](Self::loss_sum) divided by `divisor`, off the autodiff
    /// graph, `[1]`, and its gradients.
    ///
    /// Calls `on_gradients` with the gradients of the output layer, of each block and of the
    /// embeddings, in this order. A parameter that is used twice (a tied embedding) has two gradients,
    /// which the caller adds up. The model is on an autodiff device, `tokens` (`[batch, seq]`) is not.
    ///
    /// # Panics
    /// If there are not `batch * seq` targets.
    pub fn loss_with_recompute(
        &self,
        tokens: Tensor<2, Int>,
        targets: &[u32],
        divisor: f64,
        dropout: Dropout,
        mut on_gradients: impl FnMut(Gradients),
    ) -> Tensor<1> {
        let context = || ForwardContext::<NoProbe>::training(dropout);
        let inner = self.valid();
        let mut x = inner.embed(tokens.clone(), &mut context());
        let mut inputs = Vec::with_capacity(inner.blocks.len());
        for layer in 0..inner.blocks.len() {
            inputs.push(x.clone());
            x = inner.forward_block(layer, x, &mut context());
        }
        drop(inner);

        let x = Tensor::from_inner(x).require_grad();
        let loss = self.loss_from_residual(x.clone(), targets, &mut context()) / divisor;
        let mut gradients = loss.backward();
        let mut upstream = x.grad_remove(&mut gradients);
        on_gradients(gradients);
        while let Some(input) = inputs.pop() {
            let Some(gradient) = upstream.take() else {
                break; // The loss does not depend on this block's output.
            };
            let x = Tensor::from_inner(input).require_grad();
            let y = self.forward_block(inputs.len(), x.clone(), &mut context());
            let mut gradients = (y * Tensor::from_inner(gradient)).sum().backward();
            upstream = x.grad_remove(&mut gradients);
            on_gradients(gradients);
        }
        if let Some(gradient) = upstream {
            let y = self.embed(tokens, &mut context());
            on_gradients((y * Tensor::from_inner(gradient)).sum().backward());
        }
        loss.inner()
    }
}
