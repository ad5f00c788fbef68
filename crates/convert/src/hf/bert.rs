//! `bert` (Devlin et al. 2018, arXiv 1810.04805) with its head for masked tokens.
//!
//! A text is one segment: the embedding of token type 0 becomes part of every position's, and an export writes
//! zeros for the types.

use nextword_model::{Architecture, BiasConfig, ModelConfig, NormPlacement, Position};
use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::gpt2;
use crate::ConvertError;
use crate::mapping::{Layout, TensorNames};

/// Number of token types that an export writes.
pub(crate) const TOKEN_TYPES: usize = 2;

pub(crate) struct Bert;

pub(crate) fn read(fields: &Fields) -> Result<ModelConfig, ConvertError> {
    fields.expect_flag("is_decoder", false)?;
    fields.expect_flag("tie_word_embeddings", true)?;
    let kind = fields.optional_text("position_embedding_type")?;
    if kind.is_some_and(|kind| kind != "absolute") {
        let problem = "but nextword supports only \"absolute\" here";
        return Err(fields.error("position_embedding_type", problem));
    }
    fields.optional_count("type_vocab_size")?; // Only the first is used.
    Ok(ModelConfig {
        architecture: Architecture::Encoder,
        context_length: fields.required_count("max_position_embeddings")?,
        n_layers: fields.required_count("num_hidden_layers")?,
        n_heads: fields.required_count("num_attention_heads")?,
        d_model: fields.required_count("hidden_size")?,
        d_ff: Some(fields.required_count("intermediate_size")?),
        position: Position::Learned,
        norm_eps: fields.optional_number("layer_norm_eps")?.unwrap_or(1e-12),
        norm_placement: NormPlacement::Post,
        embedding_norm: true,
        feed_forward: gpt2::activation(fields, "hidden_act", "gelu")?,
        head_transform: true,
        bias: BiasConfig {
            head: true,
            ..BiasConfig::default()
        },
        ..ModelConfig::default()
    })
}

pub(crate) fn write(config: &ModelConfig) -> Map<String, Value> {
    let value = json!({
        "max_position_embeddings": config.context_length, "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads, "hidden_size": config.d_model,
        "intermediate_size": config.d_ff, "layer_norm_eps": config.norm_eps,
        "hidden_act": gpt2::activation_name(config.feed_forward),
        "type_vocab_size": TOKEN_TYPES, "position_embedding_type": "absolute",
        "attention_probs_dropout_prob": config.dropout.attention,
        "hidden_dropout_prob": config.dropout.residual,
    });
    value.as_object().cloned().unwrap_or_default()
}

/// Whether masked prediction does not use the tensor `name`: the pooler and the head for the next sentence, and a
/// second copy of the output layer's bias.
pub(crate) fn is_unused(name: &str) -> bool {
    let prefixes = ["bert.pooler.", "cls.seq_relationship."];
    prefixes.iter().any(|prefix| name.starts_with(prefix))
        || name == "bert.embeddings.position_ids"
        || name == "cls.predictions.decoder.bias"
}

/// The name that the first published weights have for the tensor `name` of a norm.
pub(crate) fn earlier_name(name: &str) -> Option<String> {
    let (module, kind) = name.rsplit_once(".LayerNorm.")?;
    let kind = match kind {
        "weight" => "gamma",
        "bias" => "beta",
        _ => return None,
    };
    Some(format!("{module}.LayerNorm.{kind}"))
}

impl TensorNames for Bert {
    fn top_level(&self, module: &str) -> Option<&'static str> {
        Some(match module {
            "token_embedding" => "bert.embeddings.word_embeddings",
            "position_embedding" => "bert.embeddings.position_embeddings",
            "embedding_norm" => "bert.embeddings.LayerNorm",
            "head_transform.dense" => "cls.predictions.transform.dense",
            "head_transform.norm" => "cls.predictions.transform.LayerNorm",
            "head" => "cls.predictions",
            _ => return None,
        })
    }

    fn in_block(&self, layer: &str, module: &str) -> Option<String> {
        let name = match module {
            "attention.query" => "attention.self.query",
            "attention.key" => "attention.self.key",
            "attention.value" => "attention.self.value",
            "attention.output" => "attention.output.dense",
            "attention_norm" => "attention.output.LayerNorm",
            "feed_forward.up" => "intermediate.dense",
            "feed_forward.down" => "output.dense",
            "feed_forward_norm" => "output.LayerNorm",
            _ => return None,
        };
        Some(format!("bert.encoder.layer.{layer}.{name}"))
    }

    fn matrix_layout(&self) -> Layout {
        Layout::Transposed
    }

    fn added_row(&self, ours: &str) -> Option<&'static str> {
        (ours == "position_embedding.weight")
            .then_some("bert.embeddings.token_type_embeddings.weight")
    }
}
