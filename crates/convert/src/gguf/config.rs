//! The architecture of a GGUF file: its keys as the `config.json` that the same model has at Hugging Face, which is then
//! read by the same code.

use nextword_model::{ModelConfig, RotaryScaling};
use serde_json::{Map, Value, json};

use super::keys::Keys;
use super::metadata::{Metadata, MetadataError, ReadValue};
use super::names::Architecture;
use super::reader::GgufFile;
use super::{ACTIVATION_KEY, rope_factors};
use crate::ConvertError;
use crate::hf::{self, ModelType};

/// Reads the architecture and the configuration of `file`.
pub(super) fn read(file: &GgufFile) -> Result<(Architecture, ModelConfig), ConvertError> {
    let error = |problem: String| ConvertError::source(file.path(), problem);
    let text = |key: &str| {
        let text = file.metadata.text(key);
        text.map_err(|MetadataError(problem)| error(format!("the metadata key {problem}")))
    };
    check_kind(file, text("general.type")?)?;
    let name = text("general.architecture")?.unwrap_or("");
    let Some(architecture) = Architecture::from_name(name) else {
        let known = Architecture::NAMES.map(|(name, _)| name).join(", ");
        return Err(error(format!(
            "has the architecture `{name}`, but nextword supports only {known}"
        )));
    };
    let kind = architecture.kind;
    let keys = Keys::new(file, architecture.name);
    let mut map = match kind {
        ModelType::Gpt2 => gpt2(&keys)?,
        ModelType::GptNeox => gpt_neox(&keys)?,
        _ => llama(&keys, kind)?,
    };
    let table = file.tensor("token_embd.weight");
    let Some([vocab_size, _]) = table.map(|table| table.shape.as_slice()) else {
        return Err(error("lacks the matrix `token_embd.weight`".to_string()));
    };
    let has = |name: &str| file.tensor(name).is_some();
    let head = "output.weight";
    let is_tied = !has(head) || file.are_equal(head, "token_embd.weight")?;
    map.insert("vocab_size".into(), json!(vocab_size));
    map.insert("tie_word_embeddings".into(), json!(is_tied));
    map.insert("model_type".into(), json!(kind.name()));
    let activation = text(ACTIVATION_KEY)?;
    keys.reject_unknown()?;
    let (_, mut config) = hf::parse_fields(file.path(), Value::Object(map))?;
    if let (ModelType::Gpt2 | ModelType::GptNeox, Some(activation)) = (kind, activation) {
        let known = serde_json::from_value(json!(activation)).ok();
        let known =
            known.filter(|kind| Architecture::supports_feed_forward(architecture.kind, *kind));
        config.feed_forward = known.ok_or_else(|| {
            error(format!(
                "`{ACTIVATION_KEY}` is {activation:?}, which is not an activation of `{name}`"
            ))
        })?;
    }
    if matches!(
        kind,
        ModelType::Llama | ModelType::Mistral | ModelType::Qwen3
    ) {
        config.bias.qkv = has("blk.0.attn_q.bias");
        config.bias.attention_output = has("blk.0.attn_output.bias");
        config.bias.feed_forward = has("blk.0.ffn_up.bias");
    }
    config.validate().map_err(|problem| {
        error(format!(
            "its metadata describe a model that is not valid: {problem}"
        ))
    })?;
    if let Some(factors) = file.tensor("rope_freqs.weight") {
        let pairs = config.rotary.width.unwrap_or(config.head_dim()) / 2;
        if factors.shape != [pairs] || config.rotary.scaling != RotaryScaling::None {
            return Err(error(format!(
                "`rope_freqs.weight` has shape {:?}, but {pairs} frequencies without other scaling are required",
                factors.shape
            )));
        }
        let factors = file.values("rope_freqs.weight")?;
        let original = file
            .metadata
            .count(&keys.name("rope.scaling.original_context_length"));
        let original = original.ok().flatten();
        config.rotary.scaling = rope_factors::scaling(&config, &factors, original).ok_or_else(|| {
            error(
                "`rope_freqs.weight` scales the rotary frequencies in a way that nextword does not support; supported are \
                 those of Llama 3.1"
                    .to_string(),
            )
        })?;
        config.validate()?;
    }
    Ok((architecture, config))
}

/// Rejects files that are not complete models.
fn check_kind(file: &GgufFile, kind: Option<&str>) -> Result<(), ConvertError> {
    let error = |problem: String| Err(ConvertError::source(file.path(), problem));
    if let Some(kind) = kind.filter(|kind| *kind != "model") {
        return error(format!(
            "is not a language model but of the type `{kind}`; hint: pass the file of the model"
        ));
    }
    let parts = file.metadata.count("split.count").ok().flatten();
    if let Some(parts) = parts.filter(|parts| *parts > 1) {
        return error(format!(
            "is one of {parts} parts of a model; hint: join them with `llama-gguf-split --merge FIRST OUT`"
        ));
    }
    Ok(())
}

fn gpt2(keys: &Keys) -> Result<Map<String, Value>, ConvertError> {
    let eps = "attention.layer_norm_epsilon";
    let (heads, width, _) = plain_heads(keys)?;
    Ok(object(json!({
        "n_positions": keys.required_count("context_length")?, "n_layer": keys.required_count("block_count")?,
        "n_head": heads, "n_embd": width, "n_inner": keys.required_count("feed_forward_length")?,
        "layer_norm_epsilon": keys.required(eps, keys.number(eps)?)?, "activation_function": "gelu_new",
    })))
}

/// Checks that the heads divide the model's width and share no keys. Returns their number, the model's width and that of a
/// head.
fn plain_heads(keys: &Keys) -> Result<(usize, usize, usize), ConvertError> {
    let heads = keys.required_count("attention.head_count")?;
    let width = keys.required_count("embedding_length")?;
    let head_dim = width / heads.max(1);
    for (key, expected) in [
        ("attention.key_length", head_dim),
        ("attention.value_length", head_dim),
        ("attention.head_count_kv", heads),
    ] {
        if let Some(found) = keys.count(key)?.filter(|found| *found != expected) {
            let name = keys.name(key);
            return keys.error(format!(
                "`{name}` is {found}, but nextword supports only {expected} in this architecture"
            ));
        }
    }
    Ok((heads, width, head_dim))
}

fn gpt_neox(keys: &Keys) -> Result<Map<String, Value>, ConvertError> {
    let eps = "attention.layer_norm_epsilon";
    let (heads, width, head_dim) = plain_heads(keys)?;
    let rotary_dim = keys.count("rope.dimension_count")?.unwrap_or(head_dim);
    let parallel = keys.get("use_parallel_residual", Metadata::flag)?;
    Ok(object(json!({
        "max_position_embeddings": keys.required_count("context_length")?,
        "num_hidden_layers": keys.required_count("block_count")?, "num_attention_heads": heads, "hidden_size": width,
        "intermediate_size": keys.required_count("feed_forward_length")?,
        "layer_norm_eps": keys.required(eps, keys.number(eps)?)?, "hidden_act": "gelu",
        "use_parallel_residual": parallel.unwrap_or(true), "attention_bias": true,
        "rotary_pct": hf::rotary_fraction(rotary_dim, head_dim), "rotary_emb_base": rope_base(keys)?,
        "rope_scaling": rope_scaling(keys)?,
    })))
}

/// The architectures with RMS norms.
fn llama(keys: &Keys, kind: ModelType) -> Result<Map<String, Value>, ConvertError> {
    let eps = "attention.layer_norm_rms_epsilon";
    let (heads, width) = (
        keys.required_count("attention.head_count")?,
        keys.required_count("embedding_length")?,
    );
    let head_dim = keys
        .count("attention.key_length")?
        .unwrap_or(width / heads.max(1));
    for key in [
        "attention.value_length",
        "rope.dimension_count",
        "attention.key_length_swa",
        "attention.value_length_swa",
        "rope.dimension_count_swa",
    ] {
        if let Some(len) = keys.count(key)?.filter(|len| *len != head_dim) {
            let name = keys.name(key);
            return keys.error(format!(
                "`{name}` is {len}, but nextword supports only {head_dim}, the width of a head's keys"
            ));
        }
    }
    let layers = keys.required_count("block_count")?;
    let mut map = object(json!({
        "max_position_embeddings": keys.required_count("context_length")?, "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.count("attention.head_count_kv")?.unwrap_or(heads), "head_dim": head_dim,
        "hidden_size": width, "intermediate_size": keys.required_count("feed_forward_length")?,
        "rms_norm_eps": keys.required(eps, keys.number(eps)?)?, "rope_theta": rope_base(keys)?,
        "rope_scaling": rope_scaling(keys)?,
    }));
    match kind {
        ModelType::Gemma2 | ModelType::Gemma3Text => windows(keys, kind, layers, &mut map)?,
        _ => {
            // A window as wide as the context masks nothing.
            let context = keys.count("context_length")?;
            let window = keys
                .count("attention.sliding_window")?
                .filter(|window| *window > 0);
            if let Some(window) = window.filter(|window| Some(*window) < context) {
                return keys.error(format!(
                    "`{}` is {window}, but nextword does not support windows of this architecture in GGUF files; hint: \
                     import the model's Hugging Face folder",
                    keys.name("attention.sliding_window")
                ));
            }
        }
    }
    if matches!(kind, ModelType::Gemma2 | ModelType::Gemma3Text) {
        // The 27B models scale scores by another width, which llama.cpp detects by their depth.
        let is_27b = (kind == ModelType::Gemma2 && layers == 46)
            || (kind == ModelType::Gemma3Text && layers == 62);
        let score_width = if is_27b {
            width / heads.max(1)
        } else {
            head_dim
        };
        map.insert("query_pre_attn_scalar".into(), json!(score_width));
        let defaults = if kind == ModelType::Gemma2 {
            (Some(50.0), Some(30.0))
        } else {
            (None, None)
        };
        let score_cap = keys.number("attn_logit_softcapping")?.or(defaults.0);
        let logit_cap = keys.number("final_logit_softcapping")?.or(defaults.1);
        map.insert(
            "attn_logit_softcapping".into(),
            json!(score_cap.filter(|cap| *cap != 0.0)),
        );
        map.insert(
            "final_logit_softcapping".into(),
            json!(logit_cap.filter(|cap| *cap != 0.0)),
        );
    }
    Ok(map)
}

/// The sliding windows of Gemma.
fn windows(
    keys: &Keys,
    kind: ModelType,
    layers: usize,
    map: &mut Map<String, Value>,
) -> Result<(), ConvertError> {
    let name = "attention.sliding_window_pattern";
    let period = if kind == ModelType::Gemma2 { 2 } else { 6 };
    let is_list = matches!(
        keys.file.metadata.get(&keys.name(name)),
        Some(ReadValue::Bools(_))
    );
    let pattern = if is_list {
        keys.get(name, Metadata::flags)?.unwrap_or_default()
    } else {
        let period = keys.get(name, Metadata::count)?.unwrap_or(period).max(1);
        (0..layers.min(1 << 12))
            .map(|layer| !(layer + 1).is_multiple_of(period))
            .collect()
    };
    let window = keys
        .count("attention.sliding_window")?
        .filter(|window| *window > 0);
    let kinds: Vec<&str> = pattern
        .iter()
        .map(|is_windowed| {
            if *is_windowed && window.is_some() {
                "sliding_attention"
            } else {
                "full_attention"
            }
        })
        .collect();
    map.insert("layer_types".into(), json!(kinds));
    map.insert("sliding_window".into(), json!(window));
    let local_base = keys.number("rope.freq_base_swa")?;
    if kind == ModelType::Gemma3Text {
        map.insert(
            "rope_local_base_freq".into(),
            json!(local_base.unwrap_or(10_000.0)),
        );
    } else if local_base.is_some_and(|base| Some(base) != map["rope_theta"].as_f64()) {
        return keys.error("has a separate rotary base for windows, which this architecture does not have in nextword");
    }
    Ok(())
}

fn rope_base(keys: &Keys) -> Result<f64, ConvertError> {
    Ok(keys.number("rope.freq_base")?.unwrap_or(10_000.0))
}

/// The scaling as Hugging Face writes it; null without scaling.
#[allow(clippy::float_cmp)] // Compares stored values, not results.
fn rope_scaling(keys: &Keys) -> Result<Value, ConvertError> {
    let linear = keys.number("rope.scale_linear")?;
    let factor = keys.number("rope.scaling.factor")?.or(linear);
    let kind = keys
        .get("rope.scaling.type", Metadata::text)?
        .unwrap_or("linear");
    let attention = keys.number("rope.scaling.attn_factor")?;
    let original = keys.count("rope.scaling.original_context_length")?;
    let [fast, slow] =
        ["rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"].map(|key| keys.number(key));
    let (fast, slow) = (fast?, slow?);
    for key in [
        "rope.scaling.yarn_ext_factor",
        "rope.scaling.yarn_attn_factor",
    ] {
        if keys.number(key)?.is_some_and(|value| value != 1.0) {
            return keys.error(format!("`{}` is not supported", keys.name(key)));
        }
    }
    let factor = factor.filter(|factor| *factor != 0.0 && *factor != 1.0);
    match (kind, factor) {
        ("none", _) | ("linear" | "yarn", None) => Ok(Value::Null),
        ("linear", Some(factor)) => Ok(json!({"rope_type": "linear", "factor": factor})),
        ("yarn", Some(factor)) if attention.is_none_or(|factor| factor == 1.0) => {
            let mut scaling = object(json!({"rope_type": "yarn", "factor": factor}));
            for (name, value) in [
                ("beta_fast", json!(fast)),
                ("beta_slow", json!(slow)),
                ("original_max_position_embeddings", json!(original)),
            ] {
                if !value.is_null() {
                    scaling.insert(name.into(), value);
                }
            }
            Ok(Value::Object(scaling))
        }
        _ => keys.error(format!(
            "has the rotary scaling `{kind}`, which nextword does not support in this form; supported are linear, yarn \
             and that of Llama 3.1"
        )),
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
