//! The model configuration, from StatQuest's two-dimensional model to GPT-2 XL.

mod stacks;

use serde::{Deserialize, Serialize};

use crate::{
    Architecture, BiasConfig, DropoutConfig, FeedForwardKind, InitConfig, ModelError, NormKind,
    NormPlacement, Position, RotaryConfig,
};

// Limits far above any existing model, so that parameter counts cannot overflow.
const MAX_TOKENS: usize = 1 << 24;
const MAX_WIDTH: usize = 1 << 20;
const MAX_LAYERS: usize = 1 << 12;

/// The architecture of a Transformer.
///
/// The defaults are nanoGPT's small character model without its vocabulary. Unknown keys are
/// errors. [`validate`](Self::validate) runs before anything is built.
///
/// # Example
///
/// ```
/// use nextword_model::{FeedForwardKind, ModelConfig, NormKind, Position};
///
/// let llama = ModelConfig {
///     vocab_size: 65,
///     n_heads: 4,
///     n_kv_heads: Some(2), // grouped-query attention
///     d_model: 128,
///     position: Position::Rotary,
///     norm: NormKind::Rms,
///     feed_forward: FeedForwardKind::Swiglu,
///     ..ModelConfig::default()
/// };
/// llama.validate()?;
/// assert_eq!((llama.head_dim(), llama.d_ff()), (32, 344));
/// assert!(ModelConfig { n_heads: 3, ..llama }.validate().is_err()); // 128 is not a multiple of 3
/// # Ok::<(), nextword_model::ModelError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// The stacks of blocks and their masks.
    #[serde(skip_serializing_if = "Architecture::is_default")]
    pub architecture: Architecture,
    /// Vocabulary size. 0 in a run's config means the tokenizer's vocabulary size.
    pub vocab_size: usize,
    /// Maximum sequence length in tokens.
    pub context_length: usize,
    /// Number of blocks; in encoder-decoder models, of the decoder.
    pub n_layers: usize,
    /// Number of blocks of the encoder in encoder-decoder models; absent: `n_layers`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_encoder_layers: Option<usize>,
    /// Whether encoder and decoder share the token embedding (Vaswani et al. 2017, section 3.4).
    #[serde(skip_serializing_if = "is_on")]
    pub share_embeddings: bool,
    /// Attention heads in each block.
    pub n_heads: usize,
    /// Key/value heads in each block; absent: `n_heads`. Fewer is grouped-query attention, one is
    /// multi-query attention (Ainslie et al. 2023, arXiv 2305.13245).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_kv_heads: Option<usize>,
    /// Width of each head's queries and keys; absent: `d_model / n_heads`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Hidden units of the feed-forward layer; absent: `4 * d_model`, or for gated kinds
    /// `8/3 * d_model` rounded up to a multiple of 8, which gives about as many parameters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_ff: Option<usize>,
    /// How token positions are encoded.
    pub position: Position,
    /// Settings for `position = "rotary"`.
    pub rotary: RotaryConfig,
    /// The kind of normalization, if any.
    pub norm: NormKind,
    /// Added to the variance (or mean square) in each norm.
    pub norm_eps: f64,
    /// Whether norms are before each sublayer (GPT-2), after each residual sum (Vaswani et al. 2017)
    /// or on both sides of each sublayer (Gemma 2).
    pub norm_placement: NormPlacement,
    /// Normalize the sum of token embedding and position encoding (BERT, BART).
    #[serde(skip_serializing_if = "is_off")]
    pub embedding_norm: bool,
    /// The kind of feed-forward layer, if any.
    pub feed_forward: FeedForwardKind,
    /// Which groups of layers have biases.
    pub bias: BiasConfig,
    /// Whether the output layer shares the token embedding's weights.
    pub tied_head: bool,
    /// A linear layer, an activation and a norm before the output layer (BERT's head for masked tokens).
    /// The activation is that of the feed-forward layer.
    #[serde(skip_serializing_if = "is_off")]
    pub head_transform: bool,
    /// Multiply the concatenated heads by an output matrix (`W_O` of Vaswani et al. 2017). `StatQuest`'s
    /// model has none. Without it, `n_heads * head_dim` must equal `d_model`.
    pub output_projection: bool,
    /// RMS-normalize each head's query and key before rotary positions are applied
    /// (Henry et al. 2020, arXiv 2010.04245; with Qwen3's learned scale).
    pub qk_norm: bool,
    /// Norms multiply by `1 + weight` instead of `weight` (Gemma).
    #[serde(skip_serializing_if = "is_off")]
    pub norm_unit_offset: bool,
    /// Factor on the token embedding; absent: 1. Gemma uses `sqrt(d_model)`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding_scale: Option<f64>,
    /// Attention scores are divided by the square root of this; absent: `head_dim`. Hugging Face
    /// calls it `query_pre_attn_scalar`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_width: Option<f64>,
    /// Limit attention scores to (-c, c) by `c * tanh(scores / c)` before the softmax (Gemma 2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_soft_cap: Option<f64>,
    /// Attention and feed-forward both read the block's input:
    /// `x + attention(norm(x)) + feed_forward(norm(x))` (GPT-J, GPT-NeoX).
    #[serde(skip_serializing_if = "is_off")]
    pub parallel: bool,
    /// Limit logits to (-c, c) by `c * tanh(logits / c)` (Gemma 2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logit_soft_cap: Option<f64>,
    /// Sliding window of each layer in tokens, repeated in a cycle; 0 is the whole context, as is an
    /// empty list. A window of `w` covers the token itself and the `w - 1` before it (as Mistral
    /// counts).
    pub windows: Vec<usize>,
    /// Dropout rates, in training only.
    pub dropout: DropoutConfig,
    /// Residual connections around attention and feed-forward. Turn them off only to study their
    /// effect.
    pub residual: bool,
    /// Weight initialization.
    pub init: InitConfig,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            architecture: Architecture::default(),
            vocab_size: 0,
            context_length: 64,
            n_layers: 4,
            n_encoder_layers: None,
            share_embeddings: true,
            n_heads: 4,
            n_kv_heads: None,
            head_dim: None,
            d_model: 128,
            d_ff: None,
            position: Position::Learned,
            rotary: RotaryConfig::default(),
            norm: NormKind::Layer,
            norm_eps: 1e-5,
            norm_placement: NormPlacement::Pre,
            embedding_norm: false,
            feed_forward: FeedForwardKind::Gelu,
            bias: BiasConfig::default(),
            tied_head: true,
            head_transform: false,
            output_projection: true,
            qk_norm: false,
            norm_unit_offset: false,
            embedding_scale: None,
            score_width: None,
            score_soft_cap: None,
            parallel: false,
            logit_soft_cap: None,
            windows: Vec::new(),
            dropout: DropoutConfig::default(),
            residual: true,
            init: InitConfig::default(),
        }
    }
}

impl ModelConfig {
    /// Number of key/value heads, with the default filled in.
    pub fn kv_heads(&self) -> usize {
        self.n_kv_heads.unwrap_or(self.n_heads)
    }

    /// Width of each head's queries and keys, with the default filled in.
    pub fn head_dim(&self) -> usize {
        self.head_dim
            .unwrap_or_else(|| self.d_model / self.n_heads.max(1))
    }

    /// Hidden units of the feed-forward layer, with the default filled in; 0 without such a layer.
    pub fn d_ff(&self) -> usize {
        if self.feed_forward == FeedForwardKind::None {
            return 0;
        }
        self.d_ff.unwrap_or_else(|| {
            if self.feed_forward.is_gated() {
                (self.d_model * 8).div_ceil(3).next_multiple_of(8)
            } else {
                4 * self.d_model
            }
        })
    }

    /// The sliding window of `layer` in tokens; `None` is the whole context.
    pub fn window(&self, layer: usize) -> Option<usize> {
        if self.windows.is_empty() {
            return None;
        }
        let window = self.windows[layer % self.windows.len()];
        (window > 0 && window < self.context_length).then_some(window)
    }

    /// Whether there is a norm between the last block and the output layer.
    pub fn has_final_norm(&self) -> bool {
        self.norm != NormKind::None && self.norm_placement != NormPlacement::Post
    }

    /// Whether a second norm normalizes the output of each sublayer.
    pub fn has_sandwich_norms(&self) -> bool {
        self.norm != NormKind::None && self.norm_placement == NormPlacement::Sandwich
    }

    /// Scale of the attention scores of `layer`. Layers with a rotary base of their own have no scaling,
    /// and so no factor of `YaRN`.
    pub fn score_scale(&self, layer: usize) -> f64 {
        let width = self.score_width.unwrap_or(self.head_dim() as f64);
        let attention_factor = match self.position {
            Position::Rotary if !self.is_local(layer) => self.rotary.attention_factor(),
            _ => 1.0,
        };
        attention_factor * attention_factor / width.sqrt()
    }

    /// Whether `layer` uses [`RotaryConfig::local_base`](RotaryConfig): layers with a sliding window
    /// do if it is set.
    pub fn is_local(&self, layer: usize) -> bool {
        self.rotary.local_base.is_some()
            && !self.windows.is_empty()
            && self.windows[layer % self.windows.len()] > 0
    }

    /// Checks that the fields describe a valid model.
    ///
    /// # Errors
    /// [`ModelError::Config`] with the first invalid key and a valid value.
    pub fn validate(&self) -> Result<(), ModelError> {
        self.check_sizes()?;
        self.check_heads()?;
        self.check_values()?;
        self.check_architecture()?;
        self.rotary.validate(self.position, self.head_dim())
    }

    fn check_sizes(&self) -> Result<(), ModelError> {
        let sizes = [
            ("vocab_size", self.vocab_size, MAX_TOKENS),
            ("context_length", self.context_length, MAX_TOKENS),
            ("n_layers", self.n_layers, MAX_LAYERS),
            (
                "n_encoder_layers",
                self.n_encoder_layers.unwrap_or(1),
                MAX_LAYERS,
            ),
            ("n_heads", self.n_heads, MAX_WIDTH),
            ("n_kv_heads", self.kv_heads(), MAX_WIDTH),
            ("d_model", self.d_model, MAX_WIDTH),
        ];
        for (key, value, limit) in sizes {
            if value == 0 || value > limit {
                return Err(ModelError::config(
                    key,
                    format!("must be from 1 to {limit}, but is {value}"),
                    format!("set {key} to a value in that range"),
                ));
            }
        }
        if self.feed_forward != FeedForwardKind::None && !(1..=MAX_WIDTH).contains(&self.d_ff()) {
            return Err(ModelError::config(
                "d_ff",
                format!("must be from 1 to {MAX_WIDTH}, but is {}", self.d_ff()),
                "leave d_ff out for the default",
            ));
        }
        Ok(())
    }

    fn check_heads(&self) -> Result<(), ModelError> {
        let (n_heads, n_kv_heads) = (self.n_heads, self.kv_heads());
        if self.head_dim.is_none() && !self.d_model.is_multiple_of(n_heads) {
            let divisor = nearest_divisor(self.d_model, n_heads);
            return Err(ModelError::config(
                "n_heads",
                format!("{n_heads} heads do not divide d_model = {}", self.d_model),
                format!("use n_heads = {divisor}, or set head_dim"),
            ));
        }
        if !(1..=1 << 16).contains(&self.head_dim()) {
            return Err(ModelError::config(
                "head_dim",
                format!("must be from 1 to 65536, but is {}", self.head_dim()),
                "leave head_dim out for d_model / n_heads",
            ));
        }
        if !n_heads.is_multiple_of(n_kv_heads) {
            let divisor = nearest_divisor(n_heads, n_kv_heads);
            return Err(ModelError::config(
                "n_kv_heads",
                format!("{n_kv_heads} key/value heads do not divide n_heads = {n_heads}"),
                format!("use n_kv_heads = {divisor}"),
            ));
        }
        let concatenated_width = n_heads * self.head_dim();
        if !self.output_projection && concatenated_width != self.d_model {
            return Err(ModelError::config(
                "output_projection",
                format!(
                    "without it the concatenated heads have {concatenated_width} elements, not d_model = {}",
                    self.d_model
                ),
                "leave output_projection on, or leave head_dim out",
            ));
        }
        let rotates_all = self.rotary.width.is_none();
        if self.position == Position::Rotary && rotates_all && !self.head_dim().is_multiple_of(2) {
            return Err(ModelError::config(
                "head_dim",
                format!(
                    "rotary positions rotate pairs of elements, but head_dim = {} is odd",
                    self.head_dim()
                ),
                "use an even head_dim or another kind of position",
            ));
        }
        Ok(())
    }

    fn check_values(&self) -> Result<(), ModelError> {
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return Err(ModelError::config(
                "norm_eps",
                format!("{} is negative or not finite", self.norm_eps),
                "the usual value is 1e-5",
            ));
        }
        let positive = [
            ("logit_soft_cap", self.logit_soft_cap, "Gemma 2's 30.0"),
            ("score_soft_cap", self.score_soft_cap, "Gemma 2's 50.0"),
            ("score_width", self.score_width, "Gemma 2's 256.0"),
            (
                "embedding_scale",
                self.embedding_scale,
                "the square root of d_model",
            ),
        ];
        for (key, value, example) in positive {
            if let Some(value) = value
                && !(value.is_finite() && value > 0.0)
            {
                return Err(ModelError::config(
                    key,
                    format!("{value} is not a positive, finite number"),
                    format!("leave it out, or use {example}"),
                ));
            }
        }
        if self.parallel && self.norm_placement == NormPlacement::Post {
            return Err(ModelError::config(
                "parallel",
                "a parallel block has one residual sum, but norm_placement = \"post\" needs two",
                "use norm_placement = \"pre\", or leave parallel out",
            ));
        }
        self.dropout.validate()?;
        self.init.validate()
    }
}

/// Omits fields that are off, so that the files of older models stay the same.
#[allow(clippy::trivially_copy_pass_by_ref)] // Serde's signature.
fn is_off(flag: &bool) -> bool {
    !flag
}

/// Omits fields that are on, so that the files of older models stay the same.
#[allow(clippy::trivially_copy_pass_by_ref)] // Serde's signature.
fn is_on(flag: &bool) -> bool {
    *flag
}

/// The divisor of `n` that is closest to `target`.
fn nearest_divisor(n: usize, target: usize) -> usize {
    (1..=n.min(4 * target.max(1)))
        .filter(|d| n.is_multiple_of(*d))
        .min_by_key(|d| d.abs_diff(target))
        .unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ModelConfig {
        ModelConfig {
            vocab_size: 65,
            ..ModelConfig::default()
        }
    }

    #[test]
    fn default_config_is_valid() {
        assert!(config().validate().is_ok());
    }

    #[test]
    fn indivisible_heads_are_rejected_with_a_fix() {
        let bad = ModelConfig {
            n_heads: 5,
            ..config()
        };
        let message = bad.validate().err().map(|e| e.to_string());
        assert_eq!(
            message.as_deref(),
            Some(
                "model.n_heads: 5 heads do not divide d_model = 128; \
                 hint: use n_heads = 4, or set head_dim"
            )
        );
    }

    #[test]
    fn unknown_keys_are_rejected() {
        let parsed = serde_json::from_str::<ModelConfig>(r#"{"n_layer": 3}"#);
        assert!(parsed.is_err_and(|e| e.to_string().contains("n_layer")));
    }

    #[test]
    fn windows_cycle_over_layers() {
        let config = ModelConfig {
            windows: vec![8, 8, 0],
            ..config()
        };
        let windows: Vec<_> = (0..4).map(|layer| config.window(layer)).collect();
        assert_eq!(windows, [Some(8), Some(8), None, Some(8)]);
    }
}
