//! Text that is not in the vocabulary has a token, a true count and a place.

use serde_json::Value;

use crate::*;

fn all() -> SplitConfig {
    SplitConfig {
        validation: 0.0,
        ..SplitConfig::default()
    }
}

#[test]
fn trained_characters_and_words_have_an_unknown_token_by_default() {
    for (config, text, other, expected) in [
        (TokenizerConfig::chars(), "hello", "hΩllo", "h<unk>llo"),
        (
            TokenizerConfig::words(),
            "the cat sat",
            "the dog sat",
            "the <unk> sat",
        ),
    ] {
        let tokenizer = config.build(text).unwrap();
        let unknown = tokenizer.special_tokens().unk.unwrap();
        assert_eq!(tokenizer.id_to_token(unknown).as_deref(), Some("<unk>"));
        let encoding = tokenizer.encode(other);
        assert_eq!((encoding.unknown_count, encoding.dropped_count), (1, 0));
        assert_eq!(encoding.part_count(), encoding.ids.len());
        assert_eq!(tokenizer.decode(&encoding.ids), expected);
        let file: Value = serde_json::from_str(&tokenizer.to_json().unwrap()).unwrap();
        let name = file["model"]["unk_token"].as_str().unwrap();
        assert_eq!(
            file["model"]["vocab"][name], unknown,
            "Python's tokenizers needs the entry"
        );
        let again = parse_tokenizer(&file.to_string(), "test").unwrap();
        assert_eq!(again.special_tokens(), tokenizer.special_tokens());
        assert_eq!(again.encode(other), encoding);
    }
}

#[test]
fn bytes_need_no_unknown_token() {
    for config in [TokenizerConfig::bytes(), TokenizerConfig::bpe(300)] {
        let tokenizer = config.build("abc").unwrap();
        assert_eq!(tokenizer.special_tokens().unk, None);
        assert_eq!(tokenizer.encode("Ω🙂").unknown_count, 0);
    }
}

#[test]
fn a_character_file_without_an_unknown_token_is_valid_elsewhere() {
    let tokenizer = TokenizerConfig::chars()
        .with_unk("")
        .build("hello")
        .unwrap();
    let json = tokenizer.to_json().unwrap();
    let file: Value = serde_json::from_str(&json).unwrap();
    assert!(file["model"]["unk_token"].is_null());
    let library = HuggingFaceTokenizer::from_json(&json, "test").unwrap();
    for text in ["hello", "Hello Z", "ZZZ", "", "<EOS>l\nl"] {
        assert_eq!(
            library.encode(text).ids,
            tokenizer.encode(text).ids,
            "{text:?}"
        );
    }
    // Files of earlier versions, with words and a name that is not in the vocabulary.
    let old = TokenizerConfig::words().with_unk("").build("a b").unwrap();
    let mut old: Value = serde_json::from_str(&old.to_json().unwrap()).unwrap();
    old["pre_tokenizer"] = file["pre_tokenizer"].clone();
    old["decoder"] = file["decoder"].clone();
    let old = parse_tokenizer(&old.to_string(), "test").unwrap();
    assert!(format!("{old:?}").starts_with("CharTokenizer"));
    assert_eq!((old.vocab_size(), old.special_tokens().unk), (3, None));
    assert_eq!(old.encode("a b").ids, [0, 1]);
}

#[test]
fn all_unknown_parts_are_counted_with_their_share() {
    // 5,000 distinct words, of which the vocabulary has 8.
    let text: Vec<String> = (0..5000).map(|n| format!("w{n}")).collect();
    let text = [vec!["the".to_owned(); 5000], text].concat().join(" ");
    let words = |unk: &str| TokenizerConfig {
        vocab_size: Some(10),
        ..TokenizerConfig::words().with_unk(unk)
    };
    for (unk, known) in [("<unk>", 8), ("", 9)] {
        let dataset = Dataset::from_documents([text.as_str()], &words(unk), all()).unwrap();
        let card = dataset.card.unwrap();
        assert_eq!(card.unknown.len(), Encoding::MAX_UNKNOWN);
        assert_eq!(
            (card.unknown_count, card.part_count),
            (5001 - known, 10_000),
            "{unk:?}"
        );
        let share = format!("4,99{} of 10,000 parts of the text (49.9 %)", 11 - known);
        assert_eq!(card.unknown_share(), share);
        let ids = dataset.train.len();
        assert_eq!(ids, if unk.is_empty() { 5008 + 1 } else { 10_001 });
    }
}

#[test]
fn a_card_without_counts_can_be_read() {
    let card = r#"{"version": 1, "sources": [], "bytes": 1, "documents": 1, "train_tokens": 1, "validation_tokens": 0,
        "split": {"by": "tail", "validation": 0.0, "seed": 0}, "vocab_size": 2, "tokenizer_hash": "", "unknown": ["x"]}"#;
    let card: DatasetCard = serde_json::from_str(card).unwrap();
    assert_eq!((card.unknown_count, card.part_count), (0, 0));
    assert_eq!(card.unknown_share(), "1 or more parts of the text");
    assert!(!serde_json::to_string(&card).unwrap().contains("part_count"));
}

#[test]
fn ranges_name_the_text_of_each_token() {
    let text = "Ωa bé<EOS> Ω a";
    for config in [
        TokenizerConfig::chars(),
        TokenizerConfig::chars().with_unk(""),
        TokenizerConfig::words(),
        TokenizerConfig::words().with_unk(""),
        TokenizerConfig::bytes(),
    ] {
        let tokenizer = config.build("a bé").unwrap();
        let (encoding, ranges) = tokenizer.encode_with_ranges(text);
        assert_eq!(encoding, tokenizer.encode(text));
        assert_eq!(encoding.ids.len(), ranges.len());
        let mut end = 0;
        for (id, range) in encoding.ids.iter().zip(ranges) {
            let range = range.unwrap();
            assert!(range.start >= end);
            end = range.end;
            let shown = tokenizer.token_text(*id).unwrap();
            let bytes = &text.as_bytes()[range.clone()];
            let is_unknown = Some(*id) == tokenizer.special_tokens().unk;
            assert!(
                is_unknown || shown.as_bytes() == bytes || bytes.len() == 1,
                "{shown} {range:?}"
            );
        }
        assert_eq!(end, text.len());
    }
}
