//! The forward pass as a list of named operations.
//!
//! The recomputation, the derivations and the page all read this one list.

mod attention;

use nextword_model::{FeedForwardKind, ModelConfig, NormKind, NormPlacement, Position};

use crate::node::ENCODER;
pub use crate::node::{ActivationFn, AttentionKind, Axis, Input, Lengths, Node, Op};

/// Name of the softmax of the logits.
pub const PROBABILITIES: &str = "probabilities";

/// Returns the operations of a forward pass over inputs of these lengths, in order: in encoder-decoder models those of
/// the encoder, then those of the decoder.
///
/// # Example
///
/// ```
/// use nextword_explain::graph::{Lengths, graph};
/// use nextword_model::presets;
///
/// let nodes = graph(&presets::statquest(5), 4); // four tokens
/// assert_eq!((nodes[0].name.as_str(), nodes[0].shape.as_slice()), ("hook_embed", [4, 2].as_slice()));
/// let pattern = nodes.iter().find(|node| node.name == "blocks.0.attn.hook_pattern").unwrap();
/// assert_eq!(pattern.axis_names(), ["head", "query", "key"]);
/// assert_eq!(nodes.last().unwrap().name, "probabilities");
///
/// // The decoder's two tokens attend to the three of the source.
/// let lengths = Lengths { target: 2, source: 3, prompt: 1 };
/// let nodes = graph(&presets::statquest_normal(6), lengths);
/// let pattern = nodes.iter().find(|node| node.name == "blocks.0.cross_attn.hook_pattern").unwrap();
/// assert_eq!(pattern.shape, [1, 2, 3]); // [head, query, key]
/// ```
pub fn graph(config: &ModelConfig, lengths: impl Into<Lengths>) -> Vec<Node> {
    let mut builder = Builder {
        config,
        lengths: lengths.into(),
        stack: Input::Target,
        layer: None,
        nodes: Vec::new(),
    };
    let encoded = config.has_encoder().then(|| builder.encoder());
    let mut x = builder.embed();
    for layer in 0..config.n_layers {
        builder.layer = Some(layer);
        x = builder.block(&x, encoded.as_deref());
    }
    builder.layer = None;
    let x = builder.final_norm(x);
    builder.head(x);
    builder.nodes
}

struct Builder<'c> {
    config: &'c ModelConfig,
    lengths: Lengths,
    /// The stack that is built: the decoder or only one, or the encoder.
    stack: Input,
    layer: Option<usize>,
    nodes: Vec<Node>,
}

impl Builder<'_> {
    /// The encoder of an encoder-decoder model; returns its output.
    fn encoder(&mut self) -> String {
        self.stack = Input::Source;
        let mut x = self.embed();
        for layer in 0..self.config.encoder_layers() {
            self.layer = Some(layer);
            x = self.block(&x, None);
        }
        self.layer = None;
        let x = self.final_norm(x);
        self.stack = Input::Target;
        x
    }

    /// The name of a tensor or weight in the current block of the current stack.
    fn path(&self, name: &str) -> String {
        let stack = match self.stack {
            Input::Target => "",
            Input::Source => ENCODER,
        };
        match self.layer {
            Some(layer) => format!("{stack}blocks.{layer}.{name}"),
            None => format!("{stack}{name}"),
        }
    }

    fn push(&mut self, name: &str, op: Op, axes: &[Axis], shape: &[usize]) -> String {
        self.push_with(name, op, axes, shape, [self.stack, Input::Target])
    }

    /// Pushes a tensor whose rows and keys belong to these inputs.
    fn push_with(
        &mut self,
        name: &str,
        op: Op,
        axes: &[Axis],
        shape: &[usize],
        [rows, keys]: [Input; 2],
    ) -> String {
        let name = self.path(name);
        self.nodes.push(Node {
            name: name.clone(),
            layer: self.layer,
            rows,
            keys,
            architecture: self.config.architecture,
            op,
            axes: axes.to_vec(),
            shape: shape.to_vec(),
            observed: true,
        });
        name
    }

    /// Number of tokens of the current stack.
    fn seq(&self) -> usize {
        self.lengths.of(self.stack)
    }

    fn push_per_token(&mut self, name: &str, op: Op, width: usize) -> String {
        self.push(name, op, &[Axis::Position, Axis::Dim], &[self.seq(), width])
    }

    fn norm_op(&self, input: &str, name: &str) -> Op {
        let is_layer_norm = self.config.norm == NormKind::Layer;
        Op::Norm {
            input: input.to_string(),
            centered: is_layer_norm,
            eps: self.config.norm_eps,
            weight: self.path(&format!("{name}.weight")),
            unit_offset: self.config.norm_unit_offset,
            bias: (is_layer_norm && self.config.bias.norm)
                .then(|| self.path(&format!("{name}.bias"))),
        }
    }

    fn linear_op(&self, input: &str, name: &str, bias: bool, heads: Option<usize>) -> Op {
        Op::Linear {
            input: input.to_string(),
            weight: self.path(&format!("{name}.weight")),
            bias: bias.then(|| self.path(&format!("{name}.bias"))),
            heads,
            transposed: false,
        }
    }

    /// Embedding and positions; returns the tensor that the first block reads, to which it adds positions if
    /// there are any and no norm comes first.
    fn embed(&mut self) -> String {
        let (config, d) = (self.config, self.config.d_model);
        let has_own_table = self.stack == Input::Source && !config.share_embeddings;
        let table = "token_embedding.weight";
        let op = Op::Embed {
            table: if has_own_table {
                self.path(table)
            } else {
                table.to_string()
            },
            scale: config.embedding_scale,
        };
        let mut x = self.push_per_token("hook_embed", op, d);
        let op = match config.position {
            Position::Learned => Some(Op::LearnedPositions {
                table: self.path("position_embedding.weight"),
            }),
            Position::Sinusoidal => Some(Op::Sinusoidal),
            Position::Rotary | Position::Alibi | Position::None => None,
        };
        let has_positions = op.is_some();
        if let Some(op) = op {
            self.push_per_token("hook_pos_embed", op, d);
        }
        if !self.has_embedding_norm() {
            return x;
        }
        if has_positions {
            let b = self.path("hook_pos_embed");
            x = self.push_per_token("hook_embed_sum", Op::Add { a: x, b }, d);
            self.mark_unobserved();
        }
        let op = self.norm_op(&x, "embedding_norm");
        self.push_per_token("hook_full_embed", op, d)
    }

    fn has_embedding_norm(&self) -> bool {
        self.config.embedding_norm && self.config.norm != NormKind::None
    }

    /// The operation behind the input of a block.
    fn block_input(&mut self, x: &str) -> Op {
        let has_positions = matches!(
            self.config.position,
            Position::Learned | Position::Sinusoidal
        );
        if self.layer != Some(0) || !has_positions || self.has_embedding_norm() {
            return Op::Copy {
                input: x.to_string(),
            };
        }
        let layer = self.layer.take();
        let b = self.path("hook_pos_embed");
        self.layer = layer;
        Op::Add {
            a: x.to_string(),
            b,
        }
    }

    /// A block of the current stack, with cross-attention if it has the encoder's output.
    fn block(&mut self, x: &str, encoded: Option<&str>) -> String {
        let (config, d) = (self.config, self.config.d_model);
        let pre_norm =
            config.norm != NormKind::None && config.norm_placement != NormPlacement::Post;
        let op = self.block_input(x);
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
        let (x, mid) = match encoded {
            Some(encoded) => {
                let resid = self.push_per_token("hook_resid_mid", x, d);
                let x = self.cross_attention(&resid, encoded, pre_norm);
                (x, "hook_resid_mid_cross")
            }
            None => (x, "hook_resid_mid"),
        };
        if config.feed_forward == FeedForwardKind::None {
            return self.push_per_token("hook_resid_post", x, d);
        }
        let resid_mid = self.push_per_token(mid, x, d);
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

    /// The norm after the last block of a stack, if there is one.
    fn final_norm(&mut self, x: String) -> String {
        if !self.config.has_final_norm() {
            return x;
        }
        let op = self.norm_op(&x, "final_norm");
        self.push_per_token("ln_final.hook_normalized", op, self.config.d_model)
    }

    /// The layer before the output layer, in models with `head_transform`.
    fn head_transform(&mut self, x: &str) -> String {
        let (config, d) = (self.config, self.config.d_model);
        let op = self.linear_op(x, "head_transform.dense", config.bias.head, None);
        let input = self.push_per_token("mlm_head.hook_pre", op, d);
        self.mark_unobserved();
        let function = ActivationFn::from_kind(config.feed_forward);
        let op = Op::Activate { input, function };
        if config.norm == NormKind::None {
            return self.push_per_token("mlm_head.hook_normalized", op, d);
        }
        let x = self.push_per_token("mlm_head.hook_post", op, d);
        self.mark_unobserved();
        let op = self.norm_op(&x, "head_transform.norm");
        self.push_per_token("mlm_head.hook_normalized", op, d)
    }

    fn head(&mut self, x: String) {
        let config = self.config;
        let x = if config.head_transform {
            self.head_transform(&x)
        } else {
            x
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
        let (axes, shape) = (
            [Axis::Position, Axis::Token],
            [self.seq(), config.vocab_size],
        );
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
