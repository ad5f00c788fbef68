//! Invalid values of a foreign config, in the names of its own fields.

use std::path::Path;

use nextword_model::ModelError;

use super::ModelType;
use crate::ConvertError;

/// The error for the config in `path` that describes no valid model. `error` is in our names.
pub(crate) fn error(path: &Path, kind: ModelType, error: &ModelError) -> ConvertError {
    let ModelError::Config { key, problem, .. } = error else {
        return ConvertError::source(path, error.to_string());
    };
    let (field, problem) = (foreign_name(kind, key), foreign_names(kind, problem));
    ConvertError::source(
        path,
        format!(
            "`{field}` is invalid: {problem}; hint: use the config.json that belongs to the model"
        ),
    )
}

/// `text` with our names of fields replaced.
fn foreign_names(kind: ModelType, text: &str) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut out = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let len = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(len);
        out.push_str(foreign_name(kind, word));
        let len = after.find(is_part).unwrap_or(after.len());
        let (between, next) = after.split_at(len);
        out.push_str(between);
        rest = next;
    }
    out
}

/// The foreign name of our config field `name`; other words stay.
fn foreign_name(kind: ModelType, name: &str) -> &str {
    let (gpt2, neox) = (kind == ModelType::Gpt2, kind == ModelType::GptNeox);
    match name {
        "context_length" if gpt2 => "n_positions",
        "context_length" => "max_position_embeddings",
        "n_layers" if gpt2 => "n_layer",
        "n_layers" => "num_hidden_layers",
        "n_heads" if gpt2 => "n_head",
        "n_heads" => "num_attention_heads",
        "n_kv_heads" => "num_key_value_heads",
        "d_model" if gpt2 => "n_embd",
        "d_model" => "hidden_size",
        "d_ff" if gpt2 => "n_inner",
        "d_ff" => "intermediate_size",
        "norm_eps" if gpt2 => "layer_norm_epsilon",
        "norm_eps" if neox => "layer_norm_eps",
        "norm_eps" => "rms_norm_eps",
        "score_width" => "query_pre_attn_scalar",
        "score_soft_cap" => "attn_logit_softcapping",
        "logit_soft_cap" => "final_logit_softcapping",
        "rotary.base" => "rope_theta",
        "rotary.local_base" => "rope_local_base_freq",
        "rotary.scaling" => "rope_parameters",
        "rotary.width" => "rotary_pct",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_names_are_replaced_as_whole_words() {
        let text = "5 heads do not divide d_model = 128, or bad_d_model (n_heads)";
        assert_eq!(
            foreign_names(ModelType::Llama, text),
            "5 heads do not divide hidden_size = 128, or bad_d_model (num_attention_heads)"
        );
        assert_eq!(foreign_names(ModelType::Gpt2, "n_heads…"), "n_head…");
    }
}
