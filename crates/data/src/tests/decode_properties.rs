//! No text is lost: decoding token by token equals decoding all tokens, for any tokens.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::malformed_tokenizers::with;
use crate::rng::RandomSequence;
use crate::tests::{random, random_text};
use crate::*;

/// Random sequences per tokenizer. Each has up to 16 tokens.
const SEQUENCES: usize = 16_000;

fn replace(from: &str, to: &str) -> Value {
    json!({"type": "Replace", "pattern": {"String": from}, "content": to})
}

fn strip(start: usize, stop: usize) -> Value {
    json!({"type": "Strip", "content": " ", "start": start, "stop": stop})
}

fn sequence(decoders: &[Value]) -> Value {
    json!({"type": "Sequence", "decoders": decoders})
}

/// A tokenizer with many odd tokens, byte tokens and added tokens, and this decoder.
fn odd(decoder: &Value) -> Arc<dyn Tokenizer> {
    let tokens = [
        "<unk>", "▁", "▁the", "a", "##b", "é", "中文", "🙂", "▁▁", "\u{FFFD}", "a</w>", "</w>",
        "|", "<pad>", " ", "  ", "", " n't", " do", " not", ".", " .", "##", "##the", "Ġ", "Ã",
        "Ļ", "ĠĊ", "b b", "▁a▁", "ab", "ba", "aba", "<0x4", "1>", "<0xZZ>", "<0x+5>", "\n", "'",
        " '", "s", " \u{301}", "ça", "xy", "x", "y",
    ];
    let bytes: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
    let all = tokens.into_iter().chain(bytes.iter().map(String::as_str));
    let vocab: Map<String, Value> = all
        .zip(0..)
        .map(|(token, id)| (token.to_owned(), json!(id)))
        .collect();
    let first = vocab.len();
    let added = |index: usize, content: &str, special: bool| {
        json!({"id": first + index, "content": content, "single_word": false, "lstrip": index == 1, "rstrip": index == 2,
               "normalized": index == 3, "special": special})
    };
    let added = [
        added(0, "</s>", true),
        added(1, " <tool> ", false),
        added(2, "<sep>", true),
        added(3, "▁tag", false),
        added(4, "<0xé>", false),
    ];
    let model = json!({"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"});
    let parts = json!({"decoder": decoder, "added_tokens": added});
    let file = String::from_utf8(with(&model, &parts)).unwrap();
    parse_tokenizer(&file, "test").unwrap()
}

fn built(kind: TokenizerKind) -> Arc<dyn Tokenizer> {
    let mut random = random(0);
    let text: String = (0..200).map(|_| random_text(&mut random)).collect();
    let config = TokenizerConfig {
        kind,
        pad: "<pad>".to_owned(),
        vocab_size: (kind == TokenizerKind::Bpe).then_some(400),
        ..TokenizerConfig::default()
    };
    config.build(&text).unwrap()
}

/// Tokenizers of all kinds, each with a name.
fn tokenizers() -> Vec<(String, Arc<dyn Tokenizer>)> {
    use TokenizerKind::{Bpe, Byte, Char, Word};
    let fallback = json!({"type": "ByteFallback"});
    let fuse = json!({"type": "Fuse"});
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
    let space = |scheme: &str| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true});
    let wordpiece =
        |cleanup: bool| json!({"type": "WordPiece", "prefix": "##", "cleanup": cleanup});
    let word_end = json!({"type": "BPEDecoder", "suffix": "</w>"});
    let ctc = |cleanup: bool| json!({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": cleanup});
    let regex = json!({"type": "Replace", "pattern": {"Regex": "a+|b$"}, "content": "<>"});
    let spaces = replace("▁", " ");
    let decoders = [
        Value::Null,
        level.clone(),
        word_end.clone(),
        wordpiece(true),
        wordpiece(false),
        space("first"),
        space("never"),
        ctc(true),
        ctc(false),
        fallback.clone(),
        regex.clone(),
        sequence(&[spaces.clone(), fallback.clone(), fuse.clone(), strip(1, 0)]), // Llama
        sequence(&[spaces.clone(), fallback.clone(), fuse.clone()]),              // Gemma
        sequence(&[spaces.clone(), fallback.clone(), fuse.clone(), strip(2, 2)]),
        sequence(&[spaces.clone(), fallback.clone(), strip(1, 0)]),
        sequence(&[fallback.clone(), space("first")]),
        sequence(&[
            fuse.clone(),
            spaces.clone(),
            replace("ab", "ba"),
            replace("aa", ""),
        ]),
        sequence(&[fuse.clone(), space("always"), strip(0, 3)]),
        sequence(&[fuse.clone(), wordpiece(true), word_end.clone()]),
        sequence(&[fuse.clone(), fallback.clone(), level.clone()]),
        sequence(&[level.clone(), strip(1, 1), fuse.clone()]),
        sequence(&[word_end, fallback.clone(), level]),
        sequence(&[ctc(true), regex, fallback, fuse]),
        sequence(&[]),
    ];
    let mut all: Vec<_> = decoders
        .iter()
        .map(|decoder| (decoder.to_string(), odd(decoder)))
        .collect();
    all.extend([Char, Byte, Word, Bpe].map(|kind| (format!("{kind:?}"), built(kind))));
    all
}

/// Ids of which many are byte tokens of neighboring values, or special.
fn random_ids(random: &mut RandomSequence, size: usize) -> Vec<u32> {
    let count = random.below(17);
    let ids = (0..count).map(|_| match random.below(4) {
        // UTF-8 of a few characters, so that valid runs occur.
        0 if size > 300 => {
            let bytes = "é🙂中\n".as_bytes();
            size - 5 - 256 + usize::from(bytes[random.below(bytes.len())])
        }
        1 => size.saturating_sub(random.below(8)),
        _ => random.below(size + 1),
    });
    ids.map(|id| id as u32).collect()
}

#[test]
fn text_of_a_stream_equals_whole_decoding_for_random_tokens() {
    let tokenizers = tokenizers();
    assert!(tokenizers.len() * SEQUENCES > 400_000);
    let mut silent = 0;
    for (name, tokenizer) in tokenizers {
        assert!(tokenizer.decode_rules().is_some(), "{name}");
        let mut random = random(7);
        let mut early = 0;
        for _ in 0..SEQUENCES {
            let ids = random_ids(&mut random, tokenizer.vocab_size());
            let mut stream = DecodeStream::new(tokenizer.clone());
            let mut text: String = ids.iter().filter_map(|&id| stream.push(id)).collect();
            early += usize::from(!text.is_empty());
            text.extend(stream.finish());
            assert_eq!(text, tokenizer.decode(&ids), "{name} {ids:?}");
            assert_eq!(stream.finish(), None);
        }
        silent += usize::from(early == 0);
    }
    assert_eq!(
        silent, 2,
        "rules on the whole text of which any part may change"
    );
}

#[test]
fn text_after_a_prompt_is_what_its_tokens_add() {
    for (name, tokenizer) in tokenizers() {
        let mut random = random(8);
        let mut compared = 0;
        for _ in 0..SEQUENCES / 4 {
            let prompt = random_ids(&mut random, tokenizer.vocab_size());
            let added = random_ids(&mut random, tokenizer.vocab_size());
            let mut stream = DecodeStream::new(tokenizer.clone());
            for &id in &prompt {
                drop(stream.push(id));
            }
            stream.end_prompt();
            let mut text: String = added.iter().filter_map(|&id| stream.push(id)).collect();
            text.extend(stream.finish());
            let before = tokenizer.decode(&prompt);
            let all = tokenizer.decode(&[prompt.as_slice(), &added].concat());
            // Bytes after bytes may belong to one character, or make the earlier ones invalid.
            let is_byte = |id: Option<&u32>| {
                let entry = id.and_then(|&id| tokenizer.id_to_token(id));
                entry.is_some_and(|entry| entry.starts_with("<0x"))
            };
            if is_byte(prompt.last()) || before.contains(char::REPLACEMENT_CHARACTER) {
                continue;
            }
            if let Some(rest) = all.strip_prefix(&before) {
                assert_eq!(text, rest, "{name} {prompt:?} {added:?}");
                compared += 1;
            }
        }
        assert!(compared > 100, "{name}: {compared}");
    }
}

#[test]
fn a_prompt_that_ends_within_a_character_is_completed() {
    let bytes = odd(&sequence(&[
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ]));
    let byte = |byte: u8| {
        let name = format!("<0x{byte:02X}>");
        let is_byte = |id: &u32| bytes.id_to_token(*id).as_deref() == Some(&name);
        (0..bytes.vocab_size() as u32).find(is_byte).unwrap()
    };
    let continued = |prompt: &[u8], completion: &[u8]| {
        let mut stream = DecodeStream::new(bytes.clone());
        for b in prompt {
            drop(stream.push(byte(*b)));
        }
        stream.end_prompt();
        let mut text: String = completion
            .iter()
            .filter_map(|b| stream.push(byte(*b)))
            .collect();
        text.extend(stream.finish());
        text
    };
    let crab = "🦀".as_bytes();
    assert_eq!(continued(&crab[..2], &crab[2..]), "🦀");
    assert_eq!(continued(b"\n", b"\n"), "\n");
    assert_eq!(
        continued(crab, b"\x80"),
        "\u{FFFD}",
        "the prompt's own character stays"
    );
}

#[test]
fn each_token_takes_constant_time() {
    for (name, tokenizer) in tokenizers() {
        let started = Instant::now();
        for id in [1, 60, tokenizer.vocab_size() as u32 - 20] {
            let mut stream = DecodeStream::new(tokenizer.clone());
            for _ in 0..50_000 {
                let _ = stream.push(id);
            }
            stream.finish();
        }
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "{name} {:?}",
            started.elapsed()
        );
    }
}

#[test]
fn special_tokens_are_decoded_on_request() {
    for kind in [
        TokenizerKind::Char,
        TokenizerKind::Byte,
        TokenizerKind::Word,
        TokenizerKind::Bpe,
    ] {
        let tokenizer = built(kind);
        let space = if kind == TokenizerKind::Word { " " } else { "" };
        let ids = tokenizer.encode("the<EOS>the<pad>").ids;
        let shown = tokenizer.decode_with_special_tokens(&ids);
        assert_eq!(
            shown,
            ["the", "<EOS>", "the", "<pad>"].join(space),
            "{kind:?}"
        );
        assert_eq!(
            tokenizer.decode(&ids),
            ["the", "the"].join(space),
            "{kind:?}"
        );
    }
}
