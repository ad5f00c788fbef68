//! Hooks for the intermediate activations of the forward pass.
//!
//! The names follow `TransformerLens`: `blocks.0.attn.hook_pattern` is the attention pattern (the
//! attention weights) of the first block.

use std::fmt;

use burn::tensor::Tensor;

/// Receives the intermediate activations of a forward pass.
///
/// # Example
///
/// ```
/// use burn::tensor::{Device, Int, Tensor};
/// use nextword_model::{ForwardContext, Hook, Probe, Site, presets};
///
/// struct Shapes(Vec<(String, Vec<usize>)>);
///
/// impl Probe for Shapes {
///     fn record<const D: usize>(&mut self, site: Site, tensor: &Tensor<D>) {
///         if site.hook == Hook::Pattern {
///             self.0.push((site.to_string(), tensor.dims().to_vec()));
///         }
///     }
/// }
///
/// let (device, mut probe) = (Device::flex(), Shapes(Vec::new()));
/// let model = presets::statquest(5).init(&device, 3)?;
/// let tokens = Tensor::<2, Int>::from_ints([[0, 1, 2]], &device);
/// model.forward(tokens, &mut ForwardContext::with_probe(&mut probe));
/// let pattern = "blocks.0.attn.hook_pattern".to_owned();
/// assert_eq!(probe.0, [(pattern, vec![1, 1, 3, 3])]); // [batch, n_heads, query, key]
/// # Ok::<(), nextword_model::ModelError>(())
/// ```
pub trait Probe {
    /// Whether this probe uses the tensors. If so, attention materializes its scores.
    const ENABLED: bool = true;

    /// Whether this probe uses the inputs of the linear layers.
    const SEES_INPUTS: bool = false;

    /// Called with the input of each linear layer in a block, `[batch, seq, d_in]`. The hook of `site` is that of the
    /// layer's adapter, such as [`Hook::LoraQuery`], whether it has one or not.
    fn record_input(&mut self, site: Site, input: &Tensor<3>) {
        let _ = (site, input);
    }

    /// Called with each intermediate tensor in the order of computation.
    fn record<const D: usize>(&mut self, site: Site, tensor: &Tensor<D>);
}

/// Ignores all activations, at no cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProbe;

impl Probe for NoProbe {
    const ENABLED: bool = false;

    fn record<const D: usize>(&mut self, _site: Site, _tensor: &Tensor<D>) {}
}

/// A point in the forward pass: a hook, and the block that it is in, if any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Site {
    /// Index of the block, or `None` outside the blocks.
    pub layer: Option<usize>,
    /// The activation.
    pub hook: Hook,
    /// Whether this is in the encoder of an encoder-decoder model.
    pub in_encoder: bool,
}

impl Site {
    /// A hook outside the blocks.
    pub fn outside(hook: Hook) -> Self {
        Self {
            layer: None,
            hook,
            in_encoder: false,
        }
    }

    /// A hook in block `layer`.
    pub fn inside(layer: usize, hook: Hook) -> Self {
        Self {
            layer: Some(layer),
            hook,
            in_encoder: false,
        }
    }

    /// The same point in the encoder of an encoder-decoder model.
    ///
    /// ```
    /// use nextword_model::{Hook, Site};
    ///
    /// let pattern = Site::inside(0, Hook::Pattern).in_encoder();
    /// assert_eq!(pattern.to_string(), "encoder.blocks.0.attn.hook_pattern");
    /// ```
    #[must_use]
    pub fn in_encoder(self) -> Self {
        Self {
            in_encoder: true,
            ..self
        }
    }

    /// A unique number that selects the random stream of a dropout mask.
    pub(crate) fn stream_id(self) -> u64 {
        let layer = self.layer.map_or(0, |layer| layer as u64 + 1);
        u64::from(self.in_encoder) << 48 | layer << 16 | self.hook as u64
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.in_encoder {
            f.write_str("encoder.")?;
        }
        if let Some(layer) = self.layer {
            write!(f, "blocks.{layer}.")?;
        }
        f.write_str(self.hook.name())
    }
}

/// The activations of the forward pass, with their shapes.
///
/// The discriminants are stable: they select the random streams of dropout masks, which must not
/// change when a run is resumed. A new hook takes the next free number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Hook {
    /// Token embeddings, `[batch, seq, d_model]`.
    Embed = 0,
    /// Position encodings added to the embeddings, `[1 or batch, seq, d_model]`.
    PosEmbed = 1,
    /// Input of a block, `[batch, seq, d_model]`.
    ResidPre = 2,
    /// The first norm's output, `[batch, seq, d_model]`.
    Ln1 = 3,
    /// Queries before rotary positions, `[batch, n_heads, seq, head_dim]`.
    Query = 4,
    /// Keys before rotary positions, `[batch, n_kv_heads, seq, head_dim]`.
    Key = 5,
    /// Values, `[batch, n_kv_heads, seq, head_dim]`.
    Value = 6,
    /// Queries after rotary positions, `[batch, n_heads, seq, head_dim]`.
    RotatedQuery = 7,
    /// Keys after rotary positions, `[batch, n_kv_heads, seq, head_dim]`.
    RotatedKey = 8,
    /// Scaled and masked attention scores, `[batch, n_heads, query, key]`.
    Scores = 9,
    /// Attention weights (the softmax of the scores), `[batch, n_heads, query, key]`.
    Pattern = 10,
    /// Weighted sum of the values in each head, `[batch, n_heads, seq, head_dim]`.
    Z = 11,
    /// Output of attention, added to the residual stream, `[batch, seq, d_model]`.
    AttnOut = 12,
    /// The residual stream between attention and feed-forward, `[batch, seq, d_model]`.
    ResidMid = 13,
    /// The second norm's output, `[batch, seq, d_model]`.
    Ln2 = 14,
    /// Feed-forward hidden units before the activation (in gated kinds: the gate's),
    /// `[batch, seq, d_ff]`.
    MlpPre = 15,
    /// In gated kinds: the hidden units that the gate multiplies, `[batch, seq, d_ff]`.
    MlpPreLinear = 16,
    /// Feed-forward hidden units after activation and gate, `[batch, seq, d_ff]`.
    MlpPost = 17,
    /// Output of feed-forward, added to the residual stream, `[batch, seq, d_model]`.
    MlpOut = 18,
    /// Output of a block, `[batch, seq, d_model]`.
    ResidPost = 19,
    /// The final norm's output, `[batch, seq, d_model]`.
    FinalNorm = 20,
    /// Logits, `[batch, seq, vocab_size]`.
    Logits = 21,
    /// Queries before their norm, in models with `qk_norm`, `[batch, n_heads, seq, head_dim]`.
    RawQuery = 22,
    /// Keys before their norm, in models with `qk_norm`, `[batch, n_kv_heads, seq, head_dim]`.
    RawKey = 23,
    /// The residual sum after attention, before post-norm, `[batch, seq, d_model]`.
    AttnSum = 24,
    /// The residual sum after feed-forward, before post-norm, `[batch, seq, d_model]`.
    MlpSum = 25,
    /// Output of attention before the second sandwich norm, `[batch, seq, d_model]`.
    RawAttnOut = 26,
    /// Output of feed-forward before the second sandwich norm, `[batch, seq, d_model]`.
    RawMlpOut = 27,
    /// Low-rank activations `x A` of the query's adapter, without dropout, `[batch, seq, rank]`.
    LoraQuery = 28,
    /// The same of the key's adapter.
    LoraKey = 29,
    /// The same of the value's adapter.
    LoraValue = 30,
    /// The same of the adapter of attention's output projection.
    LoraOutput = 31,
    /// The same of the gate's adapter.
    LoraGate = 32,
    /// The same of the adapter of the feed-forward layer's first matrix.
    LoraUp = 33,
    /// The same of the adapter of the feed-forward layer's last matrix.
    LoraDown = 34,
    /// The embedding after its norm, in models with `embedding_norm`, `[batch, seq, d_model]`.
    FullEmbed = 35,
    /// The output of the norm of cross-attention, `[batch, seq, d_model]`.
    CrossLn = 36,
    /// Queries of cross-attention, `[batch, n_heads, seq, head_dim]`.
    CrossQuery = 37,
    /// Keys of cross-attention, from the encoder's output, `[batch, n_kv_heads, source, head_dim]`.
    CrossKey = 38,
    /// Values of cross-attention, `[batch, n_kv_heads, source, head_dim]`.
    CrossValue = 39,
    /// Scaled and masked scores of cross-attention, `[batch, n_heads, query, source]`.
    CrossScores = 40,
    /// Weights of cross-attention, `[batch, n_heads, query, source]`.
    CrossPattern = 41,
    /// Weighted sum of the encoder's values in each head, `[batch, n_heads, seq, head_dim]`.
    CrossZ = 42,
    /// Output of cross-attention, added to the residual stream, `[batch, seq, d_model]`.
    CrossAttnOut = 43,
    /// The residual stream between cross-attention and feed-forward, `[batch, seq, d_model]`.
    ResidMidCross = 44,
    /// The residual sum after cross-attention, before post-norm, `[batch, seq, d_model]`.
    CrossAttnSum = 45,
    /// Output of cross-attention before the second sandwich norm, `[batch, seq, d_model]`.
    RawCrossAttnOut = 46,
    /// Queries of cross-attention before their norm, in models with `qk_norm`.
    RawCrossQuery = 47,
    /// Keys of cross-attention before their norm, in models with `qk_norm`.
    RawCrossKey = 48,
    /// Low-rank activations of the adapter of cross-attention's query, `[batch, seq, rank]`.
    LoraCrossQuery = 49,
    /// The same of the key's adapter, `[batch, source, rank]`.
    LoraCrossKey = 50,
    /// The same of the value's adapter, `[batch, source, rank]`.
    LoraCrossValue = 51,
    /// The same of the adapter of cross-attention's output projection.
    LoraCrossOutput = 52,
    /// Output of the layer before the output layer, in models with `head_transform`,
    /// `[batch, seq, d_model]`.
    HeadTransform = 53,
}

impl Hook {
    /// The name that `TransformerLens` uses, without the block prefix.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embed => "hook_embed",
            Self::PosEmbed => "hook_pos_embed",
            Self::ResidPre => "hook_resid_pre",
            Self::Ln1 => "ln1.hook_normalized",
            Self::Query => "attn.hook_q",
            Self::Key => "attn.hook_k",
            Self::Value => "attn.hook_v",
            Self::RotatedQuery => "attn.hook_rot_q",
            Self::RotatedKey => "attn.hook_rot_k",
            Self::Scores => "attn.hook_attn_scores",
            Self::Pattern => "attn.hook_pattern",
            Self::Z => "attn.hook_z",
            Self::AttnOut => "hook_attn_out",
            Self::ResidMid => "hook_resid_mid",
            Self::Ln2 => "ln2.hook_normalized",
            Self::MlpPre => "mlp.hook_pre",
            Self::MlpPreLinear => "mlp.hook_pre_linear",
            Self::MlpPost => "mlp.hook_post",
            Self::MlpOut => "hook_mlp_out",
            Self::ResidPost => "hook_resid_post",
            Self::FinalNorm => "ln_final.hook_normalized",
            Self::Logits => "logits",
            Self::RawQuery => "attn.hook_q_before_norm",
            Self::RawKey => "attn.hook_k_before_norm",
            Self::AttnSum => "hook_attn_sum",
            Self::MlpSum => "hook_mlp_sum",
            Self::RawAttnOut => "hook_attn_out_before_norm",
            Self::RawMlpOut => "hook_mlp_out_before_norm",
            Self::LoraQuery => "attn.hook_q_lora",
            Self::LoraKey => "attn.hook_k_lora",
            Self::LoraValue => "attn.hook_v_lora",
            Self::LoraOutput => "attn.hook_out_lora",
            Self::LoraGate => "mlp.hook_gate_lora",
            Self::LoraUp => "mlp.hook_up_lora",
            Self::LoraDown => "mlp.hook_down_lora",
            Self::FullEmbed => "hook_full_embed",
            Self::CrossLn => "ln_cross.hook_normalized",
            Self::CrossQuery => "cross_attn.hook_q",
            Self::CrossKey => "cross_attn.hook_k",
            Self::CrossValue => "cross_attn.hook_v",
            Self::CrossScores => "cross_attn.hook_attn_scores",
            Self::CrossPattern => "cross_attn.hook_pattern",
            Self::CrossZ => "cross_attn.hook_z",
            Self::CrossAttnOut => "hook_cross_attn_out",
            Self::ResidMidCross => "hook_resid_mid_cross",
            Self::CrossAttnSum => "hook_cross_attn_sum",
            Self::RawCrossAttnOut => "hook_cross_attn_out_before_norm",
            Self::RawCrossQuery => "cross_attn.hook_q_before_norm",
            Self::RawCrossKey => "cross_attn.hook_k_before_norm",
            Self::LoraCrossQuery => "cross_attn.hook_q_lora",
            Self::LoraCrossKey => "cross_attn.hook_k_lora",
            Self::LoraCrossValue => "cross_attn.hook_v_lora",
            Self::LoraCrossOutput => "cross_attn.hook_out_lora",
            Self::HeadTransform => "mlm_head.hook_normalized",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_stream_ids_are_stable() {
        assert_eq!(Site::outside(Hook::Embed).stream_id(), 0);
        assert_eq!(Site::inside(0, Hook::Pattern).stream_id(), (1 << 16) + 10);
        assert_eq!(Site::inside(1, Hook::AttnOut).stream_id(), (2 << 16) + 12);
        assert_eq!(Site::inside(2, Hook::MlpOut).stream_id(), (3 << 16) + 18);
        assert_eq!(Site::outside(Hook::Logits).stream_id(), 21);
        assert_eq!(Site::inside(0, Hook::LoraQuery).stream_id(), (1 << 16) + 28);
        assert_eq!(Site::inside(3, Hook::LoraDown).stream_id(), (4 << 16) + 34);
        let encoder = Site::inside(0, Hook::Pattern).in_encoder();
        assert_eq!(encoder.stream_id(), (1 << 48) + (1 << 16) + 10);
        assert_eq!(
            Site::inside(0, Hook::CrossPattern).stream_id(),
            (1 << 16) + 41
        );
    }
}
