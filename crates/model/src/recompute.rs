//! A backward pass that keeps only what enters each block, and computes the rest anew.
//!
//! Chen et al. 2016 (arXiv 1604.06174): memory for activations falls from all of every block to the
//! input of each and all of one, for a third more work. The numbers are the same, to the last bit where
//! all operations are fused ones (on flex, without a soft cap on scores).

use burn::module::Module;
use burn::tensor::{Gradients, Int, Tensor};

use crate::{Dropout, NoProbe, Pass, Transformer};

impl Transformer {
    /// The loss of [`loss_sum`](Self::loss_sum) divided by `divisor`, off the autodiff graph, `[1]`.
    /// `take` is given the gradients of the output layer, of each block and of the embeddings in turn;
    /// a parameter that serves twice (a tied table) has two parts, to be added.
    ///
    /// The model is on an autodiff device, `tokens` (`[batch, seq]`) is not.
    ///
    /// # Panics
    /// If there are not `batch * seq` targets.
    pub fn recomputed_loss(
        &self,
        tokens: Tensor<2, Int>,
        targets: &[u32],
        divisor: f64,
        dropout: Dropout,
        mut take: impl FnMut(Gradients),
    ) -> Tensor<1> {
        let pass = || Pass::<NoProbe>::dropping(dropout);
        let plain = self.valid();
        let mut x = plain.embedded(tokens.clone(), &mut pass());
        let mut inputs = Vec::with_capacity(plain.blocks.len());
        for layer in 0..plain.blocks.len() {
            inputs.push(x.clone());
            x = plain.block(layer, x, &mut pass());
        }
        drop(plain);

        let x = Tensor::from_inner(x).require_grad();
        let loss = self.loss_from(x.clone(), targets, &mut pass()) / divisor;
        let mut gradients = loss.backward();
        let mut flowing = x.grad_remove(&mut gradients);
        take(gradients);
        while let Some(input) = inputs.pop() {
            let Some(gradient) = flowing.take() else {
                break; // Nothing flows back to here: no parameter had a part in the loss.
            };
            let x = Tensor::from_inner(input).require_grad();
            let y = self.block(inputs.len(), x.clone(), &mut pass());
            let mut gradients = (y * Tensor::from_inner(gradient)).sum().backward();
            flowing = x.grad_remove(&mut gradients);
            take(gradients);
        }
        if let Some(gradient) = flowing {
            let y = self.embedded(tokens, &mut pass());
            take((y * Tensor::from_inner(gradient)).sum().backward());
        }
        loss.inner()
    }
}
