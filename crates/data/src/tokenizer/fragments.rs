//! Decoder rules on one long string that arrives in fragments.

use super::decode_rules::{MAX_GROWN, Rule};

/// Bytes that arrive in parts; an incomplete character is held back.
#[derive(Debug, Clone, Default)]
pub(crate) struct Utf8Buffer(Vec<u8>);

impl Utf8Buffer {
    /// Adds bytes and returns the complete characters, with U+FFFD as in `String::from_utf8_lossy`.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        self.0.extend_from_slice(bytes);
        let mut text = String::new();
        loop {
            let Err(error) = std::str::from_utf8(&self.0) else {
                text.push_str(&String::from_utf8_lossy(&std::mem::take(&mut self.0)));
                return text;
            };
            let rest = self.0.split_off(error.valid_up_to());
            text.push_str(&String::from_utf8_lossy(&self.0));
            self.0 = rest;
            let Some(invalid) = error.error_len() else {
                return text;
            };
            self.0.drain(..invalid);
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }

    /// Returns an incomplete character as U+FFFD.
    pub(crate) fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.0)).into_owned()
    }
}

/// A rule on one string that arrives in fragments.
#[derive(Debug, Clone)]
pub(crate) enum Fragment {
    /// Removes characters at the start of the string.
    StripStart { content: char, remaining: usize },
    /// Removes characters at the end of the string.
    StripEnd {
        content: char,
        stop: usize,
        /// Occurrences of `content` at the end so far.
        held: usize,
    },
    /// Replaces a text; the end of the string may be the start of that text.
    Replace {
        text: String,
        content: String,
        held: String,
    },
    /// A rule that treats each character by itself.
    Characters(Rule),
    /// Any other rule needs the whole string.
    Whole { rule: Rule, held: String },
    /// Two rules, one after the other.
    Both(Box<Fragment>, Box<Fragment>),
}

impl Fragment {
    /// The rule for the only string of a list; `None` for a rule that does not change it.
    pub(crate) fn new(rule: &Rule) -> Option<Self> {
        Some(match rule {
            Rule::Fuse | Rule::JoinWords | Rule::WordPiece { cleanup: false, .. } => return None,
            Rule::Strip {
                content,
                start,
                stop,
            } => {
                let start = Self::StripStart {
                    content: *content,
                    remaining: *start,
                };
                let end = Self::StripEnd {
                    content: *content,
                    stop: *stop,
                    held: 0,
                };
                Self::Both(Box::new(start), Box::new(end))
            }
            Rule::ReplaceText { text, content } => Self::Replace {
                text: text.clone(),
                content: content.clone(),
                held: String::new(),
            },
            Rule::Metaspace { .. } => Self::Characters(rule.clone()),
            _ => Self::Whole {
                rule: rule.clone(),
                held: String::new(),
            },
        })
    }

    /// Adds a fragment and returns the text that is now final.
    pub(crate) fn push(&mut self, fragment: &str) -> String {
        match self {
            Self::StripStart { content, remaining } => {
                let mut rest = fragment;
                while *remaining > 0 && !rest.is_empty() {
                    *remaining -= 1;
                    match rest.strip_prefix(*content) {
                        Some(shorter) => rest = shorter,
                        None => *remaining = 0,
                    }
                }
                rest.to_owned()
            }
            Self::StripEnd {
                content,
                stop,
                held,
            } => {
                let before = fragment.trim_end_matches(*content);
                let trailing = (fragment.len() - before.len()) / content.len_utf8();
                let mut text = String::new();
                if !before.is_empty() {
                    text.extend(std::iter::repeat_n(*content, std::mem::take(held)));
                    text.push_str(before);
                }
                *held += trailing;
                // Only the last `stop` occurrences can be removed.
                let certain = held.saturating_sub(*stop);
                text.extend(std::iter::repeat_n(*content, certain));
                *held -= certain;
                text
            }
            Self::Replace {
                text,
                content,
                held,
            } => {
                held.push_str(fragment);
                let added = content.len().saturating_sub(text.len());
                let matches = if added == 0 {
                    0
                } else {
                    held.matches(text.as_str()).count()
                };
                let length = held.len().saturating_add(matches.saturating_mul(added));
                // Rules in sequence could otherwise double a text again and again.
                let content = if added > 0 && length > MAX_GROWN {
                    &*text
                } else {
                    &*content
                };
                let mut output = String::new();
                let mut done = 0;
                while let Some(at) = held[done..].find(text.as_str()) {
                    output.push_str(&held[done..done + at]);
                    output.push_str(content);
                    done += at + text.len();
                }
                let first = done.max((held.len() + 1).saturating_sub(text.len()));
                let is_start =
                    |at: &usize| held.is_char_boundary(*at) && text.starts_with(&held[*at..]);
                let keep = (first..held.len()).find(is_start).unwrap_or(held.len());
                output.push_str(&held[done..keep]);
                held.drain(..keep);
                output
            }
            Self::Characters(rule) => rule.apply(fragment, true),
            Self::Whole { held, .. } => {
                held.push_str(fragment);
                String::new()
            }
            Self::Both(first, second) => second.push(&first.push(fragment)),
        }
    }

    /// Ends the string and returns the text that was held back.
    pub(crate) fn finish(&mut self) -> String {
        match self {
            // What StripEnd still holds is what the rule removes.
            Self::StripStart { .. } | Self::StripEnd { .. } | Self::Characters(_) => String::new(),
            Self::Replace { held, .. } => std::mem::take(held),
            Self::Whole { rule, held } => rule.apply_to_text(&std::mem::take(held)),
            Self::Both(first, second) => {
                let rest = first.finish();
                second.push(&rest) + &second.finish()
            }
        }
    }
}
