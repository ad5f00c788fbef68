//! Tokenizers and special tokens in files for llama.cpp.

use nextword_convert::{GgufType, export_gguf, gguf_differences};
use nextword_model::{ModelCard, ModelDir, ModelTokens, TokenSource};
use serde_json::{Value, json};

use crate::gguf;
use crate::test_dir::TestDir;

/// A tokenizer of bytes with these added tokens and merges.
pub(crate) fn byte_tokenizer(added: &[(&str, Value)], merges: &[&str], model: &Value) -> Value {
    let mut vocab: serde_json::Map<String, Value> = (0..=u8::MAX)
        .map(|byte| (nextword_data::byte_to_char(byte).to_string(), json!(byte)))
        .collect();
    for merge in merges {
        let id = vocab.len();
        vocab.insert(merge.replace(' ', ""), json!(id));
    }
    for word in model["words"].as_array().into_iter().flatten() {
        let id = vocab.len();
        vocab.insert(word.as_str().unwrap().to_string(), json!(id)); // no merges lead to it
    }
    let first = vocab.len();
    let added = added.iter().enumerate().map(|(index, (name, flags))| {
        let mut token = json!({"id": first + index, "content": name, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true});
        for (key, value) in flags.as_object().unwrap() {
            token[key] = value.clone();
        }
        token
    });
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let mut file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null, "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges},
    });
    for (key, value) in model.as_object().unwrap() {
        if key == "pattern" {
            file["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": value}, "behavior": "Isolated", "invert": false},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]});
        } else if key != "words" {
            file["model"][key] = value.clone();
        }
    }
    file
}

/// A model with the tokenizer `file`.
pub(crate) fn model_with(dir: &TestDir, file: &Value, special: ModelTokens) -> ModelDir {
    let tokenizer = nextword_data::parse_tokenizer(&file.to_string(), "test").unwrap();
    let config = nextword_model::ModelConfig {
        n_layers: 1,
        n_heads: 2,
        n_kv_heads: None,
        d_model: 32,
        context_length: 32,
        ..nextword_model::presets::llama_like(tokenizer.vocab_size())
    };
    let model = config.init(&crate::util::flex(), 5).unwrap();
    let card = ModelCard {
        special,
        ..ModelCard::default()
    };
    let path = dir.path("model");
    ModelDir::save(&path, &model, &file.to_string(), &card).unwrap();
    ModelDir::open(&path).unwrap()
}

pub(crate) fn declared(eos_ids: &[u32]) -> ModelTokens {
    ModelTokens {
        eos_ids: eos_ids.to_vec(),
        document_eos_id: eos_ids.first().copied(),
        prefix_ids: Some(Vec::new()),
        source: Some(TokenSource::Declared),
        ..ModelTokens::default()
    }
}

#[test]
fn a_gguf_file_names_the_declared_eos_tokens() {
    let dir = TestDir::new();
    let plain = json!({});
    let names = ["<z>", "<|turn_end|>", "<|end|>", "<a>", "<b>", "<c>"];
    let added = names.map(|name| (name, plain.clone()));
    let file = byte_tokenizer(&added, &[], &plain);
    let path = dir.path("model.gguf");
    for (eos, expected) in [
        (&[257][..], "257||"),
        (&[257, 256], "257|256|"),
        // llama.cpp knows `<|end|>` (258) by its name.
        (&[257, 258, 256], "257|256|258"),
        (&[259, 258, 256, 257], "259|256|257"),
        // Without one: a byte that text does not contain.
        (&[], "255||"),
    ] {
        let model = model_with(&dir, &file, declared(eos));
        export_gguf(&model, GgufType::F32, &path).unwrap();
        let meta = gguf::read(&path).meta;
        let id = |role: &str| {
            let id = meta.get(&format!("tokenizer.ggml.{role}_token_id"));
            id.cloned().unwrap_or_default()
        };
        assert_eq!(["eos", "eot", "eom"].map(id).join("|"), expected, "{eos:?}");
    }
    let model = model_with(&dir, &file, declared(&[257, 259, 260, 261]));
    let error = export_gguf(&model, GgufType::F32, &path)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("4 EOS tokens") && error.contains("\"<c>\""),
        "{error}"
    );
    let model = model_with(&dir, &file, declared(&[257]));
    let notes = gguf_differences(&model).unwrap();
    assert!(
        notes[0].contains("<|end|>") && notes.len() == 1,
        "{notes:?}"
    );
}

#[test]
fn rules_that_a_gguf_file_cannot_say_are_named() {
    const LLAMA: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    const QWEN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let dir = TestDir::new();
    let plain = json!({});
    let path = dir.path("model.gguf");
    let export = |added: &[(&str, Value)], model: &Value| {
        let file = byte_tokenizer(added, &["t h", "th e"], model);
        let model = model_with(&dir, &file, declared(&[259]));
        export_gguf(&model, GgufType::F32, &path).map_err(|error| error.to_string())?;
        Ok::<_, String>(gguf::read(&path).meta["tokenizer.ggml.pre"].clone())
    };
    let end = [("</s>", plain.clone())];
    for (ignores, pattern, expected) in [
        (false, LLAMA, Ok("dbrx")),
        (true, LLAMA, Ok("llama-bpe")),
        (false, QWEN, Ok("qwen2")),
        (true, QWEN, Err("\"xyz\"")),
    ] {
        let found = export(
            &end,
            &json!({"ignore_merges": ignores, "pattern": pattern, "words": ["xyz"]}),
        );
        match expected {
            Ok(name) => assert_eq!(found.as_deref(), Ok(name)),
            Err(part) => {
                let error = found.unwrap_err();
                assert!(
                    error.contains(part) && error.contains("ignore_merges"),
                    "{error}"
                );
            }
        }
    }
    for flag in ["lstrip", "rstrip", "single_word"] {
        let tokens = [("</s>", plain.clone()), ("<x>", json!({flag: true}))];
        let error = export(&tokens, &plain).unwrap_err();
        assert!(error.contains("\"<x>\"") && error.contains(flag), "{error}");
        let is_word = flag == "single_word";
        assert_ne!(error.contains("white space"), is_word, "{error}");
    }
}

#[test]
fn normalizers_that_a_gguf_file_cannot_express_are_named() {
    let dir = TestDir::new();
    let named = |normalizer: &Value| {
        let mut file = byte_tokenizer(&[("</s>", json!({}))], &[], &json!({}));
        file["normalizer"] = normalizer.clone();
        let model = model_with(&dir, &file, declared(&[256]));
        gguf_differences(&model).map_err(|error| error.to_string())
    };
    let list = |steps: &[Value]| json!({"type": "Sequence", "normalizers": steps});
    let [nfc, nfkc, lowercase] = ["NFC", "NFKC", "Lowercase"].map(|kind| json!({"type": kind}));
    for (normalizer, expected) in [
        (Value::Null, &[][..]),
        (list(&[]), &[]),
        (nfc.clone(), &["NFC"]),
        (list(&[nfc.clone(), nfkc]), &["NFC", "NFKC"]),
    ] {
        let notes = named(&normalizer).unwrap();
        assert_eq!(notes.len(), expected.len(), "{notes:?}");
        for (note, name) in notes.iter().zip(expected) {
            let part = format!("does not apply the normalizer {name} ");
            assert!(
                note.contains(&part) && note.contains("other tokens"),
                "{note}"
            );
        }
    }
    let error = named(&list(&[nfc, lowercase])).unwrap_err();
    assert!(error.contains("its normalizer \"Lowercase\""), "{error}");
}

#[test]
#[allow(clippy::too_many_lines)] // A table of cases, or one path.
fn differences_in_spaces_are_named() {
    let dir = TestDir::new();
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let tokens = ["</s>", "▁", "a", "b", "ab", "▁a"].map(String::from);
    let file = |pre_tokenizer: &Value, normalizer: &Value, drop: &str| {
        let vocab = tokens.iter().cloned().chain(bytes.clone());
        let vocab = vocab.map(|token| {
            if token == drop {
                "zz".to_string()
            } else {
                token
            }
        });
        let vocab: serde_json::Map<String, Value> = vocab
            .zip(0..)
            .map(|(token, id)| (token, json!(id)))
            .collect();
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [{"id": 0, "content": "</s>",
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": null,
            "decoder": {"type": "Fuse"},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true, "ignore_merges": false,
                "vocab": vocab, "merges": ["a b", "▁ a"]},
        })
    };
    let metaspace = |scheme: &str, split: bool| {
        json!({"type": "Metaspace", "replacement": "▁",
        "prepend_scheme": scheme, "split": split})
    };
    let prepend = json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]});
    let mut composed = prepend.clone();
    composed["normalizers"][0] = json!({"type": "NFKC"});
    let none = Value::Null;
    for (pre_tokenizer, normalizer, adds, note) in [
        (&none, &prepend, "true", None),
        (&none, &composed, "false", Some("normalizer NFKC")),
        (&metaspace("never", false), &none, "false", None),
        (
            &metaspace("always", false),
            &none,
            "true",
            Some("begins with one"),
        ),
        (
            &metaspace("first", false),
            &none,
            "true",
            Some("follows a special token"),
        ),
    ] {
        let model = model_with(&dir, &file(pre_tokenizer, normalizer, ""), declared(&[0]));
        let path = dir.path("model.gguf");
        export_gguf(&model, GgufType::F32, &path).unwrap();
        assert_eq!(
            gguf::read(&path).meta["tokenizer.ggml.add_space_prefix"],
            adds
        );
        let notes = gguf_differences(&model).unwrap();
        assert_eq!(notes.len(), usize::from(note.is_some()), "{notes:?}");
        assert!(note.is_none_or(|part| notes[0].contains(part)), "{notes:?}");
    }
    let model = model_with(&dir, &file(&none, &prepend, "<0x41>"), declared(&[0]));
    let error = gguf_differences(&model).unwrap_err().to_string();
    assert!(error.contains("<0x41>"), "{error}");
    let mut without_bytes = file(&none, &prepend, "");
    without_bytes["model"]["byte_fallback"] = json!(false);
    let model = model_with(&dir, &without_bytes, declared(&[0]));
    let error = gguf_differences(&model).unwrap_err().to_string();
    assert!(error.contains("byte_fallback"), "{error}");
}

/// The unknown token can be a training target, a byte that text does not contain cannot.
#[test]
fn a_gguf_file_prefers_an_unused_byte_to_the_unknown_token() {
    let dir = TestDir::new();
    let file = byte_tokenizer(&[("<unk>", json!({}))], &[], &json!({"unk_token": "<unk>"}));
    let model = model_with(&dir, &file, declared(&[]));
    let path = dir.path("model.gguf");
    export_gguf(&model, GgufType::F32, &path).unwrap();
    let meta = gguf::read(&path).meta;
    assert_eq!(meta["tokenizer.ggml.eos_token_id"], "255");
    let notes = gguf_differences(&model).unwrap();
    assert!(
        notes.iter().all(|note| !note.contains("ends a completion")),
        "{notes:?}"
    );
}

#[test]
fn a_character_model_exported_to_gguf_takes_any_text() {
    let dir = TestDir::new();
    let path = dir.path("model.gguf");
    for (eos, unk, model, tokens) in [
        ("<EOS>", "", "gpt2", "Ġ|a|b|Ã©|âĢĶ|<EOS>"),
        ("", "<unk>", "gpt2", "Ġ|a|b|Ã©|âĢĶ|<unk>"),
        ("", "", "rwkv", " |a|b|é|—"),
    ] {
        let config = nextword_data::TokenizerConfig {
            eos: eos.to_string(),
            unk: unk.to_string(),
            ..nextword_data::TokenizerConfig::default()
        };
        let tokenizer = config.build("ab é—").unwrap();
        let file: Value = serde_json::from_str(&tokenizer.to_json().unwrap()).unwrap();
        let special = tokenizer.special_tokens();
        let folder = model_with(&dir, &file, ModelTokens::trained(special.eos, special.pad));
        export_gguf(&folder, GgufType::F32, &path).unwrap();
        let meta = gguf::read(&path).meta;
        assert_eq!(meta["tokenizer.ggml.model"], model);
        assert_eq!(meta["tokenizer.ggml.tokens"], tokens);
        if model == "gpt2" {
            assert_eq!(meta["tokenizer.ggml.merges"], "Ã ©|â Ģ|âĢ Ķ");
            assert_eq!(meta["tokenizer.ggml.eos_token_id"], "5");
        }
        let notes = gguf_differences(&folder).unwrap();
        // The unknown token can be a training target, so the model can generate it.
        let says_so = |note: &String| note.contains("ends a completion at the unknown token");
        assert_eq!(notes.iter().any(says_so), !unk.is_empty(), "{notes:?}");
        let rest = usize::from(eos.is_empty()) + usize::from(!unk.is_empty());
        assert_eq!(notes.len(), rest, "{notes:?}");
    }
}
