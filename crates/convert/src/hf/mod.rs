//! Names of Hugging Face: model types, fields of `config.json` and tensors.
//!
//! An exported config is read back with the import code. A field that differs afterwards cannot be
//! expressed by the model type.

pub(crate) mod bart;
pub(crate) mod bert;
mod equivalence;
pub(crate) mod export;
pub(crate) mod fields;
mod gemma;
mod gpt2;
mod gpt_neox;
mod ignored;
mod invalid;
mod llama;
mod rope;

use std::path::Path;

use nextword_model::weights::{WeightSource, dequantized_values};
use nextword_model::{BiasConfig, ModelConfig};
use serde_json::{Map, Value, json};

use self::equivalence::{canonical, differences};
use self::fields::Fields;
pub(crate) use self::gpt_neox::rotary_fraction;
use crate::mapping::TensorNames;
use crate::{ConvertError, json as files};

/// The supported model types, by `model_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ModelType {
    Gpt2,
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    GptNeox,
    Gemma,
    Gemma2,
    Gemma3Text,
    Bert,
    Bart,
}

impl ModelType {
    pub(crate) const ALL: [Self; 11] = [
        Self::Gpt2,
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::GptNeox,
        Self::Gemma,
        Self::Gemma2,
        Self::Gemma3Text,
        Self::Bert,
        Self::Bart,
    ];

    /// The value of `model_type`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::GptNeox => "gpt_neox",
            Self::Gemma => "gemma",
            Self::Gemma2 => "gemma2",
            Self::Gemma3Text => "gemma3_text",
            Self::Bert => "bert",
            Self::Bart => "bart",
        }
    }

    /// The class in `architectures`.
    fn class(self) -> &'static str {
        match self {
            Self::Gpt2 => "GPT2LMHeadModel",
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::GptNeox => "GPTNeoXForCausalLM",
            Self::Gemma => "GemmaForCausalLM",
            Self::Gemma2 => "Gemma2ForCausalLM",
            Self::Gemma3Text => "Gemma3ForCausalLM",
            Self::Bert => "BertForMaskedLM",
            Self::Bart => "BartForConditionalGeneration",
        }
    }

    /// The names of its tensors.
    pub(crate) fn names(self) -> &'static dyn TensorNames {
        match self {
            Self::Gpt2 => &gpt2::Gpt2,
            Self::Llama | Self::Mistral | Self::Qwen2 | Self::Qwen3 | Self::Gemma => {
                &llama::Llama { sandwich: false }
            }
            Self::Gemma2 | Self::Gemma3Text => &llama::Llama { sandwich: true },
            Self::GptNeox => &gpt_neox::GptNeox,
            Self::Bert => &bert::Bert,
            Self::Bart => &bart::Bart,
        }
    }

    /// The prefix of most tensor names. Files of the base model omit it.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::Gpt2 => "transformer.",
            Self::GptNeox => "gpt_neox.",
            Self::Bert => "bert.",
            _ => "model.",
        }
    }

    /// The name of the output layer's weight.
    pub(crate) fn head_name(self) -> &'static str {
        match self {
            Self::GptNeox => "embed_out.weight",
            Self::Bert => "cls.predictions.decoder.weight",
            _ => "lm_head.weight",
        }
    }

    /// Whether `name` is a further copy of the token embedding, besides the output layer.
    pub(crate) fn is_copy_of_table(self, name: &str) -> bool {
        self == Self::Bart && bart::is_copy_of_table(name)
    }

    /// Whether `name` does not affect the logits: a buffer of old versions that can be computed from the config, or
    /// a head for another task.
    pub(crate) fn is_buffer(self, name: &str) -> bool {
        if self == Self::Bert {
            return bert::is_unused(name);
        }
        let suffixes: &[&str] = match self {
            Self::Gpt2 => &[".attn.bias", ".attn.masked_bias"],
            Self::GptNeox => &[
                ".attention.bias",
                ".attention.masked_bias",
                ".attention.rotary_emb.inv_freq",
            ],
            _ => &[".self_attn.rotary_emb.inv_freq"],
        };
        suffixes.iter().any(|suffix| name.ends_with(suffix))
    }

    fn read(self, fields: &Fields) -> Result<ModelConfig, ConvertError> {
        match self {
            Self::Gpt2 => gpt2::read(fields),
            Self::Llama | Self::Mistral | Self::Qwen2 | Self::Qwen3 => llama::read(self, fields),
            Self::GptNeox => gpt_neox::read(fields),
            Self::Gemma | Self::Gemma2 | Self::Gemma3Text => gemma::read(self, fields),
            Self::Bert => bert::read(fields),
            Self::Bart => bart::read(fields),
        }
    }

    fn write(self, config: &ModelConfig) -> Map<String, Value> {
        let mut map = match self {
            Self::Gpt2 => gpt2::write(config),
            Self::Llama | Self::Mistral | Self::Qwen2 | Self::Qwen3 => llama::write(self, config),
            Self::GptNeox => gpt_neox::write(config),
            Self::Gemma | Self::Gemma2 | Self::Gemma3Text => gemma::write(self, config),
            Self::Bert => bert::write(config),
            Self::Bart => bart::write(config),
        };
        map.insert("model_type".into(), json!(self.name()));
        map.insert("architectures".into(), json!([self.class()]));
        map.insert("vocab_size".into(), json!(config.vocab_size));
        map.insert("tie_word_embeddings".into(), json!(config.tied_head));
        map
    }
}

/// Reads the `config.json` in `folder`.
pub(crate) fn read_config(folder: &Path) -> Result<(ModelType, ModelConfig), ConvertError> {
    let path = folder.join("config.json");
    let Some(value) = files::read_value(&path)? else {
        return Err(crate::folder::no_model_found(folder));
    };
    parse_config(&path, value)
}

/// Parses the architecture in the text of a foreign `config.json`.
///
/// # Errors
/// [`ConvertError::Source`] or [`ConvertError::Field`] if it is invalid or not supported.
///
/// # Example
///
/// ```
/// use nextword_convert::read_config_text;
/// use nextword_model::{NormKind, Position};
///
/// let json = std::fs::read_to_string("../../tests/fixtures/hf/llama/config.json")?;
/// let config = read_config_text(&json)?;
/// assert_eq!((config.norm, config.position), (NormKind::Rms, Position::Rotary));
///
/// // A field that would change the logits and is not supported is an error that names it.
/// let error = read_config_text(&json.replacen('{', r#"{"sparse_attention": true,"#, 1)).unwrap_err();
/// assert!(error.to_string().contains("sparse_attention"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn read_config_text(text: &str) -> Result<ModelConfig, ConvertError> {
    let path = Path::new("config.json");
    let value = serde_json::from_str(text);
    let value =
        value.map_err(|e| ConvertError::source(path, format!("is not valid JSON ({e})")))?;
    Ok(parse_config(path, value)?.1)
}

/// Parses `value`, the content of `path`.
pub(crate) fn parse_config(
    path: &Path,
    value: Value,
) -> Result<(ModelType, ModelConfig), ConvertError> {
    let (kind, config) = parse_fields(path, value)?;
    config
        .validate()
        .map_err(|error| invalid::error(path, kind, &error))?;
    Ok((kind, config))
}

/// As [`parse_config`], without checking that the sizes are those of a valid model.
pub(crate) fn parse_fields(
    path: &Path,
    value: Value,
) -> Result<(ModelType, ModelConfig), ConvertError> {
    let fields = Fields::new(path, value)?;
    let name = fields.optional_text("model_type")?.unwrap_or("");
    let Some(kind) = ModelType::ALL.into_iter().find(|kind| kind.name() == name) else {
        if name.is_empty() && fields.get("d_model").is_some() && fields.get("n_layers").is_some() {
            let folder = path
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty());
            let problem = "is already a nextword model folder; hint: use it as it is, with `nextword generate`, for example";
            return Err(ConvertError::source(folder.unwrap_or(path), problem));
        }
        let known = ModelType::ALL.map(ModelType::name).join(", ");
        return Err(fields.error("model_type", format!("but nextword supports only {known}")));
    };
    fields.expect_flag("is_encoder_decoder", kind == ModelType::Bart)?;
    for name in [
        "add_cross_attention",
        "tie_encoder_decoder",
        "use_mrope",
        "rope_interleaved",
    ] {
        fields.expect_flag(name, false)?;
    }
    if let Some(pruned) = fields.get("pruned_heads")
        && pruned.as_object().is_none_or(|heads| !heads.is_empty())
    {
        return Err(fields.error("pruned_heads", "but nextword does not support pruned heads"));
    }
    if fields.get("quantization_config").is_some() {
        let problem = "quantized weights; hint: save the model in f32, f16 or bf16 first";
        return Err(fields.error("quantization_config", problem));
    }
    let config = ModelConfig {
        vocab_size: fields.required_count("vocab_size")?,
        ..kind.read(&fields)?
    };
    fields.reject_unknown()?;
    Ok((kind, config))
}

/// A model type and config that express one of our models.
pub(crate) struct HfModel {
    pub(crate) kind: ModelType,
    /// Its `config.json`.
    pub(crate) map: Map<String, Value>,
    /// Our config with every default filled in and with all biases that the type requires; biases that
    /// our model does not have are zero.
    pub(crate) config: ModelConfig,
}

/// Finds the model type that computes exactly the same as `config`.
pub(crate) fn to_hf(config: &ModelConfig) -> Result<HfModel, ConvertError> {
    let exact = canonical(config);
    let head = config.bias.head;
    let biased = canonical(&ModelConfig {
        bias: BiasConfig {
            head,
            ..BiasConfig::default()
        },
        ..exact.clone()
    });
    // A bias of the output layer that a type requires is zeros, too.
    let biased_head = canonical(&ModelConfig {
        bias: BiasConfig {
            head: true,
            ..BiasConfig::default()
        },
        ..exact.clone()
    });
    let mut closest: Option<(ModelType, Vec<String>)> = None;
    for candidate in [exact, biased, biased_head] {
        for kind in ModelType::ALL {
            let map = kind.write(&candidate);
            let path = Path::new("config.json");
            let fields = match parse_config(path, Value::Object(map.clone())) {
                Ok((_, back)) => differences(&candidate, &canonical(&back)),
                // A type that rejects the config is a poor match.
                Err(error) => vec![error.to_string(); 99],
            };
            if fields.is_empty() {
                let config = candidate;
                return Ok(HfModel { kind, map, config });
            }
            if closest
                .as_ref()
                .is_none_or(|(_, fewest)| fields.len() < fewest.len())
            {
                closest = Some((kind, fields));
            }
        }
    }
    let (kind, mut fields) = closest.unwrap_or((ModelType::Gpt2, Vec::new()));
    fields.dedup();
    Err(ConvertError::Inexpressible {
        format: format!("Hugging Face's closest model type `{}`", kind.name()),
        fields,
    })
}

/// A tensor of the model, dequantized. Missing biases are zeros.
pub(crate) fn values_or_zeros(
    weights: &dyn WeightSource,
    name: &str,
    shape: &[usize],
) -> Result<Vec<f32>, ConvertError> {
    if weights.shape(name).is_none() && name.rsplit('.').next() == Some("bias") {
        return Ok(vec![0.0; shape.iter().product()]);
    }
    if weights.shape(name).is_none()
        && let Some(values) = dequantized_values(weights, name, shape)?
    {
        return Ok(values);
    }
    Ok(weights.values(name)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use nextword_model::presets;

    use super::*;

    /// Published configs, with the field names used when they were published.
    #[test]
    fn published_configs_are_parsed() {
        let llama3 = r#"{"architectures": ["LlamaForCausalLM"], "attention_bias": false,
            "attention_dropout": 0.0, "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009],
            "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
            "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
            "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
            "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling":
            {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
            "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.45.0",
            "use_cache": true, "vocab_size": 128256}"#;
        assert_eq!(
            read_config_text(llama3).unwrap().parameter_counts().total(),
            1_235_814_400
        );
        let pythia = r#"{"architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0,
            "eos_token_id": 0, "hidden_act": "gelu", "hidden_size": 512, "initializer_range": 0.02,
            "intermediate_size": 2048, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048,
            "model_type": "gpt_neox", "num_attention_heads": 8, "num_hidden_layers": 6,
            "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": false,
            "torch_dtype": "float16", "transformers_version": "4.24.0", "use_cache": true,
            "use_parallel_residual": true, "vocab_size": 50304}"#;
        let pythia = read_config_text(pythia).unwrap();
        assert_eq!(
            (pythia.parameter_counts().total(), pythia.rotary.width),
            (70_426_624, Some(16))
        );
        let gemma3 = r#"{"architectures": ["Gemma3ForCausalLM"], "attention_bias": false,
            "attention_dropout": 0.0, "attn_logit_softcapping": null, "bos_token_id": 2,
            "cache_implementation": "hybrid", "eos_token_id": [1, 106], "final_logit_softcapping": null,
            "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
            "initializer_range": 0.02, "intermediate_size": 6912, "max_position_embeddings": 32768,
            "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26,
            "num_key_value_heads": 1, "pad_token_id": 0, "query_pre_attn_scalar": 256,
            "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000, "rope_scaling": null,
            "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
            "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0", "use_cache": true,
            "vocab_size": 262144}"#;
        let gemma3 = read_config_text(gemma3).unwrap();
        assert_eq!(gemma3.parameter_counts().total(), 999_885_952);
        assert_eq!((gemma3.windows[4], gemma3.windows[5]), (512, 0));
    }

    #[test]
    fn presets_have_a_model_type_or_list_unsupported_fields() {
        let kind = |config: &ModelConfig| to_hf(config).map(|hf| hf.kind.name());
        assert_eq!(kind(&presets::gpt2(12, 12, 768)).unwrap(), "gpt2");
        assert_eq!(kind(&presets::llama_like(65)).unwrap(), "llama");
        assert_eq!(kind(&presets::shakespeare_char(65)).unwrap(), "gpt2");
        assert_eq!(
            kind(&ModelConfig {
                vocab_size: 65,
                ..ModelConfig::default()
            })
            .unwrap(),
            "gpt2"
        );
        let error = kind(&presets::statquest(5)).unwrap_err().to_string();
        for field in ["position", "output_projection = false", "norm"] {
            assert!(error.contains(field), "{error}");
        }
    }
}
