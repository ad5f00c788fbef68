//! A Transformer block: attention, then feed-forward, each with a norm and a residual connection.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::{
    Attention, FeedForward, ForwardContext, Hook, ModelConfig, Norm, NormPlacement, Probe,
};

/// A Transformer block.
#[derive(Module, Debug)]
pub struct Block {
    /// Before attention, or after the residual sum with `NormPlacement::Post`.
    pub attention_norm: Option<Norm>,
    /// Masked multi-head attention.
    pub attention: Attention,
    /// Between attention and the residual sum; sandwich norms only.
    pub attention_post_norm: Option<Norm>,
    /// Before cross-attention, or after the residual sum with `NormPlacement::Post`.
    pub cross_attention_norm: Option<Norm>,
    /// Attention to the encoder's output; in the decoder of encoder-decoder models only.
    pub cross_attention: Option<Attention>,
    /// Between cross-attention and the residual sum; sandwich norms only.
    pub cross_attention_post_norm: Option<Norm>,
    /// Before feed-forward, or after the residual sum with `NormPlacement::Post`.
    pub feed_forward_norm: Option<Norm>,
    /// The feed-forward layer, if the model has one.
    pub feed_forward: Option<FeedForward>,
    /// Between feed-forward and the residual sum; sandwich norms only.
    pub feed_forward_post_norm: Option<Norm>,
    #[module(skip)]
    placement: NormPlacement,
    residual: bool,
    parallel: bool,
    dropout: f64,
}

impl Block {
    /// A block of an encoder, or of a model with one stack.
    pub(crate) fn new(config: &ModelConfig, layer: usize, device: &Device) -> Self {
        Self::build(config, layer, false, device)
    }

    /// A block with cross-attention.
    pub(crate) fn with_cross_attention(
        config: &ModelConfig,
        layer: usize,
        device: &Device,
    ) -> Self {
        Self::build(config, layer, true, device)
    }

    fn build(config: &ModelConfig, layer: usize, has_cross: bool, device: &Device) -> Self {
        let feed_forward = FeedForward::new(config, device);
        let norm = || Norm::new(config, config.d_model, device);
        let post_norm = || config.has_sandwich_norms().then(norm).flatten();
        let has_feed_forward = feed_forward.is_some();
        Self {
            attention_norm: norm(),
            attention: Attention::new(config, layer, device),
            attention_post_norm: post_norm(),
            cross_attention_norm: has_cross.then(norm).flatten(),
            cross_attention: has_cross.then(|| Attention::cross(config, device)),
            cross_attention_post_norm: has_cross.then(post_norm).flatten(),
            feed_forward_norm: has_feed_forward.then(norm).flatten(),
            feed_forward,
            feed_forward_post_norm: has_feed_forward.then(post_norm).flatten(),
            placement: config.norm_placement,
            residual: config.residual,
            parallel: config.parallel,
            dropout: config.dropout.residual,
        }
    }

    /// Computes `x + attention(norm(x))`, then `x + cross_attention(norm(x))` if the block has it, then
    /// `x + feed_forward(norm(x))`. `x` and the result are `[batch, seq, d_model]`.
    ///
    /// With post-norm each step is `norm(x + f(x))`. In a parallel block, attention and feed-forward
    /// read the same input.
    pub fn forward<P: Probe>(&self, x: Tensor<3>, ctx: &mut ForwardContext<'_, P>) -> Tensor<3> {
        if self.parallel {
            let input = x.clone();
            let x = self.add_attention(x, ctx);
            return self.add_feed_forward(input, x, ctx);
        }
        let x = self.add_attention(x, ctx);
        let x = self.add_cross_attention(x, ctx);
        self.add_feed_forward(x.clone(), x, ctx)
    }

    fn add_attention<P: Probe>(&self, x: Tensor<3>, ctx: &mut ForwardContext<'_, P>) -> Tensor<3> {
        ctx.record(Hook::ResidPre, &x);
        let input = self.pre_norm(self.attention_norm.as_ref(), x.clone(), Hook::Ln1, ctx);
        let sum = if self.residual && self.adds_directly(self.attention_post_norm.as_ref(), ctx) {
            self.attention.forward_add(input, Some(x), ctx)
        } else {
            let delta = self.attention.forward(input, ctx);
            let norm = self.attention_post_norm.as_ref();
            let delta = sandwich_norm(norm, delta, Hook::RawAttnOut, ctx);
            ctx.record(Hook::AttnOut, &delta);
            let delta = ctx.dropout(Hook::AttnOut, delta, self.dropout);
            if self.residual { x + delta } else { delta }
        };
        let norm = self.attention_norm.as_ref();
        self.post_norm(norm, sum, [Hook::AttnSum, Hook::Ln1], ctx)
    }

    fn add_cross_attention<P: Probe>(
        &self,
        x: Tensor<3>,
        ctx: &mut ForwardContext<'_, P>,
    ) -> Tensor<3> {
        let Some(cross_attention) = &self.cross_attention else {
            return x;
        };
        ctx.record(Hook::ResidMid, &x);
        let norm = self.cross_attention_norm.as_ref();
        let input = self.pre_norm(norm, x.clone(), Hook::CrossLn, ctx);
        let delta = cross_attention.forward(input, ctx);
        let post_norm = self.cross_attention_post_norm.as_ref();
        let delta = sandwich_norm(post_norm, delta, Hook::RawCrossAttnOut, ctx);
        ctx.record(Hook::CrossAttnOut, &delta);
        let delta = ctx.dropout(Hook::CrossAttnOut, delta, self.dropout);
        let sum = if self.residual { x + delta } else { delta };
        self.post_norm(norm, sum, [Hook::CrossAttnSum, Hook::CrossLn], ctx)
    }

    /// Adds `feed_forward(norm(input))` to `x`.
    fn add_feed_forward<P: Probe>(
        &self,
        input: Tensor<3>,
        x: Tensor<3>,
        ctx: &mut ForwardContext<'_, P>,
    ) -> Tensor<3> {
        let Some(feed_forward) = &self.feed_forward else {
            ctx.record(Hook::ResidPost, &x);
            return x;
        };
        let resid_mid = match self.cross_attention {
            Some(_) => Hook::ResidMidCross,
            None => Hook::ResidMid,
        };
        ctx.record(resid_mid, &x);
        let norm = self.feed_forward_norm.as_ref();
        let input = self.pre_norm(norm, input, Hook::Ln2, ctx);
        let post_norm = self.feed_forward_post_norm.as_ref();
        let sum = if self.residual && self.adds_directly(post_norm, ctx) {
            feed_forward.forward_add(input, Some(x), ctx)
        } else {
            let delta = feed_forward.forward(input, ctx);
            let delta = sandwich_norm(post_norm, delta, Hook::RawMlpOut, ctx);
            ctx.record(Hook::MlpOut, &delta);
            let delta = ctx.dropout(Hook::MlpOut, delta, self.dropout);
            if self.residual { x + delta } else { delta }
        };
        let x = self.post_norm(norm, sum, [Hook::MlpSum, Hook::Ln2], ctx);
        ctx.record(Hook::ResidPost, &x);
        x
    }

    /// Whether the output of a sublayer is added to the residual stream as it is, so that its last linear
    /// layer can add it.
    fn adds_directly<P: Probe>(
        &self,
        post_norm: Option<&Norm>,
        ctx: &ForwardContext<'_, P>,
    ) -> bool {
        post_norm.is_none() && ctx.adds_directly(self.dropout)
    }

    fn pre_norm<P: Probe>(
        &self,
        norm: Option<&Norm>,
        x: Tensor<3>,
        hook: Hook,
        ctx: &mut ForwardContext<'_, P>,
    ) -> Tensor<3> {
        match self.placement {
            NormPlacement::Pre | NormPlacement::Sandwich => normalize(norm, x, hook, ctx),
            NormPlacement::Post => x,
        }
    }

    fn post_norm<P: Probe>(
        &self,
        norm: Option<&Norm>,
        x: Tensor<3>,
        [sum, hook]: [Hook; 2],
        ctx: &mut ForwardContext<'_, P>,
    ) -> Tensor<3> {
        match self.placement {
            NormPlacement::Post => {
                if norm.is_some() {
                    ctx.record(sum, &x);
                }
                normalize(norm, x, hook, ctx)
            }
            NormPlacement::Pre | NormPlacement::Sandwich => x,
        }
    }
}

/// Applies `norm`, if there is one, and records the result.
fn normalize<P: Probe>(
    norm: Option<&Norm>,
    x: Tensor<3>,
    hook: Hook,
    ctx: &mut ForwardContext<'_, P>,
) -> Tensor<3> {
    let Some(norm) = norm else { return x };
    let x = norm.forward(x);
    ctx.record(hook, &x);
    x
}

/// The norm between a sublayer and the residual sum, if there is one; records its input at `hook`.
fn sandwich_norm<P: Probe>(
    norm: Option<&Norm>,
    x: Tensor<3>,
    hook: Hook,
    ctx: &mut ForwardContext<'_, P>,
) -> Tensor<3> {
    let Some(norm) = norm else { return x };
    ctx.record(hook, &x);
    norm.forward(x)
}
