//! Activation checkpointing: a backward pass that saves only the input of each block and recomputes
//! the rest.
//!
//! Chen et al. 2016 (arXiv 1604.06174): activation memory falls from all values of every block to
//! the inputs of all blocks plus all values of one, for a third more computation. The results agree;
//! they are bitwise equal if all operations are fused (on flex, without a soft cap on scores).

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Gradients, Int, Tensor};

use crate::{ForwardContext, NoProbe, Transformer};

impl Transformer {
    /// Computes the loss of [`loss_sum`](Self::loss_sum) divided by `divisor`, off the autodiff
    /// graph, `[1]`, and its gradients.
    ///
    /// Calls `on_gradients` with the gradients of the output layer, of each block and of the
    /// embeddings, in this order, and then with those of the encoder, from its final norm to its embeddings;
    /// nothing below the lowest trained part is recomputed. A parameter that is used
    /// twice (a tied embedding) has two gradients, which the caller adds up. The model is on an autodiff device,
    /// `tokens` (`[batch, seq]`) is not. `context` returns the same context on each call: dropout masks,
    /// attention mask, and the source of an encoder-decoder model.
    ///
    /// # Panics
    /// If there are not `batch * seq` targets.
    pub fn loss_with_recompute(
        &self,
        tokens: Tensor<2, Int>,
        targets: &[u32],
        divisor: f64,
        context: impl Fn() -> ForwardContext<'static, NoProbe>,
        on_gradients: impl FnMut(Gradients),
    ) -> Tensor<1> {
        let loss = |x: Tensor<3>, ctx: &mut ForwardContext<'static, NoProbe>| {
            self.loss_from_residual(x, targets, ctx) / divisor
        };
        self.recompute(tokens, context, loss, on_gradients)
    }

    /// Computes `reduce` of [`sequence_losses`](Self::sequence_losses), off the autodiff graph, `[1]`, and its gradients,
    /// as [`loss_with_recompute`](Self::loss_with_recompute).
    ///
    /// # Panics
    /// If there are not `batch * seq` targets.
    pub fn sequence_losses_with_recompute(
        &self,
        tokens: Tensor<2, Int>,
        targets: &[u32],
        context: impl Fn() -> ForwardContext<'static, NoProbe>,
        reduce: impl FnOnce(Tensor<1>) -> Tensor<1>,
        on_gradients: impl FnMut(Gradients),
    ) -> Tensor<1> {
        let loss = |x: Tensor<3>, ctx: &mut ForwardContext<'static, NoProbe>| {
            reduce(self.sequence_losses_from_residual(x, targets, ctx))
        };
        self.recompute(tokens, context, loss, on_gradients)
    }

    /// Computes `loss` of the output of the last block, and its gradients.
    fn recompute(
        &self,
        tokens: Tensor<2, Int>,
        context: impl Fn() -> ForwardContext<'static, NoProbe>,
        loss: impl FnOnce(Tensor<3>, &mut ForwardContext<'static, NoProbe>) -> Tensor<1>,
        mut on_gradients: impl FnMut(Gradients),
    ) -> Tensor<1> {
        let (lowest, lowest_of_encoder) = (self.lowest_trained_part(), self.encoder_parts());
        // Every block of the decoder reads the encoder's output.
        let lowest = match lowest_of_encoder {
            EncoderParts::Frozen => lowest,
            EncoderParts::From(_) => lowest.map(|_| 0),
        };
        let inner = self.valid();
        let mut source = context().take_source().map(|(tokens, lengths)| {
            RecomputedSource::new(&inner, tokens, lengths, lowest_of_encoder, &context)
        });
        let inner_context = || {
            let mut ctx = context();
            if let Some(source) = &source {
                ctx.set_encoded(source.output.clone(), source.lengths.clone());
            }
            ctx
        };
        let mut x = inner.embed(tokens.clone(), &mut inner_context());
        let mut inputs = Vec::with_capacity(inner.blocks.len());
        for layer in 0..inner.blocks.len() {
            if lowest.is_none_or(|lowest| layer >= lowest) {
                inputs.push((layer, x.clone()));
            }
            x = inner.forward_block(layer, x, &mut inner_context());
        }
        drop(inner);

        // The input of the lowest trained part needs no gradient.
        let track = |x: Tensor<3>, part: usize| {
            let needs_grad = lowest.is_none_or(|lowest| part > lowest);
            Tensor::from_inner(x).set_require_grad(needs_grad)
        };
        let x = track(x, self.blocks.len());
        let loss = loss(x.clone(), &mut context());
        let mut gradients = loss.backward();
        let mut upstream = x.grad_remove(&mut gradients);
        on_gradients(gradients);
        while let Some((layer, input)) = inputs.pop() {
            let Some(gradient) = upstream.take() else {
                break; // The loss does not depend on this block's output, or nothing below is trained.
            };
            let x = track(input, layer);
            let mut ctx = context();
            let encoded = source.as_ref().map(|source| source.track(&mut ctx));
            let y = self.forward_block(layer, x.clone(), &mut ctx);
            let mut gradients = (y * Tensor::from_inner(gradient)).sum().backward();
            upstream = x.grad_remove(&mut gradients);
            if let (Some(source), Some(encoded)) = (&mut source, encoded) {
                source.add(encoded.grad_remove(&mut gradients));
            }
            on_gradients(gradients);
        }
        if let Some(gradient) = upstream {
            let mut ctx = context();
            if let Some(source) = &source {
                source.track(&mut ctx);
            }
            let y = self.embed(tokens, &mut ctx);
            on_gradients((y * Tensor::from_inner(gradient)).sum().backward());
        }
        if let Some(source) = source {
            source.backward(self, &context, on_gradients);
        }
        loss.inner()
    }

    /// The first block with a trained parameter, or the number of blocks if there is none; `None` if the embeddings
    /// are trained.
    pub(crate) fn lowest_trained_part(&self) -> Option<usize> {
        let embeddings = is_trained(&self.token_embedding)
            || self.position_embedding.as_ref().is_some_and(is_trained)
            || self.embedding_norm.as_ref().is_some_and(is_trained);
        if embeddings {
            return None;
        }
        let lowest = self.blocks.iter().position(is_trained);
        Some(lowest.unwrap_or(self.blocks.len()))
    }

    /// Which parts of the encoder are trained.
    fn encoder_parts(&self) -> EncoderParts {
        let Some(encoder) = &self.encoder else {
            return EncoderParts::Frozen;
        };
        let table = encoder.token_embedding.as_ref();
        let embeddings = is_trained(table.unwrap_or(&self.token_embedding))
            || encoder.position_embedding.as_ref().is_some_and(is_trained)
            || encoder.embedding_norm.as_ref().is_some_and(is_trained);
        let block = encoder.blocks.iter().position(is_trained);
        let norm = encoder.final_norm.as_ref().is_some_and(is_trained);
        match (embeddings, block) {
            (true, _) => EncoderParts::From(None),
            (false, Some(block)) => EncoderParts::From(Some(block)),
            (false, None) if norm => EncoderParts::From(Some(encoder.blocks.len())),
            (false, None) => EncoderParts::Frozen,
        }
    }
}

/// Which parts of an encoder are trained.
#[derive(Clone, Copy)]
enum EncoderParts {
    /// None, or there is no encoder.
    Frozen,
    /// Those from the first trained block on, or from the final norm, whose index is the number of blocks; `None`:
    /// the embeddings too.
    From(Option<usize>),
}

impl EncoderParts {
    /// Whether the input of `part`, a block or the final norm, needs a gradient.
    fn are_below(self, part: usize) -> bool {
        match self {
            Self::Frozen => false,
            Self::From(lowest) => lowest.is_none_or(|lowest| part > lowest),
        }
    }
}

/// The encoder's part of a forward pass: the inputs of its blocks, and its output.
struct RecomputedSource {
    tokens: Tensor<2, Int>,
    lengths: Vec<usize>,
    trained: EncoderParts,
    /// Off the autodiff graph.
    inputs: Vec<Tensor<3>>,
    last: Tensor<3>,
    output: Tensor<3>,
    /// The sum of the decoder's gradients of `output` so far.
    gradient: Option<Tensor<3>>,
}

impl RecomputedSource {
    /// Runs the encoder of `inner`, which is off the autodiff graph.
    fn new(
        inner: &Transformer,
        tokens: Tensor<2, Int>,
        lengths: Vec<usize>,
        trained: EncoderParts,
        context: &impl Fn() -> ForwardContext<'static, NoProbe>,
    ) -> Self {
        let context = || encoder_context(context, &lengths);
        let mut x = inner.embed_source(tokens.clone(), &mut context());
        let mut inputs = Vec::new();
        for layer in 0..inner.require_encoder().blocks.len() {
            inputs.push(x.clone());
            x = inner.forward_encoder_block(layer, x, &mut context());
        }
        let output = inner.normalize_encoded(x.clone(), &mut context());
        Self {
            tokens,
            lengths,
            trained,
            inputs,
            last: x,
            output,
            gradient: None,
        }
    }

    /// Gives `ctx` the encoder's output, and returns it to ask for its gradient.
    fn track(&self, ctx: &mut ForwardContext<'static, NoProbe>) -> Tensor<3> {
        let needs_grad = matches!(self.trained, EncoderParts::From(_));
        let output = Tensor::from_inner(self.output.clone()).set_require_grad(needs_grad);
        ctx.set_encoded(output.clone(), self.lengths.clone());
        output
    }

    fn add(&mut self, gradient: Option<Tensor<3>>) {
        self.gradient = match (self.gradient.take(), gradient) {
            (Some(sum), Some(gradient)) => Some(sum + gradient),
            (sum, gradient) => sum.or(gradient),
        };
    }

    /// The backward pass through the encoder of `model`.
    fn backward(
        self,
        model: &Transformer,
        context: &impl Fn() -> ForwardContext<'static, NoProbe>,
        mut on_gradients: impl FnMut(Gradients),
    ) {
        let context = || encoder_context(context, &self.lengths);
        let Some(gradient) = self.gradient else {
            return; // The loss does not depend on the source, or the encoder is frozen.
        };
        let track = |x: Tensor<3>, part: usize| {
            Tensor::from_inner(x).set_require_grad(self.trained.are_below(part))
        };
        let mut step = |x: Tensor<3>, y: Tensor<3>, gradient: Tensor<3>| {
            let mut gradients = (y * Tensor::from_inner(gradient)).sum().backward();
            let upstream = x.grad_remove(&mut gradients);
            on_gradients(gradients);
            upstream
        };
        let x = track(self.last, self.inputs.len());
        let y = model.normalize_encoded(x.clone(), &mut context());
        let mut upstream = step(x, y, gradient);
        for (layer, input) in self.inputs.into_iter().enumerate().rev() {
            let Some(gradient) = upstream.take() else {
                return;
            };
            let x = track(input, layer);
            let y = model.forward_encoder_block(layer, x.clone(), &mut context());
            upstream = step(x, y, gradient);
        }
        if let Some(gradient) = upstream {
            let y = model.embed_source(self.tokens, &mut context());
            on_gradients((y * Tensor::from_inner(gradient)).sum().backward());
        }
    }
}

/// A context of the encoder, with the dropout masks of `context`.
fn encoder_context(
    context: &impl Fn() -> ForwardContext<'static, NoProbe>,
    lengths: &[usize],
) -> ForwardContext<'static, NoProbe> {
    let mut ctx = context();
    ctx.enter_encoder(lengths.to_vec());
    ctx
}

/// Whether a parameter of `module` needs a gradient.
fn is_trained(module: &impl Module) -> bool {
    struct AnyTrained(bool);

    impl ModuleVisitor for AnyTrained {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0 |= param.val().is_require_grad();
        }
    }

    let mut visitor = AnyTrained(false);
    module.visit(&mut visitor);
    visitor.0
}
