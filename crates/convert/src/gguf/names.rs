//! `llama.cpp`'s vocabulary: architectures, keys of the metadata, names of tensors.

use nextword_model::{FeedForwardKind, ModelConfig, NormKind, RotaryScaling};

use super::file::Meta;
use crate::ConvertError;
use crate::hf::ModelType;
use crate::parts::{Form, Names};

/// An architecture of `llama.cpp`.
pub(crate) struct Architecture {
    /// Its name there.
    pub(crate) name: &'static str,
    kind: ModelType,
}

impl Architecture {
    /// The architecture for models of `kind`.
    pub(crate) fn of(kind: ModelType, config: &ModelConfig) -> Result<Self, ConvertError> {
        let name = match kind {
            ModelType::Gpt2 => "gpt2",
            ModelType::Llama | ModelType::Mistral => "llama",
            ModelType::Qwen2 => "qwen2",
            ModelType::Qwen3 => "qwen3",
            ModelType::GptNeox => "gptneox",
            ModelType::Gemma => "gemma",
            ModelType::Gemma2 => "gemma2",
            ModelType::Gemma3Text => "gemma3",
        };
        let fields = obstacles(kind, config);
        if fields.is_empty() {
            return Ok(Self { name, kind });
        }
        Err(ConvertError::Inexpressible {
            format: format!("llama.cpp's `{name}`, which comes nearest,"),
            fields,
        })
    }

    /// Whether rotary positions turn numbers that stand side by side.
    pub(crate) fn turns_neighbours(&self) -> bool {
        self.name == "llama"
    }

    /// Whether the output layer is stored even where it is the token embedding.
    pub(crate) fn needs_head(&self) -> bool {
        self.kind == ModelType::GptNeox
    }

    /// What the architecture is told about `config`.
    pub(crate) fn meta(&self, config: &ModelConfig, title: &str) -> Vec<(String, Meta)> {
        let head_dim = config.head_dim();
        let eps = match config.norm {
            NormKind::Layer => "attention.layer_norm_epsilon",
            _ => "attention.layer_norm_rms_epsilon",
        };
        let mut own = vec![
            ("context_length", Meta::Count(config.context_length)),
            ("embedding_length", Meta::Count(config.d_model)),
            ("block_count", Meta::Count(config.n_layers)),
            ("feed_forward_length", Meta::Count(config.d_ff())),
            ("vocab_size", Meta::Count(config.vocab_size)),
            ("attention.head_count", Meta::Count(config.n_heads)),
            ("attention.head_count_kv", Meta::Count(config.kv_heads())),
            (eps, Meta::Number(config.norm_eps)),
        ];
        if self.kind != ModelType::Gpt2 {
            let turned = config.rotary.width.unwrap_or(head_dim);
            own.extend([
                ("attention.key_length", Meta::Count(head_dim)),
                ("attention.value_length", Meta::Count(head_dim)),
                ("rope.dimension_count", Meta::Count(turned)),
                ("rope.freq_base", Meta::Number(config.rotary.base)),
            ]);
        }
        if let RotaryScaling::Linear { factor } = config.rotary.scaling {
            own.push(("rope.scaling.type", Meta::Text("linear".into())));
            own.push(("rope.scaling.factor", Meta::Number(factor)));
        }
        if self.kind == ModelType::GptNeox {
            own.push(("use_parallel_residual", Meta::Flag(config.parallel)));
        }
        if let Some(cap) = config.score_soft_cap {
            own.push(("attn_logit_softcapping", Meta::Number(cap)));
        }
        if let Some(cap) = config.logit_soft_cap {
            own.push(("final_logit_softcapping", Meta::Number(cap)));
        }
        if let Some(window) = config.windows.iter().find(|window| **window > 0) {
            let slides = config.windows.iter().map(|window| *window > 0);
            own.push(("attention.sliding_window", Meta::Count(*window)));
            own.push((
                "attention.sliding_window_pattern",
                Meta::Flags(slides.collect()),
            ));
            let near = config.rotary.local_base.unwrap_or(config.rotary.base);
            own.push(("rope.freq_base_swa", Meta::Number(near)));
        }
        let mut meta = vec![
            (
                "general.architecture".to_string(),
                Meta::Text(self.name.into()),
            ),
            ("general.name".to_string(), Meta::Text(title.into())),
        ];
        meta.extend(
            own.into_iter()
                .map(|(key, value)| (format!("{}.{key}", self.name), value)),
        );
        meta
    }
}

/// The fields of `config` that the type has and `llama.cpp`'s architecture for it has not.
fn obstacles(kind: ModelType, config: &ModelConfig) -> Vec<String> {
    let is_gemma = matches!(
        kind,
        ModelType::Gemma | ModelType::Gemma2 | ModelType::Gemma3Text
    );
    let slides = matches!(kind, ModelType::Gemma2 | ModelType::Gemma3Text);
    let feed_forward = match kind {
        ModelType::Gpt2 | ModelType::GptNeox => {
            matches!(
                config.feed_forward,
                FeedForwardKind::Gelu | FeedForwardKind::GeluTanh
            )
        }
        _ if is_gemma => config.feed_forward == FeedForwardKind::GegluTanh,
        _ => config.feed_forward == FeedForwardKind::Swiglu,
    };
    let scaled_by_wave = matches!(config.rotary.scaling, RotaryScaling::Llama3 { .. });
    let scaled_evenly = matches!(config.rotary.scaling, RotaryScaling::Linear { .. });
    let yarn = matches!(config.rotary.scaling, RotaryScaling::Yarn { .. });
    let stretches_windows = kind == ModelType::Gemma2 && scaled_evenly;
    // Its 27 B models divide by another width than their head_dim, and are known by their depth.
    let deep = (kind == ModelType::Gemma2 && config.n_layers == 46)
        || (kind == ModelType::Gemma3Text && config.n_layers == 62);
    let width = if deep {
        config.d_model / config.n_heads
    } else {
        config.head_dim()
    };
    let divides_alike = !slides
        || (config.score_width.unwrap_or(config.head_dim() as f64) - width as f64).abs() < 1e-9;
    let caps = match kind {
        ModelType::Gemma2 => config.score_soft_cap.is_some() && config.logit_soft_cap.is_some(),
        _ => config.score_soft_cap.is_none(),
    };
    let may_bias = matches!(
        kind,
        ModelType::Llama | ModelType::Gpt2 | ModelType::GptNeox
    );
    let checks = [
        (
            "windows",
            config.windows.is_empty() || slides,
            format!("{:?}", config.windows),
        ),
        (
            "feed_forward",
            feed_forward,
            format!("{:?}", config.feed_forward),
        ),
        (
            "rotary.scaling",
            (!scaled_by_wave || matches!(kind, ModelType::Llama | ModelType::Mistral))
                && !stretches_windows
                && !yarn,
            format!("{:?}", config.rotary.scaling),
        ),
        (
            "score_width",
            divides_alike,
            format!("{:?}", config.score_width),
        ),
        (
            "score_soft_cap",
            caps,
            format!("{:?}", config.score_soft_cap),
        ),
        (
            "bias.attention_output",
            !config.bias.attention_output || may_bias,
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
    let in_the_way = checks.into_iter().filter(|(_, fine, _)| !fine);
    in_the_way
        .map(|(field, _, value)| format!("model.{field} = {value}"))
        .collect()
}

impl Names for Architecture {
    fn outer(&self, module: &str) -> Option<&'static str> {
        Some(match module {
            "token_embedding" => "token_embd",
            "position_embedding" => "position_embd",
            "final_norm" => "output_norm",
            "head" => "output",
            _ => return None,
        })
    }

    fn inner(&self, layer: &str, module: &str) -> Option<String> {
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

    fn form(&self) -> Form {
        Form::Transposed
    }

    fn fused(&self, _config: &ModelConfig) -> Option<(&'static str, Form)> {
        matches!(self.kind, ModelType::Gpt2 | ModelType::GptNeox)
            .then_some(("attn_qkv", Form::Rows))
    }
}
