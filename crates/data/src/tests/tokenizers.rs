use std::sync::Arc;

use crate::tests::{random, random_text};
use crate::*;

fn config(kind: TokenizerKind) -> TokenizerConfig {
    TokenizerConfig {
        kind,
        unk: String::new(),
        ..TokenizerConfig::default()
    }
}

fn build(config: &TokenizerConfig, text: &str) -> Arc<dyn Tokenizer> {
    build_tokenizer(config, std::iter::once(Ok(text.to_owned()))).unwrap()
}

/// Text with all characters of random texts.
fn all_text() -> String {
    let mut random = random(0);
    (0..400).map(|_| random_text(&mut random)).collect()
}

/// Unknown text as it is reported.
fn truncated(text: &str) -> String {
    let mut short: String = text.chars().take(Encoding::MAX_UNKNOWN_CHARS).collect();
    if short != text {
        short.push('…');
    }
    short
}

fn exact_tokenizers() -> Vec<Arc<dyn Tokenizer>> {
    let bpe = TokenizerConfig {
        vocab_size: Some(400),
        ..config(TokenizerKind::Bpe)
    };
    [
        config(TokenizerKind::Char),
        config(TokenizerKind::Byte),
        bpe,
    ]
    .iter()
    .map(|c| build(c, &all_text()))
    .collect()
}

#[test]
fn decode_inverts_encode_except_special_tokens() {
    for tokenizer in exact_tokenizers() {
        let mut random = random(1);
        for _ in 0..500 {
            let text = random_text(&mut random);
            let encoding = tokenizer.encode(&text);
            assert_eq!(encoding.unknown, Vec::<String>::new(), "{text:?}");
            assert_eq!(
                tokenizer.decode(&encoding.ids),
                text.replace("<EOS>", ""),
                "{tokenizer:?}"
            );
            assert!(
                encoding
                    .ids
                    .iter()
                    .all(|&id| (id as usize) < tokenizer.vocab_size())
            );
            let eos = tokenizer.special_tokens().eos.unwrap();
            let count = encoding.ids.iter().filter(|&&id| id == eos).count();
            assert_eq!(count, text.matches("<EOS>").count());
        }
    }
}

#[test]
fn word_decoding_joins_with_one_space() {
    let tokenizer = build(&config(TokenizerKind::Word), &all_text());
    let mut random = random(2);
    for _ in 0..500 {
        let text = random_text(&mut random).replace("<EOS>", " <EOS> ");
        let expected: Vec<&str> = text
            .split_whitespace()
            .filter(|word| *word != "<EOS>")
            .collect();
        let encoding = tokenizer.encode(&text);
        if encoding.unknown.is_empty() {
            assert_eq!(tokenizer.decode(&encoding.ids), expected.join(" "));
        } else {
            assert!(
                encoding
                    .unknown
                    .iter()
                    .all(|word| expected.iter().any(|known| truncated(known) == *word))
            );
        }
    }
}

#[test]
fn decode_stream_matches_full_decoding() {
    let mut all = exact_tokenizers();
    all.push(build(&config(TokenizerKind::Word), &all_text()));
    for tokenizer in all {
        let mut random = random(3);
        for round in 0..300 {
            // Half of the rounds use random ids; for bytes these are mostly invalid UTF-8.
            let ids = if round % 2 == 0 {
                (0..random.below(60))
                    .map(|_| random.below(tokenizer.vocab_size() + 1) as u32)
                    .collect()
            } else {
                tokenizer.encode(&random_text(&mut random)).ids
            };
            let mut stream = DecodeStream::new(tokenizer.clone());
            let mut chunks: Vec<String> = ids.iter().filter_map(|&id| stream.push(id)).collect();
            chunks.extend(stream.finish());
            assert_eq!(chunks.concat(), tokenizer.decode(&ids), "{ids:?}");
            assert_eq!(stream.finish(), None);
        }
    }
}

#[test]
fn decode_stream_never_returns_partial_characters() {
    let tokenizer = build(&config(TokenizerKind::Byte), "");
    let mut stream = DecodeStream::new(tokenizer.clone());
    let emitted: Vec<Option<String>> = tokenizer
        .encode("a🙂b")
        .ids
        .iter()
        .map(|&id| stream.push(id))
        .collect();
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(
        emitted,
        [text("a"), None, None, None, text("🙂"), text("b")]
    );
    assert_eq!(stream.push(0xF0), None);
    assert_eq!(stream.finish(), text("\u{FFFD}"));
}

#[test]
fn decode_stream_keeps_sentencepiece_spaces() {
    let json = r#"{"version":"1.0","truncation":null,"padding":null,
        "added_tokens":[{"id":3,"content":"</s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
        "normalizer":null,
        "pre_tokenizer":{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true},
        "post_processor":null,
        "decoder":{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true},
        "model":{"type":"WordLevel","vocab":{"▁one":0,"▁two":1,"<unk>":2,"</s>":3},"unk_token":"<unk>"}}"#;
    let tokenizer = parse_tokenizer(json, "test").unwrap();
    assert_eq!(
        tokenizer.special_tokens(),
        SpecialTokens {
            eos: Some(3),
            unk: Some(2),
            pad: None
        }
    );
    let encoding = tokenizer.encode("one two three one");
    assert_eq!(
        (encoding.ids.as_slice(), encoding.unknown.len()),
        (&[0, 1, 2, 0][..], 1)
    );
    let ids = [0, 1, 3, 1, 0];
    let mut stream = DecodeStream::new(tokenizer.clone());
    let chunks: Vec<String> = ids.iter().filter_map(|&id| stream.push(id)).collect();
    assert_eq!(chunks, ["one", " two", " two", " one"]);
    assert_eq!(chunks.concat(), tokenizer.decode(&ids));
    assert_eq!(tokenizer.token_text(1).unwrap(), " two");
}

#[test]
fn characters_are_sorted_and_eos_follows_them() {
    let plain = TokenizerConfig {
        eos: String::new(),
        ..config(TokenizerKind::Char)
    };
    let tokenizer = build(&plain, "hello\n<EOS>é");
    assert_eq!(tokenizer.vocab_size(), "\n<>EOShelo".len() + 1);
    assert_eq!(
        (0..10)
            .map(|id| tokenizer.id_to_token(id).unwrap())
            .collect::<String>(),
        "\n<>EOSehlo"
    );
    assert_eq!(tokenizer.special_tokens(), SpecialTokens::default());

    let tokenizer = build(&config(TokenizerKind::Char), "ba<EOS>");
    assert_eq!(tokenizer.special_tokens().eos, Some(2));
    assert_eq!(tokenizer.encode("ab<EOS>").ids, [0, 1, 2]);
}

#[test]
fn unknown_characters_are_dropped_or_replaced_and_reported() {
    let dropped = build(&config(TokenizerKind::Char), "abc").encode("axbxz");
    assert_eq!(
        dropped,
        Encoding {
            ids: vec![0, 1],
            unknown: vec!["x".into(), "z".into()],
            unknown_count: 3,
            dropped_count: 3,
        }
    );
    let with_unk = TokenizerConfig {
        unk: "<unk>".into(),
        ..config(TokenizerKind::Char)
    };
    let replaced = build(&with_unk, "abc").encode("axb");
    assert_eq!(
        replaced,
        Encoding {
            ids: vec![0, 4, 1],
            unknown: vec!["x".into()],
            unknown_count: 1,
            dropped_count: 0,
        }
    );
    let words = build(
        &TokenizerConfig {
            unk: "<unk>".into(),
            ..config(TokenizerKind::Word)
        },
        "one two",
    );
    assert_eq!(words.encode("one six <EOS>").ids, [0, 3, 2]);
}

#[test]
fn statquest_words_have_the_expected_ids() {
    let texts = STATQUEST.iter().map(|text| Ok((*text).to_owned()));
    let tokenizer = build_tokenizer(&config(TokenizerKind::Word), texts).unwrap();
    let tokens: Vec<String> = (0..5).filter_map(|id| tokenizer.id_to_token(id)).collect();
    assert_eq!(tokens, ["what", "is", "statquest", "awesome", "<EOS>"]);
    assert_eq!(tokenizer.encode(STATQUEST[0]).ids, [0, 1, 2, 4, 3, 4]);
}

#[test]
fn saved_tokenizer_reloads_with_the_same_ids() {
    let special_tokens = |kind| TokenizerConfig {
        unk: "<unk>".into(),
        pad: "<pad>".into(),
        ..config(kind)
    };
    let mut configs: Vec<TokenizerConfig> = Vec::new();
    for kind in [
        TokenizerKind::Char,
        TokenizerKind::Byte,
        TokenizerKind::Word,
        TokenizerKind::Bpe,
    ] {
        let odd = TokenizerConfig {
            eos: "<FIN>".into(),
            ..config(kind)
        };
        let none = TokenizerConfig {
            eos: String::new(),
            ..config(kind)
        };
        configs.extend([config(kind), special_tokens(kind), odd, none]);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    for config in configs {
        let tokenizer = build(&config, &all_text());
        std::fs::write(&path, tokenizer.to_json().unwrap()).unwrap();
        let again = load_tokenizer(&path).unwrap();
        let kind = |tokenizer: &Arc<dyn Tokenizer>| {
            format!("{tokenizer:?}")
                .split(' ')
                .next()
                .unwrap()
                .to_owned()
        };
        assert_eq!(kind(&again), kind(&tokenizer), "{config:?}");
        assert_eq!(
            (again.special_tokens(), again.hash()),
            (tokenizer.special_tokens(), tokenizer.hash()),
            "{config:?}"
        );
        // The same file read by the `tokenizers` crate itself gives the same ids.
        let other = HuggingFaceTokenizer::from_json(&tokenizer.to_json().unwrap(), "test").unwrap();
        assert_eq!(
            (other.vocab_size(), other.hash()),
            (tokenizer.vocab_size(), tokenizer.hash())
        );
        let mut random = random(5);
        for _ in 0..50 {
            let text = random_text(&mut random);
            let ids = tokenizer.encode(&text).ids;
            assert_eq!(again.encode(&text).ids, ids);
            if tokenizer.encode(&text).unknown.is_empty() {
                assert_eq!(other.encode(&text).ids, ids, "{text:?}");
                assert_eq!(other.decode(&ids), tokenizer.decode(&ids));
            }
        }
    }
}

#[test]
fn bpe_training_is_deterministic_and_reaches_vocab_size() {
    let text: String = Stories::new(1, 60).iter().collect();
    let config = TokenizerConfig {
        vocab_size: Some(600),
        ..config(TokenizerKind::Bpe)
    };
    let first = build(&config, &text);
    assert_eq!(
        (first.vocab_size(), first.special_tokens().eos),
        (600, Some(599))
    );
    assert_eq!(first.hash(), build(&config, &text).hash());
    let in_parts = crate::documents::split_text(&text, 100, TextCuts::Anywhere)
        .map(|part| Ok(part.to_owned()));
    assert_eq!(
        first.hash(),
        build_tokenizer(&config, in_parts.collect::<Vec<_>>().into_iter())
            .unwrap()
            .hash()
    );
    assert!(first.encode(&text).ids.len() * 2 < text.len());
    assert_eq!(
        first
            .token_text(first.encode(" there").ids[0])
            .unwrap()
            .chars()
            .next(),
        Some(' ')
    );
}

#[test]
fn source_error_ends_tokenizer_training() {
    for kind in [TokenizerKind::Char, TokenizerKind::Word, TokenizerKind::Bpe] {
        let texts = [
            Ok("some text".to_owned()),
            Err(DataError::config("the disk broke")),
        ];
        let error = build_tokenizer(&config(kind), texts.into_iter()).unwrap_err();
        assert_eq!(error.to_string(), "the disk broke");
    }
}

#[test]
fn eos_token_of_a_file_can_be_overridden() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(
        &path,
        build(&config(TokenizerKind::Byte), "").to_json().unwrap(),
    )
    .unwrap();
    let with = |eos: &str| {
        let config = TokenizerConfig {
            file: Some(path.clone()),
            eos: eos.into(),
            ..TokenizerConfig::default()
        };
        build_tokenizer(&config, std::iter::empty()).map(|tokenizer| tokenizer.special_tokens().eos)
    };
    assert_eq!(with("<EOS>").unwrap(), Some(256));
    assert_eq!(with("").unwrap(), None);
    assert_eq!(with("A").unwrap(), Some(65));
    assert!(
        with("<nothing>")
            .unwrap_err()
            .to_string()
            .contains("has no token \"<nothing>\"")
    );
}

#[test]
fn inconsistent_settings_error_names_the_key() {
    let small = TokenizerConfig {
        vocab_size: Some(256),
        ..config(TokenizerKind::Bpe)
    };
    let odd = TokenizerConfig {
        vocab_size: Some(100),
        ..config(TokenizerKind::Char)
    };
    for config in [small, odd] {
        let error = build_tokenizer(&config, std::iter::empty()).unwrap_err();
        assert!(
            error.to_string().contains("tokenizer.vocab_size")
                && error.to_string().contains("hint:"),
            "{error}"
        );
        assert_eq!(error.class(), ErrorClass::Usage);
    }
}
