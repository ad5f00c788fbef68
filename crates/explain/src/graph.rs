//! The forward pass as a list of named operations.
//!
//! The recomputation, the derivations and the page all read this one list.

use nextword_model::{
    FeedForwardKind, ModelConfig, NormKind, NormPlacement, Position, alibi_slopes,
};

pub use crate::node::{ActivationFn, Axis, Node, Op};

/// Name of the softmax of the logits.
pub const PROBABILITIES: &str = "probabilities";

/// Returns the operations of a forward pass over `seq` tokens, in order.
///
/// # Example
///
/// ```
/// use nextword_explain::graph::graph;
/// use nextword_model::presets;
///
/// let nodes = graph(&presets::statquest(5), 4); // four tokens
/// assert_eq!((nodes[0].name.as_str(), nodes[0].shape.as_slice()), ("hook_embed", [4, 2].as_slice()));
/// let pattern = nodes.iter().find(|node| node.name == "blocks.0.attn.hook_pattern").unwrap();
/// assert_eq!(pattern.axis_names(), ["head", "query", "key"]);
/// assert_eq!(nodes.last().unwrap().name, "probabilities");
/// ```
pub fn graph(config: &ModelConfig, seq: usize) -> Vec<Node> {
    let mut builder = Builder {
        config,
        seq,
        layer: None,
        nodes: Vec::new(),
    };
    let mut x = builder.embed();
    for layer in 0..config.n_layers {
        builder.layer = Some(layer);
        x = builder.block(&x);
    }
    builder.layer = None;
    builder.head(&x);
    builder.nodes
}

struct Builder<'c> {
    config: &'c ModelConfig,
    seq: usize,
    layer: Option<usize>,
    nodes: Vec<Node>,
}

impl Builder<'_> {
    fn push(&mut self, name: &str, op: Op, axes: &[Axis], shape: &[usize]) -> String {
        let name = match self.layer {
            Some(layer) => format!("blocks.{layer}.{name}"),
            None => name.to_string(),
        };
        self.nodes.push(Node {
            name: name.clone(),
            layer: self.layer,
            op,
            axes: axes.to_vec(),
            shape: shape.to_vec(),
            observed: true,
        });
        name
    }

    fn push_per_token(&mut self, name: &str, op: Op, width: usize) -> String {
        self.push(name, op, &[Axis::Position, Axis::Dim], &[self.seq, width])
    }

    fn push_per_head(&mut self, name: &str, op: Op, heads: usize) -> String {
        let axes = [Axis::Head, Axis::Position, Axis::Dim];
        self.push(name, op, &axes, &[heads, self.seq, self.config.head_dim()])
    }

    fn push_square(&mut self, name: &str, op: Op) -> String {
        let axes = [Axis::Head, Axis::Position, Axis::Key];
        self.push(name, op, &axes, &[self.config.n_heads, self.seq, self.seq])
    }

    fn weight_name(&self, name: &str) -> String {
        match self.layer {
            Some(layer) => format!("blocks.{layer}.{name}"),
            None => name.to_string(),
        }
    }

    fn norm_op(&self, input: &str, name: &str) -> Op {
        let is_layer_norm = self.config.norm == NormKind::Layer;
        Op::Norm {
            input: input.to_string(),
            centered: is_layer_norm,
            eps: self.config.norm_eps,
            weight: self.weight_name(&format!("{name}.weight")),
            unit_offset: self.config.norm_unit_offset,
            bias: (is_layer_norm && self.config.bias.norm)
                .then(|| self.weight_name(&format!("{name}.bias"))),
        }
    }

    fn linear_op(&self, input: &str, name: &str, bias: bool, heads: Option<usize>) -> Op {
        Op::Linear {
            input: input.to_string(),
            weight: self.weight_name(&format!("{name}.weight")),
            bias: bias.then(|| self.weight_name(&format!("{name}.bias"))),
            heads,
            transposed: false,
        }
    }

    fn embed(&mut self) -> String {
        let d = self.config.d_model;
        let op = Op::Embed {
            table: "token_embedding.weight".to_string(),
            scale: self.config.embedding_scale,
        };
        let x = self.push_per_token("hook_embed", op, d);
        let op = match self.config.position {
            Position::Learned => Op::LearnedPositions {
                table: "position_embedding.weight".to_string(),
            },
            Position::Sinusoidal => Op::Sinusoidal,
            Position::Rotary | Position::Alibi | Position::None => return x,
        };
        self.push_per_token("hook_pos_embed", op, d);
        x
    }

    fn block(&mut self, x: &str) -> String {
        let (config, d) = (self.config, self.config.d_model);
        let pre_norm =
            config.norm != NormKind::None && config.norm_placement != NormPlacement::Post;
        let adds_positions = self.layer == Some(0)
            && matches!(config.position, Position::Learned | Position::Sinusoidal);
        let op = if adds_positions {
            Op::Add {
                a: x.to_string(),
                b: "hook_pos_embed".to_string(),
            }
        } else {
            Op::Copy {
                input: x.to_string(),
            }
        };
        let resid = self.push_per_token("hook_resid_pre", op, d);
        let input = if pre_norm {
            let op = self.norm_op(&resid, "attention_norm");
            self.push_per_token("ln1.hook_normalized", op, d)
        } else {
            resid.clone()
        };
        let delta = self.attention(&input);
        let x = self.residual(
            &resid,
            delta,
            "attention_norm",
            ["hook_attn_sum", "ln1.hook_normalized"],
        );
        if config.feed_forward == FeedForwardKind::None {
            return self.push_per_token("hook_resid_post", x, d);
        }
        let resid_mid = self.push_per_token("hook_resid_mid", x, d);
        let mlp_read = if config.parallel {
            resid
        } else {
            resid_mid.clone()
        };
        let input = if pre_norm {
            let op = self.norm_op(&mlp_read, "feed_forward_norm");
            self.push_per_token("ln2.hook_normalized", op, d)
        } else {
            mlp_read
        };
        let delta = self.feed_forward(&input);
        let x = self.residual(
            &resid_mid,
            delta,
            "feed_forward_norm",
            ["hook_mlp_sum", "ln2.hook_normalized"],
        );
        self.push_per_token("hook_resid_post", x, d)
    }

    /// Pushes the contribution of a sublayer to the residual stream: its output, normalized if the
    /// model has sandwich norms.
    fn sublayer_output(&mut self, name: &str, op: Op, norm: &str) -> String {
        let d = self.config.d_model;
        if !self.config.has_sandwich_norms() {
            return self.push_per_token(name, op, d);
        }
        let input = self.push_per_token(&format!("{name}_before_norm"), op, d);
        let op = self.norm_op(&input, norm);
        self.push_per_token(name, op, d)
    }

    /// Returns the operation behind the next name of the residual stream: the residual sum, its norm
    /// (post-norm), or the sublayer output alone (without residuals).
    fn residual(&mut self, x: &str, delta: String, norm: &str, names: [&str; 2]) -> Op {
        let sum = if self.config.residual {
            Op::Add {
                a: x.to_string(),
                b: delta,
            }
        } else {
            Op::Copy { input: delta }
        };
        let post =
            self.config.norm != NormKind::None && self.config.norm_placement == NormPlacement::Post;
        if !post {
            return sum;
        }
        let sum = self.push_per_token(names[0], sum, self.config.d_model);
        let op = self.norm_op(&sum, norm);
        let input = self.push_per_token(names[1], op, self.config.d_model);
        Op::Copy { input }
    }

    fn attention(&mut self, input: &str) -> String {
        let config = self.config;
        let (n, n_kv) = (config.n_heads, config.kv_heads());
        let q = self.query_or_key("q", "query", input, n);
        let k = self.query_or_key("k", "key", input, n_kv);
        let op = self.linear_op(input, "attention.value", config.bias.qkv, Some(n_kv));
        let v = self.push_per_head("attn.hook_v", op, n_kv);
        let (q, k) = if config.position == Position::Rotary {
            let is_local = self.layer.is_some_and(|layer| config.is_local(layer));
            let frequencies = if is_local {
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
                self.push_per_head("attn.hook_rot_q", rope_q, n),
                self.push_per_head("attn.hook_rot_k", rope_k, n_kv),
            )
        } else {
            (q, k)
        };
        let slopes = if config.position == Position::Alibi {
            alibi_slopes(n)
        } else {
            Vec::new()
        };
        let scale = config.score_scale(self.layer.unwrap_or(0));
        let op = Op::Scores {
            q,
            k,
            scale,
            default_scale: scale.to_bits() == (config.head_dim() as f64).sqrt().recip().to_bits(),
            cap: config.score_soft_cap,
            causal: true,
            window: self.layer.and_then(|layer| config.window(layer)),
            slopes,
        };
        let input = self.push_square("attn.hook_attn_scores", op);
        let pattern = self.push_square("attn.hook_pattern", Op::Softmax { input });
        let z = self.push_per_head("attn.hook_z", Op::WeightedSum { pattern, v }, n);
        let bias = config.output_projection && config.bias.attention_output;
        let op = Op::OutputProjection {
            input: z,
            weight: config
                .output_projection
                .then(|| self.weight_name("attention.output.weight")),
            bias: bias.then(|| self.weight_name("attention.output.bias")),
        };
        self.sublayer_output("hook_attn_out", op, "attention_post_norm")
    }

    fn query_or_key(&mut self, letter: &str, name: &str, input: &str, heads: usize) -> String {
        let config = self.config;
        let linear = self.linear_op(
            input,
            &format!("attention.{name}"),
            config.bias.qkv,
            Some(heads),
        );
        if !config.qk_norm {
            return self.push_per_head(&format!("attn.hook_{letter}"), linear, heads);
        }
        let input = self.push_per_head(&format!("attn.hook_{letter}_before_norm"), linear, heads);
        let op = Op::Norm {
            input,
            centered: false,
            eps: config.norm_eps,
            weight: self.weight_name(&format!("attention.{name}_norm.weight")),
            unit_offset: config.norm_unit_offset,
            bias: None,
        };
        self.push_per_head(&format!("attn.hook_{letter}"), op, heads)
    }

    fn feed_forward(&mut self, input: &str) -> String {
        let config = self.config;
        let (d_ff, bias) = (config.d_ff(), config.bias.feed_forward);
        let function = ActivationFn::from_kind(config.feed_forward);
        let up = self.linear_op(input, "feed_forward.up", bias, None);
        let op = if config.feed_forward.is_gated() {
            let gate = self.linear_op(input, "feed_forward.gate", bias, None);
            let gate = self.push_per_token("mlp.hook_pre", gate, d_ff);
            let up = self.push_per_token("mlp.hook_pre_linear", up, d_ff);
            Op::Gate { gate, up, function }
        } else {
            let input = self.push_per_token("mlp.hook_pre", up, d_ff);
            Op::Activate { input, function }
        };
        let post = self.push_per_token("mlp.hook_post", op, d_ff);
        let down = self.linear_op(&post, "feed_forward.down", bias, None);
        self.sublayer_output("hook_mlp_out", down, "feed_forward_post_norm")
    }

    fn head(&mut self, x: &str) {
        let config = self.config;
        let x = if config.has_final_norm() {
            let op = self.norm_op(x, "final_norm");
            self.push_per_token("ln_final.hook_normalized", op, config.d_model)
        } else {
            x.to_string()
        };
        let weight = if config.tied_head {
            "token_embedding.weight"
        } else {
            "head.weight"
        };
        let op = Op::Linear {
            input: x,
            weight: weight.to_string(),
            bias: config.bias.head.then(|| "head.bias".to_string()),
            heads: None,
            transposed: config.tied_head,
        };
        let (axes, shape) = ([Axis::Position, Axis::Token], [self.seq, config.vocab_size]);
        let op = match config.logit_soft_cap {
            Some(cap) => {
                let input = self.push("logits_before_cap", op, &axes, &shape);
                self.mark_unobserved();
                Op::SoftCap { input, cap }
            }
            None => op,
        };
        let input = self.push("logits", op, &axes, &shape);
        self.push(PROBABILITIES, Op::Softmax { input }, &axes, &shape);
        self.mark_unobserved();
    }

    fn mark_unobserved(&mut self) {
        if let Some(node) = self.nodes.last_mut() {
            node.observed = false;
        }
    }
}
