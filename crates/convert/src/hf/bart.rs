//! `bart` (Lewis et al. 2019, arXiv 1910.13461): an encoder and a decoder with learned positions, whose norms follow the
//! residual sums.
//!
//! Its tables of positions have two rows that no position uses, and its output layer's bias is a matrix of one row,
//! which files of the model without head omit.

use nextword_model::{Architecture, BiasConfig, ModelConfig, NormPlacement, Position};
use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::gpt2;
use crate::ConvertError;
use crate::mapping::{Layout, TensorNames};

/// Rows before that of position 0.
const POSITION_OFFSET: usize = 2;

/// Fields about training and generation, and the number of layers of the encoder again.
const WITHOUT_EFFECT: [&str; 6] = [
    "classif_dropout",
    "decoder_layerdrop",
    "encoder_layerdrop",
    "force_bos_token_to_be_generated",
    "init_std",
    "num_hidden_layers",
];

pub(crate) struct Bart;

pub(crate) fn read(fields: &Fields) -> Result<ModelConfig, ConvertError> {
    fields.expect_flag("tie_word_embeddings", true)?;
    fields.expect_flag("normalize_before", false)?;
    fields.expect_flag("normalize_embedding", true)?;
    fields.expect_flag("add_final_layer_norm", false)?;
    fields.expect_flag("static_position_embeddings", false)?;
    fields.expect_flag("add_bias_logits", false)?;
    let unused = fields.optional_count("extra_pos_embeddings")?;
    if unused.is_some_and(|rows| rows != POSITION_OFFSET) {
        return Err(fields.error("extra_pos_embeddings", "but nextword supports only 2"));
    }
    for name in WITHOUT_EFFECT {
        fields.get(name);
    }
    let both = |name: &str| -> Result<usize, ConvertError> {
        let [encoder, decoder] = ["encoder", "decoder"].map(|stack| format!("{stack}_{name}"));
        let count = fields.required_count(&encoder)?;
        if fields.required_count(&decoder)? == count {
            return Ok(count);
        }
        let problem = format!("but nextword supports only the value of {encoder}");
        Err(fields.error(&decoder, problem))
    };
    let d_model = fields.required_count("d_model")?;
    let is_scaled = fields.flag("scale_embedding", false)?;
    Ok(ModelConfig {
        architecture: Architecture::EncoderDecoder,
        context_length: fields.required_count("max_position_embeddings")?,
        n_layers: fields.required_count("decoder_layers")?,
        n_encoder_layers: Some(fields.required_count("encoder_layers")?),
        n_heads: both("attention_heads")?,
        d_model,
        d_ff: Some(both("ffn_dim")?),
        position: Position::Learned,
        norm_placement: NormPlacement::Post,
        embedding_norm: true,
        embedding_scale: is_scaled.then(|| (d_model as f64).sqrt()),
        feed_forward: gpt2::activation(fields, "activation_function", "gelu")?,
        bias: BiasConfig {
            head: true,
            ..BiasConfig::default()
        },
        ..ModelConfig::default()
    })
}

pub(crate) fn write(config: &ModelConfig) -> Map<String, Value> {
    let value = json!({
        "is_encoder_decoder": true, "d_model": config.d_model,
        "max_position_embeddings": config.context_length,
        "encoder_layers": config.encoder_layers(), "decoder_layers": config.n_layers,
        "num_hidden_layers": config.encoder_layers(),
        "encoder_attention_heads": config.n_heads, "decoder_attention_heads": config.n_heads,
        "encoder_ffn_dim": config.d_ff, "decoder_ffn_dim": config.d_ff,
        "activation_function": gpt2::activation_name(config.feed_forward),
        "scale_embedding": config.embedding_scale.is_some(),
        "attention_dropout": config.dropout.attention, "dropout": config.dropout.residual,
        "forced_eos_token_id": Value::Null,
    });
    value.as_object().cloned().unwrap_or_default()
}

/// Whether `name` is a copy of the embedding that both stacks and the output layer share.
pub(crate) fn is_copy_of_table(name: &str) -> bool {
    name.ends_with("coder.embed_tokens.weight")
}

impl TensorNames for Bart {
    fn top_level(&self, module: &str) -> Option<&'static str> {
        Some(match module {
            "token_embedding" => "model.shared",
            "position_embedding" => "model.decoder.embed_positions",
            "embedding_norm" => "model.decoder.layernorm_embedding",
            "encoder.position_embedding" => "model.encoder.embed_positions",
            "encoder.embedding_norm" => "model.encoder.layernorm_embedding",
            _ => return None,
        })
    }

    fn in_block(&self, layer: &str, module: &str) -> Option<String> {
        Some(format!(
            "model.decoder.layers.{layer}.{}",
            in_layer(module)?
        ))
    }

    fn in_encoder_block(&self, layer: &str, module: &str) -> Option<String> {
        Some(format!(
            "model.encoder.layers.{layer}.{}",
            in_layer(module)?
        ))
    }

    fn matrix_layout(&self) -> Layout {
        Layout::Transposed
    }

    fn unused_rows(&self, ours: &str) -> usize {
        if ours.ends_with("position_embedding.weight") {
            POSITION_OFFSET
        } else {
            0
        }
    }

    fn row(&self, ours: &str) -> Option<&'static str> {
        (ours == "head.bias").then_some("final_logits_bias")
    }
}

/// The name of our `module` in a layer of either stack.
fn in_layer(module: &str) -> Option<&'static str> {
    Some(match module {
        "attention.query" => "self_attn.q_proj",
        "attention.key" => "self_attn.k_proj",
        "attention.value" => "self_attn.v_proj",
        "attention.output" => "self_attn.out_proj",
        "attention_norm" => "self_attn_layer_norm",
        "cross_attention.query" => "encoder_attn.q_proj",
        "cross_attention.key" => "encoder_attn.k_proj",
        "cross_attention.value" => "encoder_attn.v_proj",
        "cross_attention.output" => "encoder_attn.out_proj",
        "cross_attention_norm" => "encoder_attn_layer_norm",
        "feed_forward.up" => "fc1",
        "feed_forward.down" => "fc2",
        "feed_forward_norm" => "final_layer_norm",
        _ => return None,
    })
}
