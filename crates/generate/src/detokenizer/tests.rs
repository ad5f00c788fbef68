//! The text of a completion is the whole text of its tokens, up to a stop string.

use nextword_data::{TokenizerConfig, parse_tokenizer};
use nextword_model::CounterRng;
use serde_json::{Map, Value, json};

use super::*;

/// A vocabulary like Llama's: `▁` for spaces, and a token for each byte.
fn byte_fallback() -> Arc<dyn Tokenizer> {
    let bytes: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
    let words = ["<unk>", "<s>", "▁hello", "▁the", "a", "b", "▁", "é", "\n"];
    let all = words.into_iter().chain(bytes.iter().map(String::as_str));
    let vocab: Map<String, Value> = all
        .zip(0..)
        .map(|(token, id)| (token.to_owned(), json!(id)))
        .collect();
    let decoder = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": decoder,
        "model": {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>", "byte_fallback": true},
    });
    parse_tokenizer(&file.to_string(), "test").unwrap()
}

/// The id of a vocabulary entry.
fn id(tokenizer: &dyn Tokenizer, entry: &str) -> u32 {
    let is_entry = |id: &u32| tokenizer.id_to_token(*id).as_deref() == Some(entry);
    (0..tokenizer.vocab_size() as u32).find(is_entry).unwrap()
}

fn run(
    tokenizer: &Arc<dyn Tokenizer>,
    prompt: &[u32],
    ids: &[u32],
    stop: &[String],
) -> (String, Option<String>) {
    let mut detokenizer = Detokenizer::new(tokenizer.clone(), prompt, stop).unwrap();
    let mut streamed = String::new();
    for &id in ids {
        streamed += &detokenizer.push(id, false);
        if detokenizer.stop().is_some() {
            break;
        }
    }
    streamed += &detokenizer.finish();
    let (text, stop) = detokenizer.into_text();
    assert_eq!(text, streamed);
    (text, stop)
}

#[test]
fn stop_strings_are_found_in_the_whole_text_of_random_tokens() {
    let bytes = TokenizerConfig::bytes().build("").unwrap();
    let mut found = 0;
    for (tokenizer, sequences) in [(byte_fallback(), 60_000), (bytes, 20_000)] {
        let size = tokenizer.vocab_size() as u64;
        for case in 0..sequences {
            let rng = CounterRng::new(3).stream(case);
            let count = rng.at(0) % 14;
            let token = |at: u64| {
                let interesting = "hello the\n🙂éab".as_bytes();
                let byte = interesting[(rng.at(100 + at) % interesting.len() as u64) as usize];
                match rng.at(200 + at) % 3 {
                    0 => (rng.at(300 + at) % size) as u32,
                    1 if size > 260 => 9 + u32::from(byte),
                    1 => u32::from(byte),
                    _ => (rng.at(300 + at) % 9) as u32,
                }
            };
            let ids: Vec<u32> = (0..count).map(token).collect();
            let whole = tokenizer.decode(&ids);
            let characters: Vec<char> = whole.chars().collect();
            let stops: Vec<String> = (0..rng.at(1) % 3)
                .filter_map(|stop| {
                    let first = (rng.at(2 + stop) % (characters.len() as u64 + 1)) as usize;
                    let length = 1 + (rng.at(5 + stop) % 3) as usize;
                    let stop: String = characters[first..].iter().take(length).collect();
                    Some(stop).filter(|stop| !stop.is_empty())
                })
                .collect();
            let ends = stops
                .iter()
                .filter_map(|stop| whole.find(stop.as_str()).map(|at| (at + stop.len(), at)));
            let expected = ends.min().map_or(whole.as_str(), |(_, at)| &whole[..at]);
            let (text, stop) = run(&tokenizer, &[], &ids, &stops);
            assert_eq!(text, expected, "{ids:?} {stops:?}");
            let is_in_text = |stop: &String| whole.contains(stop.as_str());
            assert_eq!(stop.is_some(), stops.iter().any(is_in_text));
            found += usize::from(stop.is_some());
        }
    }
    assert!(found > 20_000, "{found}");
}

#[test]
fn text_after_a_byte_that_completes_nothing_is_not_lost() {
    let tokenizer = byte_fallback();
    let ids = ["▁hello", "<0x0A>", "<0xC3>", "▁hello", "▁the", "a", "b"]
        .map(|entry| id(&*tokenizer, entry));
    let (text, _) = run(&tokenizer, &[], &ids, &[]);
    assert_eq!(text, "hello\u{FFFD}\u{FFFD} hello theab");
    let (text, stop) = run(&tokenizer, &[], &ids, &["the".to_owned()]);
    assert_eq!(
        (text.as_str(), stop.as_deref()),
        ("hello\u{FFFD}\u{FFFD} hello ", Some("the"))
    );
}

#[test]
fn half_a_character_at_the_end_is_u_fffd() {
    let bytes = TokenizerConfig::bytes().build("").unwrap();
    let half = [b'a', 0xC3].map(u32::from);
    assert_eq!(run(&bytes, &[], &half, &[]).0, "a\u{FFFD}");
    let fallback = byte_fallback();
    let half = ["a", "<0xC3>"].map(|entry| id(&*fallback, entry));
    assert_eq!(run(&fallback, &[], &half, &[]).0, "a\u{FFFD}");
}

#[test]
fn a_completion_does_not_repeat_the_end_of_its_prompt() {
    let tokenizer = byte_fallback();
    let entries = |entries: &[&str]| -> Vec<u32> {
        entries.iter().map(|entry| id(&*tokenizer, entry)).collect()
    };
    let prompt = entries(&["▁hello", "<0x0A>"]);
    assert_eq!(run(&tokenizer, &prompt, &entries(&["▁the"]), &[]).0, " the");
    assert_eq!(
        run(&tokenizer, &prompt, &entries(&["<0x0A>", "a"]), &[]).0,
        "\na"
    );
    let prompt = entries(&["▁hello", "<0xC3>"]);
    assert_eq!(
        run(&tokenizer, &prompt, &entries(&["<0xA9>", "a"]), &[]).0,
        "éa"
    );
    assert_eq!(run(&tokenizer, &prompt, &entries(&["a"]), &[]).0, "a");
}
