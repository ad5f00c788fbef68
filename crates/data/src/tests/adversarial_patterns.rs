//! Patterns that are made to take long are bounded in time, or refused.

use std::time::Duration;

use nextword_base::thread_cpu_time;
use serde_json::{Value, json};

use super::malformed_tokenizers::{with, words};
use crate::*;

const PATTERNS: [&str; 26] = [
    "(a+)+$",
    "(a+)+b",
    "(a|a)*b",
    "(a|aa)+$",
    "(?:a*)*b",
    "((?:a*)*)\\1?c",
    "a*a*a*a*a*a*b",
    "(?:a{1,30}){1,30}b",
    "(?:(?:a?){30}){3}b",
    "(a*)*\\1b",
    "(?=(a+)+b).",
    "(?!(?:a|a)+b)a",
    "(?<=a)(a|a)+$",
    "(.*)*x",
    "(.*?)*?x",
    "(?:.*+)x",
    ".*.*.*x",
    "(\\w+\\s?)+!",
    "(?:(?=.*).)*",
    "(?:(?:(?=a){100}){100}){100}a",
    "(?:){100000}{100000}a",
    "(?:a{1000}){1000}{1000}",
    "(?i)(ss|ß|a)+$",
    "([a-z]+)*[0-9]",
    "\\X*\\X*b",
    "(?<x>a\\g<x>?\\g<x>?b)",
];

/// The time that this thread has computed, which does not depend on how busy the machine is.
fn now() -> Duration {
    thread_cpu_time().unwrap_or_default()
}

fn split(pattern: &str) -> Value {
    json!({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}})
}

#[test]
fn no_pattern_takes_much_longer_than_its_budget() {
    let model = words(&json!({"a": 0, "<unk>": 1}));
    let texts = [
        "a".repeat(3_000),
        "aaaa aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n".repeat(60),
    ];
    for pattern in PATTERNS {
        let started = now();
        let replace = json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": "b"});
        for parts in [
            split(pattern),
            json!({"normalizer": replace}),
            json!({"decoder": replace}),
        ] {
            let file = String::from_utf8(with(&model, &parts)).unwrap();
            let tokenizer = match parse_tokenizer(&file, "test") {
                Ok(tokenizer) => tokenizer,
                Err(error) => {
                    assert!(error.to_string().contains("the pattern"), "{error}");
                    continue;
                }
            };
            for text in &texts {
                match tokenizer.try_encode(text) {
                    // Nothing is lost: all text has a token, or there is an error.
                    Ok(encoding) => {
                        assert!(!encoding.ids.is_empty() && encoding.dropped_count == 0);
                    }
                    Err(error) => {
                        let error = error.to_string();
                        let names = format!("the pattern {pattern:?} takes too long");
                        assert!(error.contains(&names), "{error}");
                    }
                }
                let ids = vec![0; 2500];
                tokenizer.decode(&ids);
            }
        }
        let taken = now().saturating_sub(started);
        assert!(taken < Duration::from_secs(20), "{pattern}: {taken:?}");
    }
}

#[test]
fn added_tokens_cannot_make_a_normalizer_take_long() {
    let replace = json!({"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"});
    let token = |id: usize| {
        json!({"id": id, "content": format!("{}{id}", "a".repeat(40)), "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": true, "special": false})
    };
    let added: Vec<Value> = (2..500).map(token).collect();
    let parts = json!({"normalizer": replace, "added_tokens": added});
    let model = words(&json!({"a": 0, "<unk>": 1}));
    let file = String::from_utf8(with(&model, &parts)).unwrap();
    let started = now();
    let error = parse_tokenizer(&file, "test").unwrap_err().to_string();
    assert!(
        error.contains("takes too long for the added tokens"),
        "{error}"
    );
    assert!(now().saturating_sub(started) < Duration::from_secs(20));
}

#[test]
fn long_runs_need_no_more_than_the_budget() {
    let gpt4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let model = words(&json!({"a": 0, "<unk>": 1}));
    let file = String::from_utf8(with(&model, &split(gpt4))).unwrap();
    let tokenizer = parse_tokenizer(&file, "test").unwrap();
    for (run, pieces) in [
        (" ", 1),
        ("a", 1),
        ("中", 1),
        ("\n", 1),
        ("1", 100_000),
        ("!", 1),
    ] {
        let text = run.repeat(300_000);
        let (encoding, ranges) = tokenizer.encode_with_ranges(&text);
        assert_eq!(encoding.ids.len(), pieces, "{run:?}");
        assert_eq!(ranges.last().unwrap().as_ref().unwrap().end, text.len());
    }
}
