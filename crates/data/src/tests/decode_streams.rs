//! Decoding one id at a time with tokenizers that other programs made.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::tests::{random, random_text};
use crate::*;

/// A tokenizer with this model and decoder; `</s>` comes after the model's ids.
fn tokenizer(model: &Value, decoder: &Value, before: &Value, ids: usize) -> Arc<dyn Tokenizer> {
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [{"id": ids, "content": "</s>", "single_word": false, "lstrip": false,
                          "rstrip": false, "normalized": false, "special": true}],
        "pre_tokenizer": before, "post_processor": null, "decoder": decoder, "model": model,
    });
    parse_tokenizer(&file.to_string(), "test").unwrap()
}

fn vocabulary<'a>(pieces: impl IntoIterator<Item = &'a str>) -> (Value, usize) {
    let pieces: Vec<&str> = pieces.into_iter().collect();
    let map = pieces
        .iter()
        .enumerate()
        .map(|(id, &piece)| (piece.to_owned(), json!(id)));
    (Value::Object(map.collect()), pieces.len())
}

/// Llama's kind: spaces as `▁`, and bytes where there is no piece.
fn byte_fallback() -> Arc<dyn Tokenizer> {
    let bytes: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
    let pieces = ["<unk>", "▁", "a", "b", "the", "▁the", "é", "▁▁", "\u{FFFD}"];
    let (vocab, count) = vocabulary(pieces.into_iter().chain(bytes.iter().map(String::as_str)));
    let model = json!({"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>",
                       "byte_fallback": true, "fuse_unk": true});
    let decoder = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
        {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    let before =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    tokenizer(&model, &decoder, &before, count)
}

/// BERT's kind: `##` goes on with a word.
fn word_piece() -> Arc<dyn Tokenizer> {
    let (vocab, count) = vocabulary([
        "<unk>", "the", "a", "b", "##b", "##the", "don", "'", "##t", ".", "é", "中", "##文", "n't",
    ]);
    let model = json!({"type": "WordPiece", "vocab": vocab, "unk_token": "<unk>",
                       "continuing_subword_prefix": "##", "max_input_chars_per_word": 100});
    let decoder = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    tokenizer(
        &model,
        &decoder,
        &json!({"type": "BertPreTokenizer"}),
        count,
    )
}

/// `SentencePiece`'s unigram model.
fn unigram() -> Arc<dyn Tokenizer> {
    let pieces = [
        "<unk>", "▁", "▁the", "a", "b", "the", "▁a", "é", "中文", "🙂",
    ];
    let vocab: Vec<Value> = pieces
        .iter()
        .enumerate()
        .map(|(i, piece)| json!([piece, -(i as f64)]))
        .collect();
    let space =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let model = json!({"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": false});
    tokenizer(&model, &space, &space, pieces.len())
}

/// The first GPT's kind: `</w>` ends a word.
fn word_ends() -> Arc<dyn Tokenizer> {
    let (vocab, count) = vocabulary(["a", "b", "a</w>", "b</w>", "é</w>", "中", "ab</w>"]);
    let model =
        json!({"type": "BPE", "vocab": vocab, "merges": ["a b</w>"], "end_of_word_suffix": "</w>"});
    let decoder = json!({"type": "BPEDecoder", "suffix": "</w>"});
    tokenizer(&model, &decoder, &json!({"type": "WhitespaceSplit"}), count)
}

/// GPT-2's kind, read from a file of the `tokenizers` crate.
fn byte_level() -> Arc<dyn Tokenizer> {
    let text: String = Stories::new(2, 20).iter().collect();
    let config = TokenizerConfig {
        kind: TokenizerKind::Bpe,
        vocab_size: Some(300),
        ..TokenizerConfig::default()
    };
    build_tokenizer(&config, std::iter::once(Ok(text))).unwrap()
}

fn stream(tokenizer: &Arc<dyn Tokenizer>, ids: &[u32]) -> Vec<String> {
    let mut stream = DecodeStream::new(tokenizer.clone());
    let mut pieces: Vec<String> = ids.iter().filter_map(|&id| stream.push(id)).collect();
    pieces.extend(stream.finish());
    assert_eq!(stream.finish(), None);
    pieces
}

#[test]
fn pieces_joined_are_the_decoding_of_the_whole_for_texts() {
    let all = [byte_fallback(), word_piece(), unigram(), byte_level()];
    for tokenizer in all {
        let mut random = random(1);
        for _ in 0..300 {
            let ids = tokenizer.encode(&random_text(&mut random)).ids;
            let pieces = stream(&tokenizer, &ids);
            assert_eq!(pieces.concat(), tokenizer.decode(&ids), "{ids:?}");
        }
    }
}

#[test]
fn pieces_joined_are_the_decoding_of_the_whole_for_random_ids() {
    for tokenizer in [word_piece(), unigram(), byte_level()] {
        let mut random = random(2);
        for _ in 0..300 {
            let count = random.below(40);
            let ids: Vec<u32> = (0..count)
                .map(|_| random.below(tokenizer.vocab_size() + 1) as u32)
                .collect();
            assert_eq!(
                stream(&tokenizer, &ids).concat(),
                tokenizer.decode(&ids),
                "{ids:?}"
            );
        }
    }
}

#[test]
fn no_piece_holds_half_a_character_of_a_text() {
    let text = "the é中文🙂 👩‍👩‍👧 नि the 𝔘";
    for tokenizer in [byte_fallback(), byte_level()] {
        let ids = tokenizer.encode(text).ids;
        assert!(ids.len() > text.chars().count(), "bytes stand alone");
        let pieces = stream(&tokenizer, &ids);
        assert!(!pieces.concat().contains('\u{FFFD}'), "{pieces:?}");
        assert_eq!(pieces.concat().trim_start(), text);
    }
}

#[test]
fn bytes_that_never_become_text_are_given_out_and_do_not_stop_what_follows() {
    for tokenizer in [byte_fallback(), byte_level()] {
        let byte = |byte: u8| {
            let name = format!("<0x{byte:02X}>");
            let piece = |id| tokenizer.id_to_token(id).unwrap_or_default();
            let own = |id| tokenizer.token_bytes(id) == Some(vec![byte]) || piece(id) == name;
            (0..tokenizer.vocab_size() as u32)
                .find(|&id| own(id))
                .unwrap()
        };
        let a = tokenizer.encode("the").ids;
        let ids = [vec![byte(0xF0); 30], a].concat();
        let mut stream = DecodeStream::new(tokenizer.clone());
        let given: Vec<Option<String>> = ids.iter().map(|&id| stream.push(id)).collect();
        let first = given.iter().position(Option::is_some).unwrap();
        assert!(first <= 9, "{given:?}");
        let joined: String = given.into_iter().flatten().collect();
        assert!(
            joined.ends_with("the") && joined.starts_with('\u{FFFD}'),
            "{joined:?}"
        );
    }
}

#[test]
fn words_with_an_end_sign_keep_their_spaces() {
    let tokenizer = word_ends();
    let ids = tokenizer.encode("ab a b é").ids;
    assert_eq!(tokenizer.decode(&ids), "ab a b é");
    assert_eq!(stream(&tokenizer, &ids).concat(), "ab a b é");
}
