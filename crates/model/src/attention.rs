//! Multi-head attention.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use nextword_kernels::reference::{self, Stage};
use nextword_kernels::{AttentionOptions, LinearFusion};
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

/// The hooks that differ between self-attention and cross-attention.
struct AttentionHooks {
    raw_query: Hook,
    raw_key: Hook,
    query: Hook,
    key: Hook,
    value: Hook,
    scores: Hook,
    pattern: Hook,
    z: Hook,
    lora_query: Hook,
    lora_key: Hook,
    lora_value: Hook,
    lora_output: Hook,
}

static SELF_HOOKS: AttentionHooks = AttentionHooks {
    raw_query: Hook::RawQuery,
    raw_key: Hook::RawKey,
    query: Hook::Query,
    key: Hook::Key,
    value: Hook::Value,
    scores: Hook::Scores,
    pattern: Hook::Pattern,
    z: Hook::Z,
    lora_query: Hook::LoraQuery,
    lora_key: Hook::LoraKey,
    lora_value: Hook::LoraValue,
    lora_output: Hook::LoraOutput,
};

static CROSS_HOOKS: AttentionHooks = AttentionHooks {
    raw_query: Hook::RawCrossQuery,
    raw_key: Hook::RawCrossKey,
    query: Hook::CrossQuery,
    key: Hook::CrossKey,
    value: Hook::CrossValue,
    scores: Hook::CrossScores,
    pattern: Hook::CrossPattern,
    z: Hook::CrossZ,
    lora_query: Hook::LoraCrossQuery,
    lora_key: Hook::LoraCrossKey,
    lora_value: Hook::LoraCrossValue,
    lora_output: Hook::LoraCrossOutput,
};

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
    is_cross: bool,
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
            is_cross: false,
            window: config.window(layer),
            soft_cap: config.score_soft_cap,
        }
    }

    /// Cross-attention to the output of an encoder (Vaswani et al. 2017, section 3.2.3): without
    /// window and rotary positions, as there is no distance between a target and a source.
    pub(crate) fn cross(config: &ModelConfig, device: &Device) -> Self {
        Self {
            scale: 1.0
                / config
                    .score_width
                    .unwrap_or(config.head_dim() as f64)
                    .sqrt(),
            is_local: false,
            is_cross: true,
            window: None,
            ..Self::new(config, 0, device)
        }
    }

    /// `[batch, seq, d_model]` to `[batch, seq, d_model]`. Cross-attention reads the encoder's output
    /// from the context.
    pub fn forward<P: Probe>(&self, x: Tensor<3>, ctx: &mut ForwardContext<'_, P>) -> Tensor<3> {
        self.forward_add(x, None, ctx)
    }

    /// [`forward`](Self::forward) plus `residual`.
    pub(crate) fn forward_add<P: Probe>(
        &self,
        x: Tensor<3>,
        residual: Option<Tensor<3>>,
        ctx: &mut ForwardContext<'_, P>,
    ) -> Tensor<3> {
        let z = if self.is_cross {
            self.cross_attention_heads(x, ctx)
        } else {
            self.heads(x, ctx)
        };
        self.project_output(z, residual, ctx)
    }

    /// The output of all heads, `[batch, seq, n_heads, head_dim]`.
    fn heads<P: Probe>(&self, x: Tensor<3>, ctx: &mut ForwardContext<'_, P>) -> Tensor<4> {
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
            dropout: ctx.attention_dropout(Hook::Pattern, self.dropout),
        };
        match visible {
            Some([k, v]) => attend([q, k, v], &options, &SELF_HOOKS, ctx),
            None => match ctx.attend_cached(q, &options) {
                Some(z) => z,
                None => unreachable!("only a cache replaces keys and values"),
            },
        }
    }

    fn cross_attention_heads<P: Probe>(
        &self,
        x: Tensor<3>,
        ctx: &mut ForwardContext<'_, P>,
    ) -> Tensor<4> {
        let q = self.project_query(x, ctx);
        let visible = match ctx.encoded() {
            Some(encoded) => {
                let (k, v) = self.project_key_value(encoded, ctx);
                ctx.update_source_cache(k, v)
            }
            None => ctx.cached_source(),
        };
        let mask = ctx.cross_mask().clone();
        let options = AttentionOptions {
            scale: self.scale,
            soft_cap: self.soft_cap,
            mask: &mask,
            window: None,
            alibi: &[],
            dropout: ctx.attention_dropout(Hook::CrossPattern, self.dropout),
        };
        match visible {
            Some([k, v]) => attend([q, k, v], &options, &CROSS_HOOKS, ctx),
            None => match ctx.attend_cached_source(q, &options) {
                Some(z) => z,
                None => unreachable!("only a cache replaces keys and values"),
            },
        }
    }

    /// `[batch, seq, n_heads, head_dim]` to `[batch, seq, d_model]`.
    fn project_output<P: Probe>(
        &self,
        z: Tensor<4>,
        residual: Option<Tensor<3>>,
        ctx: &mut ForwardContext<'_, P>,
    ) -> Tensor<3> {
        let [batch, seq, _, _] = z.dims();
        let concatenated = z.reshape([batch, seq, self.n_heads * self.head_dim]);
        let fusion = LinearFusion {
            residual,
            activation: None,
        };
        match &self.output {
            Some(output) => {
                ctx.linear_fused(output, self.hooks().lora_output, concatenated, fusion)
            }
            None => fusion.apply(concatenated),
        }
    }

    fn hooks(&self) -> &'static AttentionHooks {
        if self.is_cross {
            &CROSS_HOOKS
        } else {
            &SELF_HOOKS
        }
    }

    /// Queries of cross-attention, `[batch, seq, n_heads, head_dim]`.
    fn project_query<P: Probe>(&self, x: Tensor<3>, ctx: &mut ForwardContext<'_, P>) -> Tensor<4> {
        let q = ctx.linear(&self.query, CROSS_HOOKS.lora_query, x);
        let q = self.split_heads(q, self.n_heads);
        if self.query_norm.is_some() {
            ctx.record_heads(CROSS_HOOKS.raw_query, &q);
        }
        let q = normalize(self.query_norm.as_ref(), q);
        ctx.record_heads(CROSS_HOOKS.query, &q);
        q
    }

    /// Keys and values of cross-attention, `[batch, source, n_kv_heads, head_dim]`.
    fn project_key_value<P: Probe>(
        &self,
        encoded: Tensor<3>,
        ctx: &mut ForwardContext<'_, P>,
    ) -> (Tensor<4>, Tensor<4>) {
        let k = ctx.linear(&self.key, CROSS_HOOKS.lora_key, encoded.clone());
        let v = ctx.linear(&self.value, CROSS_HOOKS.lora_value, encoded);
        let [k, v] = [k, v].map(|x| self.split_heads(x, self.n_kv_heads));
        if self.key_norm.is_some() {
            ctx.record_heads(CROSS_HOOKS.raw_key, &k);
        }
        let k = normalize(self.key_norm.as_ref(), k);
        ctx.record_heads(CROSS_HOOKS.key, &k);
        ctx.record_heads(CROSS_HOOKS.value, &v);
        (k, v)
    }

    /// Queries and keys with `RoPE` applied, and values: `[batch, seq, heads, head_dim]`.
    fn project_qkv<P: Probe>(
        &self,
        x: Tensor<3>,
        ctx: &mut ForwardContext<'_, P>,
    ) -> (Tensor<4>, Tensor<4>, Tensor<4>) {
        let q = ctx.linear(&self.query, SELF_HOOKS.lora_query, x.clone());
        let k = ctx.linear(&self.key, SELF_HOOKS.lora_key, x.clone());
        let v = ctx.linear(&self.value, SELF_HOOKS.lora_value, x);
        let q = self.split_heads(q, self.n_heads);
        let [k, v] = [k, v].map(|x| self.split_heads(x, self.n_kv_heads));
        if self.query_norm.is_some() {
            ctx.record_heads(SELF_HOOKS.raw_query, &q);
            ctx.record_heads(SELF_HOOKS.raw_key, &k);
        }
        let q = normalize(self.query_norm.as_ref(), q);
        let k = normalize(self.key_norm.as_ref(), k);
        ctx.record_heads(SELF_HOOKS.query, &q);
        ctx.record_heads(SELF_HOOKS.key, &k);
        ctx.record_heads(SELF_HOOKS.value, &v);
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
    hooks: &AttentionHooks,
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
            Stage::Scores => ctx.record(hooks.scores, &tensor),
            Stage::Pattern => ctx.record(hooks.pattern, &tensor),
        }
    }
    ctx.record_heads(hooks.z, &z);
    z
}

fn normalize(norm: Option<&Norm>, x: Tensor<4>) -> Tensor<4> {
    match norm {
        Some(norm) => norm.forward(x),
        None => x,
    }
}
