//! Parameters, floating-point operations and memory of a model, computed from its configuration.

use serde::{Deserialize, Serialize};

use crate::quantize::matrix_shape;
use crate::weights::{is_in_block, layout};
use crate::{ModelConfig, NormKind};

/// Number of parameters of a model, by part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParameterCounts {
    /// Token embedding.
    pub token_embedding: usize,
    /// Learned position embedding.
    pub position_embedding: usize,
    /// Attention in all blocks.
    pub attention: usize,
    /// Feed-forward in all blocks.
    pub feed_forward: usize,
    /// All norms.
    pub norm: usize,
    /// Weights and bias of the output layer. Tied weights count as token embedding.
    pub head: usize,
}

impl ParameterCounts {
    /// Total number of parameters.
    pub fn total(&self) -> usize {
        self.token_embedding
            + self.position_embedding
            + self.attention
            + self.feed_forward
            + self.norm
            + self.head
    }
}

/// Bytes of memory that training takes, by part, with 4-byte floats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryEstimate {
    /// The weights.
    pub weights: usize,
    /// The gradients.
    pub gradients: usize,
    /// The optimizer's moments.
    pub optimizer: usize,
    /// Values saved for the backward pass, and the largest temporaries.
    pub activations: usize,
}

/// What determines the memory of a training step besides the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainingShape {
    /// Sequences per micro-batch.
    pub batch_size: usize,
    /// Tokens per sequence.
    pub sequence_length: usize,
    /// Micro-batches whose gradients are added one after another.
    pub accumulation: usize,
    /// Sums of the gradients of earlier micro-batches that are kept besides.
    pub kept_sums: usize,
    /// Values per parameter that the optimizer keeps; `AdamW` has two moments.
    pub moments: usize,
    /// Whether only the input of each block is saved, and the activations of one block are in memory at a time.
    pub recompute: bool,
    /// Whether the operations are fused, as on flex. Others also store the scores and logits of all tokens.
    pub fused: bool,
}

impl Default for TrainingShape {
    /// One sequence of one token, two moments, no recomputation, fused.
    fn default() -> Self {
        Self {
            batch_size: 1,
            sequence_length: 1,
            accumulation: 1,
            kept_sums: 0,
            moments: 2,
            recompute: false,
            fused: true,
        }
    }
}

impl TrainingShape {
    /// Gradients of all trained parameters that are in memory at a time.
    fn gradient_copies(&self) -> usize {
        self.accumulation.clamp(1, 2) + self.kept_sums
    }
}

impl MemoryEstimate {
    /// Total number of bytes.
    pub fn total(&self) -> usize {
        let state = self.weights + self.gradients + self.optimizer;
        state.saturating_add(self.activations)
    }
}

impl ModelConfig {
    /// Number of parameters, by part.
    ///
    /// # Example
    ///
    /// ```
    /// use nextword_model::presets;
    ///
    /// let counts = presets::gpt2(12, 12, 768).parameter_counts();
    /// assert_eq!(counts.total(), 124_439_808); // GPT-2 small
    /// assert_eq!(counts.token_embedding, 50_257 * 768);
    /// assert_eq!(counts.head, 0); // tied to the token embedding
    /// ```
    pub fn parameter_counts(&self) -> ParameterCounts {
        let mut counts = ParameterCounts::default();
        for (name, shape) in layout(self) {
            let n: usize = shape.iter().product();
            let part = if name.contains("norm") {
                &mut counts.norm
            } else if name.contains("token_embedding") {
                &mut counts.token_embedding
            } else if name.contains("position_embedding") {
                &mut counts.position_embedding
            } else if name.contains("attention.") {
                &mut counts.attention
            } else if name.contains(".feed_forward.") {
                &mut counts.feed_forward
            } else {
                &mut counts.head
            };
            *part += n;
        }
        counts
    }

    /// Floating-point operations of one token's forward pass in a sequence of `seq` tokens.
    ///
    /// Two for each weight in a matrix product (including the output layer, excluding the embedding
    /// lookup), and four for each element of each head and visible token: scores and weighted values.
    /// Every token is assumed to attend to `seq` tokens, as in appendix B of `PaLM` (Chowdhery et al.
    /// 2022), or to its window if that is smaller. In encoder-decoder models, a source is as long as its
    /// target.
    pub fn forward_flops(&self, seq: usize) -> usize {
        let matrices: usize = layout(self)
            .iter()
            .filter(|(name, shape)| shape.len() == 2 && is_in_block(name))
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum();
        let head = self.d_model * self.vocab_size;
        let window = |layer| self.window(layer).map_or(seq, |window| window.min(seq));
        let layers = (0..self.n_layers).chain(0..self.encoder_layers());
        let cross = usize::from(self.has_encoder()) * self.n_layers * seq;
        let visible = layers.map(window).sum::<usize>() + cross;
        2 * (matrices + head) + 4 * self.n_heads * self.head_dim() * visible
    }

    /// Floating-point operations of one token's training step: three times the forward pass.
    pub fn training_flops(&self, seq: usize) -> usize {
        3 * self.forward_flops(seq)
    }

    /// Estimates the memory that training takes.
    ///
    /// # Example
    ///
    /// ```
    /// use nextword_model::{TrainingShape, presets};
    ///
    /// let gpt2 = presets::gpt2(12, 12, 768);
    /// let shape = TrainingShape { batch_size: 8, sequence_length: 1024, ..TrainingShape::default() };
    /// let memory = gpt2.training_memory(&shape); // with AdamW's two moments
    /// assert_eq!(memory.weights, 4 * 124_439_808);
    /// assert_eq!(memory.optimizer, 2 * memory.weights);
    /// let recomputed = gpt2.training_memory(&TrainingShape { recompute: true, ..shape });
    /// assert!(recomputed.activations < memory.activations / 2);
    /// ```
    pub fn training_memory(&self, shape: &TrainingShape) -> MemoryEstimate {
        let weights = 4 * self.parameter_counts().total();
        let tokens = shape.batch_size.saturating_mul(shape.sequence_length);
        let layer = if shape.fused {
            self.fused_layer()
        } else {
            self.unfused_layer(shape.sequence_length)
        };
        let layers = if shape.recompute {
            layer + self.all_layers() * self.d_model
        } else {
            self.all_layers() * layer + self.cross_attention_layers(shape)
        };
        let (per_token, shared) = if shape.fused {
            // The input of the final norm, its gradient and the next one's, and one feed-forward layer's.
            let ends = 5 * self.d_model + self.hidden_copies() * self.d_ff();
            (ends, self.loss_chunk(tokens) + self.table_gradients())
        } else {
            (2 * self.d_model + 5 * self.vocab_size, 0)
        };
        let activations = tokens.saturating_mul(4 * (layers + per_token));
        MemoryEstimate {
            weights,
            // The sum of the earlier micro-batches' and those of the current one.
            gradients: weights * shape.gradient_copies(),
            optimizer: shape.moments * weights,
            activations: activations.saturating_add(4 * shared),
        }
    }

    /// Estimates the memory that training an adapter with `trained` parameters takes, on a base with `bits` per weight
    /// (`None` for floats).
    ///
    /// ```
    /// use nextword_model::{TrainingShape, presets};
    ///
    /// let gpt2 = presets::gpt2(12, 12, 768);
    /// let shape = TrainingShape { sequence_length: 256, ..TrainingShape::default() };
    /// let full = gpt2.training_memory(&shape).total();
    /// let adapter = |bits| gpt2.adapter_memory(&shape, 2_000_000, bits).total();
    /// assert!(adapter(None) < full / 2 && adapter(Some(4)) < adapter(None) / 2);
    /// ```
    pub fn adapter_memory(
        &self,
        shape: &TrainingShape,
        trained: usize,
        bits: Option<u8>,
    ) -> MemoryEstimate {
        let full = self.training_memory(shape);
        let tables = if shape.fused {
            4 * self.table_gradients()
        } else {
            0
        };
        MemoryEstimate {
            weights: self.weight_bytes(bits) + 4 * trained,
            gradients: 4 * trained * shape.gradient_copies(),
            optimizer: 4 * trained * shape.moments,
            // The frozen embedding has no gradient.
            activations: full.activations.saturating_sub(tables),
        }
    }

    /// Bytes of all weights with matrices of `bits` per weight, those of token embedding and output layer with 8. Each
    /// block of 32 weights has a scale of two bytes, and with fewer bits a minimum or factors.
    fn weight_bytes(&self, bits: Option<u8>) -> usize {
        let bytes = |(name, shape): (String, Vec<usize>)| {
            let len: usize = shape.iter().product();
            let is_matrix = matrix_shape(&name, &shape).is_some();
            match bits.filter(|_| is_matrix) {
                None => 4 * len,
                Some(bits @ ..8) if is_in_block(&name) => {
                    len.div_ceil(32) * (4 * usize::from(bits) + 4)
                }
                Some(_) => len.div_ceil(32) * (32 + 2),
            }
        };
        layout(self).into_iter().map(bytes).sum()
    }

    /// Estimates the bytes of activations that inference takes for each token of a batch, as in validation.
    ///
    /// ```
    /// use nextword_model::presets;
    ///
    /// let gpt2 = presets::gpt2(12, 12, 768);
    /// assert!(gpt2.inference_memory(1024, true) < gpt2.inference_memory(1024, false));
    /// ```
    pub fn inference_memory(&self, sequence_length: usize, fused: bool) -> usize {
        let d_kv = self.kv_heads() * self.head_dim();
        let attention = 2 * self.d_model + 2 * self.n_heads * self.head_dim() + 2 * d_kv;
        let feed_forward = 3 * self.d_model + self.hidden_copies() * self.d_ff();
        let unfused = 3 * self.n_heads * sequence_length + 3 * self.vocab_size;
        4 * (attention.max(feed_forward) + if fused { 0 } else { unfused })
    }

    /// Number of blocks in all stacks.
    fn all_layers(&self) -> usize {
        self.n_layers + self.encoder_layers()
    }

    /// Values per token that all layers of cross-attention save for the backward pass, if a source is as long as
    /// its target.
    fn cross_attention_layers(&self, shape: &TrainingShape) -> usize {
        if !self.has_encoder() {
            return 0;
        }
        let no_feed_forward = Self {
            feed_forward: crate::FeedForwardKind::None,
            ..self.clone()
        };
        let layer = if shape.fused {
            no_feed_forward.fused_layer()
        } else {
            no_feed_forward.unfused_layer(shape.sequence_length)
        };
        self.n_layers * layer
    }

    /// Parameters of the encoder outside its tables, which the decoder's passes do not read.
    pub(crate) fn encoder_weights_per_source(&self) -> usize {
        let of_encoder = layout(self).into_iter().filter(|(name, _)| {
            name.starts_with("encoder.") && !name.ends_with("_embedding.weight")
        });
        of_encoder
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum()
    }

    /// Values per token that the fused operations of a layer save for the backward pass.
    fn fused_layer(&self) -> usize {
        let d = self.d_model;
        let (d_q, d_kv) = (
            self.n_heads * self.head_dim(),
            self.kv_heads() * self.head_dim(),
        );
        // A norm saves its input, which is otherwise that of the linear layers.
        let input = d * (1 + usize::from(self.norm != NormKind::None));
        let sandwich = d * usize::from(self.has_sandwich_norms());
        let qk_norm = (d_q + d_kv) * usize::from(self.qk_norm);
        // Queries, keys, values and the output of attention.
        let attention = input + sandwich + 2 * d_q + 2 * d_kv + qk_norm;
        if self.d_ff() == 0 {
            return attention;
        }
        let shared_input = d * usize::from(self.parallel);
        attention + input + sandwich + self.hidden_copies() * self.d_ff() - shared_input
    }

    /// Values per token that Burn's own operations save in a layer: the inputs of products, the centered and
    /// scaled values of norms, the scores before and after the softmax, and the inputs of activations.
    fn unfused_layer(&self, seq: usize) -> usize {
        let d_q = self.n_heads * self.head_dim();
        let d_kv = self.kv_heads() * self.head_dim();
        let scores = 4 * self.n_heads * seq;
        let hidden = (self.hidden_copies() + 1) * self.d_ff();
        10 * self.d_model + 3 * d_q + 3 * d_kv + hidden + scores
    }

    /// Values that a feed-forward layer saves for each hidden unit: the input of its activation, its gate, and
    /// the input of the last product.
    fn hidden_copies(&self) -> usize {
        if self.feed_forward.is_gated() { 3 } else { 2 }
    }

    /// Logits that the fused loss computes at a time, for `tokens` tokens in all.
    fn loss_chunk(&self, tokens: usize) -> usize {
        let rows = nextword_kernels::loss_chunk_rows(self.vocab_size);
        rows.min(tokens) * self.vocab_size
    }

    /// Values of temporary gradients of the embedding: a tied one has one of the lookup and one of the output layer
    /// besides their sum.
    fn table_gradients(&self) -> usize {
        (1 + usize::from(self.tied_head)) * self.vocab_size * self.d_model
    }
}

#[cfg(test)]
mod tests {
    use crate::presets;

    #[test]
    fn gpt2_sizes_have_the_published_parameter_counts() {
        let counts = [
            (presets::gpt2(12, 12, 768), 124_439_808),
            (presets::gpt2(24, 16, 1024), 354_823_168),
            (presets::gpt2(36, 20, 1280), 774_030_080),
            (presets::gpt2(48, 25, 1600), 1_557_611_200),
        ];
        for (config, parameters) in counts {
            assert_eq!(config.parameter_counts().total(), parameters);
        }
    }

    #[test]
    fn nanogpt_char_models_have_the_known_parameter_counts() {
        let large = presets::shakespeare_char(65).parameter_counts();
        assert_eq!(large.total() - large.position_embedding, 10_646_784);
        let small = presets::shakespeare_char_cpu(65).parameter_counts();
        assert_eq!(small.total() - small.position_embedding, 795_904);
    }
}
