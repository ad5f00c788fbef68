//! `gemma`, `gemma2`, `gemma3_text` (arXiv 2403.08295, 2408.00118, 2503.19786).

use nextword_model::{FeedForwardKind, ModelConfig, NormPlacement, RotaryConfig};
use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::{ModelType, llama, rope};
use crate::ConvertError;

pub(crate) fn read(kind: ModelType, fields: &Fields) -> Result<ModelConfig, ConvertError> {
    let mut config = llama::read_sizes(kind, fields)?;
    let bias = fields.flag("attention_bias", false)?;
    config.bias.qkv = bias;
    config.bias.attention_output = bias;
    config.norm_unit_offset = true;
    config.embedding_scale = Some((config.d_model as f64).sqrt());
    config.tied_head = fields.flag("tie_word_embeddings", true)?;
    fields.expect_flag("use_bidirectional_attention", false)?;
    if kind == ModelType::Gemma {
        // Early configs have "gelu" but the models use the tanh approximation.
        fields.get("hidden_activation");
        config.feed_forward =
            match llama::gated_activation(fields, "hidden_act", "gelu_pytorch_tanh")? {
                FeedForwardKind::Geglu => FeedForwardKind::GegluTanh,
                other => other,
            };
        config.rotary = rope::read(fields, config.context_length)?;
        return Ok(config);
    }
    fields.get("hidden_act"); // Ignored: `hidden_activation` is used.
    config.feed_forward =
        llama::gated_activation(fields, "hidden_activation", "gelu_pytorch_tanh")?;
    config.norm_placement = NormPlacement::Sandwich;
    config.score_width = Some(
        fields
            .optional_number("query_pre_attn_scalar")?
            .unwrap_or(256.0),
    );
    if kind == ModelType::Gemma2 {
        config.score_soft_cap = fields.number_or("attn_logit_softcapping", Some(50.0))?;
        config.logit_soft_cap = fields.number_or("final_logit_softcapping", Some(30.0))?;
    } else {
        fields.optional_number("attn_logit_softcapping")?; // transformers does not apply it.
        config.logit_soft_cap = fields.optional_number("final_logit_softcapping")?;
    }
    let window = fields.count_or("sliding_window", Some(4096))?;
    let mut period = 2;
    if kind == ModelType::Gemma3Text {
        config.qk_norm = true;
        config.rotary = read_two_bases(fields, config.context_length)?;
        let names = ["sliding_window_pattern", "_sliding_window_pattern"];
        let [pattern, private_pattern] = names.map(|name| fields.optional_count(name));
        period = pattern?.or(private_pattern?).unwrap_or(6);
        if period == 0 {
            return Err(fields.error("sliding_window_pattern", "but must be positive"));
        }
    } else {
        config.rotary = rope::read(fields, config.context_length)?;
    }
    let is_windowed = |layer: usize| !(layer + 1).is_multiple_of(period);
    config.windows = rope::read_windows(fields, config.n_layers, window, is_windowed)?;
    Ok(config)
}

/// Reads the separate RoPE bases of global and sliding-window layers.
fn read_two_bases(fields: &Fields, context_length: usize) -> Result<RotaryConfig, ConvertError> {
    let (global_base, local_base) = (1_000_000.0, 10_000.0);
    let global_base = fields.optional_number("rope_theta")?.unwrap_or(global_base);
    let local_base = fields
        .optional_number("rope_local_base_freq")?
        .unwrap_or(local_base);
    let scaling = fields.object("rope_scaling")?;
    let Some(parameters) = fields.object("rope_parameters")? else {
        let rotary = match scaling {
            Some(scaling) => rope::read_object(&scaling, global_base, context_length)?,
            None => RotaryConfig {
                base: global_base,
                ..RotaryConfig::default()
            },
        };
        return Ok(RotaryConfig {
            local_base: Some(local_base),
            ..rotary
        });
    };
    let read_rotary = |name: &str, base: f64| match parameters.object(name)? {
        Some(fields) => rope::read_object(&fields, base, context_length),
        None => Ok(RotaryConfig {
            base,
            ..RotaryConfig::default()
        }),
    };
    let (global, local) = (
        read_rotary("full_attention", global_base)?,
        read_rotary("sliding_attention", local_base)?,
    );
    parameters.reject_unknown()?;
    if local.scaling != nextword_model::RotaryScaling::None {
        let problem = "but nextword does not support RoPE scaling in sliding-window layers";
        return Err(parameters.error("sliding_attention", problem));
    }
    Ok(RotaryConfig {
        local_base: Some(local.base),
        ..global
    })
}

pub(crate) fn write(kind: ModelType, config: &ModelConfig) -> Map<String, Value> {
    let mut map = llama::write_sizes(config);
    let activation = json!(llama::gated_activation_name(config.feed_forward));
    map.insert("attention_bias".into(), json!(config.bias.qkv));
    map.insert("hidden_act".into(), activation.clone());
    map.insert("hidden_activation".into(), activation);
    map.extend(rope::write(&config.rotary).map(|(name, value)| (name.to_string(), value)));
    if kind == ModelType::Gemma {
        return map;
    }
    let (types, width) = rope::write_windows(config);
    let score_width = config.score_width.unwrap_or(config.head_dim() as f64);
    let scalar = if score_width.fract() == 0.0 {
        json!(score_width as u64)
    } else {
        json!(score_width)
    };
    map.insert("query_pre_attn_scalar".into(), scalar);
    map.insert(
        "attn_logit_softcapping".into(),
        json!(config.score_soft_cap),
    );
    map.insert(
        "final_logit_softcapping".into(),
        json!(config.logit_soft_cap),
    );
    map.insert("sliding_window".into(), json!(width.max(1)));
    map.insert("layer_types".into(), json!(types));
    if kind == ModelType::Gemma3Text {
        let local_base = config.rotary.local_base.unwrap_or(config.rotary.base);
        map.insert("rope_local_base_freq".into(), json!(local_base));
    }
    map
}
