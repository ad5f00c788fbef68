//! The patterns of a `tokenizer.json` mean what they mean in Python's `tokenizers`: the same cuts as in
//! `tests/fixtures/patterns.json` (written by `scripts/make_pattern_fixture.py`), or a refusal.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

use nextword_data::{Tokenizer, parse_tokenizer};
use serde_json::{Map, Value, json};

use crate::util::root;

/// Patterns that Python accepts and we refuse, by the construct in them.
const REFUSED: [(&str, &str); 2] = [
    ("(?~ab)", "an absence operator"),
    (r"(?<x>a\g<x>?b)", "a subexpression call"),
];

fn fixture() -> Value {
    let path = root().join("tests/fixtures/patterns.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn texts(value: &Value) -> Vec<&str> {
    let list = value.as_array().unwrap();
    list.iter().map(|text| text.as_str().unwrap()).collect()
}

/// A tokenizer with these parts, an `[UNK]` for each piece, or a token for each of `characters`.
fn tokenizer(parts: &Value, characters: Option<&str>) -> Result<Arc<dyn Tokenizer>, String> {
    let model = match characters {
        None => json!({"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"}),
        Some(characters) => {
            let distinct: BTreeSet<char> = characters.chars().chain(['\u{1}']).collect();
            let entry = |(id, c): (usize, &char)| (c.to_string(), json!(id));
            let vocab: Map<String, Value> = distinct.iter().enumerate().map(entry).collect();
            json!({"type": "BPE", "vocab": vocab, "merges": []})
        }
    };
    let mut file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"}, "model": model,
    });
    for (key, value) in parts.as_object().unwrap() {
        file[key] = value.clone();
    }
    parse_tokenizer(&file.to_string(), "test").map_err(|error| error.to_string())
}

#[test]
fn split_patterns_cut_where_pythons_tokenizers_cuts() {
    let fixture = fixture();
    let texts = texts(&fixture["texts"]);
    let mut compared = 0;
    for item in fixture["patterns"].as_array().unwrap() {
        let pattern = item["pattern"].as_str().unwrap();
        let split = json!({"pre_tokenizer": {
            "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false,
        }});
        let tokenizer = match tokenizer(&split, None) {
            Ok(tokenizer) => tokenizer,
            Err(error) => {
                let known = REFUSED.iter().find(|(known, _)| *known == pattern);
                let is_named = known.is_some_and(|(_, construct)| error.contains(construct));
                assert!(is_named || item["pieces"].is_null(), "{pattern}: {error}");
                continue;
            }
        };
        assert!(!item["pieces"].is_null(), "{pattern} is refused in Python");
        for (text, expected) in texts.iter().zip(item["pieces"].as_array().unwrap()) {
            let (_, ranges) = tokenizer.encode_with_ranges(text);
            let length = |range| {
                text.get::<std::ops::Range<usize>>(range)
                    .map(|p| p.chars().count())
            };
            let lengths: Vec<Option<usize>> = ranges.into_iter().map(|r| length(r?)).collect();
            assert_eq!(json!(lengths), *expected, "{pattern} on {text:?}");
            compared += 1;
        }
    }
    assert!(compared > 110 * 20, "{compared}");
}

#[test]
fn replace_patterns_replace_what_pythons_tokenizers_replaces() {
    let fixture = fixture();
    let texts = texts(&fixture["texts"]);
    for item in fixture["replaced"].as_array().unwrap() {
        let replace = json!({"normalizer": {
            "type": "Replace", "pattern": {"Regex": item["pattern"]}, "content": item["content"],
        }});
        for (text, expected) in texts.iter().zip(item["texts"].as_array().unwrap()) {
            let expected = expected.as_str().unwrap();
            let tokenizer = tokenizer(&replace, Some(expected)).unwrap();
            let encoding = tokenizer.encode(text);
            assert_eq!(
                encoding.unknown,
                Vec::<String>::new(),
                "{}",
                item["pattern"]
            );
            let decoded = tokenizer.decode(&encoding.ids);
            assert_eq!(decoded, expected, "{} on {text:?}", item["pattern"]);
        }
    }
}
