//! Small tokenizers of the kinds that chat models have.

use std::sync::Arc;

use nextword_data::{Tokenizer, byte_to_char, parse_tokenizer};
use serde_json::{Map, Value, json};

/// How a text is divided before byte pairs are merged.
const LLAMA_3: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\
                       \\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

fn file(model: &Value, rest: &Value, special: &[&str], first_id: usize, rstrip: bool) -> String {
    let added = special.iter().zip(first_id..).map(|(content, id)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
               "rstrip": rstrip && *content != "</s>", "normalized": false, "special": true})
    });
    let mut file = json!({
        "version": "1.0", "truncation": null, "padding": null, "post_processor": null,
        "added_tokens": added.collect::<Vec<_>>(), "model": model,
    });
    for (name, value) in rest.as_object().unwrap() {
        file[name] = value.clone();
    }
    file.to_string()
}

fn bpe(vocab: Vec<String>, merges: &[(&str, &str)], byte_fallback: bool) -> (Value, usize) {
    let merged = merges.iter().map(|(left, right)| format!("{left}{right}"));
    let vocab: Vec<String> = vocab.into_iter().chain(merged).collect();
    let ids = vocab.iter().enumerate();
    let ids: Map<String, Value> = ids.map(|(id, text)| (text.clone(), json!(id))).collect();
    let unk = byte_fallback.then_some("<unk>");
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": unk, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": byte_fallback,
        "ignore_merges": false, "vocab": ids, "merges": merges,
    });
    (model, vocab.len())
}

/// Bytes and some merged pairs, as in GPT-2 or, with another division of the text, as in Llama 3.
pub(super) fn byte_level(special: &[&str], is_llama_3: bool) -> Arc<dyn Tokenizer> {
    let bytes = (0..=255)
        .map(|byte| byte_to_char(byte).to_string())
        .collect();
    let merges = [
        ("Ċ", "Ċ"),
        ("ĊĊ", "Ċ"),
        ("Ġ", "Ġ"),
        ("t", "h"),
        ("th", "e"),
        ("Ġ", "a"),
        (">", "Ċ"),
        ("<", "|"),
    ];
    let (model, size) = bpe(bytes, &merges, false);
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let pre_tokenizer = if is_llama_3 {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": LLAMA_3}, "behavior": "Isolated", "invert": false},
            byte_level(false),
        ]})
    } else {
        byte_level(true)
    };
    let rest =
        json!({"normalizer": null, "pre_tokenizer": pre_tokenizer, "decoder": byte_level(true)});
    let json = file(&model, &rest, special, size, false);
    parse_tokenizer(&json, "byte level").unwrap()
}

/// Characters with a space before each text, and bytes for other characters, as in Llama 2. `rstrip`: whether special
/// tokens include the white space after them, as in Phi 3.
pub(super) fn sentence_piece(special: &[&str], rstrip: bool) -> Arc<dyn Tokenizer> {
    let mut vocab = vec!["<unk>".to_owned()];
    vocab.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    vocab.push("▁".to_owned());
    vocab.extend(('!'..='~').map(String::from));
    let merges = [("▁", "▁"), ("▁", "a"), ("▁", "H"), ("t", "h"), ("▁▁", "▁▁")];
    let (model, size) = bpe(vocab, &merges, true);
    let rest = json!({
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
    });
    let json = file(&model, &rest, special, size, rstrip);
    parse_tokenizer(&json, "sentence piece").unwrap()
}
