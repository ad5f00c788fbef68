//! The roles of special tokens in a `tokenizer.json`, by their names.

use serde_json::Value;

use crate::tokenizer::SpecialTokens;
use crate::tokenizer::eos_names::{EOS_NAMES, is_non_eos_name};
use crate::tokenizer::special::is_padding_name;

/// Detects the roles of special tokens by name: the format does not store them.
pub(super) fn detect_special_tokens(file: &Value, inner: &tokenizers::Tokenizer) -> SpecialTokens {
    let mut special: Vec<(u32, String)> = inner
        .get_added_tokens_decoder()
        .into_iter()
        .filter(|(_, token)| token.special)
        .map(|(id, token)| (id, token.content))
        .collect();
    special.sort_unstable();
    let model = &file["model"];
    let unk_id = || {
        model["unk_id"]
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
    };
    let unk = model["unk_token"]
        .as_str()
        .and_then(|name| inner.token_to_id(name))
        .or_else(unk_id);
    let named = EOS_NAMES
        .iter()
        .find_map(|name| special.iter().find(|(_, known)| known == name));
    let mut others = special
        .iter()
        .filter(|(id, name)| Some(*id) != unk && !is_non_eos_name(name));
    let only = others.next().filter(|_| others.next().is_none());
    let pad = special.iter().find(|(_, name)| is_padding_name(name));
    SpecialTokens {
        eos: named.or(only).map(|(id, _)| *id),
        unk,
        pad: pad.map(|(id, _)| *id),
    }
}
