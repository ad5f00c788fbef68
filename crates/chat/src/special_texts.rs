//! Texts of special tokens that are written in messages: they stay text.
//!
//! Whoever may write into a conversation must not be able to end a message, or to begin one with another role. So each
//! special token's text in a content is replaced by a character without a meaning before the template runs, and put
//! back afterwards, with its place. These places are encoded without special tokens.

use std::collections::BTreeSet;
use std::ops::Range;

use nextword_data::{Encoding, Tokenizer};

use crate::functions::{MARK_BEGIN, MARK_END};
use crate::{ChatError, Json, Message, RenderOptions, Role};

/// Characters that Unicode leaves to private use, without those of [`MARK_BEGIN`] and [`MARK_END`].
const PRIVATE: std::ops::RangeInclusive<char> = '\u{100000}'..='\u{10FFF0}';
/// Marks of reasoning, which templates look for in the assistant's messages.
const REASONING_MARKS: [&str; 2] = ["<think>", "</think>"];

/// The texts of a tokenizer's special tokens.
#[derive(Debug, Default)]
pub(crate) struct SpecialTexts {
    /// The longest first.
    texts: Vec<String>,
    /// Bytes with which they begin.
    first_bytes: BTreeSet<u8>,
}

/// A conversation with characters in place of the texts of special tokens.
#[derive(Debug)]
pub(crate) struct Protected {
    pub(crate) messages: Vec<Message>,
    pub(crate) tools: Option<Vec<Json>>,
    pub(crate) documents: Option<Vec<Json>>,
    replaced: Vec<(char, String)>,
}

/// A formatted conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rendered {
    pub(crate) text: String,
    /// Where the text of a special token is text, in bytes and ascending order.
    pub(crate) literals: Vec<Range<usize>>,
}

impl Rendered {
    /// Whether `other` is the beginning of this.
    pub(crate) fn starts_with(&self, other: &Self) -> bool {
        let end = other.text.len();
        let literals = self.literals.iter().take_while(|range| range.start < end);
        self.text.starts_with(&other.text) && literals.eq(&other.literals)
    }

    /// The bytes `range`.
    pub(crate) fn slice(&self, range: Range<usize>) -> Self {
        let inside =
            |literal: &&Range<usize>| literal.start >= range.start && literal.end <= range.end;
        let literals = self.literals.iter().filter(inside);
        let literals =
            literals.map(|literal| literal.start - range.start..literal.end - range.start);
        Self {
            text: self.text.get(range.clone()).unwrap_or_default().to_owned(),
            literals: literals.collect(),
        }
    }

    /// Appends another text.
    pub(crate) fn push(&mut self, other: &Self) {
        let start = self.text.len();
        self.text.push_str(&other.text);
        let literals = other.literals.iter();
        self.literals
            .extend(literals.map(|literal| literal.start + start..literal.end + start));
    }

    /// Whether the byte at `at` belongs to a literal.
    pub(crate) fn is_literal(&self, at: usize) -> bool {
        let next = self.literals.partition_point(|literal| literal.end <= at);
        self.literals
            .get(next)
            .is_some_and(|literal| literal.start <= at)
    }
}

impl SpecialTexts {
    pub(crate) fn new(tokenizer: &dyn Tokenizer) -> Self {
        let mut texts = tokenizer.special_texts();
        texts.retain(|text| !text.is_empty());
        texts.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        texts.dedup();
        let first_bytes = texts.iter().filter_map(|text| text.bytes().next());
        let first_bytes = first_bytes.collect();
        Self { texts, first_bytes }
    }

    /// The special text at the start of `text`.
    pub(crate) fn at_start(&self, text: &str) -> Option<&str> {
        let first = text.bytes().next()?;
        if !self.first_bytes.contains(&first) {
            return None;
        }
        let found = self.texts.iter().find(|special| text.starts_with(*special));
        found.map(String::as_str)
    }

    /// The first special text in `text`, with its position.
    fn find<'a>(&'a self, text: &str) -> Option<(usize, &'a str)> {
        let starts = text.bytes().enumerate();
        let starts = starts.filter(|(_, byte)| self.first_bytes.contains(byte));
        let mut found = starts.map(|(at, _)| Some((at, self.at_start(text.get(at..)?)?)));
        found.find_map(|found| found)
    }

    /// The conversation with characters in place of special texts. `None` if there are no such texts in it.
    pub(crate) fn protect(
        &self,
        messages: &[Message],
        options: &RenderOptions<'_>,
    ) -> Option<Protected> {
        let mut is_needed = false;
        let mut used = BTreeSet::new();
        let mut look = |text: &str| {
            is_needed |= self.find(text).is_some();
            used.extend(text.chars().filter(|c| PRIVATE.contains(c)));
            String::new()
        };
        for message in messages {
            message.map_texts(&mut look);
        }
        let lists = [options.tools, options.documents];
        for json in lists.into_iter().flatten().flatten() {
            json.map_texts(&mut look);
        }
        for (_, value) in options.variables {
            value.map_texts(&mut |text| {
                used.extend(text.chars().filter(|c| PRIVATE.contains(c)));
                String::new()
            });
        }
        if !is_needed {
            return None;
        }
        let mut unused = PRIVATE.filter(|c| !used.contains(c));
        let mut replaced: Vec<(char, String)> = Vec::new();
        let mut replace = |text: &str, keeps_reasoning: bool| {
            let mut out = String::with_capacity(text.len());
            let mut rest = text;
            while let Some((at, special)) = self.find(rest) {
                out.push_str(&rest[..at]);
                rest = &rest[at + special.len()..];
                if keeps_reasoning && REASONING_MARKS.contains(&special) {
                    out.push_str(special);
                    continue;
                }
                let known = replaced.iter().find(|(_, text)| text == special);
                let mark = known.map(|(mark, _)| *mark).or_else(|| {
                    let mark = unused.next()?;
                    replaced.push((mark, special.to_owned()));
                    Some(mark)
                });
                // With every private character in use, another character takes the place of the text: what is around
                // it must not become a token.
                out.push(mark.unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            out + rest
        };
        let messages = messages.iter().map(|message| {
            let is_assistant = message.role() == Role::Assistant;
            message.map_texts(&mut |text| replace(text, is_assistant))
        });
        let messages = messages.collect();
        let mut all = |list: Option<&[Json]>| {
            let list = list?.iter();
            Some(
                list.map(|json| json.map_texts(&mut |text| replace(text, false)))
                    .collect(),
            )
        };
        let (tools, documents) = (all(options.tools), all(options.documents));
        Some(Protected {
            messages,
            tools,
            documents,
            replaced,
        })
    }

    /// The content of an assistant's message, as [`protect`](Self::protect) and [`restore`](Protected::restore) leave
    /// it.
    pub(crate) fn as_content(&self, text: &str) -> Rendered {
        let mut out = Rendered {
            text: text.to_owned(),
            literals: Vec::new(),
        };
        let mut start = 0;
        while let Some((at, special)) = self.find(&text[start..]) {
            let literal = start + at..start + at + special.len();
            start = literal.end;
            if !REASONING_MARKS.contains(&special) {
                out.literals.push(literal);
            }
        }
        out
    }

    /// Encodes a formatted conversation.
    pub(crate) fn encode(
        &self,
        tokenizer: &dyn Tokenizer,
        rendered: &Rendered,
    ) -> Result<Encoding, ChatError> {
        let Rendered { text, literals } = rendered;
        if literals.is_empty() {
            return Ok(tokenizer.try_encode(text)?);
        }
        // Special tokens divide a text, so what is between two of them can be encoded by itself.
        let borders = self.tokens(rendered);
        let mut all = Encoding::default();
        let mut add = |encoding: Encoding| {
            all.ids.extend_from_slice(&encoding.ids);
            all.add_unknown(&encoding);
        };
        let mut done = 0;
        for literal in literals {
            if literal.start < done {
                continue;
            }
            let next = borders.partition_point(|border| border.end <= literal.start);
            let before = next.checked_sub(1).and_then(|last| borders.get(last));
            let start = before.map_or(0, |border| border.end).max(done);
            let end = borders.get(next).map_or(text.len(), |border| border.start);
            if done < start {
                add(tokenizer.try_encode(&text[done..start])?);
            }
            add(tokenizer.try_encode_ordinary(&text[start..end])?);
            done = end;
        }
        if done < text.len() {
            add(tokenizer.try_encode(&text[done..])?);
        }
        Ok(all)
    }

    /// Where special tokens are, in ascending order.
    fn tokens(&self, rendered: &Rendered) -> Vec<Range<usize>> {
        let Rendered { text, literals } = rendered;
        let mut found = Vec::new();
        let mut start = 0;
        let ends = literals
            .iter()
            .map(|literal| literal.start)
            .chain([text.len()]);
        let starts = literals.iter().map(|literal| literal.end);
        for (end, next) in ends.zip(starts.map(Some).chain([None])) {
            while let Some((at, special)) = self.find(&text[start..end]) {
                let range = start + at..start + at + special.len();
                start = range.end;
                found.push(range);
            }
            start = next.unwrap_or(text.len());
        }
        found
    }
}

impl Protected {
    /// Puts the texts of special tokens back.
    pub(crate) fn restore(&self, formatted: &str) -> Rendered {
        let mut out = Rendered::default();
        for c in formatted.chars() {
            let mut replaced = self.replaced.iter();
            let replaced = PRIVATE
                .contains(&c)
                .then(|| replaced.find(|(mark, _)| *mark == c));
            match replaced.flatten() {
                Some((_, text)) => {
                    let start = out.text.len();
                    out.text.push_str(text);
                    out.literals.push(start..out.text.len());
                }
                None => out.text.push(c),
            }
        }
        out
    }
}

/// Takes the marks of `{% generation %}` blocks out of a text. Returns it with the ranges of bytes that they
/// enclosed, without those inside of others.
pub(crate) fn take_marks(formatted: &Rendered) -> (Rendered, Vec<Range<usize>>) {
    let mut out = Rendered::default();
    let mut marks = Vec::new();
    let mut open: Vec<usize> = Vec::new();
    for (at, c) in formatted.text.char_indices() {
        match c {
            MARK_BEGIN => open.push(out.text.len()),
            MARK_END => {
                if let Some(start) = open.pop()
                    && open.is_empty()
                    && start < out.text.len()
                {
                    marks.push(start..out.text.len());
                }
            }
            _ => {
                let literals = &formatted.literals;
                if let Ok(found) = literals.binary_search_by_key(&at, |literal| literal.start) {
                    let start = out.text.len();
                    out.literals.push(start..start + literals[found].len());
                }
                out.text.push(c);
            }
        }
    }
    (out, marks)
}

/// Whether a conversation contains one of the marks itself.
pub(crate) fn has_marks(messages: &[Message]) -> bool {
    let mut has = false;
    for message in messages {
        message.map_texts(&mut |text| {
            has |= text.contains([MARK_BEGIN, MARK_END]);
            String::new()
        });
    }
    has
}
