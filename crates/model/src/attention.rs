//! Multi-head attention.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use nextword_kernels::AttentionOptions;
use nextword_kernels::reference::{self, Stage};
use serde::{Deserialize, Serialize};

use crate::linear::{Linear, zero_linear};
use crate::{ForwardContext, Hook, ModelConfig, Norm, Probe};

/// Which groups of layers have biases. The default is GPT-2's: all except the output layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BiasConfig {
    /// Queries, keys and values.
    pub qkv: bool,
    /// Attention's output projection.
    pub attention_output: bool,
    /// Feed-forward layers.
    pub feed_forward: bool,
    /// Layer norm biases.
    pub norm: bool,
    /// The output layer.
    pub head: bool,
}

impl Default for BiasConfig {
    fn default() -> Self {
        Self {
            qkv: true,
            attention_output: true,
            feed_forward: true,
            norm: true,
            head: false,
        }
    }
}

impl BiasConfig {
    /// No biases at all, as in Llama.
    pub fn none() -> Self {
        Self {
            qkv: false,
            attention_output: false,
            feed_forward: false,
            norm: false,
            head: false,
        }
    }
}

/// Masked multi-head attention with grouped key/value heads (Vaswani et al. 2017, section 3.2;
/// Ainslie et al. 2023).
///
/// `softmax(mask(q k^T / sqrt(head_dim))) v` with concatenated heads, then the output projection.
/// The config's `score_width` replaces `head_dim` in the scale.
#[derive(Module, Debug)]
pub struct Attention {
    /// `[d_model, n_heads * head_dim]`.
    pub query: Linear,
    /// `[d_model, n_kv_heads * head_dim]`.
    pub key: Linear,
    /// `[d_model, n_kv_heads * head_dim]`.
    pub value: Linear,
    /// RMS norm over each head's query, `[head_dim]`.
    pub query_norm: Option<Norm>,
    /// RMS norm over each head's key, `[head_dim]`.
    pub key_norm: Option<Norm>,
    /// `[n_heads * head_dim, d_model]`; `None` for models without an output projection.
    pub output: Option<Linear>,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    dropout: f64,
    scale: f64,
    is_local: bool,
    #[module(skip)]
    window: Option<usize>,
    #[module(skip)]
    soft_cap: Option<f64>,
}

impl Attention {
    pub(crate) fn new(config: &ModelConfig, layer: usize, device: &Device) -> Self {
        let (d_model, head_dim) = (config.d_model, config.head_dim());
        let (n_heads, n_kv_heads) = (config.n_heads, config.kv_heads());
        let linear = |d_in, d_out, bias| zero_linear(d_in, d_out, bias, device);
        let norm = || config.qk_norm.then(|| Norm::rms(config, head_dim, device));
        Self {
            query: linear(d_model, n_heads * head_dim, config.bias.qkv),
            key: linear(d_model, n_kv_heads * head_dim, config.bias.qkv),
            value: linear(d_model, n_kv_heads * head_dim, config.bias.qkv),
            query_norm: norm(),
            key_norm: norm(),
            output: config
                .output_projection
                .then(|| linear(n_heads * head_dim, d_model, config.bias.attention_output)),
            n_heads,
            n_kv_heads,
            head_dim,
            dropout: config.dropout.attention,
            scale: config.score_scale(layer),
            is_local: config.is_local(layer),
            window: config.window(layer),
            soft_cap: config.score_soft_cap,
        }
    }

    /// `[batch, seq, d_model]` to `[batch, seq, d_model]`.
    pub fn forward<P: Probe>(&self, x: Tensor<3>, ctx: &mut ForwardContext<'_, P>) -> Tensor<3> {
        let [batch, seq, _] = x.dims();
        let (q, k, v) = self.project_qkv(x, ctx);
        let visible = ctx.update_cache(k, v);
        let (mask, slopes) = (
            ctx.positions().mask().clone(),
            ctx.positions().slopes().to_vec(),
        );
        let options = AttentionOptions {
            scale: self.scale,
            soft_cap: self.soft_cap,
            mask: &mask,
            window: self.window,
            alibi: &slopes,
            dropout: ctx.attention_dropout(self.dropout),
        };
        // [batch, seq, n_heads, head_dim]
        let z = match visible {
            Some([k, v]) => attend([q, k, v], &options, ctx),
            None => match ctx.attend_cached(q, &options) {
                Some(z) => z,
                None => unreachable!("only a cache replaces keys and values"),
            },
        };
        let concatenated = z.reshape([batch, seq, self.n_heads * self.head_dim]);
        match &self.output {
            Some(output) => ctx.linear(output, Hook::LoraOutput, concatenated),
            None => concatenated,
        }
    }

    /// Queries and keys with `RoPE` applied, and values: `[batch, seq, heads, head_dim]`.
    fn project_qkv<P: Probe>(
        &self,
        x: Tensor<3>,
        ctx: &mut ForwardContext<'_, P>,
    ) -> (Tensor<4>, Tensor<4>, Tensor<4>) {
        let q = ctx.linear(&self.query, Hook::LoraQuery, x.clone());
        let k = ctx.linear(&self.key, Hook::LoraKey, x.clone());
        let v = ctx.linear(&self.value, Hook::LoraValue, x);
        let q = self.split_heads(q, self.n_heads);
        let [k, v] = [k, v].map(|x| self.split_heads(x, self.n_kv_heads));
        if self.query_norm.is_some() {
            ctx.record_heads(Hook::RawQuery, &q);
            ctx.record_heads(Hook::RawKey, &k);
        }
        let q = normalize(self.query_norm.as_ref(), q);
        let k = normalize(self.key_norm.as_ref(), k);
        ctx.record_heads(Hook::Query, &q);
        ctx.record_heads(Hook::Key, &k);
        ctx.record_heads(Hook::Value, &v);
        let q = ctx.positions().apply_rope(q, self.is_local);
        let k = ctx.positions().apply_rope(k, self.is_local);
        ctx.record_heads(Hook::RotatedQuery, &q);
        ctx.record_heads(Hook::RotatedKey, &k);
        (q, k, v)
    }

    /// `[batch, seq, heads * head_dim]` to `[batch, seq, heads, head_dim]`.
    fn split_heads(&self, x: Tensor<3>, heads: usize) -> Tensor<4> {
        let [batch, seq, _] = x.dims();
        x.reshape([batch, seq, heads, self.head_dim])
    }
}

/// `softmax(mask(scale q k^T)) v`. With a probe, the reference implementation also runs, to materialize
/// scores and attention weights; the result stays bitwise the same.
fn attend<P: Probe>(
    qkv: [Tensor<4>; 3],
    options: &AttentionOptions<'_>,
    ctx: &mut ForwardContext<'_, P>,
) -> Tensor<4> {
    if !ctx.is_probed() {
        return nextword_kernels::attention(qkv, options);
    }
    let mut stages = Vec::new();
    let _ = reference::attention(qkv.clone(), options, |stage, tensor| {
        stages.push((stage, tensor.clone()));
    });
    let z = nextword_kernels::attention(qkv, options);
    for (stage, tensor) in stages {
        match stage {
            Stage::Scores => ctx.record(Hook::Scores, &tensor),
            Stage::Pattern => ctx.record(Hook::Pattern, &tensor),
        }
    }
    ctx.record_heads(Hook::Z, &z);
    z
}

fn normalize(norm: Option<&Norm>, x: Tensor<4>) -> Tensor<4> {
    match norm {
        Some(norm) => norm.forward(x),
        None => x,
    }
}
