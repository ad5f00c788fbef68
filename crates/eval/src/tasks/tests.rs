//! Tests of task evaluation.

use nextword_data::{TokenizerConfig, TokenizerKind, build_tokenizer};

use super::*;
use crate::loss::tests::{model, naive};

fn letters() -> std::sync::Arc<dyn Tokenizer> {
    tokenizer(TokenizerKind::Char)
}

fn tokenizer(kind: TokenizerKind) -> std::sync::Arc<dyn Tokenizer> {
    build(kind, "abcdefgh ", "<EOS>")
}

/// A tokenizer built from `text`, without a token for unknown text.
fn build(kind: TokenizerKind, text: &str, eos: &str) -> std::sync::Arc<dyn Tokenizer> {
    let config = TokenizerConfig {
        kind,
        eos: eos.to_owned(),
        unk: String::new(),
        ..TokenizerConfig::default()
    };
    build_tokenizer(&config, std::iter::once(Ok(text.to_owned()))).unwrap()
}

fn with_bos(bos: Option<u32>) -> ModelTokens {
    ModelTokens {
        bos_id: bos,
        ..ModelTokens::default()
    }
}

fn run(tokenizer: &dyn Tokenizer, bos: Option<u32>, line: &Value) -> TaskReport {
    let model = model(tokenizer.vocab_size());
    evaluate_task(
        &model,
        tokenizer,
        &with_bos(bos),
        line.to_string().as_bytes(),
    )
    .unwrap()
}

#[test]
fn accuracy_equals_a_manual_computation() {
    let tokenizer = letters();
    let model = model(tokenizer.vocab_size());
    let nats = |text: &str| naive(&model, &tokenizer.encode(text).ids);
    let score = |ending: &str| nats("ab c") - nats(&format!("ab c {ending}"));
    let endings = ["dd", "e", "fgh"];
    let scores = endings.map(score);
    let by_bytes: Vec<f64> = scores
        .iter()
        .zip(endings)
        .map(|(s, e)| s / e.len() as f64)
        .collect();
    let line = |label: usize| {
        serde_json::json!({"context": "ab c", "endings": endings, "label": label}).to_string()
    };
    for label in 0..3 {
        let report =
            evaluate_task(&model, &*tokenizer, &with_bos(None), line(label).as_bytes()).unwrap();
        let is_correct = |scores: &[f64]| f64::from(u8::from(best(scores) == Some(label)));
        assert_eq!(report.accuracy, Some(is_correct(&scores)), "{scores:?}");
        assert_eq!(
            report.accuracy_by_bytes,
            Some(is_correct(&by_bytes)),
            "{by_bytes:?}"
        );
    }
}

#[test]
fn accuracy_by_characters_and_by_bytes_differ() {
    let tokenizer = tokenizer(TokenizerKind::Byte);
    let model = model(tokenizer.vocab_size());
    let endings = ["ab", "\u{e9}\u{e9}"]; // Two characters each: two and four bytes.
    let nats = |ids: &[u32]| naive(&model, ids);
    let bos = 7;
    let score = |ending: &str| {
        let ids = |text: &str| [vec![bos], tokenizer.encode(text).ids].concat();
        nats(&ids("c")) - nats(&ids(&format!("c {ending}")))
    };
    let sums = endings.map(score);
    let label = usize::from(sums[1] > sums[0]);
    let by_bytes = f64::from(u8::from(
        Some(label) == best(&[sums[0] / 2.0, sums[1] / 4.0]),
    ));
    let line = serde_json::json!({"ctx": "c", "endings": endings, "label": label.to_string()});
    let lines = format!("{line}\n{line}\n");
    let report =
        evaluate_task(&model, &*tokenizer, &with_bos(Some(bos)), lines.as_bytes()).unwrap();
    assert_eq!(report.accuracy, Some(1.0), "{sums:?}");
    assert_eq!(report.accuracy_by_characters, Some(1.0));
    assert_eq!(report.accuracy_by_bytes, Some(by_bytes));
    assert_eq!(report.accuracy_stderr, Some(0.0));
    assert!(
        (sums[1] / 4.0 > sums[0] / 2.0) != (sums[1] > sums[0]),
        "the two criteria must differ"
    );
}

#[test]
fn a_shared_context_gives_the_same_scores() {
    let tokenizer = letters();
    let model = model(tokenizer.vocab_size()); // a context of 8
    let scorer = Scorer {
        model: &model,
        tokenizer: &*tokenizer,
        special: &ModelTokens::default(),
        unknown: BTreeSet::new(),
    };
    let before = tokenizer.encode("abcd").ids;
    for endings in [["e", "fgh", "ab"], ["e", "fghab", "abcdefgh"]] {
        let endings = endings.map(|ending| tokenizer.encode(ending).ids);
        let sums = scorer.score_continuations(&before, &endings).unwrap();
        for (sum, ending) in sums.iter().zip(&endings) {
            let alone = scorer
                .score(&[&before[..], ending].concat(), ending.len())
                .unwrap();
            assert!((sum - alone).abs() < 1e-4, "{sum} {alone}");
        }
    }
}

#[test]
fn each_token_of_a_long_text_counts_once() {
    let tokenizer = letters();
    let model = model(tokenizer.vocab_size()); // a context of 8
    let text = "abc deaf hgab feed";
    let ids = tokenizer.encode(text).ids;
    let eos = tokenizer.special_tokens().eos.unwrap();
    let all = [vec![eos], ids].concat();
    let last = |window: &[u32], count: usize| {
        let before = window.len() - count;
        naive(&model, window)
            - if before > 1 {
                naive(&model, &window[..before])
            } else {
                0.0
            }
    };
    let expected = last(&all[..9], 8) + last(&all[8..17], 8) + last(&all[10..19], 2);
    let line = serde_json::json!({ "text": text }).to_string();
    let report = evaluate_task(&model, &*tokenizer, &with_bos(None), line.as_bytes()).unwrap();
    let bits = report.bits_per_byte.unwrap();
    let expected = expected / std::f64::consts::LN_2 / text.len() as f64;
    assert!((bits - expected).abs() < 1e-4, "{bits} {expected}");
    assert_eq!(
        (report.texts, report.questions, report.accuracy),
        (1, 0, None)
    );
}

#[test]
fn bits_per_byte_with_dropped_text_agrees_with_evaluate_text() {
    // Unknown are `π`, `Ω` and the space: six times.
    for (kind, corpus, text, bytes, distinct, all) in [
        (TokenizerKind::Char, "abcde", "bπc dΩπ <EOS>", 3, 3, 6),
        (
            TokenizerKind::Word,
            "a bb ccc",
            "bb zz ccc yy <EOS>",
            6,
            2,
            2,
        ),
    ] {
        let tokenizer = build(kind, corpus, "<EOS>");
        // A text without context begins after `<EOS>`: both predict the same tokens.
        let chunk = nextword_data::TextChunk {
            text: format!("<EOS> {text}"),
            is_first: true,
            is_last: true,
        };
        let settings = crate::TextSettings::default();
        let model = model(tokenizer.vocab_size());
        let chunks = [Ok(chunk)];
        let special = with_bos(None);
        let by_text =
            crate::evaluate_text(&model, &*tokenizer, &special, chunks, settings).unwrap();
        let report = run(&*tokenizer, None, &serde_json::json!({ "text": text }));
        let (a, b) = (
            report.bits_per_byte.unwrap(),
            by_text.loss.bits_per_byte.unwrap(),
        );
        assert!((a - b).abs() < 1e-5, "{kind:?}: {a} {b}");
        assert_eq!(by_text.bytes, bytes, "{kind:?}");
        assert_eq!((report.unknown, by_text.unknown), (distinct, all));
    }
}

#[test]
fn an_ending_outside_the_vocabulary_never_wins() {
    for (kind, corpus) in [
        (TokenizerKind::Char, "abc de"),
        (TokenizerKind::Word, "a b c de"),
    ] {
        let tokenizer = build(kind, corpus, "<EOS>");
        // The second context does not fit the model's context of 8.
        for context in ["a b", "a b c de a b c de a b c de", "πππ", ""] {
            let question = |endings: [&str; 2], label: usize| {
                let line = serde_json::json!({
                    "context": context, "endings": endings, "label": label,
                });
                let report = run(&*tokenizer, None, &line);
                assert_eq!(report.accuracy, report.accuracy_by_characters);
                assert_eq!(report.accuracy, report.accuracy_by_bytes);
                (report.accuracy.unwrap(), report.unknown)
            };
            let unknown = usize::from(context == "πππ");
            let case = format!("{kind:?} {context:?}");
            assert_eq!(question(["b", "ΩΩ"], 0), (1.0, unknown + 1), "{case}");
            assert!(question(["ΩΩ", "b"], 0).0 < 0.5, "{case}");
            let neither = question(["ΩΩ", "ΨΨ"], 0);
            assert!(neither.0 < 0.5, "{case}: no ending can be predicted");
        }
    }
}

#[test]
fn empty_and_partly_dropped_endings_never_win() {
    let tokenizer = build(TokenizerKind::Char, "abc de", "<EOS>");
    for bad in ["", " ", "aΩΩΩΩ", "Ωa", "πΩ"] {
        let accuracies = |endings: [&str; 2]| {
            let line = serde_json::json!({"context": "ab", "endings": endings, "label": 0});
            let report = run(&*tokenizer, None, &line);
            let by_length = [report.accuracy_by_characters, report.accuracy_by_bytes];
            assert_eq!(by_length, [report.accuracy; 2], "{bad:?}");
            report.accuracy
        };
        assert_eq!(accuracies(["cab de", bad]), Some(1.0), "{bad:?}");
        assert_eq!(accuracies([bad, "cab de"]), Some(0.0), "{bad:?}");
    }
}

#[test]
fn an_invalid_line_is_named() {
    let tokenizer = letters();
    let model = model(tokenizer.vocab_size());
    for (lines, message) in [
        (
            "\n{\"text\": 3}\n",
            "line 2 of the task: neither `text` nor",
        ),
        (
            "{\"endings\": [\"b\"], \"label\": 0}",
            "`context` must be a string",
        ),
        (
            "{\"ctx\": \"a\", \"endings\": [1], \"label\": 0}",
            "`endings` must be a list",
        ),
        (
            "{\"ctx\": \"a\", \"endings\": [], \"label\": \"x\"}",
            "must be a whole number",
        ),
        ("{\"text\": ", "invalid JSON"),
        (
            "{\"context\": \"a\", \"endings\": [\"b\"], \"label\": 1}",
            "label 1",
        ),
        ("", "no questions and no texts"),
    ] {
        let error =
            evaluate_task(&model, &*tokenizer, &with_bos(None), lines.as_bytes()).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
    let other = self::tokenizer(TokenizerKind::Byte);
    assert!(evaluate_task(&model, &*other, &with_bos(None), "".as_bytes()).is_err());
}
