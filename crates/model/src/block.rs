//! One layer of the stack: attention, then feed-forward, each with its norm and residual.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::{Attention, FeedForward, Hook, ModelConfig, Norm, NormPlacement, Pass, Probe};

/// One block of the stack.
#[derive(Module, Debug)]
pub struct Block {
    /// Before attention, or after it where norms stand after the sum.
    pub attention_norm: Option<Norm>,
    /// Masked multi-head attention.
    pub attention: Attention,
    /// After attention and before the sum; sandwich norms only.
    pub attention_post_norm: Option<Norm>,
    /// Before feed-forward, or after it.
    pub feed_forward_norm: Option<Norm>,
    /// The layer that works on each token by itself.
    pub feed_forward: Option<FeedForward>,
    /// After feed-forward and before the sum; sandwich norms only.
    pub feed_forward_post_norm: Option<Norm>,
    #[module(skip)]
    placement: NormPlacement,
    residual: bool,
    parallel: bool,
    dropout: f64,
}

impl Block {
    pub(crate) fn new(config: &ModelConfig, layer: usize, device: &Device) -> Self {
        let feed_forward = FeedForward::new(config, device);
        let norm = || Norm::new(config, config.d_model, device);
        let post_norm = || config.has_sandwich_norms().then(norm).flatten();
        let has_feed_forward = feed_forward.is_some();
        Self {
            attention_norm: norm(),
            attention: Attention::new(config, layer, device),
            attention_post_norm: post_norm(),
            feed_forward_norm: has_feed_forward.then(norm).flatten(),
            feed_forward,
            feed_forward_post_norm: has_feed_forward.then(post_norm).flatten(),
            placement: config.norm_placement,
            residual: config.residual,
            parallel: config.parallel,
            dropout: config.dropout.residual,
        }
    }

    /// `x + attention(norm(x))`, then `x + feed_forward(norm(x))`; `[batch, seq, d_model]` to the
    /// same. With norms after the sum it is `norm(x + attention(x))`; a parallel block adds
    /// `feed_forward(norm(x))` of the same `x`.
    pub fn forward<P: Probe>(&self, x: Tensor<3>, pass: &mut Pass<'_, P>) -> Tensor<3> {
        if self.parallel {
            let read = x.clone();
            let x = self.add_attention(x, pass);
            return self.add_feed_forward(read, x, pass);
        }
        let x = self.add_attention(x, pass);
        self.add_feed_forward(x.clone(), x, pass)
    }

    fn add_attention<P: Probe>(&self, x: Tensor<3>, pass: &mut Pass<'_, P>) -> Tensor<3> {
        pass.see(Hook::ResidPre, &x);
        let input = self.before(self.attention_norm.as_ref(), x.clone(), Hook::Ln1, pass);
        let change = self.attention.forward(input, pass);
        let norm = self.attention_post_norm.as_ref();
        let change = between(norm, change, Hook::RawAttnOut, pass);
        pass.see(Hook::AttnOut, &change);
        let change = pass.drop_some(Hook::AttnOut, change, self.dropout);
        let sum = if self.residual { x + change } else { change };
        let norm = self.attention_norm.as_ref();
        self.after(norm, sum, [Hook::AttnSum, Hook::Ln1], pass)
    }

    /// Adds `feed_forward(norm(read))` to `x`.
    fn add_feed_forward<P: Probe>(
        &self,
        read: Tensor<3>,
        x: Tensor<3>,
        pass: &mut Pass<'_, P>,
    ) -> Tensor<3> {
        let Some(feed_forward) = &self.feed_forward else {
            pass.see(Hook::ResidPost, &x);
            return x;
        };
        pass.see(Hook::ResidMid, &x);
        let norm = self.feed_forward_norm.as_ref();
        let input = self.before(norm, read, Hook::Ln2, pass);
        let change = feed_forward.forward(input, pass);
        let post_norm = self.feed_forward_post_norm.as_ref();
        let change = between(post_norm, change, Hook::RawMlpOut, pass);
        pass.see(Hook::MlpOut, &change);
        let change = pass.drop_some(Hook::MlpOut, change, self.dropout);
        let sum = if self.residual { x + change } else { change };
        let x = self.after(norm, sum, [Hook::MlpSum, Hook::Ln2], pass);
        pass.see(Hook::ResidPost, &x);
        x
    }

    fn before<P: Probe>(
        &self,
        norm: Option<&Norm>,
        x: Tensor<3>,
        hook: Hook,
        pass: &mut Pass<'_, P>,
    ) -> Tensor<3> {
        match self.placement {
            NormPlacement::Pre | NormPlacement::Sandwich => see_normalized(norm, x, hook, pass),
            NormPlacement::Post => x,
        }
    }

    fn after<P: Probe>(
        &self,
        norm: Option<&Norm>,
        x: Tensor<3>,
        [sum, hook]: [Hook; 2],
        pass: &mut Pass<'_, P>,
    ) -> Tensor<3> {
        match self.placement {
            NormPlacement::Post => {
                if norm.is_some() {
                    pass.see(sum, &x);
                }
                see_normalized(norm, x, hook, pass)
            }
            NormPlacement::Pre | NormPlacement::Sandwich => x,
        }
    }
}

/// Applies the norm, if there is one, and shows the result.
fn see_normalized<P: Probe>(
    norm: Option<&Norm>,
    x: Tensor<3>,
    hook: Hook,
    pass: &mut Pass<'_, P>,
) -> Tensor<3> {
    let Some(norm) = norm else { return x };
    let x = norm.forward(x);
    pass.see(hook, &x);
    x
}

/// A sandwich's second norm, between a sublayer and the sum; `hook` shows what it reads.
fn between<P: Probe>(
    norm: Option<&Norm>,
    x: Tensor<3>,
    hook: Hook,
    pass: &mut Pass<'_, P>,
) -> Tensor<3> {
    let Some(norm) = norm else { return x };
    pass.see(hook, &x);
    norm.forward(x)
}
