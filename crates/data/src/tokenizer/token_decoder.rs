//! Decoding token by token.

use super::alphabet::token_to_bytes;
use super::decode_rules::{DecodeRules, Rule, byte_of, replace, run_text};
use super::fragments::{Fragment, Utf8Buffer};

/// Applies [`DecodeRules`] to tokens that arrive one by one. Returned text never changes: text that a
/// later token could change is held back.
#[derive(Debug, Clone)]
pub(crate) struct TokenDecoder {
    /// The rules before the strings are joined.
    separate: Vec<Separate>,
    /// The incomplete character at the end of the joined text.
    buffer: Utf8Buffer,
    joins_bytes: bool,
    /// The rules after the strings are joined to one.
    joined: Vec<Fragment>,
}

impl TokenDecoder {
    pub(crate) fn new(rules: &DecodeRules) -> Self {
        let rules = &rules.rules;
        let joins = |rule: &Rule| matches!(rule, Rule::Fuse | Rule::ByteLevel);
        let join = rules.iter().position(joins);
        let (first, rest) = rules.split_at(join.unwrap_or(rules.len()));
        Self {
            separate: first.iter().cloned().map(Separate::new).collect(),
            buffer: Utf8Buffer::default(),
            joins_bytes: matches!(rest.first(), Some(Rule::ByteLevel)),
            joined: rest.iter().skip(1).filter_map(Fragment::new).collect(),
        }
    }

    /// Adds a token and returns the text that is now final.
    pub(crate) fn push(&mut self, token: String) -> String {
        let text = self.push_separate(0, vec![token]);
        self.push_joined(0, text)
    }

    /// Adds the bytes of a token, if the rules only concatenate bytes.
    pub(crate) fn push_bytes(&mut self, bytes: &[u8]) -> String {
        let text = self.buffer.push(bytes);
        self.push_joined(0, text)
    }

    /// Returns the text that was held back.
    pub(crate) fn finish(&mut self) -> String {
        let mut text = String::new();
        for index in 0..self.separate.len() {
            let rest = self.separate[index].finish();
            text += &self.push_separate(index + 1, rest);
        }
        text += &self.buffer.finish();
        let mut all = self.push_joined(0, text);
        for index in 0..self.joined.len() {
            let rest = self.joined[index].finish();
            all += &self.push_joined(index + 1, rest);
        }
        all
    }

    /// Ends a run of byte tokens, except for the bytes of an incomplete character at its end.
    pub(crate) fn end_byte_run(&mut self) -> String {
        let mut text = String::new();
        for index in 0..self.separate.len() {
            let ended = self.separate[index].end_byte_run();
            text += &self.push_separate(index + 1, ended);
        }
        self.push_joined(0, text)
    }

    /// Passes strings through the rules from `first` on and joins them.
    fn push_separate(&mut self, first: usize, mut strings: Vec<String>) -> String {
        for rule in &mut self.separate[first..] {
            let mut output = Vec::with_capacity(strings.len());
            for string in strings {
                rule.push(string, &mut output);
            }
            strings = output;
        }
        if !self.joins_bytes {
            return strings.concat();
        }
        let bytes: Vec<u8> = strings
            .iter()
            .flat_map(|token| token_to_bytes(token))
            .collect();
        self.buffer.push(&bytes)
    }

    fn push_joined(&mut self, first: usize, mut text: String) -> String {
        for rule in &mut self.joined[first..] {
            text = rule.push(&text);
        }
        text
    }
}

/// A rule that is applied to one string after the other, and what it remembers of earlier strings.
#[derive(Debug, Clone)]
struct Separate {
    rule: Rule,
    is_first: bool,
    /// The previous string.
    previous: Option<String>,
    /// The bytes of a run of byte tokens.
    bytes: Vec<u8>,
}

impl Separate {
    fn new(rule: Rule) -> Self {
        Self {
            rule,
            is_first: true,
            previous: None,
            bytes: Vec::new(),
        }
    }

    fn push(&mut self, string: String, output: &mut Vec<String>) {
        let is_first = std::mem::replace(&mut self.is_first, false);
        match &self.rule {
            Rule::WordEnd(suffix) => {
                let previous = self.previous.replace(string);
                output.extend(previous.map(|previous| replace(&previous, suffix, " ")));
            }
            Rule::Ctc { .. } => {
                if self.previous.as_ref() != Some(&string) {
                    let decoded = self.rule.apply(&string, false);
                    output.extend(Some(decoded).filter(|decoded| !decoded.is_empty()));
                    self.previous = Some(string);
                }
            }
            Rule::ByteFallback => match byte_of(&string) {
                Some(byte) => self.bytes.push(byte),
                None => {
                    output.extend(run_text(&std::mem::take(&mut self.bytes)));
                    output.push(string);
                }
            },
            rule => output.push(rule.apply(&string, is_first)),
        }
    }

    fn finish(&mut self) -> Vec<String> {
        let last = match &self.rule {
            Rule::WordEnd(suffix) => self
                .previous
                .take()
                .map(|previous| previous.replace(suffix, "")),
            Rule::ByteFallback => run_text(&std::mem::take(&mut self.bytes)),
            _ => None,
        };
        last.into_iter().collect()
    }

    fn end_byte_run(&mut self) -> Vec<String> {
        let bytes = std::mem::take(&mut self.bytes);
        let complete = match std::str::from_utf8(&bytes) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => bytes.len(),
        };
        let (ended, incomplete) = bytes.split_at(complete);
        self.bytes = incomplete.to_vec();
        run_text(ended).into_iter().collect()
    }
}
