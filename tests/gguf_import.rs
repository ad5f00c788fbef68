//! GGUF files as models: the same configuration, weights and logits as the model that was exported.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use burn::tensor::{Int, Tensor};
use nextword_convert::{GgufType, export_gguf, export_gguf_with_embedding, import, open_gguf};
use nextword_data::TokenizerConfig;
use nextword_model::weights::{self, to_f32_vec};
use nextword_model::{
    ForwardContext, ModelCard, ModelConfig, ModelDir, ModelTokens, RotaryConfig, RotaryScaling,
    Transformer,
};

use crate::gguf_file::{RawFile, RawTensor, bool_value, f32_value, text_value, u32_value};
use crate::parity::fixtures;
use crate::test_dir::TestDir;
use crate::util::flex;

/// A text without characters outside the vocabulary of [`characters`].
const TEXT: &str = "a few words, then more";

/// A model folder with the tokenizer of these characters, which any model of at least 30 tokens can have.
fn characters(folder: &Path) -> ModelDir {
    let model = ModelDir::open(folder).unwrap();
    let tokenizer = TokenizerConfig::chars().build(TEXT).unwrap();
    let special = tokenizer.special_tokens();
    let card = ModelCard {
        special: ModelTokens::trained(special.eos, special.pad),
        unused_ids: model.config.vocab_size - tokenizer.vocab_size(),
        ..model.card
    };
    let json = tokenizer.to_json().unwrap();
    ModelDir::write_small_files(folder, &model.config, &json, &card).unwrap();
    ModelDir::open(folder).unwrap()
}

pub(crate) fn random_model(dir: &TestDir, config: &ModelConfig) -> ModelDir {
    let path = dir.path("random");
    let config = ModelConfig {
        vocab_size: 40,
        ..config.clone()
    };
    let model = config.init(&flex(), 3).unwrap();
    ModelDir::save(&path, &model, "", &ModelCard::default()).unwrap();
    characters(&path)
}

pub(crate) fn logits(model: &ModelDir) -> Vec<f32> {
    logits_of(&model.load(&flex()).unwrap())
}

pub(crate) fn logits_of(model: &Transformer) -> Vec<f32> {
    let ids = Tensor::<2, Int>::from_ints(
        [[5, 9, 1, 7, 7, 3, 0, 12], [1, 2, 3, 4, 5, 6, 7, 8]],
        &model.device(),
    );
    to_f32_vec(
        model
            .forward(ids, &mut ForwardContext::inference())
            .into_data(),
    )
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn error(path: &Path) -> String {
    open_gguf(path).unwrap_err().to_string()
}

#[test]
fn exported_models_are_read_back() {
    let dir = TestDir::new();
    let mut inexpressible = BTreeSet::new();
    for entry in fs::read_dir(fixtures()).unwrap() {
        let from = entry.unwrap().path();
        let label = from.file_name().unwrap().to_str().unwrap().to_string();
        let (folder, file) = (dir.path(&label), dir.path(&format!("{label}.gguf")));
        import(&from, &folder).unwrap();
        let model = characters(&folder);
        if let Err(error) = export_gguf(&model, GgufType::F32, &file) {
            assert!(error.to_string().contains("llama.cpp"), "{error}");
            inexpressible.insert(label);
            continue;
        }
        let opened = open_gguf(&file).unwrap();
        let (ours, theirs) = (
            model.open_weights().unwrap(),
            opened.open_weights().unwrap(),
        );
        for (name, shape) in weights::layout(&model.config) {
            assert_eq!(
                theirs.shape(&name),
                Some(shape.as_slice()),
                "{label} {name}"
            );
            let (ours, theirs) = (ours.values(&name).unwrap(), theirs.values(&name).unwrap());
            if model.config.norm_unit_offset && name.contains("norm") {
                // The file has 1 + weight, rounded.
                let is_close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6;
                assert!(ours.iter().zip(&theirs).all(is_close), "{label} {name}");
            } else {
                assert_eq!(bits(&ours), bits(&theirs), "{label} {name}");
            }
        }
        assert_eq!(opened.config.tied_head, model.config.tied_head, "{label}");
        let (ours, theirs) = (logits(&model), logits(&opened));
        if model.config.norm_unit_offset {
            let is_close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 + 1e-5 * b.abs();
            assert!(ours.iter().zip(&theirs).all(is_close), "{label}");
        } else {
            assert_eq!(bits(&ours), bits(&theirs), "{label}");
        }
        assert_eq!(
            opened.card.special.eos_ids, model.card.special.eos_ids,
            "{label}"
        );
        assert_eq!(opened.card.unused_ids, model.card.unused_ids, "{label}");
        // As a folder: the same weights.
        let imported = dir.path(&format!("{label}-imported"));
        import(&file, &imported).unwrap();
        let folder = ModelDir::open(&imported).unwrap();
        assert_eq!(
            (&folder.config, &folder.card),
            (&opened.config, &opened.card)
        );
        assert_eq!(bits(&logits(&folder)), bits(&theirs), "{label}");
    }
    // llama.cpp has no windows and no other score scale in these architectures, and writes YaRN differently.
    let expected = [
        "gemma2",
        "gemma3_text",
        "gemma3_text_yarn",
        "gpt_neox_yarn",
        "mistral",
    ]
    .map(String::from);
    assert!(
        inexpressible.is_subset(&expected.into()),
        "{inexpressible:?}"
    );
}

#[test]
fn quantized_files_have_the_values_of_their_blocks() {
    let dir = TestDir::new();
    let config = ModelConfig {
        n_layers: 2,
        n_heads: 2,
        n_kv_heads: Some(1),
        d_model: 64,
        d_ff: Some(96),
        context_length: 16,
        ..nextword_model::presets::llama_like(40)
    };
    let model = random_model(&dir, &config);
    let exact = logits(&model);
    let spread = exact
        .iter()
        .fold(0.0_f32, |max, value| max.max(value.abs()));
    for (dtype, tolerance) in [
        (GgufType::F16, 0.01),
        (GgufType::Bf16, 0.05),
        (GgufType::Q8_0, 0.05),
        (GgufType::Q4_0, 1.0),
    ] {
        let path = dir.path("model.gguf");
        export_gguf_with_embedding(&model, dtype, dtype, &path).unwrap();
        let opened = open_gguf(&path).unwrap();
        let found = logits(&opened);
        let is_close = |(a, b): (&f32, &f32)| (a - b).abs() <= tolerance * spread;
        assert!(exact.iter().zip(&found).all(is_close), "{dtype:?}");
        assert_ne!(bits(&exact), bits(&found), "{dtype:?}");
        // What was read goes out again: quantizing the values of blocks gives the same blocks.
        let again = dir.path("again.gguf");
        export_gguf_with_embedding(&opened, dtype, dtype, &again).unwrap();
        let [first, second] = [&path, &again].map(|path| RawFile::read(path).tensors);
        assert_eq!(first.len(), second.len());
        for (a, b) in first.iter().zip(&second) {
            assert!(
                (&a.name, a.kind) == (&b.name, b.kind) && a.bytes == b.bytes,
                "{dtype:?} {}",
                a.name
            );
        }
    }
}

#[test]
fn frequency_factors_give_the_scaling_of_llama_3() {
    let dir = TestDir::new();
    for (factor, low, high, original, head_dim) in [
        (8.0, 1.0, 4.0, 8192, 64),  // Llama 3.1
        (32.0, 1.0, 4.0, 8192, 64), // Llama 3.2
        (8.0, 1.0, 4.0, 4096, 128),
        (4.0, 1.0, 8.0, 2048, 64),
        (16.0, 2.0, 6.0, 16_384, 128),
    ] {
        let scaling = RotaryScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_context_length: original,
        };
        let rotary = RotaryConfig {
            base: 500_000.0,
            scaling,
            ..RotaryConfig::default()
        };
        let config = ModelConfig {
            n_layers: 1,
            n_heads: 1,
            n_kv_heads: None,
            d_model: 32,
            head_dim: Some(head_dim),
            context_length: 16,
            rotary,
            ..nextword_model::presets::llama_like(40)
        };
        let model = random_model(&dir, &config);
        let path = dir.path("model.gguf");
        export_gguf(&model, GgufType::F32, &path).unwrap();
        let opened = open_gguf(&path).unwrap();
        let [ours, theirs] =
            [&model, &opened].map(|model| model.config.rotary.frequencies(head_dim));
        for (a, b) in ours.iter().zip(&theirs) {
            assert!(
                (a - b).abs() <= 1e-5 * a,
                "{scaling:?} {:?}",
                opened.config.rotary
            );
        }
        if low <= 1.0 {
            assert_eq!(opened.config.rotary, rotary);
        }
        let mut file = RawFile::read(&path);
        file.tensor("rope_freqs.weight").bytes[5] ^= 64;
        file.write(&path);
        assert!(
            error(&path).contains("`rope_freqs.weight` scales"),
            "{}",
            error(&path)
        );
    }
}

#[test]
fn keys_of_rope_scaling_are_read() {
    let dir = TestDir::new();
    let from = dir.path("yarn");
    import(&fixtures().join("gpt_neox_yarn"), &from).unwrap();
    let mut model = characters(&from);
    let (factor, original_context_length) = (4.0_f64, 12);
    // With the defaults, which no key needs to say, and all elements rotated.
    model.config.rotary.width = None;
    model.config.rotary.scaling = RotaryScaling::Yarn {
        factor,
        original_context_length,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: 0.1 * factor.ln() + 1.0,
        truncate: true,
    };
    let plain = ModelConfig {
        rotary: RotaryConfig {
            scaling: RotaryScaling::None,
            ..model.config.rotary
        },
        ..model.config.clone()
    };
    let json = fs::read_to_string(model.tokenizer_path()).unwrap();
    ModelDir::write_small_files(&from, &plain, &json, &model.card).unwrap();
    let path = dir.path("yarn.gguf");
    export_gguf(&ModelDir::open(&from).unwrap(), GgufType::F32, &path).unwrap();
    let mut file = RawFile::read(&path);
    let key = |name: &str| format!("gptneox.rope.scaling.{name}");
    file.set(&key("type"), text_value("yarn"));
    file.set(&key("factor"), f32_value(factor as f32));
    file.set(
        &key("original_context_length"),
        u32_value(original_context_length as u32),
    );
    file.set(&key("finetuned"), bool_value(true));
    let yarn = file.clone();
    file.write(&path);
    let opened = open_gguf(&path).unwrap();
    assert_eq!(opened.config.rotary, model.config.rotary);
    let [ours, theirs] = [&model, &opened].map(logits);
    assert_eq!(bits(&ours), bits(&theirs));

    file.set(&key("type"), text_value("linear"));
    file.write(&path);
    let scaling = open_gguf(&path).unwrap().config.rotary.scaling;
    assert_eq!(scaling, RotaryScaling::Linear { factor });
    for (name, value, expected) in [
        (
            "type",
            text_value("longrope"),
            "the rotary scaling `longrope`",
        ),
        ("attn_factor", f32_value(1.5), "the rotary scaling `yarn`"),
        ("yarn_ext_factor", f32_value(0.5), "yarn_ext_factor"),
        (
            "yarn_log_multiplier",
            f32_value(0.1),
            "gptneox.rope.scaling.yarn_log_multiplier",
        ),
    ] {
        let mut file = yarn.clone();
        file.set(&key(name), value);
        file.write(&path);
        assert!(error(&path).contains(expected), "{}", error(&path));
    }
}

/// A file of a small Llama.
fn llama_file(dir: &TestDir) -> RawFile {
    let config = ModelConfig {
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: Some(2),
        d_model: 32,
        context_length: 16,
        tied_head: true,
        ..nextword_model::presets::llama_like(40)
    };
    let path = dir.path("model.gguf");
    export_gguf(&random_model(dir, &config), GgufType::F32, &path).unwrap();
    RawFile::read(&path)
}

#[test]
#[allow(clippy::too_many_lines)] // A table of cases, or one path.
fn unsupported_keys_and_tensors_are_named() {
    let dir = TestDir::new();
    let valid = llama_file(&dir);
    let path = dir.path("changed.gguf");
    for (key, value, expected) in [
        (
            "general.architecture",
            text_value("mamba"),
            "the architecture `mamba`, but nextword supports only gpt2, llama",
        ),
        ("general.type", text_value("adapter"), "the type `adapter`"),
        ("split.count", u32_value(3), "one of 3 parts"),
        (
            "llama.expert_count",
            u32_value(8),
            "a mixture of experts (`llama.expert_count` is 8)",
        ),
        (
            "llama.attention.scale",
            f32_value(0.5),
            "`llama.attention.scale` (0.5)",
        ),
        ("llama.logit_scale", f32_value(2.0), "llama.logit_scale"),
        (
            "llama.attention.sliding_window",
            u32_value(5),
            "llama.attention.sliding_window` is 5",
        ),
        (
            "llama.rope.dimension_count",
            u32_value(4),
            "`llama.rope.dimension_count` is 4, but nextword supports only 8",
        ),
        (
            "llama.attention.value_length",
            u32_value(4),
            "llama.attention.value_length",
        ),
        (
            "llama.block_count",
            text_value("two"),
            "`llama.block_count` is \"two\", but must be a whole number",
        ),
        (
            "llama.block_count",
            u32_value(3),
            "missing: `blk.2.attn_norm.weight`",
        ),
        (
            "llama.block_count",
            u32_value(1),
            "unused: `blk.1.attn_k.weight`",
        ),
        ("llama.block_count", u32_value(u32::MAX), "n_layers"),
        (
            "llama.feed_forward_length",
            u32_value(7),
            "`blk.0.ffn_gate.weight` has shape",
        ),
        ("llama.attention.head_count", u32_value(0), "n_heads"),
        (
            "llama.attention.layer_norm_rms_epsilon",
            f32_value(f32::NAN),
            "must be a finite number",
        ),
        (
            "tokenizer.ggml.model",
            text_value("t5"),
            "is of the kind \"t5\"",
        ),
        ("general.alignment", u32_value(24), "not a power of two"),
    ] {
        let mut file = valid.clone();
        file.set(key, value);
        file.write(&path);
        assert!(error(&path).contains(expected), "{key}: {}", error(&path));
    }
    for key in [
        "llama.context_length",
        "llama.attention.head_count",
        "tokenizer.ggml.tokens",
    ] {
        let mut file = valid.clone();
        file.remove(key);
        file.write(&path);
        assert!(error(&path).contains(key), "{}", error(&path));
    }
    // Neutral and unrelated entries.
    let mut file = valid.clone();
    for (key, value) in [
        ("llama.expert_count", u32_value(0)),
        ("llama.attention.sliding_window", u32_value(16)),
        ("llama.rope.scaling.type", text_value("none")),
        ("quantize.imatrix.file", text_value("x")),
        ("general.license", text_value("mit")),
        ("other.block_count", u32_value(7)),
    ] {
        file.set(key, value);
    }
    file.write(&path);
    open_gguf(&path).unwrap();
    for (kind, expected) in [(16, "the type IQ2_XXS"), (99, "the unknown type 99")] {
        let mut file = valid.clone();
        file.tensor("blk.0.ffn_up.weight").kind = kind;
        file.write(&path);
        assert!(error(&path).contains(expected), "{}", error(&path));
    }
    let mut file = valid.clone();
    let extra = RawTensor {
        name: "blk.0.ffn_gate_inp.weight".into(),
        ..file.tensors[0].clone()
    };
    file.tensors.push(extra);
    file.write(&path);
    assert!(
        error(&path).contains("unused: `blk.0.ffn_gate_inp.weight`"),
        "{}",
        error(&path)
    );
}

#[test]
fn an_output_layer_that_equals_the_embedding_is_tied() {
    let dir = TestDir::new();
    let valid = llama_file(&dir);
    let path = dir.path("changed.gguf");
    let mut file = valid.clone();
    let table = file.tensor("token_embd.weight").clone();
    file.tensors.push(RawTensor {
        name: "output.weight".into(),
        ..table
    });
    file.write(&path);
    assert!(open_gguf(&path).unwrap().config.tied_head);
    let head = file.tensor("output.weight");
    head.bytes[7] ^= 1;
    file.write(&path);
    let opened = open_gguf(&path).unwrap();
    assert!(!opened.config.tied_head);
    assert_eq!(
        opened.open_weights().unwrap().shape("head.weight"),
        Some([32, 40].as_slice())
    );
}

#[test]
fn versions_alignments_and_orders_of_a_file_do_not_matter() {
    let dir = TestDir::new();
    let valid = llama_file(&dir);
    let path = dir.path("changed.gguf");
    valid.write(&path);
    let expected = logits(&open_gguf(&path).unwrap());
    let mut variants = vec![valid.clone(); 5];
    variants[0].version = 2;
    for (variant, alignment) in [(1, 8), (2, 256)] {
        variants[variant].alignment = alignment;
        variants[variant].set("general.alignment", u32_value(alignment as u32));
    }
    variants[3].tensors.reverse();
    variants[3].entries.reverse();
    for tensor in &mut variants[4].tensors {
        tensor.sizes.resize(4, 1); // As older programs write all axes.
    }
    for (number, variant) in variants.into_iter().enumerate() {
        variant.write(&path);
        let opened = open_gguf(&path);
        let opened = opened.unwrap_or_else(|error| panic!("{number}: {error}"));
        assert_eq!(bits(&logits(&opened)), bits(&expected), "{number}");
    }
    for (version, expected) in [
        (1_u32, "version 1 of GGUF"),
        (4, "version 4 of GGUF"),
        (3_u32.swap_bytes(), "a big-endian GGUF file"),
    ] {
        let mut file = valid.clone();
        file.version = version;
        file.write(&path);
        assert!(error(&path).contains(expected), "{}", error(&path));
    }
}
