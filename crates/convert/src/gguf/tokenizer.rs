//! The tokenizer as GGUF metadata.

use std::collections::{HashMap, HashSet};

use nextword_data::{Tokenizer, byte_to_char};
use nextword_model::{ModelDir, ModelTokens};
use serde_json::Value;

use super::file::MetadataValue;
use super::{pre_tokenizers, rules, special};
use crate::error::unsupported_tokenizer as unsupported;
use crate::{ConvertError, tokenizer_files};

// Token types of `llama.cpp`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// How `llama.cpp` tokenizes a text.
struct TokenizerSettings {
    model: &'static str,
    pre_tokenizer: &'static str,
    adds_space_prefix: bool,
    /// How the vocabulary writes its regular tokens.
    spelling: Spelling,
    merges: Vec<String>,
    scores: Vec<f32>,
    /// What `llama.cpp` does differently.
    notes: Vec<String>,
}

/// How a vocabulary of `llama.cpp` writes regular tokens.
#[derive(Clone, Copy, PartialEq)]
enum Spelling {
    /// As `tokenizer.json` does.
    Same,
    /// With `▁` for a space.
    Spaces,
    /// Each byte as a character of GPT-2's alphabet.
    Bytes,
    /// With escapes for control characters and backslashes.
    Escapes,
}

impl Spelling {
    fn write(self, token: &str) -> String {
        match self {
            Self::Same => token.to_string(),
            Self::Spaces => token.replace(' ', "▁"),
            Self::Bytes => token.bytes().map(byte_to_char).collect(),
            Self::Escapes => {
                let token = token.replace('\\', "\\\\").replace('\n', "\\n");
                token.replace('\t', "\\t").replace('\r', "\\r")
            }
        }
    }
}

/// The metadata of a tokenizer, and what `llama.cpp` does differently.
pub(crate) struct TokenizerMetadata {
    pub(crate) entries: Vec<(String, MetadataValue)>,
    pub(crate) notes: Vec<String>,
}

fn are_distinct(tokens: &[Option<String>]) -> bool {
    let distinct: HashSet<&String> = tokens.iter().flatten().collect();
    distinct.len() == tokens.iter().flatten().count()
}

/// The metadata of the model folder's tokenizer.
pub(crate) fn metadata(
    model_dir: &ModelDir,
    tokenizer: &dyn Tokenizer,
) -> Result<TokenizerMetadata, ConvertError> {
    let path = model_dir.tokenizer_path();
    let bytes = tokenizer_files::json(model_dir)?;
    let file: Value = serde_json::from_slice(&bytes)
        .map_err(|error| ConvertError::source(&path, format!("is not valid JSON ({error})")))?;
    let size = model_dir.config.vocab_size;
    let mut tokens: Vec<Option<String>> = (0..size as u32)
        .map(|id| tokenizer.id_to_token(id))
        .collect();
    let added = added_tokens(&file);
    rules::check_added_tokens(&file)?;
    let spare = spare_id(&model_dir.card.special, tokenizer, &tokens, &file);
    let settings = settings(&file, &tokens, &added, spare.is_some())?;
    if spare.is_none() && settings.spelling != Spelling::Escapes {
        return unsupported(
            "it has no EOS token, so llama.cpp would stop at a regular token; hint: train with \
             data.tokenizer.eos = \"<EOS>\", or with a padding token, which the model never generates",
        );
    }
    let mut notes = settings.notes;
    let writes_spaces = settings.spelling == Spelling::Spaces;
    notes.extend(rules::normalizer_notes(&file, writes_spaces)?);
    let by_name = tokenizer.special_tokens();
    let has_eos = !model_dir.card.special.stop_ids(by_name.eos).is_empty();
    if !has_eos && spare.is_some() && spare == by_name.unk {
        notes.push(
            "llama.cpp ends a completion at the unknown token, because the model has no EOS token; nextword continues"
                .to_string(),
        );
    }
    let special = special::Special::new(&model_dir.card.special, tokenizer, &tokens, spare)?;
    notes.extend(special.notes.iter().cloned());
    let mut unknown = by_name.unk;
    if settings.spelling == Spelling::Escapes {
        // This kind of vocabulary needs a token for unknown text.
        let position = |text: &str| {
            tokens
                .iter()
                .position(|token| token.as_deref() == Some(text))
        };
        let id = position(" ").or_else(|| position("\n")).unwrap_or(0);
        unknown = Some(id as u32);
        notes.push(format!(
            "llama.cpp replaces each byte of a character that is not in the vocabulary by {:?}; nextword leaves it out",
            tokens[id].as_deref().unwrap_or_default()
        ));
    } else if settings.spelling == Spelling::Bytes && unknown.is_some() {
        notes.push(
            "llama.cpp leaves out characters that are not in the vocabulary; nextword replaces them by the unknown token"
                .to_string(),
        );
    }
    for token in tokens.iter_mut().flatten() {
        if !added.contains_key(token.as_str()) {
            *token = settings.spelling.write(token);
        }
    }
    if writes_spaces && !are_distinct(&tokens) {
        return unsupported("its vocabulary has both a space and `▁`, which represents a space");
    }
    let kind = |(id, token): (usize, &Option<String>)| match token {
        None => UNUSED,
        Some(token) => match added.get(token) {
            _ if Some(id as u32) == unknown && settings.spelling != Spelling::Escapes => UNKNOWN,
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
            "add_space_prefix",
            MetadataValue::Bool(settings.adds_space_prefix),
        ),
    ];
    let mut metadata: Vec<(&str, MetadataValue)> = entries.into();
    match settings.model {
        "llama" => metadata.push(("scores", MetadataValue::F32Array(settings.scores))),
        "gpt2" => metadata.push(("merges", MetadataValue::StringArray(settings.merges))),
        _ => {}
    }
    if let Some(id) = unknown {
        metadata.push(("unknown_token_id", MetadataValue::U32(id as usize)));
    }
    metadata.extend(special.entries());
    let prefixed = |(key, value)| (format!("tokenizer.ggml.{key}"), value);
    let entries = metadata.into_iter().map(prefixed);
    Ok(TokenizerMetadata {
        entries: entries.chain(special.declared_entries()).collect(),
        notes,
    })
}

/// A token to serve as EOS token for a model without one: `llama.cpp` would stop at token 2 or 11. The model
/// never generates it, unless the unknown token is the only one left, which may be among the training targets.
fn spare_id(
    special: &ModelTokens,
    tokenizer: &dyn Tokenizer,
    tokens: &[Option<String>],
    file: &Value,
) -> Option<u32> {
    let position = |wanted: Option<&str>| {
        let found = tokens.iter().position(|token| token.as_deref() == wanted);
        found.map(|id| id as u32)
    };
    let by_name = tokenizer.special_tokens();
    // UTF-8 text does not contain the byte 255.
    let byte = if file["decoder"]["type"] == "ByteLevel" {
        byte_to_char(u8::MAX).to_string()
    } else {
        "<0xFF>".to_string()
    };
    let first = special.stop_ids(by_name.eos).first().copied();
    let pad = first.or(special.pad_id).or(by_name.pad);
    pad.or_else(|| position(None))
        .or_else(|| position(Some(&byte)))
        .or(by_name.unk)
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
    has_eos: bool,
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
            Ok(characters(tokens, added, has_eos))
        }
        "BPE" => byte_level(file, tokens, added),
        "WordLevel" => unsupported(
            "it has a token for each word, which llama.cpp does not support; hint: train with data.tokenizer.kind = \"bpe\", \"char\" or \
             \"byte\"",
        ),
        other => unsupported(format!("its model type {other:?} is not supported")),
    }
}

/// Characters. As byte-pair encoding of bytes, in which the bytes of a character of the vocabulary are
/// merged: `llama.cpp` leaves out other characters, whereas with a vocabulary of `SentencePiece` it ends the
/// program at them. That kind of vocabulary needs an EOS token, however. Without one, as an RWKV vocabulary,
/// which is searched for the longest token, and in which no token is special.
fn characters(
    tokens: &[Option<String>],
    added: &HashMap<String, bool>,
    has_eos: bool,
) -> TokenizerSettings {
    let (mut merges, mut known) = (Vec::new(), HashSet::new());
    let regular = tokens.iter().flatten();
    for token in regular.filter(|token| has_eos && !added.contains_key(*token)) {
        let bytes = Spelling::Bytes.write(token);
        let starts = bytes.char_indices().skip(1);
        for (start, next) in starts {
            let merge = format!("{} {next}", &bytes[..start]);
            if known.insert(merge.clone()) {
                merges.push(merge);
            }
        }
    }
    let (model, spelling) = if has_eos {
        ("gpt2", Spelling::Bytes)
    } else {
        ("rwkv", Spelling::Escapes)
    };
    TokenizerSettings {
        model,
        pre_tokenizer: if has_eos { "gpt-2" } else { "default" },
        adds_space_prefix: false,
        spelling,
        merges,
        scores: Vec::new(),
        notes: Vec::new(),
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
fn byte_level(
    file: &Value,
    tokens: &[Option<String>],
    added: &HashMap<String, bool>,
) -> Result<TokenizerSettings, ConvertError> {
    if file["decoder"]["type"] != "ByteLevel" {
        return unsupported(
            "it is a byte-pair encoding of characters, not of bytes, without tokens for single bytes (`byte_fallback`)",
        );
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
    let ignores_merges = file["model"]["ignore_merges"] == true;
    let name = |ignores_merges| pre_tokenizers::name_of(pre, ignores_merges);
    let found = match steps.as_slice() {
        // Without merges, no pattern matters.
        [_] if bytes["use_regex"] == false && merges.is_empty() => Some("gpt-2"),
        _ => name(ignores_merges)
            .or_else(|| name(false))
            .or_else(|| name(true)),
    };
    let Some(pre_tokenizer) = found else {
        return unsupported(format!("its pre-tokenizer is not supported: {pre}"));
    };
    let obeys = |name: &str| pre_tokenizers::find(name).is_ok_and(|known| known.ignores_merges);
    if ignores_merges != obeys(pre_tokenizer) {
        let regular = tokens
            .iter()
            .flatten()
            .filter(|token| !added.contains_key(*token));
        if let Some(token) = rules::unreachable_token(regular, &merges) {
            return unsupported(format!(
                "its `ignore_merges` is {ignores_merges}, and {token:?} is a token that no merges lead to, which llama.cpp \
                 does not support with the pre-tokenizer {pre_tokenizer}"
            ));
        }
    }
    Ok(TokenizerSettings {
        model: "gpt2",
        pre_tokenizer,
        adds_space_prefix: false,
        spelling: Spelling::Same,
        merges,
        scores: Vec::new(),
        notes: Vec::new(),
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
    if let Some(problem) = rules::further_merges(tokens, &regular, &merges, &ranks) {
        return unsupported(problem);
    }
    let score = |token: &Option<String>| {
        let rank = token.as_ref().and_then(|token| ranks.get(token));
        rank.map_or(0.0, |rank| -(*rank as f32))
    };
    let spaces = rules::spaces(file, &regular)?;
    if let Some(byte) = rules::missing_byte(&regular) {
        return unsupported(format!(
            "its vocabulary lacks the byte token {byte}, and llama.cpp ends the program at a character that has no token"
        ));
    }
    Ok(TokenizerSettings {
        model: "llama",
        pre_tokenizer: "default",
        adds_space_prefix: spaces.adds_prefix,
        spelling: Spelling::Spaces,
        merges: Vec::new(),
        scores: tokens.iter().map(score).collect(),
        notes: spaces.note.into_iter().collect(),
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
