//! Where intermediate values of the one forward pass can be seen.
//!
//! The names are `TransformerLens`'s, which interpretability work shares:
//! `blocks.0.attn.hook_pattern` is the attention pattern of the first block.

use std::fmt;

use burn::tensor::Tensor;

/// Sees named intermediate tensors of a forward pass.
pub trait Probe {
    /// Whether this probe looks at all. Watching makes attention store its scores.
    const WATCHES: bool = true;

    /// Called with each intermediate tensor in the order of computation.
    fn see<const D: usize>(&mut self, site: Site, tensor: &Tensor<D>);
}

/// Sees nothing and costs nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProbe;

impl Probe for NoProbe {
    const WATCHES: bool = false;

    fn see<const D: usize>(&mut self, _site: Site, _tensor: &Tensor<D>) {}
}

/// A place in the model: which block, if any, and what there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Site {
    /// The block's number from 0, or `None` outside the blocks.
    pub layer: Option<usize>,
    /// What is seen.
    pub hook: Hook,
}

impl Site {
    /// A place outside the blocks.
    pub fn outside(hook: Hook) -> Self {
        Self { layer: None, hook }
    }

    /// A place in block `layer`.
    pub fn inside(layer: usize, hook: Hook) -> Self {
        Self {
            layer: Some(layer),
            hook,
        }
    }

    /// A number of its own for each place, for streams of random numbers.
    pub(crate) fn number(self) -> u64 {
        let layer = self.layer.map_or(0, |layer| layer as u64 + 1);
        layer << 16 | self.hook as u64
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(layer) = self.layer {
            write!(f, "blocks.{layer}.")?;
        }
        f.write_str(self.hook.name())
    }
}

/// What can be seen, with the shape that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Word embeddings, `[batch, seq, d_model]`.
    Embed,
    /// Position encodings that are added, `[1 or batch, seq, d_model]`.
    PosEmbed,
    /// What enters a block, `[batch, seq, d_model]`.
    ResidPre,
    /// The first norm's output, `[batch, seq, d_model]`.
    Ln1,
    /// Queries before positions turn them, `[batch, n_heads, seq, head_dim]`.
    Query,
    /// Keys before positions turn them, `[batch, n_kv_heads, seq, head_dim]`.
    Key,
    /// Values, `[batch, n_kv_heads, seq, head_dim]`.
    Value,
    /// Queries turned by rotary positions, `[batch, n_heads, seq, head_dim]`.
    RotatedQuery,
    /// Keys turned by rotary positions, `[batch, n_kv_heads, seq, head_dim]`.
    RotatedKey,
    /// Scaled similarities with the mask applied, `[batch, n_heads, query, key]`.
    Scores,
    /// Percentages: the softmax of the scores, `[batch, n_heads, query, key]`.
    Pattern,
    /// Each head's weighted values, `[batch, n_heads, seq, head_dim]`.
    Z,
    /// What attention adds to the residual stream, `[batch, seq, d_model]`.
    AttnOut,
    /// The residual stream between attention and feed-forward, `[batch, seq, d_model]`.
    ResidMid,
    /// The second norm's output, `[batch, seq, d_model]`.
    Ln2,
    /// Feed-forward hidden units before the activation (in gated kinds: the gate's),
    /// `[batch, seq, d_ff]`.
    MlpPre,
    /// In gated kinds: the hidden units that the gate scales, `[batch, seq, d_ff]`.
    MlpPreLinear,
    /// Feed-forward hidden units after activation and gate, `[batch, seq, d_ff]`.
    MlpPost,
    /// What feed-forward adds to the residual stream, `[batch, seq, d_model]`.
    MlpOut,
    /// What leaves a block, `[batch, seq, d_model]`.
    ResidPost,
    /// The final norm's output, `[batch, seq, d_model]`.
    FinalNorm,
    /// Logits, `[batch, seq, vocab_size]`.
    Logits,
}

impl Hook {
    /// The name in `TransformerLens`'s vocabulary, without the block.
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
        }
    }
}
