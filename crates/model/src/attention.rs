//! Masked multi-head attention: each token asks, all earlier ones answer.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use nextword_kernels::AttentionOptions;
use nextword_kernels::reference::{self, Stage};
use serde::{Deserialize, Serialize};

use crate::linear::{Linear, project, zero_linear};
use crate::{Hook, ModelConfig, Norm, Pass, Probe};

/// Which groups of layers have biases. The default is GPT-2's: all but the output layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BiasConfig {
    /// Queries, keys and values.
    pub qkv: bool,
    /// Attention's output projection.
    pub attention_output: bool,
    /// Feed-forward layers.
    pub feed_forward: bool,
    /// Layer norms' shift.
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
/// `softmax(q k^T / sqrt(head_dim), future hidden) v`, heads joined, then the output projection
/// (another width under the root where the config has one).
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
    /// `[n_heads * head_dim, d_model]`; `None` where the joined heads are the result.
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
            scale: config.score_scale(),
            is_local: config.is_local(layer),
            window: config.window(layer),
            soft_cap: config.score_soft_cap,
        }
    }

    /// `[batch, seq, d_model]` to the same.
    pub fn forward<P: Probe>(&self, x: Tensor<3>, pass: &mut Pass<'_, P>) -> Tensor<3> {
        let [batch, seq, _] = x.dims();
        let (q, k, v) = self.project(x, pass);
        let mut visible = pass.remember(k, v);
        let z = match (visible.pop(), visible.is_empty()) {
            (Some([k, v]), true) => self.attend([q, k, v], 0, pass),
            (last, _) => {
                let parts = visible.into_iter().chain(last).enumerate();
                let each = parts.map(|(part, [k, v])| {
                    let rows = pass.places().parts()[part].0.clone();
                    let q = q.clone().narrow(0, rows.start, rows.len());
                    self.attend([q, k, v], part, pass)
                });
                Tensor::cat(each.collect(), 0)
            }
        }; // [batch, seq, n_heads, head_dim]
        let joined = z.reshape([batch, seq, self.n_heads * self.head_dim]);
        match &self.output {
            Some(output) => project(output, joined),
            None => joined,
        }
    }

    /// `softmax(scale q k^T, future hidden) v` for one part of the rows. For those who watch, scores and
    /// percentages are computed beside it by the path that stores them: the result is the same bits.
    fn attend<P: Probe>(
        &self,
        qkv: [Tensor<4>; 3],
        part: usize,
        pass: &mut Pass<'_, P>,
    ) -> Tensor<4> {
        let dropout = pass.attention_dropout(self.dropout);
        let places = pass.places();
        let options = AttentionOptions {
            scale: self.scale,
            soft_cap: self.soft_cap,
            sight: &places.parts()[part].1,
            window: self.window,
            alibi: places.slopes(),
            dropout,
        };
        if !pass.is_watched() {
            return nextword_kernels::attention(qkv, &options);
        }
        let mut seen = Vec::new();
        let _ = reference::attention(qkv.clone(), &options, |stage, tensor| {
            seen.push((stage, tensor.clone()));
        });
        let z = nextword_kernels::attention(qkv, &options);
        for (stage, tensor) in seen {
            match stage {
                Stage::Scores => pass.see(Hook::Scores, &tensor),
                Stage::Pattern => pass.see(Hook::Pattern, &tensor),
            }
        }
        pass.see_heads(Hook::Z, &z);
        z
    }

    /// Queries and keys, turned by their places, and values: `[batch, seq, heads, head_dim]`.
    fn project<P: Probe>(
        &self,
        x: Tensor<3>,
        pass: &mut Pass<'_, P>,
    ) -> (Tensor<4>, Tensor<4>, Tensor<4>) {
        let q = self.split(project(&self.query, x.clone()), self.n_heads);
        let k = self.split(project(&self.key, x.clone()), self.n_kv_heads);
        let v = self.split(project(&self.value, x), self.n_kv_heads);
        if self.query_norm.is_some() {
            pass.see_heads(Hook::RawQuery, &q);
            pass.see_heads(Hook::RawKey, &k);
        }
        let q = normalize(self.query_norm.as_ref(), q);
        let k = normalize(self.key_norm.as_ref(), k);
        pass.see_heads(Hook::Query, &q);
        pass.see_heads(Hook::Key, &k);
        pass.see_heads(Hook::Value, &v);
        let q = pass.places().turn(q, self.is_local);
        let k = pass.places().turn(k, self.is_local);
        pass.see_heads(Hook::RotatedQuery, &q);
        pass.see_heads(Hook::RotatedKey, &k);
        (q, k, v)
    }

    /// `[batch, seq, heads * head_dim]` to `[batch, seq, heads, head_dim]`.
    fn split(&self, x: Tensor<3>, heads: usize) -> Tensor<4> {
        let [batch, seq, _] = x.dims();
        x.reshape([batch, seq, heads, self.head_dim])
    }
}

fn normalize(norm: Option<&Norm>, x: Tensor<4>) -> Tensor<4> {
    match norm {
        Some(norm) => norm.forward(x),
        None => x,
    }
}
