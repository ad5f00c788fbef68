//! Special tokens of our own tokenizers: names, ids, and splitting text at them.

use std::ops::Range;

use super::eos_names::is_non_eos_name;
use super::{Encoding, SpecialTokens, TokenizerConfig, TokenizerKind};
use crate::documents::TextCuts;
use crate::error::DataError;

/// Names of the configured special tokens, by role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SpecialNames {
    pub(crate) eos: Option<String>,
    pub(crate) unk: Option<String>,
    pub(crate) pad: Option<String>,
    pub(crate) sep: Option<String>,
    pub(crate) mask: Option<String>,
}

impl SpecialNames {
    /// Reads the names from a config; empty names are ignored.
    pub(crate) fn from_config(config: &TokenizerConfig) -> Result<Self, DataError> {
        for (key, name) in [
            ("eos", &config.eos),
            ("unk", &config.unk),
            ("pad", &config.pad),
            ("sep", &config.sep),
            ("mask", &config.mask),
        ] {
            if name.contains(char::is_whitespace) || name.contains('\0') {
                return Err(DataError::config(format!(
                    "tokenizer.{key} = {name:?} contains white space; hint: use a name like \"<EOS>\""
                )));
            }
            if !name.is_empty() && is_padding_name(name) != (key == "pad") {
                let problem = if key == "pad" {
                    "must contain \"pad\""
                } else {
                    "must not contain \"pad\", which marks the padding token"
                };
                return Err(DataError::config(format!(
                    "tokenizer.{key} = {name:?} {problem}; hint: use \"<EOS>\", \"<unk>\" and \"<pad>\""
                )));
            }
        }
        check_task_names(config)?;
        if is_non_eos_name(&config.eos) {
            return Err(DataError::config(format!(
                "tokenizer.eos = {:?} is not recognized as an EOS token when read back from a tokenizer.json, where roles \
                 are detected by name; hint: use \"<EOS>\" or \"<|endoftext|>\"",
                config.eos
            )));
        }
        let non_empty = |name: &String| Some(name.clone()).filter(|name| !name.is_empty());
        let has_unknown = matches!(config.kind, TokenizerKind::Char | TokenizerKind::Word);
        let all = Self {
            eos: non_empty(&config.eos),
            // Every text is bytes: none is unknown.
            unk: non_empty(&config.unk).filter(|_| has_unknown),
            pad: non_empty(&config.pad),
            // The EOS token can also separate.
            sep: non_empty(&config.sep).filter(|name| *name != config.eos),
            mask: non_empty(&config.mask),
        };
        if all.eos.is_some() && all.eos == all.unk {
            return Err(DataError::config(
                "tokenizer.eos and tokenizer.unk are the same token; hint: use \"<EOS>\" and \"<unk>\"",
            ));
        }
        Ok(all)
    }

    /// Returns the names in id order: EOS, unknown, padding, separator, mask.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = &String> {
        let names = [&self.eos, &self.unk, &self.pad, &self.sep, &self.mask];
        names.into_iter().flatten()
    }

    pub(crate) fn count(&self) -> usize {
        self.in_order().count()
    }
}

/// Whether `name` is a padding token; `tokenizer.json` does not store the role.
pub(crate) fn is_padding_name(name: &str) -> bool {
    name.to_ascii_lowercase().contains("pad")
}

/// Whether `name` is a mask token, which hides a token that the model is to predict.
pub(crate) fn is_mask_name(name: &str) -> bool {
    name.to_ascii_lowercase().contains("mask")
}

/// Whether `name` is a token that separates two parts of a text.
pub(crate) fn is_separator_name(name: &str) -> bool {
    name.to_ascii_lowercase().contains("sep")
}

/// Checks the names of the tokens that some training tasks need: a `tokenizer.json` does not store their roles.
fn check_task_names(config: &TokenizerConfig) -> Result<(), DataError> {
    let (sep, mask) = (&config.sep, &config.mask);
    if !sep.is_empty() && *sep != config.eos && (!is_separator_name(sep) || is_mask_name(sep)) {
        return Err(DataError::config(format!(
            "tokenizer.sep = {sep:?} must contain \"sep\", or be the EOS token; hint: use \"<SEP>\""
        )));
    }
    if !mask.is_empty() && !is_mask_name(mask) {
        return Err(DataError::config(format!(
            "tokenizer.mask = {mask:?} must contain \"mask\"; hint: use \"[MASK]\""
        )));
    }
    Ok(())
}

/// Special tokens with their ids, which follow the ordinary tokens.
#[derive(Debug, Clone)]
pub(crate) struct SpecialVocab {
    names: SpecialNames,
    in_id_order: Vec<String>,
    first_id: u32,
    /// EOS and padding token, instead of those that the names suggest.
    roles: Option<(Option<u32>, Option<u32>)>,
}

/// A segment of text: ordinary text or one special token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Segment<'a> {
    Text(&'a str),
    Special(u32),
}

impl SpecialVocab {
    pub(crate) fn new(names: &SpecialNames, first_id: usize) -> Self {
        Self {
            names: names.clone(),
            in_id_order: names.in_order().cloned().collect(),
            first_id: first_id as u32,
            roles: None,
        }
    }

    pub(crate) fn names(&self) -> &SpecialNames {
        &self.names
    }

    /// The name of the unknown token, if `id` is that.
    pub(crate) fn unknown_name(&self, id: u32) -> Option<&str> {
        self.name(id)
            .filter(|name| self.names.unk.as_deref() == Some(*name))
    }

    /// Where a text can be cut if other text can be cut between any characters.
    pub(crate) fn text_cuts(&self) -> TextCuts {
        // A cut could divide a special token, which has no white space.
        if self.in_id_order.is_empty() {
            TextCuts::Anywhere
        } else {
            TextCuts::BeforeWhitespace
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.in_id_order.len()
    }

    pub(crate) fn special_tokens(&self) -> SpecialTokens {
        let id = |name: &Option<String>| name.as_ref().and_then(|name| self.id(name));
        let by_name = || (id(&self.names.eos), id(&self.names.pad));
        let (eos, pad) = self.roles.unwrap_or_else(by_name);
        SpecialTokens {
            eos,
            unk: id(&self.names.unk),
            pad,
        }
    }

    pub(crate) fn with_roles(mut self, eos: Option<u32>, pad: Option<u32>) -> Self {
        self.roles = Some((eos, pad));
        self
    }

    /// Iterates over ids and names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &str)> {
        self.in_id_order
            .iter()
            .zip(self.first_id..)
            .map(|(name, id)| (id, name.as_str()))
    }

    pub(crate) fn name(&self, id: u32) -> Option<&str> {
        self.in_id_order
            .get(id.checked_sub(self.first_id)? as usize)
            .map(String::as_str)
    }

    fn id(&self, name: &str) -> Option<u32> {
        self.iter()
            .find(|(_, known)| *known == name)
            .map(|(id, _)| id)
    }

    /// Like [`Self::split`], with the position of each segment.
    pub(crate) fn split_with_positions<'a>(
        &'a self,
        text: &'a str,
    ) -> impl Iterator<Item = (usize, Segment<'a>)> {
        let mut position = 0;
        self.split(text).map(move |segment| {
            let length = match segment {
                Segment::Text(text) => text.len(),
                Segment::Special(id) => self.name(id).map_or(0, str::len),
            };
            let start = position;
            position += length;
            (start, segment)
        })
    }

    /// Encodes `text`. `pieces` yields the parts of ordinary text that are tokens, with their positions
    /// in it; `id_of` their ids, `None` for unknown ones.
    pub(super) fn encode<'a, I: Iterator<Item = (usize, &'a str)>>(
        &'a self,
        text: &'a str,
        pieces: impl Fn(&'a str) -> I,
        id_of: impl Fn(&str) -> Option<u32>,
    ) -> Encoding {
        self.encode_segments(text.len(), self.split(text), pieces, id_of)
    }

    /// Encodes `text` without special tokens; otherwise like [`encode`](Self::encode).
    pub(super) fn encode_ordinary<'a, I: Iterator<Item = (usize, &'a str)>>(
        &'a self,
        text: &'a str,
        pieces: impl Fn(&'a str) -> I,
        id_of: impl Fn(&str) -> Option<u32>,
    ) -> Encoding {
        let segments = std::iter::once(Segment::Text(text));
        self.encode_segments(text.len(), segments, pieces, id_of)
    }

    fn encode_segments<'a, I: Iterator<Item = (usize, &'a str)>>(
        &self,
        len: usize,
        segments: impl Iterator<Item = Segment<'a>>,
        pieces: impl Fn(&'a str) -> I,
        id_of: impl Fn(&str) -> Option<u32>,
    ) -> Encoding {
        let mut encoding = Encoding::default();
        encoding.ids.reserve(len / 4);
        let unknown = self.special_tokens().unk;
        for segment in segments {
            match segment {
                Segment::Special(id) => encoding.ids.push(id),
                Segment::Text(text) => {
                    for (_, piece) in pieces(text) {
                        push_id(&mut encoding, id_of(piece), unknown, piece);
                    }
                }
            }
        }
        encoding
    }

    /// The texts of the tokens.
    pub(super) fn texts(&self) -> Vec<String> {
        self.in_id_order.clone()
    }

    /// For each id of [`encode`](Self::encode), the bytes of `text` that it stands for.
    pub(super) fn ranges<'a, I: Iterator<Item = (usize, &'a str)>>(
        &'a self,
        text: &'a str,
        pieces: impl Fn(&'a str) -> I,
        id_of: impl Fn(&str) -> Option<u32>,
    ) -> Vec<Option<Range<usize>>> {
        let mut ranges = Vec::new();
        let has_unknown = self.special_tokens().unk.is_some();
        for (start, segment) in self.split_with_positions(text) {
            match segment {
                Segment::Special(id) => {
                    let length = self.name(id).map_or(0, str::len);
                    ranges.push(Some(start..start + length));
                }
                Segment::Text(text) => {
                    let known = pieces(text)
                        .filter(|(_, piece)| has_unknown || id_of(piece).is_some())
                        .map(|(at, piece)| Some(start + at..start + at + piece.len()));
                    ranges.extend(known);
                }
            }
        }
        ranges
    }

    /// Splits `text` at special tokens: leftmost match first, then longest.
    pub(crate) fn split<'a>(&'a self, text: &'a str) -> impl Iterator<Item = Segment<'a>> {
        let mut rest = text;
        // Next occurrence of each special token, as distance from the end of `text`.
        let mut next: Vec<Option<usize>> = self
            .in_id_order
            .iter()
            .map(|name| distance_from_end(text, name))
            .collect();
        let mut pending = None;
        std::iter::from_fn(move || {
            if let Some(segment) = pending.take() {
                return Some(segment);
            }
            if rest.is_empty() {
                return None;
            }
            for (distance, name) in next.iter_mut().zip(&self.in_id_order) {
                if distance.is_some_and(|distance| distance > rest.len()) {
                    *distance = distance_from_end(rest, name);
                }
            }
            let found = (0..next.len())
                .filter(|&i| next[i].is_some())
                .max_by_key(|&i| (next[i], self.in_id_order[i].len()));
            let Some((index, distance)) = found.and_then(|i| Some((i, next[i]?))) else {
                return Some(Segment::Text(std::mem::take(&mut rest)));
            };
            let (before, after) = rest.split_at(rest.len() - distance);
            rest = &after[self.in_id_order[index].len()..];
            let special = Segment::Special(self.first_id + index as u32);
            if before.is_empty() {
                return Some(special);
            }
            pending = Some(special);
            Some(Segment::Text(before))
        })
    }
}

/// Returns the distance of the first `name` in `text` from the end of `text`.
fn distance_from_end(text: &str, name: &str) -> Option<usize> {
    text.find(name).map(|start| text.len() - start)
}

/// Appends the id of `text`; without one, the id of the unknown token.
fn push_id(encoding: &mut Encoding, id: Option<u32>, unknown: Option<u32>, text: &str) {
    match (id, unknown) {
        (Some(id), _) => encoding.ids.push(id),
        (None, Some(unknown)) => {
            encoding.record_unknown(text);
            encoding.ids.push(unknown);
        }
        (None, None) => encoding.record_dropped(text),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn tokens() -> SpecialVocab {
        let config = TokenizerConfig {
            eos: "<E>".into(),
            unk: "<E>>".into(),
            ..TokenizerConfig::default()
        };
        SpecialVocab::new(&SpecialNames::from_config(&config).unwrap(), 10)
    }

    #[test]
    fn split_prefers_leftmost_then_longest_special_token() {
        let special = tokens();
        let segments: Vec<Segment> = special.split("a<E>b<E>><E><E").collect();
        let expected = [
            Segment::Text("a"),
            Segment::Special(10),
            Segment::Text("b"),
            Segment::Special(11),
            Segment::Special(10),
            Segment::Text("<E"),
        ];
        assert_eq!(segments, expected);
        assert_eq!(special.split("").count(), 0);
        assert_eq!(
            special.split("<E>").collect::<Vec<_>>(),
            [Segment::Special(10)]
        );
    }

    #[test]
    fn invalid_special_token_names_are_errors() {
        let error_for = |eos: &str, unk: &str, pad: &str| {
            let config = TokenizerConfig {
                eos: eos.into(),
                unk: unk.into(),
                pad: pad.into(),
                ..TokenizerConfig::default()
            };
            SpecialNames::from_config(&config).unwrap_err().to_string()
        };
        assert!(error_for("end of text", "", "").contains("white space"));
        assert!(error_for("<pad>", "", "").contains("pad"));
        assert!(error_for("<EOS>", "", "<fill>").contains("pad"));
        assert!(error_for("<x>", "<x>", "").contains("same token"));
        let error_of = |sep: &str, mask: &str| {
            let config = TokenizerConfig {
                sep: sep.into(),
                mask: mask.into(),
                ..TokenizerConfig::default()
            };
            let names = SpecialNames::from_config(&config);
            names.map(|names| names.count()).map_err(|e| e.to_string())
        };
        assert_eq!(error_of("<SEP>", "[MASK]"), Ok(4)); // with EOS and the unknown token
        assert_eq!(error_of("<EOS>", ""), Ok(2)); // the EOS token separates
        assert!(error_of("=>", "").unwrap_err().contains("\"sep\""));
        assert!(error_of("", "[BLANK]").unwrap_err().contains("\"mask\""));
    }
}
