//! `gpt2` (Radford et al. 2019).

use nextword_model::{FeedForwardKind, ModelConfig};
use serde_json::{Map, Value, json};

use super::fields::Fields;
use crate::ConvertError;
use crate::mapping::{Layout, TensorNames};

pub(crate) struct Gpt2;

pub(crate) fn read(fields: &Fields) -> Result<ModelConfig, ConvertError> {
    fields.expect_flag("scale_attn_weights", true)?;
    fields.expect_flag("scale_attn_by_inverse_layer_idx", false)?;
    Ok(ModelConfig {
        context_length: fields.required_count("n_positions")?,
        n_layers: fields.required_count("n_layer")?,
        n_heads: fields.required_count("n_head")?,
        d_model: fields.required_count("n_embd")?,
        d_ff: fields.optional_count("n_inner")?,
        norm_eps: fields
            .optional_number("layer_norm_epsilon")?
            .unwrap_or(1e-5),
        feed_forward: activation(fields, "activation_function", "gelu_new")?,
        tied_head: fields.flag("tie_word_embeddings", true)?,
        ..ModelConfig::default()
    })
}

pub(crate) fn write(config: &ModelConfig) -> Map<String, Value> {
    let value = json!({
        "n_positions": config.context_length, "n_ctx": config.context_length,
        "n_layer": config.n_layers, "n_head": config.n_heads, "n_embd": config.d_model,
        "n_inner": config.d_ff, "layer_norm_epsilon": config.norm_eps,
        "activation_function": activation_name(config.feed_forward),
        "scale_attn_weights": true, "embd_pdrop": config.dropout.embedding,
        "attn_pdrop": config.dropout.attention, "resid_pdrop": config.dropout.residual,
    });
    value.as_object().cloned().unwrap_or_default()
}

/// Reads the activation of a feed-forward layer without a gate.
pub(crate) fn activation(
    fields: &Fields,
    name: &str,
    default: &str,
) -> Result<FeedForwardKind, ConvertError> {
    Ok(match fields.optional_text(name)?.unwrap_or(default) {
        "gelu" => FeedForwardKind::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => FeedForwardKind::GeluTanh,
        "relu" => FeedForwardKind::Relu,
        "relu2" => FeedForwardKind::ReluSquared,
        "silu" | "swish" => FeedForwardKind::Silu,
        _ => return Err(fields.error(name, "but nextword does not support this activation")),
    })
}

/// The name of an activation. Gated kinds get the name of a different activation, so the read-back
/// check of [`to_hf`](super::to_hf) rejects them.
pub(crate) fn activation_name(kind: FeedForwardKind) -> &'static str {
    match kind {
        FeedForwardKind::GeluTanh => "gelu_new",
        FeedForwardKind::Relu => "relu",
        FeedForwardKind::ReluSquared => "relu2",
        FeedForwardKind::Silu => "silu",
        _ => "gelu",
    }
}

impl TensorNames for Gpt2 {
    fn top_level(&self, module: &str) -> Option<&'static str> {
        Some(match module {
            "token_embedding" => "transformer.wte",
            "position_embedding" => "transformer.wpe",
            "final_norm" => "transformer.ln_f",
            "head" => "lm_head",
            _ => return None,
        })
    }

    fn in_block(&self, layer: &str, module: &str) -> Option<String> {
        let name = match module {
            "attention_norm" => "ln_1",
            "attn.c_attn" => module,
            "attention.output" => "attn.c_proj",
            "feed_forward_norm" => "ln_2",
            "feed_forward.up" => "mlp.c_fc",
            "feed_forward.down" => "mlp.c_proj",
            _ => return None,
        };
        Some(format!("transformer.h.{layer}.{name}"))
    }

    /// `Conv1D` has our layout.
    fn matrix_layout(&self) -> Layout {
        Layout::Same
    }

    fn fused_qkv(&self, _config: &ModelConfig) -> Option<(&'static str, Layout)> {
        Some(("attn.c_attn", Layout::ConcatColumns))
    }
}
