//! The patterns of a `tokenizer.json`, matched by Oniguruma, the engine of Python's `tokenizers`,
//! with bounds on time and memory.

mod budget;
mod check;
mod normalizer;
mod pre_tokenizer;
mod search;

use onig::Regex;
use tokenizers::pattern::Pattern;

pub(crate) use self::budget::{exhausted_by, with_budget};
pub(crate) use self::check::check_patterns;
pub(crate) use self::normalizer::BoundedNormalizer;
pub(crate) use self::pre_tokenizer::BoundedPreTokenizer;

/// Maximum number of characters of a pattern in an error.
const MAX_SHOWN: usize = 80;

/// A compiled pattern whose searches draw on the budget of the current call (see [`with_budget`]).
#[derive(Debug)]
pub(crate) struct BoundedRegex {
    regex: Regex,
    /// The start of the pattern, for errors.
    shown: String,
    /// Whether a match can depend on where the search began (`\G`).
    has_search_start: bool,
}

impl BoundedRegex {
    /// Checks and compiles `pattern`.
    ///
    /// # Errors
    /// The construct that is not supported, or the message of the engine.
    pub(crate) fn new(pattern: &str) -> Result<Self, String> {
        check::check_pattern(pattern)?;
        let regex = Regex::new(pattern).map_err(|error| error.to_string())?;
        Ok(Self {
            regex,
            shown: pattern.chars().take(MAX_SHOWN).collect(),
            has_search_start: pattern.contains(r"\G"),
        })
    }

    /// Replaces all matches in `text`. A text is left as it is if that would need more than the budget,
    /// or make it longer than `max_len` bytes.
    pub(crate) fn replace_all(&self, text: &str, content: &str, max_len: usize) -> String {
        let mut output = String::new();
        let Ok(parts) = with_budget(text.len(), || self.find_matches(text)) else {
            return text.to_owned();
        };
        if text.len().saturating_add(added_bytes(&parts, content)) > max_len {
            return text.to_owned();
        }
        for ((start, end), is_match) in parts {
            output.push_str(if is_match { content } else { &text[start..end] });
        }
        output
    }
}

/// At most how many bytes longer a text becomes if `content` replaces its matches.
fn added_bytes(parts: &[(tokenizers::Offsets, bool)], content: &str) -> usize {
    let matches = parts.iter().filter(|(_, is_match)| *is_match);
    let added = matches.map(|((start, end), _)| content.len().saturating_sub(end - start));
    added.fold(0, usize::saturating_add)
}

impl Pattern for &BoundedRegex {
    fn find_matches(&self, inside: &str) -> tokenizers::Result<Vec<(tokenizers::Offsets, bool)>> {
        if inside.is_empty() {
            return Ok(vec![((0, 0), false)]);
        }
        let mut parts = Vec::new();
        let mut end_of_last = 0;
        let mut search = search::Matches::new(self, inside);
        while let Some((start, end)) = search.next_match()? {
            if end_of_last != start {
                parts.push(((end_of_last, start), false));
            }
            parts.push(((start, end), true));
            end_of_last = end;
        }
        if end_of_last != inside.len() {
            parts.push(((end_of_last, inside.len()), false));
        }
        Ok(parts)
    }
}
