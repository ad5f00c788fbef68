//! What is computed from what: the forward pass as a list of named operations.
//!
//! One list serves the recomputation, the derivations and the page: each reads the same operations.

use nextword_model::{
    FeedForwardKind, ModelConfig, NormKind, NormPlacement, Position, alibi_slopes,
};

pub use crate::node::{Axis, Function, Node, Op};

/// The name of the softmax of the logits.
pub const PROBABILITIES: &str = "probabilities";

/// The operations of a forward pass over `seq` tokens, in order.
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
            seen: true,
        });
        name
    }

    fn tokens(&mut self, name: &str, op: Op, width: usize) -> String {
        self.push(name, op, &[Axis::Position, Axis::Dim], &[self.seq, width])
    }

    fn heads(&mut self, name: &str, op: Op, heads: usize) -> String {
        let axes = [Axis::Head, Axis::Position, Axis::Dim];
        self.push(name, op, &axes, &[heads, self.seq, self.config.head_dim()])
    }

    fn square(&mut self, name: &str, op: Op) -> String {
        let axes = [Axis::Head, Axis::Position, Axis::Key];
        self.push(name, op, &axes, &[self.config.n_heads, self.seq, self.seq])
    }

    fn weight(&self, name: &str) -> String {
        match self.layer {
            Some(layer) => format!("blocks.{layer}.{name}"),
            None => name.to_string(),
        }
    }

    fn norm_op(&self, of: &str, name: &str) -> Op {
        let layer = self.config.norm == NormKind::Layer;
        Op::Norm {
            of: of.to_string(),
            centered: layer,
            eps: self.config.norm_eps,
            weight: self.weight(&format!("{name}.weight")),
            unit_offset: self.config.norm_unit_offset,
            bias: (layer && self.config.bias.norm).then(|| self.weight(&format!("{name}.bias"))),
        }
    }

    fn linear_op(&self, of: &str, name: &str, bias: bool, heads: Option<usize>) -> Op {
        Op::Linear {
            of: of.to_string(),
            weight: self.weight(&format!("{name}.weight")),
            bias: bias.then(|| self.weight(&format!("{name}.bias"))),
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
        let x = self.tokens("hook_embed", op, d);
        let op = match self.config.position {
            Position::Learned => Op::Places {
                table: "position_embedding.weight".to_string(),
            },
            Position::Sinusoidal => Op::Waves,
            Position::Rotary | Position::Alibi | Position::None => return x,
        };
        self.tokens("hook_pos_embed", op, d);
        x
    }

    fn block(&mut self, x: &str) -> String {
        let (config, d) = (self.config, self.config.d_model);
        let normed_first =
            config.norm != NormKind::None && config.norm_placement != NormPlacement::Post;
        let sum_of_places = self.layer == Some(0)
            && matches!(config.position, Position::Learned | Position::Sinusoidal);
        let op = if sum_of_places {
            Op::Add {
                a: x.to_string(),
                b: "hook_pos_embed".to_string(),
            }
        } else {
            Op::Copy { of: x.to_string() }
        };
        let read = self.tokens("hook_resid_pre", op, d);
        let input = if normed_first {
            let op = self.norm_op(&read, "attention_norm");
            self.tokens("ln1.hook_normalized", op, d)
        } else {
            read.clone()
        };
        let change = self.attention(&input);
        let x = self.sum(
            &read,
            change,
            "attention_norm",
            ["hook_attn_sum", "ln1.hook_normalized"],
        );
        if config.feed_forward == FeedForwardKind::None {
            return self.tokens("hook_resid_post", x, d);
        }
        let resid = self.tokens("hook_resid_mid", x, d);
        let read = if config.parallel { read } else { resid.clone() };
        let input = if normed_first {
            let op = self.norm_op(&read, "feed_forward_norm");
            self.tokens("ln2.hook_normalized", op, d)
        } else {
            read
        };
        let change = self.feed_forward(&input);
        let x = self.sum(
            &resid,
            change,
            "feed_forward_norm",
            ["hook_mlp_sum", "ln2.hook_normalized"],
        );
        self.tokens("hook_resid_post", x, d)
    }

    /// What a sublayer adds to the residual stream: its result, which in a sandwich is normalized.
    fn change(&mut self, name: &str, op: Op, norm: &str) -> String {
        let d = self.config.d_model;
        if !self.config.has_sandwich_norms() {
            return self.tokens(name, op, d);
        }
        let of = self.tokens(&format!("{name}_before_norm"), op, d);
        let op = self.norm_op(&of, norm);
        self.tokens(name, op, d)
    }

    /// What a residual sum is: the sum itself, its norm, or without residuals the change alone.
    /// Gives the operation that the next name of the residual stream has.
    fn sum(&mut self, x: &str, change: String, norm: &str, names: [&str; 2]) -> Op {
        let sum = if self.config.residual {
            Op::Add {
                a: x.to_string(),
                b: change,
            }
        } else {
            Op::Copy { of: change }
        };
        let post =
            self.config.norm != NormKind::None && self.config.norm_placement == NormPlacement::Post;
        if !post {
            return sum;
        }
        let sum = self.tokens(names[0], sum, self.config.d_model);
        let op = self.norm_op(&sum, norm);
        let of = self.tokens(names[1], op, self.config.d_model);
        Op::Copy { of }
    }

    fn attention(&mut self, input: &str) -> String {
        let config = self.config;
        let (n, n_kv) = (config.n_heads, config.kv_heads());
        let q = self.query_or_key("q", "query", input, n);
        let k = self.query_or_key("k", "key", input, n_kv);
        let op = self.linear_op(input, "attention.value", config.bias.qkv, Some(n_kv));
        let v = self.heads("attn.hook_v", op, n_kv);
        let (q, k) = if config.position == Position::Rotary {
            let is_local = self.layer.is_some_and(|layer| config.is_local(layer));
            let frequencies = if is_local {
                config.rotary.local_frequencies(config.head_dim())
            } else {
                config.rotary.frequencies(config.head_dim())
            };
            let turn = |of: &str| Op::Turn {
                of: of.to_string(),
                frequencies: frequencies.clone(),
            };
            let (turn_q, turn_k) = (turn(&q), turn(&k));
            (
                self.heads("attn.hook_rot_q", turn_q, n),
                self.heads("attn.hook_rot_k", turn_k, n_kv),
            )
        } else {
            (q, k)
        };
        let slopes = if config.position == Position::Alibi {
            alibi_slopes(n)
        } else {
            Vec::new()
        };
        let op = Op::Scores {
            q,
            k,
            scale: config.score_scale(),
            usual: config.score_scale().to_bits()
                == (config.head_dim() as f64).sqrt().recip().to_bits(),
            cap: config.score_soft_cap,
            window: self.layer.and_then(|layer| config.window(layer)),
            slopes,
        };
        let of = self.square("attn.hook_attn_scores", op);
        let pattern = self.square("attn.hook_pattern", Op::Softmax { of });
        let z = self.heads("attn.hook_z", Op::Mix { pattern, v }, n);
        let bias = config.output_projection && config.bias.attention_output;
        let op = Op::Join {
            of: z,
            weight: config
                .output_projection
                .then(|| self.weight("attention.output.weight")),
            bias: bias.then(|| self.weight("attention.output.bias")),
        };
        self.change("hook_attn_out", op, "attention_post_norm")
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
            return self.heads(&format!("attn.hook_{letter}"), linear, heads);
        }
        let of = self.heads(&format!("attn.hook_{letter}_before_norm"), linear, heads);
        let op = Op::Norm {
            of,
            centered: false,
            eps: config.norm_eps,
            weight: self.weight(&format!("attention.{name}_norm.weight")),
            unit_offset: config.norm_unit_offset,
            bias: None,
        };
        self.heads(&format!("attn.hook_{letter}"), op, heads)
    }

    fn feed_forward(&mut self, input: &str) -> String {
        let config = self.config;
        let (d_ff, bias) = (config.d_ff(), config.bias.feed_forward);
        let function = Function::of(config.feed_forward);
        let up = self.linear_op(input, "feed_forward.up", bias, None);
        let op = if config.feed_forward.is_gated() {
            let gate = self.linear_op(input, "feed_forward.gate", bias, None);
            let gate = self.tokens("mlp.hook_pre", gate, d_ff);
            let up = self.tokens("mlp.hook_pre_linear", up, d_ff);
            Op::Gate { gate, up, function }
        } else {
            let of = self.tokens("mlp.hook_pre", up, d_ff);
            Op::Activate { of, function }
        };
        let post = self.tokens("mlp.hook_post", op, d_ff);
        let down = self.linear_op(&post, "feed_forward.down", bias, None);
        self.change("hook_mlp_out", down, "feed_forward_post_norm")
    }

    fn head(&mut self, x: &str) {
        let config = self.config;
        let x = if config.has_final_norm() {
            let op = self.norm_op(x, "final_norm");
            self.tokens("ln_final.hook_normalized", op, config.d_model)
        } else {
            x.to_string()
        };
        let weight = if config.tied_head {
            "token_embedding.weight"
        } else {
            "head.weight"
        };
        let op = Op::Linear {
            of: x,
            weight: weight.to_string(),
            bias: config.bias.head.then(|| "head.bias".to_string()),
            heads: None,
            transposed: config.tied_head,
        };
        let (axes, shape) = ([Axis::Position, Axis::Token], [self.seq, config.vocab_size]);
        let op = match config.logit_soft_cap {
            Some(cap) => {
                let of = self.push("logits_before_cap", op, &axes, &shape);
                self.unseen();
                Op::Cap { of, cap }
            }
            None => op,
        };
        let of = self.push("logits", op, &axes, &shape);
        self.push(PROBABILITIES, Op::Softmax { of }, &axes, &shape);
        self.unseen();
    }

    fn unseen(&mut self) {
        if let Some(node) = self.nodes.last_mut() {
            node.seen = false;
        }
    }
}
