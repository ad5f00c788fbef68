use std::sync::Arc;

use nextword_data::{TokenizerConfig, TokenizerKind, build_tokenizer};
use nextword_model::TokenSource;

use super::*;
use crate::loss::tests::{model, naive};

fn tokenizer(kind: TokenizerKind, text: &str) -> Arc<dyn Tokenizer> {
    let config = TokenizerConfig {
        kind,
        unk: String::new(),
        ..TokenizerConfig::default()
    };
    build_tokenizer(&config, std::iter::once(Ok(text.to_owned()))).unwrap()
}

fn documents(texts: &[&str]) -> Vec<Result<TextChunk, DataError>> {
    let chunk = |text: &&str| {
        Ok(TextChunk {
            text: (*text).to_owned(),
            is_first: true,
            is_last: true,
        })
    };
    texts.iter().map(chunk).collect()
}

fn evaluate_texts(tokenizer: &dyn Tokenizer, texts: &[&str], packing: Packing) -> TextReport {
    let settings = TextSettings {
        batch_size: 2,
        packing,
    };
    evaluate_text(
        &model(tokenizer.vocab_size()),
        tokenizer,
        &ModelTokens::default(),
        documents(texts),
        settings,
    )
    .unwrap()
}

#[test]
fn bits_per_byte_equals_a_manual_computation() {
    let tokenizer = tokenizer(TokenizerKind::Char, "abcé ");
    let model = model(tokenizer.vocab_size());
    let report = evaluate_texts(&*tokenizer, &["é bac", "ab"], Packing::Documents);
    let nats: f64 = ["é bac<EOS>", "ab<EOS>"]
        .iter()
        .map(|t| naive(&model, &tokenizer.encode(t).ids))
        .sum();
    assert_eq!(
        (
            report.loss.tokens,
            report.documents,
            report.bytes,
            report.unknown
        ),
        (7, 2, 5, 0)
    );
    let expected = nats / std::f64::consts::LN_2 / 5.0;
    assert!((report.loss.bits_per_byte.unwrap() - expected).abs() < 1e-5);
}

#[test]
fn packed_documents_omit_only_the_first_token() {
    let tokenizer = tokenizer(TokenizerKind::Char, "abcé ");
    let report = evaluate_texts(&*tokenizer, &["é bac", "ab"], Packing::Packed);
    assert_eq!((report.loss.tokens, report.bytes), (8, 6));
}

#[test]
fn every_tokenizer_kind_counts_bytes_correctly() {
    let text = "the fox, the é fox 🦀";
    let first = [
        (TokenizerKind::Char, 1),
        (TokenizerKind::Byte, 1),
        (TokenizerKind::Word, 3),
    ];
    for (kind, first) in first {
        let report = evaluate_texts(&*tokenizer(kind, text), &[text], Packing::Packed);
        assert_eq!(report.bytes as usize, text.len() - first, "{kind:?}");
    }
}

#[test]
fn special_tokens_of_the_text_count_by_their_names() {
    for kind in [
        TokenizerKind::Char,
        TokenizerKind::Byte,
        TokenizerKind::Word,
    ] {
        let tokenizer = tokenizer(kind, "a b <EOS> c");
        let model = model(tokenizer.vocab_size());
        let special = ModelTokens {
            bos_id: tokenizer.special_tokens().eos,
            source: Some(TokenSource::Declared),
            ..ModelTokens::default()
        };
        for (text, is_own_prefix) in [
            ("a b <EOS> c", false),
            ("a <EOS> <EOS>", false),
            ("c<EOS>", false),
            ("<EOS> a b", true),
            ("b", false),
        ] {
            let settings = TextSettings::default();
            let report =
                evaluate_text(&model, &*tokenizer, &special, documents(&[text]), settings).unwrap();
            let unpredicted = if is_own_prefix { "<EOS>".len() } else { 0 };
            assert_eq!(
                report.bytes as usize,
                text.len() - unpredicted,
                "{kind:?} {text:?}"
            );
            let nats = report.loss.nats_per_token * report.loss.tokens as f64;
            let expected = nats / std::f64::consts::LN_2 / report.bytes as f64;
            assert!((report.loss.bits_per_byte.unwrap() - expected).abs() < 1e-12);
            let packed = evaluate_texts(&*tokenizer, &[text], Packing::Packed);
            let first = if is_own_prefix { "<EOS>".len() } else { 1 };
            assert_eq!(
                packed.bytes as usize,
                text.len() - first,
                "{kind:?} {text:?}"
            );
        }
    }
}

#[test]
fn chunks_are_joined_into_one_document() {
    let tokenizer = tokenizer(TokenizerKind::Char, "abc");
    let chunk = |text: &str, start, end| {
        Ok(TextChunk {
            text: text.to_owned(),
            is_first: start,
            is_last: end,
        })
    };
    let chunks = vec![
        chunk("ab", true, false),
        chunk("cab", false, false),
        chunk("", false, true),
    ];
    let model = model(tokenizer.vocab_size());
    let expected = evaluate_texts(&*tokenizer, &["abcab"], Packing::Documents);
    let settings = TextSettings {
        batch_size: 2,
        packing: Packing::Documents,
    };
    assert_eq!(
        evaluate_text(
            &model,
            &*tokenizer,
            &ModelTokens::default(),
            chunks,
            settings
        )
        .unwrap(),
        expected
    );
    assert_eq!(expected.loss.tokens, 5);
}

#[test]
fn eos_is_not_appended_twice() {
    let tokenizer = tokenizer(TokenizerKind::Char, "abc");
    let with = evaluate_texts(&*tokenizer, &["ab<EOS>", "c<EOS>"], Packing::Packed);
    let without = evaluate_texts(&*tokenizer, &["ab", "c"], Packing::Packed);
    let measured = |report: &TextReport| (report.loss.nats_per_token, report.documents);
    assert_eq!(measured(&with), measured(&without));
    assert_eq!(with.loss.tokens, 4);
    assert_eq!((with.bytes, without.bytes), (12, 2)); // The text itself has `<EOS>` twice.
}

#[test]
fn imported_models_read_each_text_after_their_first_token() {
    let tokenizer = tokenizer(TokenizerKind::Char, "<abcé ").with_roles(None, None);
    let model = model(tokenizer.vocab_size());
    let texts = ["é bac", "<ab"];
    let nats: f64 = ["<é bac", "<ab"]
        .iter()
        .map(|t| naive(&model, &tokenizer.encode(t).ids))
        .sum();
    for source in [TokenSource::Declared, TokenSource::Guessed] {
        let special = ModelTokens {
            bos_id: Some(tokenizer.encode("<").ids[0]),
            source: Some(source),
            ..ModelTokens::default()
        };
        let settings = TextSettings::default();
        let report =
            evaluate_text(&model, &*tokenizer, &special, documents(&texts), settings).unwrap();
        assert_eq!((report.loss.tokens, report.documents), (7, 2));
        assert_eq!((report.prefix.len(), report.counts_eos), (1, false));
        let found = report.loss.nats_per_token * 7.0;
        assert!((found - nats).abs() < 1e-4, "{found} {nats}");
    }
}

#[test]
fn the_last_window_of_an_imported_model_has_left_context() {
    let tokenizer = tokenizer(TokenizerKind::Char, "<abc").with_roles(None, None);
    let model = model(tokenizer.vocab_size()); // a context of 8 tokens
    let text = "abcacbbaccabcabbcba"; // 19 targets: 8, 8 and 3
    let ids = tokenizer.encode(&format!("<{text}")).ids;
    let last = &ids[11..20];
    let nats = naive(&model, &ids[..9]) + naive(&model, &ids[8..17]) + naive(&model, last)
        - naive(&model, &last[..6]);
    let special = ModelTokens {
        bos_id: Some(ids[0]),
        source: Some(TokenSource::Declared),
        ..ModelTokens::default()
    };
    let settings = TextSettings::default();
    let report =
        evaluate_text(&model, &*tokenizer, &special, documents(&[text]), settings).unwrap();
    assert_eq!((report.loss.tokens, report.bytes), (19, 19));
    let found = report.loss.nats_per_token * 19.0;
    assert!((found - nats).abs() < 1e-4, "{found} {nats}");
}

#[test]
fn all_unknown_characters_are_counted() {
    let report = evaluate_texts(
        &*tokenizer(TokenizerKind::Char, "abc"),
        &["aπbΩπ", "cπ"],
        Packing::Packed,
    );
    assert_eq!((report.unknown, report.parts), (4, 7));
    assert_eq!(report.uncounted_bytes, 8); // 2 for each
}

#[test]
fn invalid_texts_are_errors() {
    let tokenizer = tokenizer(TokenizerKind::Char, "abc");
    let fail = |model: &Transformer, texts, packing| {
        let settings = TextSettings {
            batch_size: 2,
            packing,
        };
        evaluate_text(
            model,
            &*tokenizer,
            &ModelTokens::default(),
            documents(texts),
            settings,
        )
        .unwrap_err()
        .to_string()
    };
    let own = model(tokenizer.vocab_size());
    for packing in [Packing::Packed, Packing::Documents] {
        assert!(fail(&own, &[], packing).starts_with("the text has 0 tokens"));
        assert!(fail(&own, &[""], packing).starts_with("the text has 1 token,"));
    }
    let message = fail(&model(3), &["abc"], Packing::Packed);
    assert!(
        message.starts_with("the tokenizer has 4 tokens, but the model has 3"),
        "{message}"
    );
}

#[test]
fn progress_counts_tokens_and_then_windows() {
    let tokenizer = tokenizer(TokenizerKind::Char, "abc");
    let model = model(tokenizer.vocab_size()); // a context of 8 tokens
    let mut steps = Vec::new();
    let settings = TextSettings {
        batch_size: 2,
        packing: Packing::Documents,
    };
    let texts = ["abcabcabcabc", "ab", "c"];
    let report = evaluate_text_with(
        &model,
        &*tokenizer,
        &ModelTokens::default(),
        documents(&texts),
        settings,
        &mut |progress| steps.push(progress),
    )
    .unwrap();
    let tokens = [12, 14, 15].map(|tokens| EvalProgress::Reading { tokens });
    assert_eq!(steps[..3], tokens);
    let all = steps.len() as u64 - 3;
    let (done, last) = match steps.last() {
        Some(EvalProgress::Windows { done, all }) => (*done, *all),
        other => (0, other.map_or(0, |_| 1)),
    };
    assert!(
        done == last && last > 2 && all == last.div_ceil(2),
        "{steps:?}"
    );
    assert_eq!(
        report,
        evaluate_texts(&*tokenizer, &texts, Packing::Documents)
    );
}

#[test]
fn imported_models_count_the_bytes_of_unknown_text_unless_it_is_dropped() {
    for (unk, bytes) in [("<unk>", 8), ("", 4)] {
        let config = TokenizerConfig::chars().with_unk(unk);
        let tokenizer = config.build("abc ").unwrap();
        let model = model(tokenizer.vocab_size());
        let special = ModelTokens {
            bos_id: tokenizer.special_tokens().eos,
            source: Some(TokenSource::Declared),
            ..ModelTokens::default()
        };
        let settings = TextSettings::default();
        let texts = documents(&["ab ππc"]);
        let report = evaluate_text(&model, &*tokenizer, &special, texts, settings).unwrap();
        assert_eq!((report.bytes, report.unknown), (bytes, 2), "{unk:?}");
        assert_eq!(report.uncounted_bytes, 8 - bytes, "{unk:?}");
    }
}
