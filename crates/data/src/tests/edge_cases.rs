//! Content hashes, unencodable text, huge sizes, special token names and paths.

use std::path::Path;

use serde_json::json;

use crate::tests::malformed_tokenizers::{added, load, with, words};
use crate::tests::open;
use crate::*;

fn stories(kind: TokenizerKind) -> DataConfig {
    let mut config = DataConfig {
        builtin: Some(Builtin::Stories),
        documents: 300,
        ..DataConfig::default()
    };
    config.tokenizer.kind = kind;
    config
}

#[test]
fn content_hash_is_storage_independent_and_sensitive() {
    let folder = tempfile::tempdir().unwrap();
    let config = stories(TokenizerKind::Byte);
    let built = Dataset::build(&config).unwrap();
    prepare(&config, folder.path(), |_| {}).unwrap();
    let opened = open(folder.path()).unwrap();
    assert!(built.train.len() > 40_000, "several chunks are hashed");
    assert_eq!(opened.train.content_hash(), built.train.content_hash());
    assert_eq!(
        opened.validation.content_hash(),
        built.validation.content_hash()
    );
    assert_ne!(built.train.content_hash(), built.validation.content_hash());
    let hash = |documents: &[&[u32]]| {
        Tokens::from_documents(documents.iter().map(|ids| ids.to_vec())).content_hash()
    };
    let all = [
        hash(&[&[1, 2, 3]]),
        hash(&[&[1, 2, 4]]),
        hash(&[&[1], &[2, 3]]),
        hash(&[&[1, 2]]),
        hash(&[]),
    ];
    for (i, one) in all.iter().enumerate() {
        assert_eq!(one.len(), 64);
        assert!(!all[..i].contains(one), "{i}");
    }
}

/// A word tokenizer without an unknown token.
fn word_file(vocab: &serde_json::Value) -> Vec<u8> {
    let mut model = words(vocab);
    model["unk_token"] = json!("[NONE]");
    with(
        &model,
        &json!({"pre_tokenizer": {"type": "WhitespaceSplit"}}),
    )
}

#[test]
fn only_unencodable_words_are_dropped_and_reported() {
    let tokenizer = load(&word_file(&json!({"one": 0, "two": 1, "x": 2}))).unwrap();
    let long = "y".repeat(100);
    let encoding = tokenizer.encode(&format!("one xx two\n{long} one {long}z two"));
    assert_eq!(encoding.ids, [0, 1, 0, 1]);
    assert_eq!(encoding.unknown, ["xx".to_owned(), "y".repeat(32) + "…"]);
    // Special tokens in the text are kept.
    let special = added(&json!(1), "<EOS>");
    let parts = json!({"pre_tokenizer": {"type": "WhitespaceSplit"}, "added_tokens": special});
    let mut model = words(&json!({"one": 0}));
    model["unk_token"] = json!("[NONE]");
    let tokenizer = load(&with(&model, &parts)).unwrap();
    assert_eq!(tokenizer.encode("two<EOS>one<EOS>").ids, [1, 0, 1]);
}

#[test]
fn only_rejected_words_are_lost_without_pre_tokenizer() {
    let words = ["▁one", "▁two", "▁", "\n", "o", "n", "e", "t", "w"];
    let vocab: Vec<_> = (words.iter().zip(1..))
        .map(|(word, i)| json!([word, f64::from(-i)]))
        .collect();
    let model = json!({"type": "Unigram", "unk_id": null, "vocab": vocab, "byte_fallback": false});
    let spaces = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]});
    let tokenizer = load(&with(&model, &json!({"normalizer": spaces}))).unwrap();
    let all = tokenizer.encode("one two one");
    assert_eq!(
        (all.ids, all.unknown),
        (vec![0, 1, 0], Vec::<String>::new())
    );
    // Without a pre-tokenizer the library treats the whole text as one word.
    let text = format!("one two{}\n two xyz one\n two", " one".repeat(60_000));
    let encoding = tokenizer.encode(&text);
    assert_eq!(encoding.unknown, ["▁xyz"]);
    let expected = [vec![0, 1], vec![0; 60_000], vec![3, 1, 0, 3, 1]].concat();
    assert!(encoding.ids == expected, "{}", encoding.ids.len());
}

#[test]
fn error_names_a_tokenizer_that_cannot_encode_the_text() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("given.json");
    std::fs::write(&file, word_file(&json!({"eins": 0, "zwei": 1}))).unwrap();
    let mut config = stories(TokenizerKind::Char);
    config.tokenizer.file = Some(file);
    let output = folder.path().join("out");
    for error in [
        Dataset::build(&config).unwrap_err(),
        prepare(&config, &output, |_| {}).unwrap_err(),
    ] {
        let first = Stories::new(0, 1).iter().next().unwrap();
        let first = first.split(' ').next().unwrap();
        let message = error.to_string();
        assert!(
            message.contains("given.json") && message.contains(&format!("{first:?}")),
            "{message}"
        );
        assert!(message.contains("hint:") && error.class() == ErrorClass::Data);
    }
}

#[test]
fn eos_names_survive_a_round_trip_or_are_errors() {
    use TokenizerKind::{Bpe, Byte, Char, Word};
    let with = |kind, eos: &str| TokenizerConfig {
        kind,
        eos: eos.to_owned(),
        ..TokenizerConfig::default()
    };
    let text = || std::iter::once(Ok("one two one two".to_owned()));
    for kind in [Char, Byte, Word, Bpe] {
        for eos in ["<s>", "<sep>", "<|startoftext|>", "[CLS]", "<unk>"] {
            let config = with(kind, eos);
            let data = DataConfig {
                tokenizer: config.clone(),
                ..stories(kind)
            };
            let error = data.validate().unwrap_err();
            assert_eq!(error.class(), ErrorClass::Usage);
            assert!(
                error.to_string().contains(eos) && error.to_string().contains("<|endoftext|>"),
                "{error}"
            );
            assert!(build_tokenizer(&config, text()).is_err());
        }
        for eos in ["<EOS>", "<|endoftext|>", "</s>", "<FIN>", "[EOS]"] {
            let built = build_tokenizer(&with(kind, eos), text()).unwrap();
            let again = parse_tokenizer(&built.to_json().unwrap(), "test").unwrap();
            assert!(built.special_tokens().eos.is_some());
            assert_eq!(
                again.special_tokens(),
                built.special_tokens(),
                "{kind:?} {eos}"
            );
        }
    }
}

#[test]
fn huge_sizes_are_errors_naming_the_values_and_the_fix() {
    let good = LoaderConfig {
        context_length: 4,
        batch_size: 2,
        grad_accum_steps: 65_536,
        order: Order::Random,
        packing: Packing::Documents,
        seed: 0,
        padding_id: 0,
    };
    let tokens = || Tokens::from_ids((0..100).collect());
    assert!(Loader::new(tokens(), good).is_ok());
    let assert_error = |config: LoaderConfig, values: [String; 2]| {
        let error = Loader::new(tokens(), config).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Usage);
        let message = error.to_string();
        assert!(message.contains("hint:"), "{message}");
        for value in values {
            assert!(message.contains(&value), "{message}");
        }
    };
    for (batch_size, context_length) in [
        (1 << 27, 3),
        (usize::MAX, 1),
        (1, usize::MAX),
        (usize::MAX / 2, 4),
    ] {
        let config = LoaderConfig {
            context_length,
            batch_size,
            ..good
        };
        assert_error(config, [batch_size, context_length].map(|n| n.to_string()));
    }
    for grad_accum_steps in [65_537, usize::MAX] {
        let values = [grad_accum_steps, 65_536].map(|n| n.to_string());
        assert_error(
            LoaderConfig {
                grad_accum_steps,
                ..good
            },
            values,
        );
    }
    assert!(EvalWindows::new(tokens(), usize::MAX, Packing::Packed, 0).is_err());
    let windows = EvalWindows::new(tokens(), 1 << 28, Packing::Packed, 0).unwrap();
    assert!(windows.batch(0..usize::MAX).is_err());
}

#[test]
fn fewer_than_two_tokens_hint_asks_for_more_text() {
    for count in [0, 1] {
        let tokens = Tokens::from_ids(vec![0; count]);
        let message = EvalWindows::new(tokens, 8, Packing::Packed, 0)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("hint: give more text") && !message.contains("or less"),
            "{message}"
        );
    }
}

#[test]
fn paths_resolve_against_base_except_standard_input() {
    let base = std::env::temp_dir();
    let mut config = DataConfig {
        path: Some("a.txt".into()),
        paths: vec!["-".into(), base.join("c.txt")],
        prepared: Some("deep/er".into()),
        ..DataConfig::default()
    };
    config.tokenizer.file = Some("t.json".into());
    config.resolve_paths(&base);
    assert_eq!(config.path, Some(base.join("a.txt")));
    assert_eq!(
        config.paths,
        [Path::new("-").to_path_buf(), base.join("c.txt")]
    );
    assert_eq!(config.prepared, Some(base.join("deep/er")));
    assert_eq!(config.tokenizer.file, Some(base.join("t.json")));
}
