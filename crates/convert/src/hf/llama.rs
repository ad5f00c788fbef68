//! `llama`, `mistral`, `qwen2`, `qwen3`: rotary positions, RMS norm, gated feed-forward.

use nextword_model::{BiasConfig, FeedForwardKind, ModelConfig, NormKind, Position};
use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::{ModelType, rope};
use crate::ConvertError;
use crate::mapping::{Layout, TensorNames};

pub(crate) struct Llama {
    /// Whether each sublayer has a norm before and after it (Gemma 2 and 3).
    pub(crate) sandwich: bool,
}

pub(crate) fn read(kind: ModelType, fields: &Fields) -> Result<ModelConfig, ConvertError> {
    let mut config = read_sizes(kind, fields)?;
    config.feed_forward = gated_activation(fields, "hidden_act", "silu")?;
    config.tied_head = fields.flag("tie_word_embeddings", false)?;
    config.rotary = rope::read(fields, config.context_length)?;
    let n_layers = config.n_layers;
    match kind {
        ModelType::Qwen2 => {
            fields.get("attention_bias"); // Ignored: queries, keys and values always have biases.
            config.bias.qkv = true;
        }
        ModelType::Mistral => {}
        _ => {
            let bias = fields.flag("attention_bias", false)?;
            config.bias.qkv = bias;
            config.bias.attention_output = bias;
        }
    }
    match kind {
        ModelType::Mistral => {
            let window = fields.count_or("sliding_window", Some(4096))?;
            config.windows = window.into_iter().filter(|w| *w > 0).collect();
        }
        ModelType::Qwen2 | ModelType::Qwen3 => {
            config.qk_norm = kind == ModelType::Qwen3;
            let uses_windows = fields.flag("use_sliding_window", false)?;
            let window = fields
                .count_or("sliding_window", Some(4096))?
                .filter(|_| uses_windows);
            let first_windowed = fields.optional_count("max_window_layers")?.unwrap_or(28);
            config.windows = rope::read_windows(fields, n_layers, window, |layer| {
                window.is_some() && layer >= first_windowed
            })?;
        }
        _ => config.bias.feed_forward = fields.flag("mlp_bias", false)?,
    }
    Ok(config)
}

/// Reads the fields that all Llama-like types share. Defaults of missing fields depend on the type.
pub(crate) fn read_sizes(kind: ModelType, fields: &Fields) -> Result<ModelConfig, ConvertError> {
    let (kv_heads, head_dim) = match kind {
        ModelType::Mistral => (Some(8), None),
        ModelType::Qwen2 => (Some(32), None),
        ModelType::Qwen3 => (Some(32), Some(128)),
        ModelType::Gemma => (Some(16), Some(256)),
        ModelType::Gemma2 | ModelType::Gemma3Text => (Some(4), Some(256)),
        _ => (None, None),
    };
    let n_heads = fields.required_count("num_attention_heads")?;
    Ok(ModelConfig {
        context_length: fields.required_count("max_position_embeddings")?,
        n_layers: fields.required_count("num_hidden_layers")?,
        n_heads,
        n_kv_heads: fields.count_or("num_key_value_heads", kv_heads)?,
        head_dim: fields.count_or("head_dim", head_dim)?,
        d_model: fields.required_count("hidden_size")?,
        d_ff: Some(fields.required_count("intermediate_size")?),
        position: Position::Rotary,
        norm: NormKind::Rms,
        norm_eps: fields.optional_number("rms_norm_eps")?.unwrap_or(1e-6),
        bias: BiasConfig::none(),
        ..ModelConfig::default()
    })
}

pub(crate) fn write(kind: ModelType, config: &ModelConfig) -> Map<String, Value> {
    let mut map = write_sizes(config);
    map.insert(
        "hidden_act".into(),
        json!(gated_activation_name(config.feed_forward)),
    );
    map.extend(rope::write(&config.rotary).map(|(name, value)| (name.to_string(), value)));
    let (types, width) = rope::write_windows(config);
    if kind != ModelType::Mistral && kind != ModelType::Qwen2 {
        map.insert("attention_bias".into(), json!(config.bias.qkv));
    }
    match kind {
        ModelType::Mistral => {
            let window = (width > 0).then_some(width);
            map.insert("sliding_window".into(), json!(window));
        }
        ModelType::Qwen2 | ModelType::Qwen3 => {
            map.insert("use_sliding_window".into(), json!(width > 0));
            map.insert("sliding_window".into(), json!((width > 0).then_some(width)));
            map.insert("max_window_layers".into(), json!(config.n_layers));
            map.insert("layer_types".into(), json!(types));
        }
        _ => {
            map.insert("mlp_bias".into(), json!(config.bias.feed_forward));
        }
    }
    map
}

/// Writes the fields that [`read_sizes`] reads.
pub(crate) fn write_sizes(config: &ModelConfig) -> Map<String, Value> {
    let value = json!({
        "max_position_embeddings": config.context_length, "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads, "num_key_value_heads": config.kv_heads(),
        "head_dim": config.head_dim(), "hidden_size": config.d_model,
        "intermediate_size": config.d_ff, "rms_norm_eps": config.norm_eps,
        "attention_dropout": config.dropout.attention,
    });
    value.as_object().cloned().unwrap_or_default()
}

/// Reads the activation of a gated feed-forward layer.
pub(crate) fn gated_activation(
    fields: &Fields,
    name: &str,
    default: &str,
) -> Result<FeedForwardKind, ConvertError> {
    Ok(match fields.optional_text(name)?.unwrap_or(default) {
        "silu" | "swish" => FeedForwardKind::Swiglu,
        "gelu" => FeedForwardKind::Geglu,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => FeedForwardKind::GegluTanh,
        _ => return Err(fields.error(name, "but nextword does not support this activation")),
    })
}

/// The name of a gated activation. Other kinds get the name of a different activation, so the
/// read-back check of [`to_hf`](super::to_hf) rejects them.
pub(crate) fn gated_activation_name(kind: FeedForwardKind) -> &'static str {
    match kind {
        FeedForwardKind::Geglu => "gelu",
        FeedForwardKind::GegluTanh => "gelu_pytorch_tanh",
        _ => "silu",
    }
}

impl TensorNames for Llama {
    fn top_level(&self, module: &str) -> Option<&'static str> {
        Some(match module {
            "token_embedding" => "model.embed_tokens",
            "final_norm" => "model.norm",
            "head" => "lm_head",
            _ => return None,
        })
    }

    fn in_block(&self, layer: &str, module: &str) -> Option<String> {
        let name = match module {
            "attention_norm" => "input_layernorm",
            "attention.query" => "self_attn.q_proj",
            "attention.key" => "self_attn.k_proj",
            "attention.value" => "self_attn.v_proj",
            "attention.query_norm" => "self_attn.q_norm",
            "attention.key_norm" => "self_attn.k_norm",
            "attention.output" => "self_attn.o_proj",
            "feed_forward_norm" if self.sandwich => "pre_feedforward_layernorm",
            "feed_forward_norm" | "attention_post_norm" => "post_attention_layernorm",
            "feed_forward.gate" => "mlp.gate_proj",
            "feed_forward.up" => "mlp.up_proj",
            "feed_forward.down" => "mlp.down_proj",
            "feed_forward_post_norm" => "post_feedforward_layernorm",
            _ => return None,
        };
        Some(format!("model.layers.{layer}.{name}"))
    }

    fn matrix_layout(&self) -> Layout {
        Layout::Transposed
    }
}
