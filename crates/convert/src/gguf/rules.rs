//! Rules of a tokenizer that `llama.cpp` cannot express, or expresses differently.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::ConvertError;
use crate::error::unsupported_tokenizer as unsupported;

/// Rejects added tokens that match more than their text.
pub(super) fn check_added_tokens(file: &Value) -> Result<(), ConvertError> {
    let spaces = "the texts never have such white space";
    let effects = [
        ("lstrip", "removes white space before it", spaces),
        ("rstrip", "removes white space after it", spaces),
        (
            "single_word",
            "is found only as a whole word",
            "the texts never have it within a word",
        ),
    ];
    for token in file["added_tokens"].as_array().into_iter().flatten() {
        for (flag, effect, condition) in effects {
            if token[flag] == true {
                return unsupported(format!(
                    "its added token {} {effect} (`{flag}`), which a GGUF file cannot say; hint: set {flag} to false in \
                     tokenizer.json if {condition}",
                    token["content"]
                ));
            }
        }
    }
    Ok(())
}

/// Unicode normalization, which leaves most text as it is.
const UNICODE_NORMALIZERS: [&str; 6] = ["NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled"];

/// A note for each normalizer that `llama.cpp` does not apply. Those that change most texts are errors. `▁` for spaces can
/// be expressed if the vocabulary `writes_spaces` so.
pub(super) fn normalizer_notes(
    file: &Value,
    writes_spaces: bool,
) -> Result<Vec<String>, ConvertError> {
    let mut notes = Vec::new();
    for step in steps(&file["normalizer"], "normalizers") {
        let kind = step["type"].as_str().unwrap_or("");
        let is_expressible = match kind {
            "Prepend" => writes_spaces && step["prepend"] == "▁",
            "Replace" => {
                let is_space = step["pattern"]["String"] == " " || step["pattern"]["Regex"] == " ";
                writes_spaces && is_space && step["content"] == "▁"
            }
            _ => step.is_null(),
        };
        if is_expressible {
            continue;
        }
        if !UNICODE_NORMALIZERS.contains(&kind) {
            return unsupported(format!("its normalizer {kind:?} is not supported"));
        }
        notes.push(format!(
            "llama.cpp does not apply the normalizer {kind} of the tokenizer: it splits a text that {kind} changes into \
             other tokens, unless the text is normalized before"
        ));
    }
    Ok(notes)
}

/// The first of `tokens` that merging its characters by `merges` does not lead to.
pub(super) fn unreachable_token<'a>(
    mut tokens: impl Iterator<Item = &'a String>,
    merges: &[String],
) -> Option<&'a String> {
    let mut ranks: HashMap<&str, usize> = HashMap::new();
    for (rank, merge) in merges.iter().enumerate() {
        ranks.entry(merge).or_insert(rank);
    }
    let is_reached = |token: &&String| {
        let mut parts: Vec<String> = token.chars().map(String::from).collect();
        while parts.len() > 1 {
            let pairs = parts.windows(2).enumerate();
            let ranked = pairs.filter_map(|(at, pair)| {
                let rank = ranks.get(format!("{} {}", pair[0], pair[1]).as_str())?;
                Some((*rank, at))
            });
            let Some((_, at)) = ranked.min() else {
                return false;
            };
            let second = parts.remove(at + 1);
            parts[at].push_str(&second);
        }
        true
    };
    tokens.find(|token| !is_reached(token))
}

/// How a `SentencePiece`-like tokenizer treats spaces.
pub(super) struct Spaces {
    /// Whether a space is put before a text.
    pub(super) adds_prefix: bool,
    /// What `llama.cpp` does differently.
    pub(super) note: Option<String>,
}

/// Reads how spaces are written and put before a text. `regular` are the tokens that are not added ones.
pub(super) fn spaces(file: &Value, regular: &HashSet<&str>) -> Result<Spaces, ConvertError> {
    let normalizers = steps(&file["normalizer"], "normalizers");
    let pre_tokenizers = steps(&file["pre_tokenizer"], "pretokenizers");
    let has = |list: &[&Value], kind: &str, key: &str| {
        let mut list = list.iter();
        list.any(|step| step["type"] == kind && step[key] == "▁")
    };
    if has(&normalizers, "Prepend", "prepend") {
        let note = None;
        return Ok(Spaces {
            adds_prefix: true,
            note,
        });
    }
    let metaspace = pre_tokenizers
        .iter()
        .find(|step| step["type"] == "Metaspace");
    let Some(metaspace) = metaspace else {
        if has(&normalizers, "Replace", "content") {
            return Ok(Spaces {
                adds_prefix: false,
                note: None,
            });
        }
        return unsupported("it does not write spaces as `▁`");
    };
    if metaspace["split"] != false
        && let Some(token) = regular
            .iter()
            .filter(|token| token.chars().skip(1).any(|c| c == '▁'))
            .min()
    // The order of a set differs from run to run.
    {
        return unsupported(format!(
            "it splits a text before each space, but llama.cpp would merge over spaces into {token:?}"
        ));
    }
    let is_prefixed = metaspace["add_prefix_space"] != false;
    let scheme = metaspace["prepend_scheme"].as_str();
    let scheme = scheme.unwrap_or(if is_prefixed { "always" } else { "never" });
    let note = "llama.cpp also puts a space before a text that begins with one";
    Ok(Spaces {
        adds_prefix: scheme != "never",
        note: match scheme {
            "never" => None,
            "first" => Some(format!(
                "{note}, and before a text that follows a special token"
            )),
            _ => Some(note.to_string()),
        },
    })
}

/// The steps of a normalizer or pre-tokenizer.
fn steps<'a>(value: &'a Value, key: &str) -> Vec<&'a Value> {
    let list = value[key].as_array();
    list.map_or_else(|| vec![value], |list| list.iter().collect())
}

/// The first byte token that is missing.
pub(super) fn missing_byte(regular: &HashSet<&str>) -> Option<String> {
    let mut tokens = (0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>"));
    tokens.find(|token| !regular.contains(token.as_str()))
}

/// Names the merges of two `regular` tokens into a third that `llama.cpp` makes and the tokenizer does not, if there are
/// any. `ranks` are those of the merged tokens.
pub(super) fn further_merges(
    tokens: &[Option<String>],
    regular: &HashSet<&str>,
    merges: &HashSet<&str>,
    ranks: &HashMap<String, usize>,
) -> Option<String> {
    let mut found = Vec::new();
    // In the order of ids: that of a set differs from run to run.
    let ordered = tokens.iter().flatten().map(String::as_str);
    for token in ordered.filter(|token| regular.contains(token)) {
        let splits = token
            .char_indices()
            .skip(1)
            .map(|(index, _)| token.split_at(index));
        for (left, right) in splits {
            let can_merge = regular.contains(left) && regular.contains(right);
            if can_merge && !merges.contains(format!("{left} {right}").as_str()) {
                let rank = ranks.get(token).copied().unwrap_or(usize::MAX);
                found.push((rank, left, right, token));
            }
        }
    }
    // The sort is stable: tokens of one rank stay in order.
    found.sort_by_key(|(rank, ..)| *rank);
    let (_, left, right, token) = found.first()?;
    let others = match found.len() - 1 {
        0 => String::new(),
        1 => " (and 1 more pair)".to_string(),
        others => format!(" (and {others} more pairs)"),
    };
    Some(format!(
        "llama.cpp would merge {left:?} and {right:?} into {token:?}{others}, but the tokenizer does not: with vocabularies \
         of this kind, llama.cpp merges any two tokens that form a third, whereas tokenizer.json lists the merges; hint: \
         export with --format hf, or use a tokenizer that lists all of them, as SentencePiece's do"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_further_merge_is_named_with_the_number_of_all() {
        let tokens = ["▁", "t", "h", "e", "▁t", "th", "he", "the", "▁the"];
        let problem = |merges: &[&str]| {
            let ranks = merges.iter().map(|merge| merge.replace(' ', ""));
            let ranks = ranks.zip(0..).collect();
            let tokens: Vec<Option<String>> = tokens
                .iter()
                .map(|token| Some((*token).to_string()))
                .collect();
            let regular = tokens.iter().flatten().map(String::as_str).collect();
            further_merges(&tokens, &regular, &merges.iter().copied().collect(), &ranks)
        };
        let all = ["▁ t", "t h", "h e", "th e", "t he", "▁ the", "▁t he"];
        assert_eq!(problem(&all), None);
        for (left_out, expected) in [
            (&["▁ t"][..], "\"▁\" and \"t\" into \"▁t\", but"),
            (&["t he"], "\"t\" and \"he\" into \"the\", but"),
            (
                &["▁t he", "t he"],
                "\"t\" and \"he\" into \"the\" (and 1 more pair), but",
            ),
            (
                &["▁t he", "t he", "▁ t"],
                "\"t\" and \"he\" into \"the\" (and 2 more pairs), but",
            ),
        ] {
            let listed: Vec<&str> = all
                .iter()
                .copied()
                .filter(|merge| !left_out.contains(merge))
                .collect();
            for _ in 0..10 {
                let problem = problem(&listed).unwrap_or_default();
                assert!(problem.contains(expected), "{problem}");
                assert!(problem.contains("; hint: "), "{problem}");
            }
        }
    }

    #[test]
    fn tokens_that_no_merges_lead_to_are_found() {
        let merges = ["t h", "th e"].map(String::from);
        let tokens =
            |list: &[&str]| -> Vec<String> { list.iter().map(ToString::to_string).collect() };
        let reachable = tokens(&["t", "th", "the"]);
        assert_eq!(unreachable_token(reachable.iter(), &merges), None);
        for word in ["he", "then", "thth"] {
            let list = tokens(&["the", word]);
            assert_eq!(
                unreachable_token(list.iter(), &merges),
                Some(&word.to_string())
            );
        }
    }
}
