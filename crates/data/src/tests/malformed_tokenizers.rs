//! Malformed and adversarial `tokenizer.json` files.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::*;

/// Loads `text` from a file. An error must name the file, and a tokenizer must survive basic use.
pub(super) fn load(text: &[u8]) -> Result<Arc<dyn Tokenizer>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("given.json");
    std::fs::write(&path, text).unwrap();
    let started = Instant::now();
    let loaded = load_tokenizer(&path);
    let result = loaded.inspect(exercise).map_err(|error| {
        assert_eq!(error.class(), ErrorClass::Data);
        let message = error.to_string();
        assert!(message.contains("given.json"), "{message}");
        message
    });
    assert!(started.elapsed() < Duration::from_secs(20), "{result:?}");
    result
}

fn exercise(tokenizer: &Arc<dyn Tokenizer>) {
    for text in [
        "",
        "a",
        "ab abab <unk> ba",
        "é🙂\u{0}\n",
        &"ab".repeat(2000),
    ] {
        let encoding = tokenizer.encode(text);
        assert!(
            encoding
                .ids
                .iter()
                .all(|&id| (id as usize) < tokenizer.vocab_size())
        );
        let mut stream = DecodeStream::new(tokenizer.clone());
        encoding
            .ids
            .iter()
            .take(100)
            .for_each(|&id| drop(stream.push(id)));
        stream.finish();
        tokenizer.decode(&encoding.ids);
    }
    for id in [0, 1, 2, 1 << 20, u32::MAX] {
        let _ = (
            tokenizer.id_to_token(id),
            tokenizer.token_text(id),
            tokenizer.token_bytes(id),
        );
    }
    assert_eq!(tokenizer.hash().len(), 64);
}

/// Builds a file with `model`, overriding other keys with `parts`.
pub(super) fn with(model: &Value, parts: &Value) -> Vec<u8> {
    let mut file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": model,
    });
    for (key, value) in parts.as_object().unwrap() {
        file[key] = value.clone();
    }
    file.to_string().into_bytes()
}

pub(super) fn bpe(vocab: &Value, merges: &Value) -> Value {
    json!({"type": "BPE", "vocab": vocab, "merges": merges})
}

pub(super) fn words(vocab: &Value) -> Value {
    json!({"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"})
}

pub(super) fn added(id: &Value, content: &str) -> Value {
    json!([{"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}])
}

#[test]
fn huge_files_are_rejected_before_parsing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("given.json");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    let error = load_tokenizer(&path).unwrap_err().to_string();
    assert!(
        error.contains("given.json") && error.contains("larger than 64 MiB"),
        "{error}"
    );
    let mut padded = with(&words(&json!({"a": 0, "<unk>": 1})), &json!({}));
    padded.resize(64 << 20, b' ');
    load(&padded).unwrap();
    padded.push(b' ');
    assert!(load(&padded).unwrap_err().contains("larger than 64 MiB"));
}

#[test]
fn deep_nesting_is_an_error_not_a_stack_overflow() {
    for (open, close) in [("[", "]"), ("{\"model\":", "}"), ("{\"a\":[", "]}")] {
        for depth in [60, 120, 130, 100_000] {
            let text = format!("{}1{}", open.repeat(depth), close.repeat(depth));
            load(text.as_bytes()).unwrap_err();
        }
    }
    let model = words(&json!({"a": 0, "<unk>": 1}));
    let components = [
        ("normalizer", "normalizers"),
        ("pre_tokenizer", "pretokenizers"),
        ("decoder", "decoders"),
        ("post_processor", "processors"),
    ];
    for (component, list) in components {
        for depth in [1, 10, 30, 55, 61] {
            for tagged in [true, false] {
                let mut nested = json!({"type": "NoSuchThing"});
                for _ in 0..depth {
                    nested = json!({list: [nested]});
                    if tagged {
                        nested["type"] = json!("Sequence");
                    }
                }
                load(&with(&model, &json!({component: nested}))).unwrap_err();
            }
        }
    }
}

#[test]
fn wrong_types_anywhere_are_errors_or_ignored() {
    let good: Value = serde_json::from_slice(&with(
        &bpe(&json!({"a": 0, "b": 1, "ab": 2}), &json!(["a b"])),
        &json!({"added_tokens": added(&json!(3), "<EOS>"),
                "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
                "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true}}),
    ))
    .unwrap();
    load(good.to_string().as_bytes()).unwrap();
    let wrong = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(1e300),
        json!(u64::MAX),
        json!(""),
        json!("\u{0}"),
        json!([]),
        json!([[]]),
        json!([null]),
        json!({}),
        json!({"type": 5}),
        json!({"": -1}),
        json!(["a", "b", "c"]),
    ];
    let mut pointers: Vec<String> = vec![String::new()];
    collect(&good, "", &mut pointers);
    assert!(pointers.len() > 25);
    for pointer in pointers {
        for value in &wrong {
            let mut file = good.clone();
            *file.pointer_mut(&pointer).unwrap() = value.clone();
            let _ = load(file.to_string().as_bytes());
        }
    }
}

/// Collects the JSON pointers of everything inside `value`.
fn collect(value: &Value, prefix: &str, pointers: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.clone(), value))
            .collect(),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .map(|(i, value)| (i.to_string(), value))
            .collect(),
        _ => Vec::new(),
    };
    for (key, value) in children {
        let pointer = format!("{prefix}/{key}");
        pointers.push(pointer.clone());
        collect(value, &pointer, pointers);
    }
}

#[test]
fn slow_or_inconsistent_components_neither_hang_nor_panic() {
    let model = words(&json!({"a": 0, "<unk>": 1}));
    let split = |regex: &str| json!({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false}});
    for regex in [
        "(a|b|ab)*(?=c)c\\1",
        "((a+)+)+$",
        "(?:a{1000}){1000}{1000}",
        "(",
        "a**",
        "",
    ] {
        let _ = load(&with(&model, &split(regex)));
    }
    load(&with(&model, &split(&"(".repeat(100_000)))).unwrap_err();
    for parts in [
        json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////wAAAAD/////"}}),
        json!({"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "aa"}}),
        json!({"normalizer": {"type": "Replace", "pattern": {"Regex": ""}, "content": "aa"}}),
        json!({"decoder": {"type": "Strip", "content": "a", "start": u64::MAX, "stop": u64::MAX}}),
        json!({"decoder": {"type": "Strip", "content": "a", "start": 9, "stop": 9}}),
        json!({"decoder": {"type": "Replace", "pattern": {"String": ""}, "content": "x"}}),
        json!({"pre_tokenizer": {"type": "FixedLength", "length": 0}}),
    ] {
        let _ = load(&with(&model, &parts));
    }
    for parts in [
        json!({"truncation": {"max_length": 0, "strategy": "LongestFirst", "stride": 9, "direction": "Right"}}),
        json!({"truncation": {"max_length": 1, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}}),
        json!({"padding": {"strategy": {"Fixed": 1u64 << 60}, "direction": "Right", "pad_to_multiple_of": 0,
                           "pad_id": 7, "pad_type_id": 0, "pad_token": "x"}}),
    ] {
        if let Ok(tokenizer) = load(&with(&model, &parts)) {
            assert_eq!(
                tokenizer.encode("a").ids,
                [0],
                "not truncated and not padded: {parts}"
            );
        }
    }
}
