//! RoPE settings in a foreign config: `rope_theta` and `rope_scaling`, or both in
//! `rope_parameters`.

use nextword_model::{ModelConfig, RotaryConfig, RotaryScaling};
use serde_json::{Value, json};

use super::fields::Fields;
use crate::ConvertError;

const DEFAULT_BASE: f64 = 10_000.0;

/// Reads the RoPE settings of a config that has the same ones for all layers.
pub(crate) fn read(fields: &Fields, context_length: usize) -> Result<RotaryConfig, ConvertError> {
    let base = fields.optional_number("rope_theta")?;
    for name in ["rope_parameters", "rope_scaling"] {
        if let Some(parameters) = fields.object(name)? {
            return read_object(&parameters, base.unwrap_or(DEFAULT_BASE), context_length);
        }
    }
    Ok(RotaryConfig {
        base: base.unwrap_or(DEFAULT_BASE),
        ..RotaryConfig::default()
    })
}

/// Reads one parameter object. `base` and `context_length` are the defaults for a missing base and a
/// missing original context length.
pub(crate) fn read_object(
    fields: &Fields,
    base: f64,
    context_length: usize,
) -> Result<RotaryConfig, ConvertError> {
    let (kind, name) = match (
        fields.optional_text("rope_type")?,
        fields.optional_text("type")?,
    ) {
        (Some(kind), _) => (kind, "rope_type"),
        (_, Some(kind)) => (kind, "type"),
        _ => ("default", "rope_type"),
    };
    if kind == "default" {
        fields.get("factor"); // It scales nothing.
    }
    if kind != "yarn" && kind != "llama3" {
        fields.get("original_max_position_embeddings"); // Nor does this.
    }
    let scaling = match kind {
        "default" => RotaryScaling::None,
        "linear" => RotaryScaling::Linear {
            factor: fields.required_number("factor")?,
        },
        "llama3" => RotaryScaling::Llama3 {
            factor: fields.required_number("factor")?,
            low_freq_factor: fields.required_number("low_freq_factor")?,
            high_freq_factor: fields.required_number("high_freq_factor")?,
            original_context_length: fields.required_count("original_max_position_embeddings")?,
        },
        "yarn" => {
            let factor = fields.required_number("factor")?;
            let default_factor = if factor > 1.0 {
                0.1 * factor.ln() + 1.0
            } else {
                1.0
            };
            let original = fields.optional_count("original_max_position_embeddings")?;
            RotaryScaling::Yarn {
                factor,
                original_context_length: original.unwrap_or(context_length),
                beta_fast: fields.optional_number("beta_fast")?.unwrap_or(32.0),
                beta_slow: fields.optional_number("beta_slow")?.unwrap_or(1.0),
                attention_factor: fields
                    .optional_number("attention_factor")?
                    .unwrap_or(default_factor),
                truncate: fields.flag("truncate", true)?,
            }
        }
        _ => {
            let problem = "but nextword supports only default, linear, llama3 and yarn";
            return Err(fields.error(name, problem));
        }
    };
    let base = fields.optional_number("rope_theta")?.unwrap_or(base);
    fields.reject_unknown()?;
    Ok(RotaryConfig {
        base,
        scaling,
        ..RotaryConfig::default()
    })
}

/// The fields for `rotary`, in the form that all versions of `transformers` read.
pub(crate) fn write(rotary: &RotaryConfig) -> [(&'static str, Value); 2] {
    [
        ("rope_theta", json!(rotary.base)),
        ("rope_scaling", scaling(rotary)),
    ]
}

/// The scaling alone; null without scaling.
pub(crate) fn scaling(rotary: &RotaryConfig) -> Value {
    match rotary.scaling {
        RotaryScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RotaryScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_context_length,
        } => json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_context_length,
        }),
        RotaryScaling::Yarn {
            factor,
            original_context_length,
            beta_fast,
            beta_slow,
            attention_factor,
            truncate,
        } => json!({
            "rope_type": "yarn", "factor": factor, "beta_fast": beta_fast, "beta_slow": beta_slow,
            "attention_factor": attention_factor, "truncate": truncate,
            "original_max_position_embeddings": original_context_length,
        }),
        RotaryScaling::None | RotaryScaling::Ntk { .. } => Value::Null,
    }
}

/// Reads the sliding window of each layer, from `layer_types` or else from `is_windowed`.
pub(crate) fn read_windows(
    fields: &Fields,
    n_layers: usize,
    window: Option<usize>,
    is_windowed: impl Fn(usize) -> bool,
) -> Result<Vec<usize>, ConvertError> {
    let types = fields.optional_text_list("layer_types")?;
    if let Some(types) = &types {
        if types.len() != n_layers {
            return Err(fields.error("layer_types", format!("but there are {n_layers} layers")));
        }
        if let Some(other) = types
            .iter()
            .find(|name| !["full_attention", "sliding_attention"].contains(*name))
        {
            return Err(fields.error(
                "layer_types",
                format!("but nextword does not support {other:?}"),
            ));
        }
    }
    let window_of = |layer: usize| {
        let is_windowed = types.as_ref().map_or_else(
            || is_windowed(layer),
            |types| types[layer] == "sliding_attention",
        );
        match window {
            Some(window) if is_windowed => Ok(window),
            None if is_windowed => {
                Err(fields.error("sliding_window", "but some layers need a window"))
            }
            _ => Ok(0),
        }
    };
    let windows: Vec<usize> = (0..n_layers.min(1 << 12))
        .map(window_of)
        .collect::<Result<_, _>>()?;
    Ok(match windows.first() {
        Some(first) if windows.iter().all(|window| window == first) => {
            windows[..usize::from(*first > 0)].to_vec()
        }
        _ => windows,
    })
}

/// `layer_types` and the common width of all windows of `config`; 0 without windows.
pub(crate) fn write_windows(config: &ModelConfig) -> (Vec<&'static str>, usize) {
    let window = |layer: usize| match config.windows.len() {
        0 => 0,
        len => config.windows[layer % len],
    };
    let types = (0..config.n_layers).map(|layer| {
        if window(layer) > 0 {
            "sliding_attention"
        } else {
            "full_attention"
        }
    });
    let width = (0..config.n_layers).map(window).find(|window| *window > 0);
    (types.collect(), width.unwrap_or(0))
}
