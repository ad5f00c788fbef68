//! Rules that lengthen text are bounded.

use std::sync::Arc;

use serde_json::{Value, json};

use super::malformed_tokenizers::{with, words};
use crate::*;

fn parse(parts: &Value) -> Result<Arc<dyn Tokenizer>, DataError> {
    let model = words(&json!({"a": 0, "<unk>": 1}));
    let file = String::from_utf8(with(&model, parts)).unwrap();
    parse_tokenizer(&file, "test")
}

fn replace(pattern: &Value, content: &str) -> Value {
    json!({"type": "Replace", "pattern": pattern, "content": content})
}

/// Rules that make a text of `a` longer, by a factor or by much at once.
fn lengthening() -> Vec<Value> {
    let long = "a".repeat(1 << 17);
    let mut rules = Vec::new();
    for content in ["aa", "aaa", "ab a", "a\u{e9}a", long.as_str()] {
        for pattern in [
            json!({"String": "a"}),
            json!({"Regex": "a"}),
            json!({"Regex": "[a-b]"}),
        ] {
            rules.push(replace(&pattern, content));
        }
    }
    rules.push(replace(&json!({"Regex": "(?=a)"}), "a"));
    rules.push(replace(&json!({"String": ""}), "a"));
    rules
}

#[test]
fn no_normalizer_makes_a_text_too_long() {
    for rule in lengthening() {
        let rules = vec![rule.clone(); 40];
        let normalizer = json!({"type": "Sequence", "normalizers": rules});
        let added = json!([{"id": 0, "content": "a", "single_word": false, "lstrip": false, "rstrip": false,
                            "normalized": true, "special": false}]);
        let error = parse(&json!({"normalizer": normalizer, "added_tokens": added})).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("too much text for the added tokens"),
            "{error}"
        );
        let tokenizer = parse(&json!({"normalizer": normalizer})).unwrap();
        for text in ["a", "b a", &"a".repeat(10_000)] {
            let error = tokenizer.try_encode(text).unwrap_err().to_string();
            assert!(
                error.contains("the normalizer adds too much text"),
                "{error}"
            );
            assert!(tokenizer.encode(text).unknown_count > 0);
        }
        // A dataset does not lack that text: it is refused.
        let split = SplitConfig {
            validation: 0.0,
            ..SplitConfig::default()
        };
        let documents = ["b b b", "b a b"];
        let error = Dataset::with_tokenizer(documents, tokenizer, split).unwrap_err();
        assert!(error.to_string().contains("adds too much text"), "{error}");
    }
    let prepend = json!({"type": "Prepend", "prepend": "a".repeat(1 << 20)});
    let error = parse(&json!({"normalizer": prepend}))
        .unwrap()
        .try_encode("a");
    assert!(error.is_err());
}

#[test]
fn normalizers_of_published_tokenizers_lengthen_any_text() {
    let spaces = replace(&json!({"String": " "}), "\u{2581}");
    let prepend = json!({"type": "Prepend", "prepend": "\u{2581}"});
    for parts in [
        json!([prepend, spaces]),
        json!([spaces]),
        json!([{"type": "NFKD"}, spaces]),
    ] {
        let normalizer = json!({"type": "Sequence", "normalizers": parts});
        let tokenizer = parse(&json!({"normalizer": normalizer})).unwrap();
        for text in [
            "",
            " ",
            "a",
            &" ".repeat(300_000),
            &"\u{fdfa}".repeat(50_000),
        ] {
            assert!(tokenizer.try_encode(text).is_ok(), "{parts}");
        }
    }
}

#[test]
fn no_decoder_makes_a_text_too_long() {
    let mut rules = lengthening();
    rules.push(json!({"type": "BPEDecoder", "suffix": ""}));
    rules.push(
        json!({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "", "cleanup": true}),
    );
    for rule in rules {
        let mut decoders = vec![rule.clone(); 12];
        for is_fused in [false, true] {
            if is_fused {
                decoders.insert(0, json!({"type": "Fuse"}));
            }
            let decoder = json!({"type": "Sequence", "decoders": decoders});
            let tokenizer = parse(&json!({"decoder": decoder})).unwrap();
            let ids = [0; 20];
            let text = tokenizer.decode(&ids);
            assert!(text.len() <= 5 << 20, "{} bytes", text.len());
            let mut stream = DecodeStream::new(tokenizer);
            let mut streamed: String = ids.iter().filter_map(|&id| stream.push(id)).collect();
            streamed.extend(stream.finish());
            assert!(streamed == text, "{decoder}");
        }
    }
}

#[test]
fn a_decoder_still_lengthens_long_texts() {
    let decoders = json!([{"type": "Fuse"}, replace(&json!({"Regex": "a"}), "bcd")]);
    let tokenizer = parse(&json!({"decoder": {"type": "Sequence", "decoders": decoders}})).unwrap();
    let ids = vec![0; 100_000];
    assert_eq!(tokenizer.decode(&ids), "bcd".repeat(100_000));
}
