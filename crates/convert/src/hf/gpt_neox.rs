//! `gpt_neox` (Black et al. 2022, arXiv 2204.06745), as used by Pythia.

use nextword_model::{BiasConfig, ModelConfig, Position, RotaryConfig};
use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::{gpt2, rope};
use crate::ConvertError;
use crate::mapping::{Layout, TensorNames};

pub(crate) struct GptNeox;

pub(crate) fn read(fields: &Fields) -> Result<ModelConfig, ConvertError> {
    let bias = fields.flag("attention_bias", true)?;
    let context_length = fields.required_count("max_position_embeddings")?;
    let (n_heads, d_model) = (
        fields.required_count("num_attention_heads")?,
        fields.required_count("hidden_size")?,
    );
    let base = fields
        .optional_number("rotary_emb_base")?
        .unwrap_or(10_000.0);
    let base = fields.optional_number("rope_theta")?.unwrap_or(base);
    // Some versions of transformers write both names.
    let old = fields.optional_number("rotary_pct")?;
    let mut fraction = fields.optional_number("partial_rotary_factor")?.or(old);
    if old.is_some() && fraction != old {
        return Err(fields.error(
            "partial_rotary_factor",
            "which is not the same as rotary_pct",
        ));
    }
    let mut rotary = RotaryConfig {
        base,
        ..RotaryConfig::default()
    };
    for name in ["rope_parameters", "rope_scaling"] {
        if let Some(parameters) = fields.object(name)? {
            fraction = parameters
                .optional_number("partial_rotary_factor")?
                .or(fraction);
            rotary = rope::read_object(&parameters, base, context_length)?;
            break;
        }
    }
    let fraction = fraction.unwrap_or(0.25);
    if !(fraction > 0.0 && fraction <= 1.0) {
        return Err(fields.error(
            "rotary_pct",
            format!(
                "so the rotary fraction is {fraction}, but it must be greater than 0 and at most 1"
            ),
        ));
    }
    let head_dim = d_model / n_heads.max(1);
    let width = (head_dim as f64 * fraction) as usize;
    rotary.width = Some(width).filter(|width| *width != head_dim);
    Ok(ModelConfig {
        context_length,
        n_layers: fields.required_count("num_hidden_layers")?,
        n_heads,
        d_model,
        d_ff: Some(fields.required_count("intermediate_size")?),
        position: Position::Rotary,
        rotary,
        norm_eps: fields.optional_number("layer_norm_eps")?.unwrap_or(1e-5),
        feed_forward: gpt2::activation(fields, "hidden_act", "gelu")?,
        bias: BiasConfig {
            qkv: bias,
            attention_output: bias,
            ..BiasConfig::default()
        },
        parallel: fields.flag("use_parallel_residual", true)?,
        tied_head: fields.flag("tie_word_embeddings", false)?,
        ..ModelConfig::default()
    })
}

/// The `rotary_pct` for which `width` of `head_dim` elements are rotated.
pub(crate) fn rotary_fraction(width: usize, head_dim: usize) -> f64 {
    let exact = width as f64 / head_dim as f64;
    // Importers multiply by `head_dim` and truncate; adding one half guards against rounding.
    if (head_dim as f64 * exact) as usize == width {
        exact
    } else {
        (width as f64 + 0.5) / head_dim as f64
    }
}

pub(crate) fn write(config: &ModelConfig) -> Map<String, Value> {
    let head_dim = config.head_dim();
    let width = config.rotary.width.unwrap_or(head_dim);
    let fraction = rotary_fraction(width, head_dim);
    let value = json!({
        "max_position_embeddings": config.context_length, "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads, "hidden_size": config.d_model,
        "intermediate_size": config.d_ff, "layer_norm_eps": config.norm_eps,
        "hidden_act": gpt2::activation_name(config.feed_forward),
        "use_parallel_residual": config.parallel, "attention_bias": config.bias.qkv,
        "rotary_pct": fraction, "rotary_emb_base": config.rotary.base,
        "rope_scaling": rope::scaling(&config.rotary),
        "attention_dropout": config.dropout.attention, "hidden_dropout": config.dropout.residual,
    });
    value.as_object().cloned().unwrap_or_default()
}

impl TensorNames for GptNeox {
    fn top_level(&self, module: &str) -> Option<&'static str> {
        Some(match module {
            "token_embedding" => "gpt_neox.embed_in",
            "final_norm" => "gpt_neox.final_layer_norm",
            "head" => "embed_out",
            _ => return None,
        })
    }

    fn in_block(&self, layer: &str, module: &str) -> Option<String> {
        let name = match module {
            "attention_norm" => "input_layernorm",
            "attention.query_key_value" => module,
            "attention.output" => "attention.dense",
            "feed_forward_norm" => "post_attention_layernorm",
            "feed_forward.up" => "mlp.dense_h_to_4h",
            "feed_forward.down" => "mlp.dense_4h_to_h",
            _ => return None,
        };
        Some(format!("gpt_neox.layers.{layer}.{name}"))
    }

    fn matrix_layout(&self) -> Layout {
        Layout::Transposed
    }

    fn fused_qkv(&self, config: &ModelConfig) -> Option<(&'static str, Layout)> {
        let head_dim = config.head_dim();
        Some((
            "attention.query_key_value",
            Layout::InterleavedHeads { head_dim },
        ))
    }
}
