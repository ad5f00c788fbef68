//! A tokenizer in GGUF's metadata.

use std::collections::{HashMap, HashSet};

use nextword_data::Tokenizer;
use nextword_model::Record;
use serde_json::Value;

use super::file::Meta;
use crate::ConvertError;

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// `llama.cpp` names rules that cut a text into words; these are the ones with which we meet them.
const RULES: [(&str, &str); 2] = [
    (
        "llama-bpe",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        "qwen2",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
];

/// How `llama.cpp` cuts a text into tokens.
struct Way {
    model: &'static str,
    rule: &'static str,
    adds_space: bool,
    /// Spaces are written `▁`.
    escapes: bool,
    merges: Vec<String>,
    scores: Vec<f32>,
}

fn refuse<T>(problem: impl Into<String>) -> Result<T, ConvertError> {
    Err(ConvertError::Tokenizer {
        problem: problem.into(),
    })
}

/// The tokenizer of `record`, as metadata.
pub(crate) fn meta(
    record: &Record,
    tokenizer: &dyn Tokenizer,
) -> Result<Vec<(String, Meta)>, ConvertError> {
    let path = record.tokenizer_path();
    let bytes = std::fs::read(&path).map_err(ConvertError::io(&path, "read"))?;
    let file: Value = serde_json::from_slice(&bytes)
        .map_err(|error| ConvertError::source(&path, format!("is not JSON ({error})")))?;
    let size = record.config.vocab_size;
    let mut pieces: Vec<Option<String>> = (0..size as u32).map(|id| tokenizer.piece(id)).collect();
    let added = added_tokens(&file);
    let way = way(&file, &pieces, &added)?;
    if way.escapes {
        for piece in pieces
            .iter_mut()
            .flatten()
            .filter(|piece| !added.contains_key(*piece))
        {
            *piece = piece.replace(' ', "▁");
        }
        let distinct: HashSet<&String> = pieces.iter().flatten().collect();
        if distinct.len() < pieces.iter().flatten().count() {
            return refuse("its vocabulary has both a space and `▁`, which stands for one");
        }
    }
    let special = tokenizer.specials();
    let unknown = special.unk;
    // Without an end token `llama.cpp` stops at token 2 or 11. What is never a target may stand for it.
    let unused = pieces.iter().position(Option::is_none).map(|id| id as u32);
    let ends = [
        special.eos,
        record.card.eos_ids.first().copied(),
        special.pad,
        unused,
    ];
    let Some(end) = ends.into_iter().flatten().next() else {
        return refuse(
            "it has no end token, and llama.cpp would take an ordinary one for it; hint: train with \
             data.tokenizer.eos = \"<EOS>\", or with a padding token, which the model never chooses",
        );
    };
    let kind = |(id, piece): (usize, &Option<String>)| match piece {
        None => UNUSED,
        Some(_) if Some(id as u32) == unknown => UNKNOWN,
        Some(piece) => match added.get(piece) {
            Some(true) => CONTROL,
            Some(false) => USER_DEFINED,
            None if way.model == "llama" && is_byte(piece) => BYTE,
            None => NORMAL,
        },
    };
    let kinds: Vec<i32> = pieces.iter().enumerate().map(kind).collect();
    let names = pieces.into_iter().enumerate();
    let names = names.map(|(id, piece)| piece.unwrap_or_else(|| format!("[unused {id}]")));

    let own = [
        ("model", Meta::Text(way.model.into())),
        ("pre", Meta::Text(way.rule.into())),
        ("tokens", Meta::Texts(names.collect())),
        ("token_type", Meta::Codes(kinds)),
        (
            "bos_token_id",
            Meta::Count(record.card.bos_id.unwrap_or(end) as usize),
        ),
        ("eos_token_id", Meta::Count(end as usize)),
        ("add_bos_token", Meta::Flag(record.card.bos_id.is_some())),
        ("add_space_prefix", Meta::Flag(way.adds_space)),
    ];
    let mut meta: Vec<(&str, Meta)> = own.into();
    if way.model == "llama" {
        meta.push(("scores", Meta::Numbers(way.scores)));
    } else {
        meta.push(("merges", Meta::Texts(way.merges)));
    }
    if let Some(id) = unknown {
        meta.push(("unknown_token_id", Meta::Count(id as usize)));
    }
    if let Some(id) = special.pad {
        meta.push(("padding_token_id", Meta::Count(id as usize)));
    }
    let full = |(key, value)| (format!("tokenizer.ggml.{key}"), value);
    Ok(meta.into_iter().map(full).collect())
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

fn way(
    file: &Value,
    pieces: &[Option<String>],
    added: &HashMap<String, bool>,
) -> Result<Way, ConvertError> {
    let model = &file["model"];
    match model["type"].as_str().unwrap_or("") {
        "BPE" if model["byte_fallback"] == true => sentence_pieces(file, pieces, added),
        "BPE" => byte_level(file),
        "WordLevel" if file["pre_tokenizer"]["type"] == "Split" => {
            let ordinary = |piece: &&String| !added.contains_key(*piece);
            let mut ordinary = pieces.iter().flatten().filter(ordinary);
            if let Some(piece) = ordinary.find(|piece| piece.chars().count() != 1) {
                return refuse(format!("{piece:?} is no single character"));
            }
            Ok(Way {
                model: "llama",
                rule: "default",
                adds_space: false,
                escapes: true,
                merges: Vec::new(),
                scores: vec![0.0; pieces.len()],
            })
        }
        "WordLevel" => refuse(
            "it has a token for each word, and llama.cpp builds words from parts, or writes them \
             without the space between; hint: train with data.tokenizer.kind = \"bpe\", \"char\" or \
             \"byte\"",
        ),
        other => refuse(format!("its model is of type {other:?}")),
    }
}

/// Byte-pair encoding of bytes in GPT-2's alphabet.
fn byte_level(file: &Value) -> Result<Way, ConvertError> {
    let normalizer = &file["normalizer"];
    // `llama.cpp` leaves Unicode's normal form to others; most text has it already.
    if !normalizer.is_null() && normalizer["type"] != "NFC" {
        return refuse(format!("its normalizer is {}", normalizer["type"]));
    }
    if file["decoder"]["type"] != "ByteLevel" {
        return refuse("it is a byte-pair encoding of characters, not of bytes");
    }
    let merges = merges(file)?;
    let pre = &file["pre_tokenizer"];
    let list = pre["pretokenizers"].as_array();
    let steps: Vec<&Value> = list.map_or_else(|| vec![pre], |list| list.iter().collect());
    let bytes = steps.iter().find(|step| step["type"] == "ByteLevel");
    let Some(bytes) = bytes.filter(|bytes| bytes["add_prefix_space"] != true) else {
        return refuse("its texts are not taken as bytes from their first character on");
    };
    let rule = match steps.as_slice() {
        [_] if bytes["use_regex"] != false || merges.is_empty() => Some("gpt-2"),
        [split, _] if split["type"] == "Split" && bytes["use_regex"] == false => {
            let pattern = split["pattern"]["Regex"].as_str().unwrap_or("");
            let known = RULES.iter().find(|(_, rule)| *rule == pattern);
            known.map(|(name, _)| *name)
        }
        _ => None,
    };
    let Some(rule) = rule else {
        return refuse(format!(
            "its rule for words is none that is known here: {pre}"
        ));
    };
    Ok(Way {
        model: "gpt2",
        rule,
        adds_space: false,
        escapes: false,
        merges,
        scores: Vec::new(),
    })
}

/// `SentencePiece`'s byte-pair encoding, as Llama 2 has it: the earlier a pair merges, the higher
/// the score of what it becomes. Whatever two neighbours make a piece may merge there, so that the
/// merges have to hold every way to cut each piece in two.
fn sentence_pieces(
    file: &Value,
    pieces: &[Option<String>],
    added: &HashMap<String, bool>,
) -> Result<Way, ConvertError> {
    let merges = merges(file)?;
    let mut ranks = HashMap::new();
    for (rank, merge) in merges.iter().enumerate() {
        let joined: String = merge.split(' ').collect();
        ranks.entry(joined).or_insert(rank);
    }
    let merges: HashSet<&str> = merges.iter().map(String::as_str).collect();
    let ordinary = pieces.iter().flatten().map(String::as_str);
    let ordinary: HashSet<&str> = ordinary
        .filter(|piece| !added.contains_key(*piece))
        .collect();
    for piece in &ordinary {
        let cuts = piece
            .char_indices()
            .skip(1)
            .map(|(at, _)| piece.split_at(at));
        for (left, right) in cuts {
            let can_merge = ordinary.contains(left) && ordinary.contains(right);
            if can_merge && !merges.contains(format!("{left} {right}").as_str()) {
                return refuse(format!(
                    "llama.cpp would make {piece:?} of {left:?} and {right:?}, which is none of its merges"
                ));
            }
        }
    }
    let score = |piece: &Option<String>| {
        let rank = piece.as_ref().and_then(|piece| ranks.get(piece));
        rank.map_or(0.0, |rank| -(*rank as f32))
    };
    let rules = format!("{}{}", file["normalizer"], file["pre_tokenizer"]);
    if !rules.contains('▁') {
        return refuse("its spaces are not written `▁`");
    }
    let always = [
        "\"Prepend\"",
        "\"prepend_scheme\":\"always\"",
        "\"prepend_scheme\":\"first\"",
    ];
    Ok(Way {
        model: "llama",
        rule: "default",
        adds_space: always.iter().any(|rule| rules.contains(rule)),
        escapes: true,
        merges: Vec::new(),
        scores: pieces.iter().map(score).collect(),
    })
}

/// Merges as two pieces with a space between them; newer files hold pairs.
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
    merges.map_or_else(|| refuse("its merges are no pairs"), Ok)
}

/// `<0x0A>` and its like.
fn is_byte(piece: &str) -> bool {
    let hex = piece
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'));
    hex.is_some_and(|hex| hex.len() == 2 && u8::from_str_radix(hex, 16).is_ok())
}
