//! The tokenizer as GGUF metadata.

use std::collections::{HashMap, HashSet};

use nextword_data::Tokenizer;
use nextword_model::ModelDir;
use serde_json::Value;

use super::file::MetadataValue;
use crate::ConvertError;

// Token types of `llama.cpp`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Names of `llama.cpp`'s pre-tokenizers and the patterns that Hugging Face files use for them.
const PRE_TOKENIZERS: [(&str, &str); 2] = [
    (
        "llama-bpe",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        "qwen2",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
];

/// How `llama.cpp` tokenizes a text.
struct TokenizerSettings {
    model: &'static str,
    pre_tokenizer: &'static str,
    adds_space_prefix: bool,
    /// Whether spaces are written as `▁`.
    escapes_spaces: bool,
    merges: Vec<String>,
    scores: Vec<f32>,
}

fn unsupported<T>(problem: impl Into<String>) -> Result<T, ConvertError> {
    Err(ConvertError::Tokenizer {
        problem: problem.into(),
    })
}

/// The metadata of the model folder's tokenizer.
pub(crate) fn metadata(
    model_dir: &ModelDir,
    tokenizer: &dyn Tokenizer,
) -> Result<Vec<(String, MetadataValue)>, ConvertError> {
    let path = model_dir.tokenizer_path();
    let bytes = std::fs::read(&path).map_err(ConvertError::io(&path, "read"))?;
    let file: Value = serde_json::from_slice(&bytes)
        .map_err(|error| ConvertError::source(&path, format!("is not valid JSON ({error})")))?;
    let size = model_dir.config.vocab_size;
    let mut tokens: Vec<Option<String>> = (0..size as u32)
        .map(|id| tokenizer.id_to_token(id))
        .collect();
    let added = added_tokens(&file);
    let settings = settings(&file, &tokens, &added)?;
    if settings.escapes_spaces {
        for token in tokens
            .iter_mut()
            .flatten()
            .filter(|token| !added.contains_key(*token))
        {
            *token = token.replace(' ', "▁");
        }
        let distinct: HashSet<&String> = tokens.iter().flatten().collect();
        if distinct.len() < tokens.iter().flatten().count() {
            return unsupported(
                "its vocabulary has both a space and `▁`, which represents a space",
            );
        }
    }
    let special = tokenizer.special_tokens();
    let unknown = special.unk;
    // Without an EOS token `llama.cpp` stops at token 2 or 11. Use a token that is never a target.
    let unused = tokens.iter().position(Option::is_none).map(|id| id as u32);
    let eos_candidates = [
        special.eos,
        model_dir.card.eos_ids.first().copied(),
        special.pad,
        unused,
    ];
    let Some(eos) = eos_candidates.into_iter().flatten().next() else {
        return unsupported(
            "it has no EOS token, so llama.cpp would stop at a regular token; hint: train with \
             data.tokenizer.eos = \"<EOS>\", or with a padding token, which the model never generates",
        );
    };
    let kind = |(id, token): (usize, &Option<String>)| match token {
        None => UNUSED,
        Some(_) if Some(id as u32) == unknown => UNKNOWN,
        Some(token) => match added.get(token) {
            Some(true) => CONTROL,
            Some(false) => USER_DEFINED,
            None if settings.model == "llama" && is_byte(token) => BYTE,
            None => NORMAL,
        },
    };
    let kinds: Vec<i32> = tokens.iter().enumerate().map(kind).collect();
    let names = tokens.into_iter().enumerate();
    let names = names.map(|(id, token)| token.unwrap_or_else(|| format!("[unused {id}]")));

    let entries = [
        ("model", MetadataValue::String(settings.model.into())),
        ("pre", MetadataValue::String(settings.pre_tokenizer.into())),
        ("tokens", MetadataValue::StringArray(names.collect())),
        ("token_type", MetadataValue::I32Array(kinds)),
        (
            "bos_token_id",
            MetadataValue::U32(model_dir.card.bos_id.unwrap_or(eos) as usize),
        ),
        ("eos_token_id", MetadataValue::U32(eos as usize)),
        (
            "add_bos_token",
            MetadataValue::Bool(model_dir.card.bos_id.is_some()),
        ),
        (
            "add_space_prefix",
            MetadataValue::Bool(settings.adds_space_prefix),
        ),
    ];
    let mut metadata: Vec<(&str, MetadataValue)> = entries.into();
    if settings.model == "llama" {
        metadata.push(("scores", MetadataValue::F32Array(settings.scores)));
    } else {
        metadata.push(("merges", MetadataValue::StringArray(settings.merges)));
    }
    if let Some(id) = unknown {
        metadata.push(("unknown_token_id", MetadataValue::U32(id as usize)));
    }
    if let Some(id) = special.pad {
        metadata.push(("padding_token_id", MetadataValue::U32(id as usize)));
    }
    let prefixed = |(key, value)| (format!("tokenizer.ggml.{key}"), value);
    Ok(metadata.into_iter().map(prefixed).collect())
}

/// The added tokens, and whether each is special.
fn added_tokens(file: &Value) -> HashMap<String, bool> {
    let tokens = file["added_tokens"].as_array().into_iter().flatten();
    let entry = |token: &Value| {
        let is_special = token["special"].as_bool().unwrap_or(false);
        Some((token["content"].as_str()?.to_string(), is_special))
    };
    tokens.filter_map(entry).collect()
}

/// The settings for the tokenizer in `file`.
fn settings(
    file: &Value,
    tokens: &[Option<String>],
    added: &HashMap<String, bool>,
) -> Result<TokenizerSettings, ConvertError> {
    let model = &file["model"];
    match model["type"].as_str().unwrap_or("") {
        "BPE" if model["byte_fallback"] == true => sentencepiece(file, tokens, added),
        "WordLevel" | "BPE" if is_one_token_per_character(file) => {
            let regular = |token: &&String| !added.contains_key(*token);
            let mut regular = tokens.iter().flatten().filter(regular);
            if let Some(token) = regular.find(|token| token.chars().count() != 1) {
                return unsupported(format!("{token:?} is not a single character"));
            }
            Ok(TokenizerSettings {
                model: "llama",
                pre_tokenizer: "default",
                adds_space_prefix: false,
                escapes_spaces: true,
                merges: Vec::new(),
                scores: vec![0.0; tokens.len()],
            })
        }
        "BPE" => byte_level(file),
        "WordLevel" => unsupported(
            "it has a token for each word, which llama.cpp does not support; hint: train with data.tokenizer.kind = \"bpe\", \"char\" or \
             \"byte\"",
        ),
        other => unsupported(format!("its model type {other:?} is not supported")),
    }
}

/// Whether the tokenizer in `file` splits text into characters and merges none.
fn is_one_token_per_character(file: &Value) -> bool {
    let merges = file["model"]["merges"].as_array();
    file["pre_tokenizer"]["type"] == "Split"
        && file["decoder"]["type"] == "Fuse"
        && merges.is_none_or(Vec::is_empty)
}

/// Byte-pair encoding of bytes in GPT-2's alphabet.
fn byte_level(file: &Value) -> Result<TokenizerSettings, ConvertError> {
    let normalizer = &file["normalizer"];
    // `llama.cpp` does not normalize. Most text is in NFC already.
    if !normalizer.is_null() && normalizer["type"] != "NFC" {
        return unsupported(format!(
            "its normalizer {} is not supported",
            normalizer["type"]
        ));
    }
    if file["decoder"]["type"] != "ByteLevel" {
        return unsupported("it is a byte-pair encoding of characters, not of bytes");
    }
    let merges = merges(file)?;
    let pre = &file["pre_tokenizer"];
    let list = pre["pretokenizers"].as_array();
    let steps: Vec<&Value> = list.map_or_else(|| vec![pre], |list| list.iter().collect());
    let bytes = steps.iter().find(|step| step["type"] == "ByteLevel");
    let Some(bytes) = bytes.filter(|bytes| bytes["add_prefix_space"] != true) else {
        return unsupported(
            "it does not encode text as bytes, or it adds a space before the first word",
        );
    };
    let pre_tokenizer = match steps.as_slice() {
        [_] if bytes["use_regex"] != false || merges.is_empty() => Some("gpt-2"),
        [split, _] if split["type"] == "Split" && bytes["use_regex"] == false => {
            let pattern = split["pattern"]["Regex"].as_str().unwrap_or("");
            let known = PRE_TOKENIZERS.iter().find(|(_, regex)| *regex == pattern);
            known.map(|(name, _)| *name)
        }
        _ => None,
    };
    let Some(pre_tokenizer) = pre_tokenizer else {
        return unsupported(format!("its pre-tokenizer is not supported: {pre}"));
    };
    Ok(TokenizerSettings {
        model: "gpt2",
        pre_tokenizer,
        adds_space_prefix: false,
        escapes_spaces: false,
        merges,
        scores: Vec::new(),
    })
}

/// `SentencePiece`'s byte-pair encoding, as in Llama 2: the earlier a pair merges, the higher the
/// score of the result. `llama.cpp` merges any two adjacent tokens that form a token, so the merges
/// must include every split of each token into two tokens.
fn sentencepiece(
    file: &Value,
    tokens: &[Option<String>],
    added: &HashMap<String, bool>,
) -> Result<TokenizerSettings, ConvertError> {
    let merges = merges(file)?;
    let mut ranks = HashMap::new();
    for (rank, merge) in merges.iter().enumerate() {
        let merged: String = merge.split(' ').collect();
        ranks.entry(merged).or_insert(rank);
    }
    let merges: HashSet<&str> = merges.iter().map(String::as_str).collect();
    let regular = tokens.iter().flatten().map(String::as_str);
    let regular: HashSet<&str> = regular
        .filter(|token| !added.contains_key(*token))
        .collect();
    for token in &regular {
        let splits = token
            .char_indices()
            .skip(1)
            .map(|(index, _)| token.split_at(index));
        for (left, right) in splits {
            let can_merge = regular.contains(left) && regular.contains(right);
            if can_merge && !merges.contains(format!("{left} {right}").as_str()) {
                return unsupported(format!(
                    "llama.cpp would merge {left:?} and {right:?} into {token:?}, but the tokenizer does not"
                ));
            }
        }
    }
    let score = |token: &Option<String>| {
        let rank = token.as_ref().and_then(|token| ranks.get(token));
        rank.map_or(0.0, |rank| -(*rank as f32))
    };
    let rules = format!("{}{}", file["normalizer"], file["pre_tokenizer"]);
    if !rules.contains('▁') {
        return unsupported("it does not write spaces as `▁`");
    }
    let prefix_rules = [
        "\"Prepend\"",
        "\"prepend_scheme\":\"always\"",
        "\"prepend_scheme\":\"first\"",
    ];
    Ok(TokenizerSettings {
        model: "llama",
        pre_tokenizer: "default",
        adds_space_prefix: prefix_rules.iter().any(|rule| rules.contains(rule)),
        escapes_spaces: true,
        merges: Vec::new(),
        scores: tokens.iter().map(score).collect(),
    })
}

/// The merges as two tokens separated by a space. Newer files store pairs.
fn merges(file: &Value) -> Result<Vec<String>, ConvertError> {
    let list = file["model"]["merges"].as_array();
    let merge = |merge: &Value| match merge {
        Value::String(text) => Some(text.clone()),
        Value::Array(pair) => Some(format!(
            "{} {}",
            pair.first()?.as_str()?,
            pair.get(1)?.as_str()?
        )),
        _ => None,
    };
    let merges: Option<Vec<String>> = list.into_iter().flatten().map(merge).collect();
    merges.map_or_else(|| unsupported("its merges are not pairs"), Ok)
}

/// Whether `token` is a byte such as `<0x0A>`.
fn is_byte(token: &str) -> bool {
    let hex = token
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'));
    hex.is_some_and(|hex| hex.len() == 2 && u8::from_str_radix(hex, 16).is_ok())
}
