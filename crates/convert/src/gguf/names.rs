//! Names of `llama.cpp`: architectures, metadata keys and tensors.

use nextword_model::{FeedForwardKind, ModelConfig, NormKind, RotaryScaling};

use super::ACTIVATION_KEY;
use super::file::MetadataValue;
use crate::ConvertError;
use crate::hf::ModelType;
use crate::mapping::{Layout, TensorNames};

/// The key of the metadata under which an export writes this program's version.
pub const WRITER_KEY: &str = "nextword.version";

/// An architecture of `llama.cpp`.
pub(crate) struct Architecture {
    /// Its name in `llama.cpp`.
    pub(crate) name: &'static str,
    pub(super) kind: ModelType,
}

impl Architecture {
    /// The architectures by name, with the model type that each stands for in a file.
    pub(super) const NAMES: [(&str, ModelType); 8] = [
        ("gpt2", ModelType::Gpt2),
        ("llama", ModelType::Llama),
        ("qwen2", ModelType::Qwen2),
        ("qwen3", ModelType::Qwen3),
        ("gptneox", ModelType::GptNeox),
        ("gemma", ModelType::Gemma),
        ("gemma2", ModelType::Gemma2),
        ("gemma3", ModelType::Gemma3Text),
    ];

    /// The architecture called `name`.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        let found = Self::NAMES.into_iter().find(|(known, _)| *known == name);
        found.map(|(name, kind)| Self { name, kind })
    }

    /// The architecture for models of `kind`.
    pub(crate) fn new(kind: ModelType, config: &ModelConfig) -> Result<Self, ConvertError> {
        config.require(&[nextword_model::Architecture::Decoder], "export to GGUF")?;
        let found = Self::NAMES.into_iter().find(|(_, known)| *known == kind);
        let name = found.map_or("llama", |(name, _)| name); // Mistral, whose windows are checked below.
        let fields = unsupported_fields(kind, config);
        if fields.is_empty() {
            return Ok(Self { name, kind });
        }
        Err(ConvertError::Inexpressible {
            format: format!("llama.cpp's closest architecture `{name}`"),
            fields,
        })
    }

    /// Whether RoPE rotates pairs of adjacent elements.
    pub(crate) fn has_interleaved_rope(&self) -> bool {
        self.name == "llama"
    }

    /// Whether the output layer is stored even if it is tied to the token embedding.
    pub(crate) fn needs_head(&self) -> bool {
        self.kind == ModelType::GptNeox
    }

    /// Whether `llama.cpp` has the feed-forward layer `feed_forward` in models of `kind`, up to the approximation of GELU.
    pub(super) fn supports_feed_forward(kind: ModelType, feed_forward: FeedForwardKind) -> bool {
        let supported: &[FeedForwardKind] = match kind {
            ModelType::Gpt2 | ModelType::GptNeox => {
                &[FeedForwardKind::Gelu, FeedForwardKind::GeluTanh]
            }
            ModelType::Gemma | ModelType::Gemma2 | ModelType::Gemma3Text => {
                &[FeedForwardKind::GegluTanh]
            }
            _ => &[FeedForwardKind::Swiglu],
        };
        supported.contains(&feed_forward)
    }

    /// The metadata for `config`.
    pub(crate) fn metadata(
        &self,
        config: &ModelConfig,
        title: &str,
    ) -> Vec<(String, MetadataValue)> {
        let head_dim = config.head_dim();
        let eps = match config.norm {
            NormKind::Layer => "attention.layer_norm_epsilon",
            _ => "attention.layer_norm_rms_epsilon",
        };
        let mut entries = vec![
            ("context_length", MetadataValue::U32(config.context_length)),
            ("embedding_length", MetadataValue::U32(config.d_model)),
            ("block_count", MetadataValue::U32(config.n_layers)),
            ("feed_forward_length", MetadataValue::U32(config.d_ff())),
            ("vocab_size", MetadataValue::U32(config.vocab_size)),
            ("attention.head_count", MetadataValue::U32(config.n_heads)),
            (
                "attention.head_count_kv",
                MetadataValue::U32(config.kv_heads()),
            ),
            (eps, MetadataValue::F32(config.norm_eps)),
        ];
        if self.kind != ModelType::Gpt2 {
            let rotary_dim = config.rotary.width.unwrap_or(head_dim);
            entries.extend([
                ("attention.key_length", MetadataValue::U32(head_dim)),
                ("attention.value_length", MetadataValue::U32(head_dim)),
                ("rope.dimension_count", MetadataValue::U32(rotary_dim)),
                ("rope.freq_base", MetadataValue::F32(config.rotary.base)),
            ]);
        }
        if let RotaryScaling::Linear { factor } = config.rotary.scaling {
            entries.push(("rope.scaling.type", MetadataValue::String("linear".into())));
            entries.push(("rope.scaling.factor", MetadataValue::F32(factor)));
        }
        if let RotaryScaling::Llama3 {
            original_context_length,
            ..
        } = config.rotary.scaling
        {
            // The factors are in a tensor; this tells which formula gives them.
            entries.push((
                "rope.scaling.original_context_length",
                MetadataValue::U32(original_context_length),
            ));
        }
        if self.kind == ModelType::GptNeox {
            entries.push((
                "use_parallel_residual",
                MetadataValue::Bool(config.parallel),
            ));
        }
        if let Some(cap) = config.score_soft_cap {
            entries.push(("attn_logit_softcapping", MetadataValue::F32(cap)));
        }
        if let Some(cap) = config.logit_soft_cap {
            entries.push(("final_logit_softcapping", MetadataValue::F32(cap)));
        }
        if let Some(window) = config.windows.iter().find(|window| **window > 0) {
            let is_windowed = config.windows.iter().map(|window| *window > 0);
            entries.push(("attention.sliding_window", MetadataValue::U32(*window)));
            entries.push((
                "attention.sliding_window_pattern",
                MetadataValue::BoolArray(is_windowed.collect()),
            ));
            let local_base = config.rotary.local_base.unwrap_or(config.rotary.base);
            entries.push(("rope.freq_base_swa", MetadataValue::F32(local_base)));
        }
        let mut metadata = vec![
            (
                "general.architecture".to_string(),
                MetadataValue::String(self.name.into()),
            ),
            (
                "general.name".to_string(),
                MetadataValue::String(title.into()),
            ),
            (
                WRITER_KEY.to_string(),
                MetadataValue::String(env!("CARGO_PKG_VERSION").into()),
            ),
        ];
        metadata.extend(
            entries
                .into_iter()
                .map(|(key, value)| (format!("{}.{key}", self.name), value)),
        );
        if matches!(self.kind, ModelType::Gpt2 | ModelType::GptNeox) {
            // llama.cpp has one GELU. This says which one the model was trained with.
            let name = match config.feed_forward {
                FeedForwardKind::GeluTanh => "gelu_tanh",
                _ => "gelu",
            };
            metadata.push((ACTIVATION_KEY.into(), MetadataValue::String(name.into())));
        }
        metadata
    }
}

/// The fields of `config` that the model type supports but `llama.cpp`'s architecture does not.
fn unsupported_fields(kind: ModelType, config: &ModelConfig) -> Vec<String> {
    let is_gemma = matches!(
        kind,
        ModelType::Gemma | ModelType::Gemma2 | ModelType::Gemma3Text
    );
    let supports_windows = matches!(kind, ModelType::Gemma2 | ModelType::Gemma3Text);
    let supports_feed_forward = Architecture::supports_feed_forward(kind, config.feed_forward);
    let is_llama3_scaling = matches!(config.rotary.scaling, RotaryScaling::Llama3 { .. });
    let is_linear_scaling = matches!(config.rotary.scaling, RotaryScaling::Linear { .. });
    let is_yarn = matches!(config.rotary.scaling, RotaryScaling::Yarn { .. });
    let scales_windowed_rope = kind == ModelType::Gemma2 && is_linear_scaling;
    // The 27B models scale scores by a width other than head_dim. llama.cpp detects them by depth.
    let is_27b = (kind == ModelType::Gemma2 && config.n_layers == 46)
        || (kind == ModelType::Gemma3Text && config.n_layers == 62);
    let width = if is_27b {
        config.d_model / config.n_heads
    } else {
        config.head_dim()
    };
    let supports_score_scale = !supports_windows
        || (config.score_width.unwrap_or(config.head_dim() as f64) - width as f64).abs() < 1e-9;
    let supports_soft_caps = match kind {
        ModelType::Gemma2 => config.score_soft_cap.is_some() && config.logit_soft_cap.is_some(),
        _ => config.score_soft_cap.is_none(),
    };
    let may_have_bias = matches!(
        kind,
        ModelType::Llama | ModelType::Gpt2 | ModelType::GptNeox
    );
    let checks = [
        (
            "windows",
            config.windows.is_empty() || supports_windows,
            format!("{:?}", config.windows),
        ),
        (
            "feed_forward",
            supports_feed_forward,
            format!("{:?}", config.feed_forward),
        ),
        (
            "rotary.scaling",
            (!is_llama3_scaling || matches!(kind, ModelType::Llama | ModelType::Mistral))
                && !scales_windowed_rope
                && !is_yarn,
            format!("{:?}", config.rotary.scaling),
        ),
        (
            "score_width",
            supports_score_scale,
            format!("{:?}", config.score_width),
        ),
        (
            "score_soft_cap",
            supports_soft_caps,
            format!("{:?}", config.score_soft_cap),
        ),
        (
            "bias.attention_output",
            !config.bias.attention_output || may_have_bias,
            "true".into(),
        ),
        ("bias.qkv", !(is_gemma && config.bias.qkv), "true".into()),
        (
            "tied_head",
            config.tied_head || !matches!(kind, ModelType::Gemma | ModelType::Gemma2),
            "false".into(),
        ),
        (
            "bias.attention_output",
            config.bias.attention_output || kind != ModelType::GptNeox,
            "false".into(),
        ),
    ];
    let unsupported = checks
        .into_iter()
        .filter(|(_, is_supported, _)| !is_supported);
    unsupported
        .map(|(field, _, value)| format!("model.{field} = {value}"))
        .collect()
}

impl TensorNames for Architecture {
    fn top_level(&self, module: &str) -> Option<&'static str> {
        Some(match module {
            "token_embedding" => "token_embd",
            "position_embedding" => "position_embd",
            "final_norm" => "output_norm",
            "head" => "output",
            _ => return None,
        })
    }

    fn in_block(&self, layer: &str, module: &str) -> Option<String> {
        let name = match module {
            "attention_norm" => "attn_norm",
            "attn_qkv" => module,
            "attention.query" => "attn_q",
            "attention.key" => "attn_k",
            "attention.value" => "attn_v",
            "attention.query_norm" => "attn_q_norm",
            "attention.key_norm" => "attn_k_norm",
            "attention.output" => "attn_output",
            "attention_post_norm" => "post_attention_norm",
            "feed_forward_norm" => "ffn_norm",
            "feed_forward.gate" => "ffn_gate",
            "feed_forward.up" => "ffn_up",
            "feed_forward.down" => "ffn_down",
            "feed_forward_post_norm" => "post_ffw_norm",
            _ => return None,
        };
        Some(format!("blk.{layer}.{name}"))
    }

    fn matrix_layout(&self) -> Layout {
        Layout::Transposed
    }

    fn fused_qkv(&self, _config: &ModelConfig) -> Option<(&'static str, Layout)> {
        matches!(self.kind, ModelType::Gpt2 | ModelType::GptNeox)
            .then_some(("attn_qkv", Layout::ConcatRows))
    }
}
