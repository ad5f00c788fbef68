//! The tokenizer of a GGUF file, as a `tokenizer.json`.

use std::collections::{HashMap, HashSet};

use nextword_data::byte_to_char;
use serde_json::{Map, Value, json};

use super::metadata::{Metadata, MetadataError};
use super::reader::GgufFile;
use super::{merges, pre_tokenizers};
use crate::ConvertError;

/// Maximum size of the `tokenizer.json`: what the data crate reads from a file.
const MAX_JSON_BYTES: usize = 64 << 20;

/// A token's type in `llama.cpp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl TokenKind {
    fn from_code(code: usize) -> Option<Self> {
        Some(match code {
            // 0 is undefined; old converters write it.
            0 | 1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

/// The vocabulary of a file.
pub(super) struct Vocabulary<'a> {
    pub(super) file: &'a GgufFile,
    /// `gpt2`, `llama` or `rwkv`.
    pub(super) model: &'a str,
    /// The name of the pre-tokenizer.
    pub(super) pre_tokenizer: &'a str,
    pub(super) tokens: &'a [String],
    pub(super) kinds: Vec<TokenKind>,
}

impl<'a> Vocabulary<'a> {
    /// Reads the tokens, of which a model with `vocab_size` rows can have as many.
    pub(super) fn read(file: &'a GgufFile, vocab_size: usize) -> Result<Self, ConvertError> {
        let model = get(file, "model", Metadata::text)?.unwrap_or("");
        if !["gpt2", "llama", "rwkv"].contains(&model) {
            return refuse(
                file,
                &format!(
                    "is of the kind {model:?}; supported are \"gpt2\" (byte-pair encoding) and \"llama\" (SentencePiece)"
                ),
            );
        }
        let Some(tokens) = get(file, "tokens", Metadata::texts)? else {
            return refuse(file, "has no tokens: `tokenizer.ggml.tokens` is missing");
        };
        if tokens.is_empty() || tokens.len() > vocab_size {
            let count = tokens.len();
            return refuse(
                file,
                &format!("has {count} tokens, but the model has {vocab_size} rows"),
            );
        }
        let kinds = match get(file, "token_type", Metadata::counts)? {
            None => vec![TokenKind::Normal; tokens.len()],
            Some(codes) => {
                let kinds: Option<Vec<_>> = codes.into_iter().map(TokenKind::from_code).collect();
                let Some(kinds) = kinds.filter(|kinds| kinds.len() == tokens.len()) else {
                    return refuse(file, "has types that are unknown or not one for each token");
                };
                kinds
            }
        };
        let vocabulary = Self {
            file,
            model,
            pre_tokenizer: get(file, "pre", Metadata::text)?.unwrap_or("default"),
            tokens,
            kinds,
        };
        let mut distinct = HashSet::new();
        if let Some((_, token)) = vocabulary
            .used()
            .find(|(_, token)| !distinct.insert(*token))
        {
            return refuse(file, &format!("has the token {token:?} twice"));
        }
        Ok(vocabulary)
    }

    /// Reads a setting.
    pub(super) fn get<T>(
        &self,
        key: &str,
        read: impl FnOnce(&'a Metadata, &str) -> Result<T, MetadataError>,
    ) -> Result<T, ConvertError> {
        get(self.file, key, read)
    }

    /// The ids and texts of all tokens that are not unused.
    fn used(&self) -> impl Iterator<Item = (usize, &'a str)> {
        let tokens = self.tokens.iter().enumerate();
        tokens
            .filter(|(id, token)| self.kinds[*id] != TokenKind::Unused && !token.is_empty())
            .map(|(id, token)| (id, token.as_str()))
    }

    /// The ids and texts of the tokens of this kind.
    pub(super) fn of_kind(&self, kind: TokenKind) -> impl Iterator<Item = (usize, &'a str)> {
        self.used().filter(move |(id, _)| self.kinds[*id] == kind)
    }

    /// The number of ids, up to the last one that is used.
    pub(super) fn size(&self) -> usize {
        self.used().last().map_or(0, |(id, _)| id + 1)
    }

    /// The text of a token.
    pub(super) fn text(&self, id: u32) -> Option<&'a str> {
        self.used()
            .find(|(other, _)| *other == id as usize)
            .map(|(_, text)| text)
    }

    /// The text of a `tokenizer.json` with these tokens.
    pub(super) fn to_json(&self) -> Result<String, ConvertError> {
        let file = match self.characters() {
            Some(characters) => self.character_file(&characters),
            None if self.model == "gpt2" => self.byte_level()?,
            None if self.model == "llama" => self.sentencepiece()?,
            None => {
                return refuse(
                    self.file,
                    "is an RWKV vocabulary of more than single characters, which is not supported",
                );
            }
        };
        let json = file.to_string();
        if json.len() > MAX_JSON_BYTES {
            return refuse(self.file, "takes more than 64 MiB");
        }
        Ok(json)
    }

    /// The characters that the regular tokens stand for, if each is one: a character tokenizer, which can be written in
    /// two ways (see [`super::tokenizer`]).
    fn characters(&self) -> Option<Vec<(usize, String)>> {
        let bytes: HashMap<char, u8> = (0..=u8::MAX)
            .map(|byte| (byte_to_char(byte), byte))
            .collect();
        let character = |(id, token): (usize, &str)| {
            let text = match self.model {
                "gpt2" => {
                    let token: Option<Vec<u8>> =
                        token.chars().map(|c| bytes.get(&c).copied()).collect();
                    String::from_utf8(token?).ok()?
                }
                "rwkv" => unescape(token)?,
                _ => return None,
            };
            (text.chars().count() == 1).then_some((id, text))
        };
        let characters: Option<Vec<_>> = self.of_kind(TokenKind::Normal).map(character).collect();
        characters.filter(|characters| !characters.is_empty())
    }

    /// A tokenizer of characters, as our own writes it.
    fn character_file(&self, characters: &[(usize, String)]) -> Value {
        let special = self
            .used()
            .filter(|(id, _)| self.kinds[*id] != TokenKind::Normal);
        let special = special.map(|(id, text)| (id, text.to_string()));
        let vocab = characters.iter().cloned().chain(special);
        let vocab: Map<String, Value> = vocab.map(|(id, text)| (text, json!(id))).collect();
        let unknown = self.of_kind(TokenKind::Unknown).next();
        let model = match unknown {
            Some((_, unknown)) => {
                json!({"type": "WordLevel", "vocab": vocab, "unk_token": unknown})
            }
            None => bpe_model(vocab, Vec::new(), &json!({})),
        };
        self.tokenizer_file(&json!({
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated",
                "invert": false},
            "decoder": {"type": "Fuse"},
        }), model)
    }

    /// Byte-pair encoding of bytes in GPT-2's alphabet.
    fn byte_level(&self) -> Result<Value, ConvertError> {
        let name = self.pre_tokenizer;
        let pre_tokenizer = pre_tokenizers::find(name).or_else(|known| {
            refuse(
                self.file,
                &format!("has the pre-tokenizer {name:?}; supported are {known}"),
            )
        })?;
        let mut pairs = Vec::new();
        let merges = self.get("merges", Metadata::texts)?.unwrap_or_default();
        if merges.len() > merges::MAX_MERGES {
            return refuse(self.file, "has too many merges");
        }
        for merge in merges {
            let pair = merge.split_once(' ').filter(|(left, right)| {
                !left.is_empty() && !right.is_empty() && !right.contains(' ')
            });
            match pair {
                Some((left, right)) => pairs.push(json!([left, right])),
                None => {
                    return refuse(
                        self.file,
                        &format!("has the merge {merge:?}, which is not two tokens"),
                    );
                }
            }
        }
        let vocab = self
            .used()
            .map(|(id, token)| (token.to_string(), json!(id)));
        let options = json!({"ignore_merges": pre_tokenizer.ignores_merges});
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
        Ok(self.tokenizer_file(
            &json!({
                "pre_tokenizer": pre_tokenizer.to_json(), "decoder": bytes,
            }),
            bpe_model(vocab.collect(), pairs, &options),
        ))
    }

    /// `SentencePiece`'s byte-pair encoding. A space is put before a text, and before what follows a special token.
    fn sentencepiece(&self) -> Result<Value, ConvertError> {
        let scores = self.get("scores", Metadata::numbers)?;
        let Some(scores) = scores.filter(|scores| scores.len() == self.tokens.len()) else {
            return refuse(
                self.file,
                "lacks `tokenizer.ggml.scores`, or has not one for each token",
            );
        };
        let regular: Vec<(usize, &str)> = self.of_kind(TokenKind::Normal).collect();
        let pairs =
            merges::from_scores(&regular, &scores).or_else(|problem| refuse(self.file, problem))?;
        let pairs = pairs.into_iter().map(|(left, right)| json!([left, right]));
        let adds_space = self
            .get("add_space_prefix", Metadata::flag)?
            .unwrap_or(true);
        let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let normalizer = if adds_space {
            json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, spaces]})
        } else {
            spaces
        };
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if adds_space {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let unknown = self.get("unknown_token_id", Metadata::count)?.unwrap_or(0);
        let unknown = u32::try_from(unknown).ok().and_then(|id| self.text(id));
        let options = json!({"byte_fallback": true, "fuse_unk": true, "unk_token": unknown});
        let vocab = self
            .used()
            .map(|(id, token)| (token.to_string(), json!(id)));
        Ok(self.tokenizer_file(
            &json!({
                "normalizer": normalizer, "decoder": {"type": "Sequence", "decoders": decoders},
            }),
            bpe_model(vocab.collect(), pairs.collect(), &options),
        ))
    }

    /// A complete file with these parts and this model.
    fn tokenizer_file(&self, parts: &Value, model: Value) -> Value {
        let added = self.used().filter_map(|(id, text)| {
            let is_special = match self.kinds[id] {
                TokenKind::Control | TokenKind::Unknown => true,
                TokenKind::UserDefined => false,
                _ => return None,
            };
            Some(json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": is_special}))
        });
        let mut file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added.collect::<Vec<_>>(),
            "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null, "model": null,
        });
        for (key, value) in parts.as_object().into_iter().flatten() {
            file[key] = value.clone();
        }
        file["model"] = model; // Large, so it is not copied.
        file
    }
}

/// Reads a setting of the tokenizer.
fn get<'a, T>(
    file: &'a GgufFile,
    key: &str,
    read: impl FnOnce(&'a Metadata, &str) -> Result<T, MetadataError>,
) -> Result<T, ConvertError> {
    let value = read(&file.metadata, &format!("tokenizer.ggml.{key}"));
    value.map_err(|MetadataError(problem)| {
        ConvertError::source(file.path(), format!("the metadata key {problem}"))
    })
}

/// The error for a tokenizer that cannot be read, because it `has` something.
pub(super) fn refuse<T>(file: &GgufFile, problem: &str) -> Result<T, ConvertError> {
    Err(ConvertError::source(
        file.path(),
        format!("its tokenizer {problem}; hint: import the model's Hugging Face folder"),
    ))
}

fn bpe_model(vocab: Map<String, Value>, merges: Vec<Value>, options: &Value) -> Value {
    let mut model = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
    });
    for (key, value) in options.as_object().into_iter().flatten() {
        model[key] = value.clone();
    }
    model["vocab"] = Value::Object(vocab);
    model["merges"] = Value::Array(merges);
    model
}

/// Replaces the escapes of an RWKV vocabulary.
fn unescape(token: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut chars = token.chars();
    while let Some(c) = chars.next() {
        let mut encoded = [0; 4];
        let text = match c {
            '\\' => match chars.next()? {
                'n' => "\n",
                't' => "\t",
                'r' => "\r",
                'x' => {
                    let hex: String = chars.by_ref().take(2).collect();
                    bytes.push(u8::from_str_radix(&hex, 16).ok()?);
                    continue;
                }
                other => other.encode_utf8(&mut encoded),
            },
            other => other.encode_utf8(&mut encoded),
        };
        bytes.extend(text.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_replaced() {
        for (token, text) in [
            ("a", Some("a")),
            ("\\n", Some("\n")),
            ("\\\\", Some("\\")),
            ("\\xc3\\xa9", Some("é")),
            ("\\xff", None),
            ("\\", None),
            ("\\xg0", None),
        ] {
            assert_eq!(unescape(token).as_deref(), text, "{token}");
        }
    }
}
