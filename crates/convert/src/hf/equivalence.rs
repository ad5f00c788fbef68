//! Whether two configs compute the same function.

use nextword_model::{
    BiasConfig, DropoutConfig, FeedForwardKind, InitConfig, ModelConfig, NormKind, Position,
    RotaryConfig, RotaryScaling,
};
use serde_json::Value;

/// The fields that differ between two configs, with the values of the first.
pub(super) fn differences(ours: &ModelConfig, theirs: &ModelConfig) -> Vec<String> {
    let value = |config| serde_json::to_value(config).unwrap_or_default();
    let (ours, theirs) = (value(ours), value(theirs));
    let mut found = Vec::new();
    compare("", &ours, &theirs, &mut found);
    found
}

fn compare(name: &str, ours: &Value, theirs: &Value, found: &mut Vec<String>) {
    if ours == theirs {
        return;
    }
    let (Some(a), Some(b)) = (ours.as_object(), theirs.as_object()) else {
        found.push(format!("model.{name} = {ours}"));
        return;
    };
    let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    let dot = if name.is_empty() { "" } else { "." };
    for key in keys {
        let none = Value::Null;
        let (a, b) = (a.get(key).unwrap_or(&none), b.get(key).unwrap_or(&none));
        compare(&format!("{name}{dot}{key}"), a, b, found);
    }
}

/// Fills in every default and resets everything that does not affect the logits, so that equivalent
/// configs are equal.
#[allow(clippy::float_cmp)] // Compares stored values, not results.
pub(super) fn canonical(config: &ModelConfig) -> ModelConfig {
    let head_dim = config.head_dim();
    let window = |layer: usize| match config.windows.len() {
        0 => 0,
        // A window as wide as the context masks nothing, but may select the rotary base.
        len => match config.windows[layer % len] {
            w if w >= config.context_length && config.rotary.local_base.is_none() => 0,
            w => w,
        },
    };
    let windows: Vec<usize> = (0..config.n_layers).map(window).collect();
    let is_windowed = windows.iter().any(|w| *w > 0);
    let is_rotary = config.position == Position::Rotary;
    let has_norm = config.norm != NormKind::None;
    ModelConfig {
        n_kv_heads: Some(config.kv_heads()),
        n_encoder_layers: config.has_encoder().then(|| config.encoder_layers()),
        head_dim: Some(head_dim),
        d_ff: Some(config.d_ff().max(1)), // `feed_forward` determines whether it is used.
        rotary: RotaryConfig {
            width: config
                .rotary
                .width
                .filter(|width| is_rotary && *width != head_dim),
            local_base: config.rotary.local_base.filter(|base| {
                let is_global_base =
                    *base == config.rotary.base && config.rotary.scaling == RotaryScaling::None;
                is_rotary && is_windowed && !is_global_base
            }),
            ..if is_rotary {
                config.rotary
            } else {
                RotaryConfig::default()
            }
        },
        bias: BiasConfig {
            attention_output: config.bias.attention_output && config.output_projection,
            feed_forward: config.bias.feed_forward && config.feed_forward != FeedForwardKind::None,
            norm: config.bias.norm && config.norm == NormKind::Layer,
            ..config.bias
        },
        norm_eps: if has_norm || config.qk_norm {
            config.norm_eps
        } else {
            1e-5
        },
        score_width: config.score_width.filter(|width| *width != head_dim as f64),
        embedding_scale: config.embedding_scale.filter(|scale| *scale != 1.0),
        windows: if is_windowed { windows } else { Vec::new() },
        dropout: DropoutConfig::default(),
        init: InitConfig::default(),
        ..config.clone()
    }
}
