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
    /// Before feed-forward, or after it.
    pub feed_forward_norm: Option<Norm>,
    /// The layer that works on each token by itself.
    pub feed_forward: Option<FeedForward>,
    #[module(skip)]
    placement: NormPlacement,
    residual: bool,
    dropout: f64,
}

impl Block {
    pub(crate) fn new(config: &ModelConfig, layer: usize, device: &Device) -> Self {
        let feed_forward = FeedForward::new(config, device);
        Self {
            attention_norm: Norm::new(config, config.d_model, device),
            attention: Attention::new(config, layer, device),
            feed_forward_norm: feed_forward
                .as_ref()
                .and_then(|_| Norm::new(config, config.d_model, device)),
            feed_forward,
            placement: config.norm_placement,
            residual: config.residual,
            dropout: config.dropout.residual,
        }
    }

    /// `x + attention(norm(x))`, then `x + feed_forward(norm(x))`; `[batch, seq, d_model]` to the
    /// same. With norms after the sum it is `norm(x + attention(x))`.
    pub fn forward<P: Probe>(&self, x: Tensor<3>, pass: &mut Pass<'_, P>) -> Tensor<3> {
        let x = self.add_attention(x, pass);
        self.add_feed_forward(x, pass)
    }

    fn add_attention<P: Probe>(&self, x: Tensor<3>, pass: &mut Pass<'_, P>) -> Tensor<3> {
        pass.see(Hook::ResidPre, &x);
        let input = self.before(self.attention_norm.as_ref(), x.clone(), Hook::Ln1, pass);
        let change = self.attention.forward(input, pass);
        pass.see(Hook::AttnOut, &change);
        let change = pass.drop_some(Hook::AttnOut, change, self.dropout);
        let sum = if self.residual { x + change } else { change };
        let norm = self.attention_norm.as_ref();
        self.after(norm, sum, [Hook::AttnSum, Hook::Ln1], pass)
    }

    fn add_feed_forward<P: Probe>(&self, x: Tensor<3>, pass: &mut Pass<'_, P>) -> Tensor<3> {
        let Some(feed_forward) = &self.feed_forward else {
            pass.see(Hook::ResidPost, &x);
            return x;
        };
        pass.see(Hook::ResidMid, &x);
        let norm = self.feed_forward_norm.as_ref();
        let input = self.before(norm, x.clone(), Hook::Ln2, pass);
        let change = feed_forward.forward(input, pass);
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
        self.normalize(norm, x, hook, NormPlacement::Pre, pass)
    }

    fn after<P: Probe>(
        &self,
        norm: Option<&Norm>,
        x: Tensor<3>,
        [sum, hook]: [Hook; 2],
        pass: &mut Pass<'_, P>,
    ) -> Tensor<3> {
        if norm.is_some() && self.placement == NormPlacement::Post {
            pass.see(sum, &x);
        }
        self.normalize(norm, x, hook, NormPlacement::Post, pass)
    }

    /// Applies the norm if this is where it stands.
    fn normalize<P: Probe>(
        &self,
        norm: Option<&Norm>,
        x: Tensor<3>,
        hook: Hook,
        here: NormPlacement,
        pass: &mut Pass<'_, P>,
    ) -> Tensor<3> {
        match norm {
            Some(norm) if self.placement == here => {
                let x = norm.forward(x);
                pass.see(hook, &x);
                x
            }
            _ => x,
        }
    }
}
