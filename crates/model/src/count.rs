//! Parameters, floating-point operations and memory of a model, computed from its configuration.

use serde::{Deserialize, Serialize};

use crate::{ModelConfig, weights::layout};

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
            } else if name.starts_with("token_embedding") {
                &mut counts.token_embedding
            } else if name.starts_with("position_embedding") {
                &mut counts.position_embedding
            } else if name.contains(".attention.") {
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
    /// 2022), or to its window if that is smaller.
    pub fn forward_flops(&self, seq: usize) -> usize {
        let matrices: usize = layout(self)
            .iter()
            .filter(|(name, shape)| shape.len() == 2 && name.starts_with("blocks."))
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum();
        let head = self.d_model * self.vocab_size;
        let visible: usize = (0..self.n_layers)
            .map(|layer| self.window(layer).map_or(seq, |window| window.min(seq)))
            .sum();
        2 * (matrices + head) + 4 * self.n_heads * self.head_dim() * visible
    }

    /// Floating-point operations of one token's training step: three times the forward pass.
    pub fn training_flops(&self, seq: usize) -> usize {
        3 * self.forward_flops(seq)
    }

    /// Estimates the memory that training takes, with micro-batches of `batch` sequences of `seq`
    /// tokens and an optimizer with `moments` values per parameter. With `recompute`, only the input
    /// of each block and the activations of one block are in memory at a time.
    ///
    /// # Example
    ///
    /// ```
    /// use nextword_model::presets;
    ///
    /// let gpt2 = presets::gpt2(12, 12, 768);
    /// let memory = gpt2.training_memory(8, 1024, 2, false); // AdamW has two moments
    /// assert_eq!(memory.weights, 4 * 124_439_808);
    /// assert_eq!(memory.optimizer, 2 * memory.weights);
    /// let recomputed = gpt2.training_memory(8, 1024, 2, true);
    /// assert!(recomputed.activations < memory.activations / 2);
    /// ```
    pub fn training_memory(
        &self,
        batch: usize,
        seq: usize,
        moments: usize,
        recompute: bool,
    ) -> MemoryEstimate {
        let bytes = 4 * self.parameter_counts().total();
        let tokens = batch * seq;
        let (d, d_ff) = (self.d_model, self.d_ff());
        let d_q = self.n_heads * self.head_dim();
        let d_kv = self.kv_heads() * self.head_dim();
        // Burn's autodiff saves the inputs of products, the centered and scaled values of norms,
        // the scores before and after the softmax, and the inputs of activations.
        let scores = 4 * self.n_heads * seq;
        let hidden_copies = if self.feed_forward.is_gated() { 4 } else { 3 };
        let layer = 10 * d + 3 * d_q + 3 * d_kv + hidden_copies * d_ff + scores;
        let layers = if recompute {
            layer + self.n_layers * d
        } else {
            self.n_layers * layer
        };
        let logits = 5 * self.vocab_size;
        MemoryEstimate {
            weights: bytes,
            gradients: bytes,
            optimizer: moments * bytes,
            activations: tokens.saturating_mul(4 * (layers + 2 * d + logits)),
        }
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
