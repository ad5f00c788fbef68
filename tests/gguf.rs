//! GGUF files, read back by an independent reader. `scripts/compare_llama_cpp.py` runs llama.cpp.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use nextword_convert::{GgufType, export_gguf, export_gguf_with_embedding};
use nextword_data::{TokenizerConfig, TokenizerKind, build_tokenizer};
use nextword_model::{ModelCard, ModelConfig, ModelDir, presets, weights};

use crate::util::flex;

/// The contents of a file: metadata as text; tensors with their sizes (fastest axis first), type and
/// bytes.
#[derive(Default)]
pub(crate) struct GgufFile {
    pub(crate) meta: BTreeMap<String, String>,
    pub(crate) tensors: BTreeMap<String, (Vec<u64>, u32, Vec<u8>)>,
}

struct Reader<'a>(&'a [u8], usize);

impl Reader<'_> {
    fn take(&mut self, n: usize) -> &[u8] {
        self.1 += n;
        &self.0[self.1 - n..self.1]
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    fn text(&mut self) -> String {
        let len = self.u64() as usize;
        String::from_utf8(self.take(len).to_vec()).unwrap()
    }

    fn value(&mut self, kind: u32) -> String {
        match kind {
            4 | 5 => self.u32().cast_signed().to_string(),
            6 => f32::from_bits(self.u32()).to_string(),
            7 => (self.take(1)[0] == 1).to_string(),
            8 => self.text(),
            9 => {
                let (kind, len) = (self.u32(), self.u64());
                let list: Vec<String> = (0..len).map(|_| self.value(kind)).collect();
                list.join("|")
            }
            other => panic!("type {other}"),
        }
    }
}

pub(crate) fn read(path: &Path) -> GgufFile {
    let bytes = fs::read(path).unwrap();
    let mut reader = Reader(&bytes, 0);
    assert_eq!(reader.take(4), b"GGUF");
    assert_eq!(reader.u32(), 3);
    let (tensor_count, value_count) = (reader.u64(), reader.u64());
    let mut file = GgufFile::default();
    for _ in 0..value_count {
        let key = reader.text();
        let kind = reader.u32();
        let value = reader.value(kind);
        assert!(
            file.meta.insert(key.clone(), value).is_none(),
            "{key} twice"
        );
    }
    let mut table = Vec::new();
    for _ in 0..tensor_count {
        let name = reader.text();
        let axes = reader.u32();
        let sizes: Vec<u64> = (0..axes).map(|_| reader.u64()).collect();
        table.push((name, sizes, reader.u32(), reader.u64() as usize));
    }
    let data_start = reader.1.next_multiple_of(32);
    for (name, sizes, kind, offset) in table {
        let n = sizes.iter().product::<u64>() as usize;
        let len = match kind {
            0 => 4 * n,
            1 => 2 * n,
            2 => n / 32 * 18,
            3 => n / 32 * 20,
            8 => n / 32 * 34,
            other => panic!("tensor type {other}"),
        };
        assert!(offset.is_multiple_of(32));
        let data = bytes[data_start + offset..data_start + offset + len].to_vec();
        file.tensors.insert(name, (sizes, kind, data));
    }
    file
}

fn model_dir(dir: &Path, kind: TokenizerKind, preset: fn(usize) -> ModelConfig) -> ModelDir {
    let config = TokenizerConfig {
        kind,
        vocab_size: (kind == TokenizerKind::Bpe).then_some(300),
        ..TokenizerConfig::default()
    };
    model_dir_with(dir, &config, preset)
}

fn model_dir_with(
    dir: &Path,
    config: &TokenizerConfig,
    preset: fn(usize) -> ModelConfig,
) -> ModelDir {
    let text = "a few words, and then a few words more".to_string();
    let tokenizer = build_tokenizer(config, std::iter::once(Ok(text))).unwrap();
    let config = ModelConfig {
        context_length: 16,
        n_layers: 1,
        n_heads: 2,
        n_kv_heads: None,
        d_model: 32,
        ..preset(tokenizer.vocab_size())
    };
    let model = config.init(&flex(), 5).unwrap();
    let path = dir.join("model");
    ModelDir::save(
        &path,
        &model,
        &tokenizer.to_json().unwrap(),
        &ModelCard::default(),
    )
    .unwrap();
    ModelDir::open(&path).unwrap()
}

fn to_f32_vec(bytes: &[u8]) -> Vec<f32> {
    bytes
        .as_chunks()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect()
}

#[test]
fn gguf_has_the_weights_and_the_vocabulary() {
    let dir = tempfile::tempdir().unwrap();
    let model_dir = model_dir(dir.path(), TokenizerKind::Bpe, presets::llama_like);
    let path = dir.path().join("model.gguf");
    assert_eq!(
        export_gguf(&model_dir, GgufType::F32, &path).unwrap(),
        "llama"
    );
    let (gguf, ours) = (
        read(&path),
        weights::load_tensors(&model_dir.weights_path()).unwrap(),
    );
    assert_eq!(gguf.tensors.len(), ours.len());
    assert_eq!(gguf.meta["llama.attention.head_count"], "2");
    assert_eq!(gguf.meta["llama.rope.freq_base"], "10000");
    assert_eq!(gguf.meta["tokenizer.ggml.model"], "gpt2");
    let tokenizer = nextword_data::load_tokenizer(model_dir.tokenizer_path()).unwrap();
    let size = tokenizer.vocab_size();
    let tokens = &gguf.meta["tokenizer.ggml.tokens"];
    assert_eq!(tokens.split('|').count(), size + 1, "one token contains |");
    let eos = tokenizer.special_tokens().eos.unwrap().to_string();
    assert_eq!(gguf.meta["tokenizer.ggml.eos_token_id"], eos);

    let (sizes, _, data) = &gguf.tensors["token_embd.weight"];
    assert_eq!(sizes, &[32, size as u64]);
    assert_eq!(to_f32_vec(data), ours["token_embedding.weight"].1);
    // RoPE pairs row 1 of a head with row 0 there, and with row 8 of 16 here.
    let (_, _, data) = &gguf.tensors["blk.0.attn_q.weight"];
    let query = &ours["blocks.0.attention.query.weight"].1; // [32 in, 32 out]
    let (row, column) = (1, 8);
    let theirs = to_f32_vec(data);
    assert!((0..32).all(|i| theirs[row * 32 + i].to_bits() == query[i * 32 + column].to_bits()));
    let (_, _, data) = &gguf.tensors["blk.0.ffn_down.weight"];
    let down = &ours["blocks.0.feed_forward.down.weight"];
    let d_ff = down.0[0];
    assert_eq!(
        to_f32_vec(data)[d_ff + 3].to_bits(),
        down.1[3 * 32 + 1].to_bits()
    );
}

/// `SentencePiece` merges any two neighbours that form a token. A tokenizer with fewer merges behaves
/// differently.
#[test]
fn gguf_needs_every_merge_of_a_token() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let model_dir = |merges: &[&str]| {
        let vocab = ["</s>", "▁", "a", "b", "c", "ab", "bc", "abc"].map(String::from);
        let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
        let vocab: BTreeMap<_, _> = vocab.into_iter().chain(bytes).zip(0..).collect();
        let file = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [{"id": 0,
                "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true}],
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix":
                null, "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true,
                "ignore_merges": false, "vocab": vocab, "merges": merges},
        });
        let config = ModelConfig {
            n_layers: 1,
            ..presets::llama_like(8 + 256)
        };
        let model = config.init(&flex(), 5).unwrap();
        let path = dir.path().join("model");
        ModelDir::save(&path, &model, &file.to_string(), &ModelCard::default()).unwrap();
        ModelDir::open(&path).unwrap()
    };
    let complete = model_dir(&["a b", "b c", "a bc", "ab c"]);
    export_gguf(&complete, GgufType::F32, &path).unwrap();
    let scores = &read(&path).meta["tokenizer.ggml.scores"];
    assert!(scores.starts_with("0|0|0|0|0|-0|-1|-2|0|"), "{scores}");
    let incomplete = model_dir(&["a b", "b c", "ab c"]);
    let error = export_gguf(&incomplete, GgufType::F32, &path).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("merge \"a\" and \"bc\" into \"abc\""),
        "{error}"
    );
}

#[test]
fn a_model_without_an_eos_token_does_not_stop_at_a_regular_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let without_eos = |pad: &str| {
        let config = TokenizerConfig {
            eos: String::new(),
            unk: String::new(),
            pad: pad.to_string(),
            ..TokenizerConfig::default()
        };
        model_dir_with(dir.path(), &config, |vocab_size| ModelConfig {
            vocab_size,
            ..ModelConfig::default()
        })
    };
    let padded = without_eos("<pad>");
    export_gguf(&padded, GgufType::F32, &path).unwrap();
    let gguf = read(&path);
    let pad = &gguf.meta["tokenizer.ggml.padding_token_id"];
    assert_eq!(&gguf.meta["tokenizer.ggml.eos_token_id"], pad);
    // Without any token to spare: a vocabulary that needs none.
    export_gguf(&without_eos(""), GgufType::F32, &path).unwrap();
    let gguf = read(&path);
    assert_eq!(gguf.meta["tokenizer.ggml.model"], "rwkv");
    for role in ["eos", "bos", "eot"] {
        let key = format!("tokenizer.ggml.{role}_token_id");
        assert!(!gguf.meta.contains_key(&key), "{key}");
    }
}

/// As in files that llama.cpp itself quantizes, the type of the blocks names the file's type, and the
/// embedding and the output layer have more bits.
#[test]
fn q4_0_leaves_embedding_and_output_layer_at_8_bits() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let kinds = |path: &Path| -> BTreeMap<String, u32> {
        let tensors = read(path).tensors.into_iter();
        tensors.map(|(name, (_, kind, _))| (name, kind)).collect()
    };
    let tied = |vocab_size| ModelConfig {
        vocab_size,
        ..ModelConfig::default()
    };
    for (preset, has_head) in [
        (tied as fn(usize) -> ModelConfig, false),
        (presets::llama_like, true),
    ] {
        let model_dir = model_dir(dir.path(), TokenizerKind::Byte, preset);
        let model_dir = if has_head && model_dir.config.tied_head {
            let config = ModelConfig {
                tied_head: false,
                ..model_dir.config.clone()
            };
            let tokenizer = fs::read_to_string(model_dir.tokenizer_path()).unwrap();
            let model = config.init(&flex(), 5).unwrap();
            let path = dir.path().join("untied");
            ModelDir::save(&path, &model, &tokenizer, &ModelCard::default()).unwrap();
            ModelDir::open(&path).unwrap()
        } else {
            model_dir
        };
        export_gguf(&model_dir, GgufType::Q4_0, &path).unwrap();
        let gguf = read(&path);
        assert_eq!(gguf.meta["general.file_type"], "2");
        assert_eq!(gguf.meta["general.quantization_version"], "2");
        let mixed = kinds(&path);
        assert_eq!(mixed["token_embd.weight"], 8);
        assert_eq!(mixed.get("output.weight"), has_head.then_some(&8));
        assert_eq!(mixed["blk.0.ffn_up.weight"], 2);
        export_gguf_with_embedding(&model_dir, GgufType::Q4_0, GgufType::Q4_0, &path).unwrap();
        let all = kinds(&path);
        assert_eq!(all["token_embd.weight"], 2);
        assert_eq!(all.get("output.weight"), has_head.then_some(&2));
        assert_eq!(all["blk.0.ffn_up.weight"], 2);
    }
}

#[test]
fn values_beyond_a_gguf_type_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let model_dir = model_dir(dir.path(), TokenizerKind::Byte, presets::llama_like);
    let mut tensors = weights::load_tensors(&model_dir.weights_path()).unwrap();
    for (value, kind, limit) in [
        (1e6, GgufType::F16, "the maximum of f16 is 65504"),
        (1e6, GgufType::Q4_0, "the maximum of q4_0 is 524032"),
        (1e7, GgufType::Q8_0, "the maximum of q8_0 is 8319008"),
    ] {
        tensors
            .get_mut("blocks.0.feed_forward.up.weight")
            .unwrap()
            .1[5] = value;
        weights::save_tensors(&tensors, &model_dir.weights_path()).unwrap();
        let error = export_gguf(&model_dir, kind, &path)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`blk.0.ffn_up.weight` contains 1000000"),
            "{error}"
        );
        assert!(error.contains(limit), "{error}");
        assert!(!path.exists());
    }
    export_gguf(&model_dir, GgufType::Bf16, &path).unwrap();
}

#[test]
fn gguf_supports_characters_and_bytes_but_not_words() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let gpt2 = |vocab_size| ModelConfig {
        vocab_size,
        ..ModelConfig::default()
    };
    let chars = model_dir(dir.path(), TokenizerKind::Char, gpt2);
    assert_eq!(export_gguf(&chars, GgufType::Q8_0, &path).unwrap(), "gpt2");
    let gguf = read(&path);
    assert_eq!(gguf.meta["tokenizer.ggml.model"], "gpt2");
    assert!(gguf.meta["tokenizer.ggml.tokens"].starts_with("Ġ|,|a|d"));
    let types: Vec<(&str, u32)> = gguf
        .tensors
        .iter()
        .map(|(name, (_, kind, _))| (name.as_str(), *kind))
        .collect();
    assert!(types.contains(&("blk.0.attn_qkv.weight", 8)), "{types:?}");
    assert!(types.contains(&("blk.0.attn_qkv.bias", 0)), "{types:?}");
    assert!(types.contains(&("position_embd.weight", 0)), "{types:?}");

    let bytes = model_dir(dir.path(), TokenizerKind::Byte, gpt2);
    export_gguf(&bytes, GgufType::Q4_0, &path).unwrap();
    assert_eq!(read(&path).meta["tokenizer.ggml.model"], "gpt2");

    let words = model_dir(dir.path(), TokenizerKind::Word, gpt2);
    let error = export_gguf(&words, GgufType::F32, &path).unwrap_err();
    assert!(
        error.to_string().contains("a token for each word"),
        "{error}"
    );
}
