//! Where a long text can be cut without changing the tokens of a `tokenizer.json`.

use serde_json::Value;

use crate::documents::TextCuts;

/// Patterns of which no match has white space after another character, except line ends after
/// punctuation: those of GPT-4, Llama 3, Qwen 2 and GPT-4o.
const PATTERNS: [&str; 4] = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// Where a text can be cut: before spaces, or nowhere if a normalizer, a pre-tokenizer or an added
/// token could see over the cut.
pub(crate) fn text_cuts(file: &Value) -> TextCuts {
    let mut added = file["added_tokens"].as_array().into_iter().flatten();
    let is_cut_safe = normalizer_is_local(&file["normalizer"])
        && pre_tokenizer_splits(&file["pre_tokenizer"])
        && added.all(added_token_is_local);
    if is_cut_safe {
        TextCuts::BeforeSpace
    } else {
        TextCuts::Nowhere
    }
}

fn added_token_is_local(token: &Value) -> bool {
    let content = token["content"].as_str().unwrap_or("");
    token["lstrip"] != true && token["rstrip"] != true && !content.contains(char::is_whitespace)
}

/// Whether a normalizer changes each part of a text as in the whole text, and leaves the space after
/// a cut.
fn normalizer_is_local(normalizer: &Value) -> bool {
    match normalizer["type"].as_str() {
        None => normalizer.is_null(),
        Some("NFC" | "NFD" | "Lowercase") => true,
        Some("Sequence") => {
            let parts = normalizer["normalizers"].as_array();
            parts.is_some_and(|parts| parts.iter().all(normalizer_is_local))
        }
        Some(_) => false,
    }
}

/// Whether a pre-tokenizer splits each part of a text as in the whole text: by the kind of each character
/// and its neighbors, of which a cut before a space never divides two of the same kind.
fn pre_tokenizer_is_local(pre_tokenizer: &Value) -> bool {
    let is_isolated = || matches!(pre_tokenizer["behavior"].as_str(), None | Some("Isolated"));
    match pre_tokenizer["type"].as_str() {
        Some("Digits") => true,
        Some("Punctuation") => is_isolated(),
        _ => false,
    }
}

/// Whether a pre-tokenizer always splits before a space that follows another character, for reasons
/// that both sides of the cut contain.
fn pre_tokenizer_splits(pre_tokenizer: &Value) -> bool {
    match pre_tokenizer["type"].as_str() {
        Some("ByteLevel") => {
            pre_tokenizer["use_regex"] != false && pre_tokenizer["add_prefix_space"] == false
        }
        Some("Whitespace" | "WhitespaceSplit" | "BertPreTokenizer") => true,
        Some("Split") => {
            let pattern = pre_tokenizer["pattern"]["Regex"].as_str();
            let is_known = pattern.is_some_and(|pattern| PATTERNS.contains(&pattern));
            let behavior = pre_tokenizer["behavior"].as_str();
            let separates = matches!(behavior, Some("Isolated" | "Removed"));
            is_known && separates
        }
        Some("Sequence") => {
            let Some(parts) = pre_tokenizer["pretokenizers"].as_array() else {
                return false;
            };
            // Later parts see the pieces of the first one that splits.
            let mut parts = parts.iter().skip_while(|part| pre_tokenizer_is_local(part));
            let sees_pieces = |part: &Value| match part["type"].as_str() {
                Some("Split" | "Digits" | "Punctuation" | "WhitespaceSplit" | "Whitespace") => true,
                Some("ByteLevel") => part["add_prefix_space"] == false,
                _ => false,
            };
            parts.next().is_some_and(pre_tokenizer_splits) && parts.all(sees_pieces)
        }
        _ => false,
    }
}
