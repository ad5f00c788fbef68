//! `gemma`, `gemma2`, `gemma3_text` (arXiv 2403.08295, 2408.00118, 2503.19786).

use nextword_model::{FeedForwardKind, ModelConfig, NormPlacement, RotaryConfig};
use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::{ModelType, llama, rope};
use crate::ConvertError;

pub(crate) fn read(kind: ModelType, fields: &Fields) -> Result<ModelConfig, ConvertError> {
    let mut config = llama::sizes(kind, fields)?;
    let bias = fields.flag("attention_bias", false)?;
    config.bias.qkv = bias;
    config.bias.attention_output = bias;
    config.norm_unit_offset = true;
    config.embedding_scale = Some((config.d_model as f64).sqrt());
    config.tied_head = fields.flag("tie_word_embeddings", true)?;
    fields.expect("use_bidirectional_attention", false)?;
    if kind == ModelType::Gemma {
        // Its first configs say "gelu" and mean the tanh approximation.
        fields.get("hidden_activation");
        config.feed_forward = match llama::gate(fields, "hidden_act", "gelu_pytorch_tanh")? {
            FeedForwardKind::Geglu => FeedForwardKind::GegluTanh,
            other => other,
        };
        config.rotary = rope::read(fields, config.context_length)?;
        return Ok(config);
    }
    fields.get("hidden_act"); // The other name counts.
    config.feed_forward = llama::gate(fields, "hidden_activation", "gelu_pytorch_tanh")?;
    config.norm_placement = NormPlacement::Sandwich;
    config.score_width = Some(
        fields
            .maybe_number("query_pre_attn_scalar")?
            .unwrap_or(256.0),
    );
    let (score_cap, logit_cap) = match kind {
        ModelType::Gemma2 => (Some(50.0), Some(30.0)),
        _ => (None, None),
    };
    config.score_soft_cap = fields.number_or("attn_logit_softcapping", score_cap)?;
    config.logit_soft_cap = fields.number_or("final_logit_softcapping", logit_cap)?;
    let window = fields.count_or("sliding_window", Some(4096))?;
    let mut every = 2;
    if kind == ModelType::Gemma3Text {
        config.qk_norm = true;
        config.rotary = read_two_bases(fields, config.context_length)?;
        let names = ["sliding_window_pattern", "_sliding_window_pattern"];
        let [pattern, inner] = names.map(|name| fields.maybe_count(name));
        every = pattern?.or(inner?).unwrap_or(6);
        if every == 0 {
            return Err(fields.wrong("sliding_window_pattern", "and no layer is the 0th"));
        }
    } else {
        config.rotary = rope::read(fields, config.context_length)?;
    }
    let slides = |layer: usize| !(layer + 1).is_multiple_of(every);
    config.windows = rope::read_windows(fields, config.n_layers, window, slides)?;
    Ok(config)
}

/// One base for layers that see everything, another for those with a window.
fn read_two_bases(fields: &Fields, context_length: usize) -> Result<RotaryConfig, ConvertError> {
    let (far, near) = (1_000_000.0, 10_000.0);
    let far = fields.maybe_number("rope_theta")?.unwrap_or(far);
    let near = fields.maybe_number("rope_local_base_freq")?.unwrap_or(near);
    let scaling = fields.object("rope_scaling")?;
    let Some(both) = fields.object("rope_parameters")? else {
        let rotary = match scaling {
            Some(scaling) => rope::read_object(&scaling, far, context_length)?,
            None => RotaryConfig {
                base: far,
                ..RotaryConfig::default()
            },
        };
        return Ok(RotaryConfig {
            local_base: Some(near),
            ..rotary
        });
    };
    let part = |name: &str, base: f64| match both.object(name)? {
        Some(part) => rope::read_object(&part, base, context_length),
        None => Ok(RotaryConfig {
            base,
            ..RotaryConfig::default()
        }),
    };
    let (global, local) = (
        part("full_attention", far)?,
        part("sliding_attention", near)?,
    );
    both.finish()?;
    if local.scaling != nextword_model::RotaryScaling::None {
        let problem = "and nextword does not stretch the angles of layers with a window";
        return Err(both.wrong("sliding_attention", problem));
    }
    Ok(RotaryConfig {
        local_base: Some(local.base),
        ..global
    })
}

pub(crate) fn write(kind: ModelType, config: &ModelConfig) -> Map<String, Value> {
    let mut map = llama::write_sizes(config);
    let activation = json!(llama::gate_name(config.feed_forward));
    map.insert("attention_bias".into(), json!(config.bias.qkv));
    map.insert("hidden_act".into(), activation.clone());
    map.insert("hidden_activation".into(), activation);
    map.extend(rope::write(&config.rotary).map(|(name, value)| (name.to_string(), value)));
    if kind == ModelType::Gemma {
        return map;
    }
    let (types, width) = rope::write_windows(config);
    let width_of_scores = config.score_width.unwrap_or(config.head_dim() as f64);
    let scalar = if width_of_scores.fract() == 0.0 {
        json!(width_of_scores as u64)
    } else {
        json!(width_of_scores)
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
        let near = config.rotary.local_base.unwrap_or(config.rotary.base);
        map.insert("rope_local_base_freq".into(), json!(near));
    }
    map
}
