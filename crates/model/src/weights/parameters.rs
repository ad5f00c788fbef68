//! The names and shapes of the parameters of a model.

use crate::{ModelConfig, NormKind, Position};

/// Returns the name and shape of every parameter of `config`, in the order of the forward pass.
///
/// # Example
///
/// ```
/// use nextword_model::{presets, weights};
///
/// let layout = weights::layout(&presets::statquest(5));
/// assert_eq!(layout[0], ("token_embedding.weight".to_owned(), vec![5, 2])); // [vocab_size, d_model]
/// assert_eq!(layout[1], ("blocks.0.attention.query.weight".to_owned(), vec![2, 2])); // [d_in, d_out]
/// let parameters: usize = layout.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
/// assert_eq!(parameters, 37);
/// ```
pub fn layout(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let mut layout = Layout(Vec::new());
    let d = config.d_model;
    layout.push("token_embedding.weight", &[config.vocab_size, d]);
    if config.position == Position::Learned {
        layout.push("position_embedding.weight", &[config.context_length, d]);
    }
    if config.embedding_norm {
        layout.norm(config, "embedding_norm");
    }
    layout.encoder(config);
    for layer in 0..config.n_layers {
        layout.block(config, &format!("blocks.{layer}"), config.has_encoder());
    }
    if config.has_final_norm() {
        layout.norm(config, "final_norm");
    }
    if config.head_transform {
        layout.linear("head_transform.dense", [d, d], config.bias.head);
        layout.norm(config, "head_transform.norm");
    }
    if !config.tied_head {
        layout.push("head.weight", &[d, config.vocab_size]);
    }
    if config.bias.head {
        layout.push("head.bias", &[config.vocab_size]);
    }
    layout.0
}

/// Whether the parameter `name` belongs to a block, of the encoder or of the model's own stack.
///
/// ```
/// use nextword_model::weights::is_in_block;
///
/// assert!(is_in_block("blocks.0.attention.query.weight"));
/// assert!(is_in_block("encoder.blocks.0.attention.query.weight"));
/// assert!(!is_in_block("token_embedding.weight"));
/// ```
pub fn is_in_block(name: &str) -> bool {
    let name = name.strip_prefix("encoder.").unwrap_or(name);
    name.starts_with("blocks.")
}

struct Layout(Vec<(String, Vec<usize>)>);

impl Layout {
    fn push(&mut self, name: &str, shape: &[usize]) {
        self.0.push((name.to_string(), shape.to_vec()));
    }

    fn linear(&mut self, name: &str, shape: [usize; 2], bias: bool) {
        self.push(&format!("{name}.weight"), &shape);
        if bias {
            self.push(&format!("{name}.bias"), &shape[1..]);
        }
    }

    fn norm(&mut self, config: &ModelConfig, name: &str) {
        if config.norm == NormKind::None {
            return;
        }
        self.push(&format!("{name}.weight"), &[config.d_model]);
        if config.norm == NormKind::Layer && config.bias.norm {
            self.push(&format!("{name}.bias"), &[config.d_model]);
        }
    }

    fn encoder(&mut self, config: &ModelConfig) {
        if !config.has_encoder() {
            return;
        }
        let d = config.d_model;
        if !config.share_embeddings {
            self.push("encoder.token_embedding.weight", &[config.vocab_size, d]);
        }
        if config.position == Position::Learned {
            let shape = [config.context_length, d];
            self.push("encoder.position_embedding.weight", &shape);
        }
        if config.embedding_norm {
            self.norm(config, "encoder.embedding_norm");
        }
        for layer in 0..config.encoder_layers() {
            self.block(config, &format!("encoder.blocks.{layer}"), false);
        }
        if config.has_final_norm() {
            self.norm(config, "encoder.final_norm");
        }
    }

    fn block(&mut self, config: &ModelConfig, block: &str, has_cross_attention: bool) {
        self.attention(config, &format!("{block}.attention"));
        if has_cross_attention {
            self.attention(config, &format!("{block}.cross_attention"));
        }
        self.feed_forward(config, block);
    }

    fn attention(&mut self, config: &ModelConfig, attention: &str) {
        let (d, head_dim) = (config.d_model, config.head_dim());
        let (d_q, d_kv) = (config.n_heads * head_dim, config.kv_heads() * head_dim);
        let bias = config.bias;
        self.norm(config, &format!("{attention}_norm"));
        self.linear(&format!("{attention}.query"), [d, d_q], bias.qkv);
        self.linear(&format!("{attention}.key"), [d, d_kv], bias.qkv);
        self.linear(&format!("{attention}.value"), [d, d_kv], bias.qkv);
        if config.qk_norm {
            self.push(&format!("{attention}.query_norm.weight"), &[head_dim]);
            self.push(&format!("{attention}.key_norm.weight"), &[head_dim]);
        }
        if config.output_projection {
            let output = format!("{attention}.output");
            self.linear(&output, [d_q, d], bias.attention_output);
        }
        if config.has_sandwich_norms() {
            self.norm(config, &format!("{attention}_post_norm"));
        }
    }

    fn feed_forward(&mut self, config: &ModelConfig, block: &str) {
        let (d, d_ff, bias) = (config.d_model, config.d_ff(), config.bias);
        if d_ff == 0 {
            return;
        }
        self.norm(config, &format!("{block}.feed_forward_norm"));
        let feed_forward = format!("{block}.feed_forward");
        if config.feed_forward.is_gated() {
            self.linear(
                &format!("{feed_forward}.gate"),
                [d, d_ff],
                bias.feed_forward,
            );
        }
        self.linear(&format!("{feed_forward}.up"), [d, d_ff], bias.feed_forward);
        self.linear(
            &format!("{feed_forward}.down"),
            [d_ff, d],
            bias.feed_forward,
        );
        if config.has_sandwich_norms() {
            self.norm(config, &format!("{block}.feed_forward_post_norm"));
        }
    }
}
