//! The operations of attention: within a stack, and from the decoder to the encoder's output.

use nextword_model::{Architecture, Position, alibi_slopes};

use super::Builder;
use crate::node::{Axis, Input, Op};

/// The names of one attention sublayer.
#[derive(Clone, Copy)]
struct Names {
    /// Begins the names of its tensors.
    hook: &'static str,
    /// Begins the names of its weights.
    weight: &'static str,
    /// Its output, which is added to the residual stream.
    output: &'static str,
}

const WITHIN: Names = Names {
    hook: "attn",
    weight: "attention",
    output: "hook_attn_out",
};

const CROSS: Names = Names {
    hook: "cross_attn",
    weight: "cross_attention",
    output: "hook_cross_attn_out",
};

impl Builder<'_> {
    /// Self-attention of the current stack; returns what it adds to the residual stream.
    pub(super) fn attention(&mut self, input: &str) -> String {
        let config = self.config;
        let layer = self.layer.unwrap_or(0);
        let (n, n_kv) = (config.n_heads, config.kv_heads());
        let q = self.query_or_key(WITHIN, "q", input, self.stack);
        let k = self.query_or_key(WITHIN, "k", input, self.stack);
        let v = self.value(WITHIN, input, self.stack);
        let (q, k) = if config.position == Position::Rotary {
            let frequencies = if config.is_local(layer) {
                config.rotary.local_frequencies(config.head_dim())
            } else {
                config.rotary.frequencies(config.head_dim())
            };
            let rope = |input: &str| Op::Rope {
                input: input.to_string(),
                frequencies: frequencies.clone(),
            };
            let (rope_q, rope_k) = (rope(&q), rope(&k));
            (
                self.push_per_head("attn.hook_rot_q", rope_q, n, self.stack),
                self.push_per_head("attn.hook_rot_k", rope_k, n_kv, self.stack),
            )
        } else {
            (q, k)
        };
        let slopes = if config.position == Position::Alibi {
            alibi_slopes(n)
        } else {
            Vec::new()
        };
        let scale = config.score_scale(layer);
        let is_bidirectional =
            self.stack == Input::Source || config.architecture == Architecture::Encoder;
        let is_prefix = config.architecture == Architecture::Prefix;
        let scores = Op::Scores {
            q,
            k,
            scale,
            default_scale: self.is_default(scale),
            cap: config.score_soft_cap,
            causal: !is_bidirectional,
            prefix: if is_prefix { self.lengths.prompt } else { 0 },
            window: config.window(layer),
            slopes,
        };
        self.weighted_values(WITHIN, scores, v, self.stack)
    }

    /// Cross-attention to `encoded`, the encoder's output, and the sum with the residual stream `resid`.
    pub(super) fn cross_attention(&mut self, resid: &str, encoded: &str, pre_norm: bool) -> Op {
        let config = self.config;
        let (norm, normalized) = ("cross_attention_norm", "ln_cross.hook_normalized");
        let input = if pre_norm {
            let op = self.norm_op(resid, norm);
            self.push_per_token(normalized, op, config.d_model)
        } else {
            resid.to_string()
        };
        let q = self.query_or_key(CROSS, "q", &input, Input::Target);
        let k = self.query_or_key(CROSS, "k", encoded, Input::Source);
        let v = self.value(CROSS, encoded, Input::Source);
        let width = config.score_width.unwrap_or(config.head_dim() as f64);
        let scale = 1.0 / width.sqrt();
        let scores = Op::Scores {
            q,
            k,
            scale,
            default_scale: self.is_default(scale),
            cap: config.score_soft_cap,
            causal: false,
            prefix: 0,
            window: None,
            slopes: Vec::new(),
        };
        let delta = self.weighted_values(CROSS, scores, v, Input::Source);
        self.residual(resid, delta, norm, ["hook_cross_attn_sum", normalized])
    }

    /// Whether `scale` is `1 / sqrt(d)`.
    fn is_default(&self, scale: f64) -> bool {
        let default = (self.config.head_dim() as f64).sqrt().recip();
        scale.to_bits() == default.to_bits()
    }

    /// Scores, weights, the weighted sum of values `v`, which belong to `keys`, and the output projection.
    fn weighted_values(&mut self, names: Names, scores: Op, v: String, keys: Input) -> String {
        let (config, n) = (self.config, self.config.n_heads);
        let hook = |name: &str| format!("{}.hook_{name}", names.hook);
        let input = self.push_square(&hook("attn_scores"), scores, keys);
        let pattern = self.push_square(&hook("pattern"), Op::Softmax { input }, keys);
        let op = Op::WeightedSum { pattern, v };
        let z = self.push_per_head(&hook("z"), op, n, self.stack);
        let weight = |name: &str| self.path(&format!("{}.output.{name}", names.weight));
        let bias = config.output_projection && config.bias.attention_output;
        let op = Op::OutputProjection {
            input: z,
            weight: config.output_projection.then(|| weight("weight")),
            bias: bias.then(|| weight("bias")),
        };
        let norm = format!("{}_post_norm", names.weight);
        self.sublayer_output(names.output, op, &norm)
    }

    /// Queries (`q`) or keys (`k`) of the tokens of `rows`, with their norm if the model has one.
    fn query_or_key(&mut self, names: Names, letter: &str, input: &str, rows: Input) -> String {
        let config = self.config;
        let (name, heads) = match letter {
            "q" => ("query", config.n_heads),
            _ => ("key", config.kv_heads()),
        };
        let weight = format!("{}.{name}", names.weight);
        let hook = format!("{}.hook_{letter}", names.hook);
        let linear = self.linear_op(input, &weight, config.bias.qkv, Some(heads));
        if !config.qk_norm {
            return self.push_per_head(&hook, linear, heads, rows);
        }
        let input = self.push_per_head(&format!("{hook}_before_norm"), linear, heads, rows);
        let op = Op::Norm {
            input,
            centered: false,
            eps: config.norm_eps,
            weight: self.path(&format!("{weight}_norm.weight")),
            unit_offset: config.norm_unit_offset,
            bias: None,
        };
        self.push_per_head(&hook, op, heads, rows)
    }

    fn value(&mut self, names: Names, input: &str, rows: Input) -> String {
        let heads = self.config.kv_heads();
        let weight = format!("{}.value", names.weight);
        let op = self.linear_op(input, &weight, self.config.bias.qkv, Some(heads));
        self.push_per_head(&format!("{}.hook_v", names.hook), op, heads, rows)
    }

    fn push_per_head(&mut self, name: &str, op: Op, heads: usize, rows: Input) -> String {
        let axes = [Axis::Head, Axis::Position, Axis::Dim];
        let shape = [heads, self.lengths.of(rows), self.config.head_dim()];
        self.push_with(name, op, &axes, &shape, [rows, Input::Target])
    }

    fn push_square(&mut self, name: &str, op: Op, keys: Input) -> String {
        let axes = [Axis::Head, Axis::Position, Axis::Key];
        let shape = [self.config.n_heads, self.seq(), self.lengths.of(keys)];
        self.push_with(name, op, &axes, &shape, [self.stack, keys])
    }
}
