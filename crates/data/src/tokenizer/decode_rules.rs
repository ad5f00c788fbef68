//! The rules by which tokens become text: the `decoder` of a `tokenizer.json`, applied token by token.

use std::sync::Arc;

use serde_json::Value;

use super::alphabet::token_to_bytes;
use super::regex::BoundedRegex;

/// Maximum length of the string of a token that a rule makes longer, in bytes: rules in sequence could
/// otherwise double it again and again.
pub(crate) const MAX_GROWN: usize = 64 << 10;
/// The same for a whole text.
const MAX_GROWN_TEXT: usize = 4 << 20;

/// One rule of a decoder. A rule maps a list of strings to a list of strings.
#[derive(Debug, Clone)]
pub(crate) enum Rule {
    /// Joins the strings with spaces: a file without a decoder.
    JoinWords,
    /// Reads the strings in GPT-2's byte alphabet and joins them.
    ByteLevel,
    /// Replaces a suffix that ends words by a space, or by nothing in the last string.
    WordEnd(String),
    /// Joins strings with spaces, except those that start with `prefix`.
    WordPiece { prefix: String, cleanup: bool },
    /// Turns a replacement character into spaces, which the first string loses if `drops_first`.
    Metaspace {
        replacement: char,
        drops_first: bool,
    },
    /// Removes repeated strings and padding.
    Ctc {
        padding: String,
        delimiter: String,
        cleanup: bool,
    },
    /// Replaces a text in each string.
    ReplaceText { text: String, content: String },
    /// Replaces the matches of a pattern in each string.
    ReplacePattern {
        pattern: Arc<BoundedRegex>,
        content: String,
    },
    /// Joins the strings.
    Fuse,
    /// Removes up to `start` and `stop` characters at the ends of each string.
    Strip {
        content: char,
        start: usize,
        stop: usize,
    },
    /// Turns each run of byte tokens (`<0x0A>`) into text; U+FFFD for each byte if the run is not UTF-8.
    ByteFallback,
}

/// The rules of a decoder, in order.
#[derive(Debug, Clone)]
pub struct DecodeRules {
    pub(crate) rules: Arc<[Rule]>,
}

impl DecodeRules {
    /// Decoding concatenates the bytes of the tokens.
    pub fn bytes() -> Self {
        Self::new(vec![Rule::ByteLevel])
    }

    /// Decoding joins the tokens with spaces.
    pub fn words() -> Self {
        Self::new(vec![Rule::JoinWords])
    }

    /// Whether byte tokens (`<0x0A>`) stand for bytes.
    pub(crate) fn has_byte_fallback(&self) -> bool {
        let is_fallback = |rule: &Rule| matches!(rule, Rule::ByteFallback);
        self.rules.iter().any(is_fallback)
    }

    fn new(rules: Vec<Rule>) -> Self {
        Self {
            rules: rules.into(),
        }
    }

    /// Reads the `decoder` of a file that the `tokenizers` library has accepted. `None` for a decoder
    /// that is not known here.
    pub(crate) fn from_json(decoder: &Value) -> Option<Self> {
        let mut rules = Vec::new();
        if decoder.is_null() {
            rules.push(Rule::JoinWords);
        } else {
            push_rules(decoder, &mut rules)?;
        }
        Some(Self::new(rules))
    }

    /// Whether the `tokenizers` library applies these rules within bounds: without patterns of the
    /// file, without panics for short strings, and without long strings.
    pub(crate) fn is_safe_in_library(&self) -> bool {
        !self.rules.iter().any(|rule| match rule {
            Rule::ReplacePattern { .. } => true,
            Rule::Strip { stop, .. } => *stop > 0,
            Rule::ReplaceText { text, content } => content.len() > text.len(),
            // An empty text is found between all characters.
            Rule::WordEnd(suffix) => suffix.is_empty(),
            Rule::Ctc { delimiter, .. } => delimiter.is_empty(),
            _ => false,
        })
    }
}

/// Appends the rules of one JSON object.
fn push_rules(decoder: &Value, rules: &mut Vec<Rule>) -> Option<()> {
    let text = |key: &str| decoder[key].as_str().map(str::to_owned);
    let character = |key: &str| decoder[key].as_str()?.chars().next();
    let count = |key: &str| usize::try_from(decoder[key].as_u64()?).ok();
    let flag = |key: &str| decoder[key].as_bool();
    rules.push(match decoder["type"].as_str()? {
        "Sequence" => {
            for inner in decoder["decoders"].as_array()? {
                push_rules(inner, rules)?;
            }
            return Some(());
        }
        "ByteLevel" => Rule::ByteLevel,
        "BPEDecoder" => Rule::WordEnd(text("suffix")?),
        "WordPiece" => Rule::WordPiece {
            prefix: text("prefix")?,
            cleanup: flag("cleanup")?,
        },
        "Metaspace" => Rule::Metaspace {
            replacement: character("replacement")?,
            drops_first: match decoder["prepend_scheme"].as_str() {
                Some(scheme) => scheme != "never",
                None => flag("add_prefix_space").unwrap_or(true),
            },
        },
        "CTC" => Rule::Ctc {
            padding: text("pad_token")?,
            delimiter: text("word_delimiter_token")?,
            cleanup: flag("cleanup")?,
        },
        "Replace" => replacement(&decoder["pattern"], text("content")?)?,
        "Fuse" => Rule::Fuse,
        "Strip" => Rule::Strip {
            content: character("content")?,
            start: count("start")?,
            stop: count("stop")?,
        },
        "ByteFallback" => Rule::ByteFallback,
        _ => return None,
    });
    Some(())
}

fn replacement(pattern: &Value, content: String) -> Option<Rule> {
    if let Some(text) = pattern["String"].as_str().filter(|text| !text.is_empty()) {
        let text = text.to_owned();
        return Some(Rule::ReplaceText { text, content });
    }
    let regex = pattern["Regex"].as_str().or(pattern["String"].as_str())?;
    let pattern = Arc::new(BoundedRegex::new(regex).ok()?);
    Some(Rule::ReplacePattern { pattern, content })
}

impl Rule {
    /// Applies a rule that treats each string by itself.
    pub(crate) fn apply(&self, string: &str, is_first: bool) -> String {
        self.apply_within(string, is_first, MAX_GROWN)
    }

    /// Applies the rule to a whole text.
    pub(crate) fn apply_to_text(&self, text: &str) -> String {
        self.apply_within(text, true, MAX_GROWN_TEXT)
    }

    /// Applies the rule, but makes no string longer than `max_len` bytes.
    fn apply_within(&self, string: &str, is_first: bool, max_len: usize) -> String {
        match self {
            Self::JoinWords if !is_first => format!(" {string}"),
            Self::ByteLevel => String::from_utf8_lossy(&token_to_bytes(string)).into_owned(),
            Self::WordEnd(suffix) => string.replace(suffix, ""),
            Self::WordPiece { prefix, cleanup } => {
                let word = match string.strip_prefix(prefix.as_str()) {
                    _ if is_first => string.to_owned(),
                    Some(rest) => rest.to_owned(),
                    None => format!(" {string}"),
                };
                if *cleanup { clean_up(&word) } else { word }
            }
            Self::Metaspace {
                replacement,
                drops_first,
            } => {
                let space = if is_first && *drops_first { "" } else { " " };
                string.replace(*replacement, space)
            }
            Self::Ctc {
                padding,
                delimiter,
                cleanup,
            } => {
                let text = string.replace(padding, "");
                if *cleanup {
                    replace_within(&clean_up(&text), delimiter, " ", max_len)
                } else {
                    text
                }
            }
            Self::ReplaceText { text, content } => replace_within(string, text, content, max_len),
            Self::ReplacePattern { pattern, content } => {
                pattern.replace_all(string, content, string.len().max(max_len))
            }
            Self::Strip {
                content,
                start,
                stop,
            } => strip(string, *content, *start, *stop).to_owned(),
            Self::ByteFallback => match byte_of(string) {
                Some(byte) => run_text(&[byte]).unwrap_or_default(),
                None => string.to_owned(),
            },
            Self::JoinWords | Self::Fuse => string.to_owned(),
        }
    }
}

/// Replaces `text` in the string of one token by `content`, unless that makes it too long.
pub(crate) fn replace(string: &str, text: &str, content: &str) -> String {
    replace_within(string, text, content, MAX_GROWN)
}

/// Replaces `text` by `content`, unless that would make the string longer than `max_len` bytes.
fn replace_within(string: &str, text: &str, content: &str, max_len: usize) -> String {
    let added = content.len().saturating_sub(text.len());
    if added > 0 {
        let length = string.matches(text).count().saturating_mul(added);
        if length.saturating_add(string.len()) > max_len {
            return string.to_owned();
        }
    }
    string.replace(text, content)
}

fn strip(string: &str, content: char, start: usize, stop: usize) -> &str {
    let mut rest = string;
    for _ in 0..start {
        let Some(shorter) = rest.strip_prefix(content) else {
            break;
        };
        rest = shorter;
    }
    for _ in 0..stop {
        let Some(shorter) = rest.strip_suffix(content) else {
            break;
        };
        rest = shorter;
    }
    rest
}

/// The byte of a token such as `<0x0A>`.
pub(crate) fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    // The library accepts a sign before a digit, as the standard library does.
    (digits.len() == 2)
        .then(|| u8::from_str_radix(digits, 16).ok())
        .flatten()
}

/// The text of a run of byte tokens; `None` for an empty run.
pub(crate) fn run_text(bytes: &[u8]) -> Option<String> {
    if bytes.is_empty() {
        return None;
    }
    let invalid = || char::REPLACEMENT_CHARACTER.to_string().repeat(bytes.len());
    Some(std::str::from_utf8(bytes).map_or_else(|_| invalid(), str::to_owned))
}

/// Removes spaces before punctuation and contractions, in BERT's order.
fn clean_up(text: &str) -> String {
    const REPLACEMENTS: [(&str, &str); 11] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" do not", " don't"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    let replace = |text: String, (from, to): &(&str, &str)| text.replace(from, to);
    REPLACEMENTS.iter().fold(text.to_owned(), replace)
}
