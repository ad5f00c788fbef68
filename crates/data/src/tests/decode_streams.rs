//! Incremental decoding with tokenizers of other programs.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::tests::{random, random_text};
use crate::*;

/// A tokenizer with this model and decoder; `</s>` follows the ids of the model.
fn tokenizer(
    model: &Value,
    decoder: &Value,
    pre_tokenizer: &Value,
    ids: usize,
) -> Arc<dyn Tokenizer> {
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [{"id": ids, "content": "</s>", "single_word": false, "lstrip": false,
                          "rstrip": false, "normalized": false, "special": true}],
        "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": decoder, "model": model,
    });
    parse_tokenizer(&file.to_string(), "test").unwrap()
}

fn vocabulary<'a>(tokens: impl IntoIterator<Item = &'a str>) -> (Value, usize) {
    let tokens: Vec<&str> = tokens.into_iter().collect();
    let map = tokens
        .iter()
        .enumerate()
        .map(|(id, &token)| (token.to_owned(), json!(id)));
    (Value::Object(map.collect()), tokens.len())
}

/// Llama style: spaces as `▁`, byte tokens as fallback.
fn byte_fallback() -> Arc<dyn Tokenizer> {
    let bytes: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
    let tokens = ["<unk>", "▁", "a", "b", "the", "▁the", "é", "▁▁", "\u{FFFD}"];
    let (vocab, count) = vocabulary(tokens.into_iter().chain(bytes.iter().map(String::as_str)));
    let model = json!({"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>",
                       "byte_fallback": true, "fuse_unk": true});
    let decoder = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
        {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    let pre_tokenizer =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    tokenizer(&model, &decoder, &pre_tokenizer, count)
}

/// BERT style: `##` continues a word.
fn wordpiece() -> Arc<dyn Tokenizer> {
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

/// `SentencePiece` unigram model.
fn unigram() -> Arc<dyn Tokenizer> {
    let tokens = [
        "<unk>", "▁", "▁the", "a", "b", "the", "▁a", "é", "中文", "🙂",
    ];
    let vocab: Vec<Value> = tokens
        .iter()
        .enumerate()
        .map(|(i, token)| json!([token, -(i as f64)]))
        .collect();
    let space =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let model = json!({"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": false});
    tokenizer(&model, &space, &space, tokens.len())
}

/// GPT-1 style: `</w>` ends a word.
fn word_ends() -> Arc<dyn Tokenizer> {
    let (vocab, count) = vocabulary(["a", "b", "a</w>", "b</w>", "é</w>", "中", "ab</w>"]);
    let model =
        json!({"type": "BPE", "vocab": vocab, "merges": ["a b</w>"], "end_of_word_suffix": "</w>"});
    let decoder = json!({"type": "BPEDecoder", "suffix": "</w>"});
    tokenizer(&model, &decoder, &json!({"type": "WhitespaceSplit"}), count)
}

/// GPT-2 style, trained by the `tokenizers` crate.
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
    let mut chunks: Vec<String> = ids.iter().filter_map(|&id| stream.push(id)).collect();
    chunks.extend(stream.finish());
    assert_eq!(stream.finish(), None);
    chunks
}

#[test]
fn joined_chunks_equal_full_decoding_for_texts() {
    let all = [byte_fallback(), wordpiece(), unigram(), byte_level()];
    for tokenizer in all {
        let mut random = random(1);
        for _ in 0..300 {
            let ids = tokenizer.encode(&random_text(&mut random)).ids;
            let chunks = stream(&tokenizer, &ids);
            assert_eq!(chunks.concat(), tokenizer.decode(&ids), "{ids:?}");
        }
    }
}

#[test]
fn joined_chunks_equal_full_decoding_for_random_ids() {
    for tokenizer in [byte_fallback(), wordpiece(), unigram(), byte_level()] {
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
fn no_chunk_contains_a_partial_character() {
    let text = "the é中文🙂 👩‍👩‍👧 नि the 𝔘";
    for tokenizer in [byte_fallback(), byte_level()] {
        let ids = tokenizer.encode(text).ids;
        assert!(
            ids.len() > text.chars().count(),
            "some characters are split into bytes"
        );
        let chunks = stream(&tokenizer, &ids);
        assert!(!chunks.concat().contains('\u{FFFD}'), "{chunks:?}");
        assert_eq!(chunks.concat().trim_start(), text);
    }
}

#[test]
fn single_tokens_have_the_bytes_of_the_text() {
    for tokenizer in [byte_fallback(), byte_level()] {
        for text in ["the", "the é中文🙂", "a\nb\tthe", "नि the 𝔘", "the  the"] {
            let ids = tokenizer.encode(text).ids;
            let bytes = ids.iter().map(|id| tokenizer.single_token_bytes(*id));
            let bytes: Vec<u8> = bytes.flat_map(Option::unwrap).collect();
            let found = String::from_utf8(bytes).unwrap();
            assert_eq!(found.trim_start(), text, "{ids:?}");
        }
        let unused = tokenizer.vocab_size() as u32;
        if tokenizer.token_bytes(0).is_none() {
            assert_eq!(tokenizer.single_token_bytes(unused), None);
        }
    }
}

#[test]
fn invalid_bytes_are_flushed_and_do_not_block_later_text() {
    for tokenizer in [byte_fallback(), byte_level()] {
        let byte = |byte: u8| {
            let name = format!("<0x{byte:02X}>");
            let entry = |id| tokenizer.id_to_token(id).unwrap_or_default();
            let is_byte = |id| tokenizer.token_bytes(id) == Some(vec![byte]) || entry(id) == name;
            (0..tokenizer.vocab_size() as u32)
                .find(|&id| is_byte(id))
                .unwrap()
        };
        let a = tokenizer.encode("the").ids;
        let ids = [vec![byte(0xF0); 30], a].concat();
        let mut stream = DecodeStream::new(tokenizer.clone());
        let emitted: Vec<Option<String>> = ids.iter().map(|&id| stream.push(id)).collect();
        // A run of byte tokens is decoded as a whole, when it ends.
        let first = emitted.iter().position(Option::is_some).unwrap();
        assert!(first <= 30, "{emitted:?}");
        let mut joined: String = emitted.into_iter().flatten().collect();
        joined.extend(stream.finish());
        assert_eq!(joined, tokenizer.decode(&ids));
        assert!(joined.starts_with(&"\u{FFFD}".repeat(30)) && joined.ends_with("the"));
    }
}

#[test]
fn word_end_markers_keep_spaces() {
    let tokenizer = word_ends();
    let ids = tokenizer.encode("ab a b é").ids;
    assert_eq!(tokenizer.decode(&ids), "ab a b é");
    assert_eq!(stream(&tokenizer, &ids).concat(), "ab a b é");
}
