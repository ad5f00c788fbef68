//! Long texts are cut only where that does not change their tokens.

use std::sync::Arc;

use serde_json::{Value, json};

use super::sources::{documents, file};
use crate::tests::{random, random_text};
use crate::*;

/// A text that is longer than a chunk, with every kind of neighbor of a cut.
fn long_text(seed: u64) -> String {
    let mut random = random(seed);
    let mut text = String::new();
    while text.len() < 800 << 10 {
        text += &random_text(&mut random).replace("<EOS>", "!");
        text += [
            "!\n",
            "?\n\n",
            " .\n",
            "...\r\n",
            "  ",
            "a\n",
            " x",
            "\t-\n",
            " e\u{301}",
        ][random.below(9)];
    }
    text
}

fn bpe(text: &str) -> Value {
    let config = TokenizerConfig {
        vocab_size: Some(600),
        ..TokenizerConfig::bpe(600)
    };
    serde_json::from_str(&config.build(text).unwrap().to_json().unwrap()).unwrap()
}

/// The ids of a text file, as a dataset has them.
fn ids_of_file(tokenizer: &Arc<dyn Tokenizer>, text: &str) -> Vec<u32> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.txt");
    std::fs::write(&path, text).unwrap();
    let json = folder.path().join("given.json");
    std::fs::write(&json, tokenizer.to_json().unwrap()).unwrap();
    let config = DataConfig {
        path: Some(path),
        tokenizer: TokenizerConfig::from_file(json),
        split: SplitConfig {
            validation: 0.0,
            ..SplitConfig::default()
        },
        ..DataConfig::default()
    };
    let mut ids = crate::tests::ids(&Dataset::build(&config).unwrap().train);
    if ids.last().copied() == tokenizer.special_tokens().eos {
        ids.pop();
    }
    ids
}

#[test]
fn long_files_have_the_tokens_of_the_whole_text() {
    let text = long_text(1);
    let base = bpe(&text);
    let with = |parts: Value| {
        let mut file = base.clone();
        for (key, value) in parts.as_object().unwrap() {
            file[key] = value.clone();
        }
        parse_tokenizer(&file.to_string(), "test").unwrap()
    };
    let level = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": regex});
    let split = |pattern: &str| {
        let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        json!({"type": "Sequence", "pretokenizers": [split, level(false)]})
    };
    let gpt4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let added = |strip: bool| {
        let mut tokens = base["added_tokens"].clone();
        tokens[0]["lstrip"] = json!(strip);
        tokens[0]["rstrip"] = json!(strip);
        tokens
    };
    let replace =
        json!({"type": "Replace", "pattern": {"Regex": "[!?.]\\s+|\\s+$"}, "content": "Q"});
    let digits = |each: bool| json!({"type": "Digits", "individual_digits": each});
    let punctuation = |behavior: &str| json!({"type": "Punctuation", "behavior": behavior});
    let before_level = |first: Value| {
        let both = [first, level(true)];
        json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": both}})
    };
    let cases = [
        (json!({}), TextCuts::BeforeSpace),
        (json!({"pre_tokenizer": split(gpt4)}), TextCuts::BeforeSpace),
        (
            json!({"normalizer": {"type": "NFC"}}),
            TextCuts::BeforeSpace,
        ),
        (json!({"normalizer": replace}), TextCuts::Nowhere),
        (
            json!({"normalizer": {"type": "Strip", "strip_left": true, "strip_right": true}}),
            TextCuts::Nowhere,
        ),
        (
            json!({"normalizer": {"type": "Prepend", "prepend": "x"}}),
            TextCuts::Nowhere,
        ),
        (
            json!({"pre_tokenizer": split(r"\S+\s+\S+|\s+")}),
            TextCuts::Nowhere,
        ),
        (
            json!({"pre_tokenizer": split(r"\w+ ?|\W")}),
            TextCuts::Nowhere,
        ),
        (json!({"pre_tokenizer": level(false)}), TextCuts::Nowhere),
        (before_level(digits(true)), TextCuts::BeforeSpace),
        (before_level(digits(false)), TextCuts::BeforeSpace),
        (before_level(punctuation("Isolated")), TextCuts::BeforeSpace),
        (
            before_level(punctuation("MergedWithNext")),
            TextCuts::Nowhere,
        ),
        (json!({"pre_tokenizer": digits(true)}), TextCuts::Nowhere),
        (
            json!({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true}}),
            TextCuts::Nowhere,
        ),
        (json!({"added_tokens": added(true)}), TextCuts::Nowhere),
    ];
    for (parts, cuts) in cases {
        let tokenizer = with(parts.clone());
        assert_eq!(tokenizer.text_cuts(), cuts, "{parts}");
        let whole = tokenizer.encode(&text).ids;
        assert!(ids_of_file(&tokenizer, &text) == whole, "{parts}");
    }
}

#[test]
fn our_own_tokenizers_have_the_tokens_of_the_whole_text() {
    let text = long_text(2);
    for kind in [
        TokenizerKind::Char,
        TokenizerKind::Byte,
        TokenizerKind::Word,
    ] {
        let config = TokenizerConfig {
            kind,
            ..TokenizerConfig::default()
        };
        let tokenizer = config.build(&text).unwrap();
        assert_eq!(tokenizer.text_cuts(), TextCuts::BeforeWhitespace);
        let whole = tokenizer.encode(&text).ids;
        assert!(ids_of_file(&tokenizer, &text) == whole, "{kind:?}");
    }
}

#[test]
fn a_separator_of_line_ends_also_divides_windows_text() {
    let unix = "one\n\ntwo\nstill two\n\n\n\nthree\n---\nfour";
    for (separator, parts) in [
        ("\n\n", vec!["one", "two\nstill two", "three\n---\nfour"]),
        (
            "\n---\n",
            vec!["one\n\ntwo\nstill two\n\n\n\nthree", "four"],
        ),
        (
            "\n\n\n\n",
            vec!["one\n\ntwo\nstill two", "three\n---\nfour"],
        ),
    ] {
        for (text, end) in [
            (unix.to_owned(), "\n"),
            (unix.replace('\n', "\r\n"), "\r\n"),
        ] {
            let (_folder, config) = file("a.txt", text.as_bytes());
            let separator = Some(separator.to_owned());
            let found = documents(&SourceConfig {
                separator,
                ..config
            })
            .unwrap();
            let expected: Vec<String> = parts.iter().map(|part| part.replace('\n', end)).collect();
            assert_eq!(found, expected);
        }
    }
    // A single line end is at the end of every line in both.
    let (_folder, config) = file("a.txt", b"one\r\ntwo");
    let separator = Some("\n".to_owned());
    assert_eq!(
        documents(&SourceConfig {
            separator,
            ..config
        })
        .unwrap(),
        ["one\r", "two"]
    );
}
