//! The normalizer of a `tokenizer.json`, with bounded patterns and replacements.

use tokenizers::pattern::Pattern;
use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper};

use super::{BoundedRegex, added_bytes, budget};

/// A normalizer whose patterns and added text draw on the current budget.
#[derive(Debug)]
pub(crate) enum BoundedNormalizer {
    /// Replaces the matches of a pattern.
    Replace {
        pattern: BoundedRegex,
        content: String,
    },
    /// Replaces a text, each time adding some bytes.
    ReplaceText {
        text: String,
        added: usize,
        rule: Box<NormalizerWrapper>,
    },
    Sequence(Vec<Self>),
    /// A normalizer without a pattern.
    Other(Box<NormalizerWrapper>),
}

impl BoundedNormalizer {
    /// Takes the patterns out of a normalizer of the library.
    ///
    /// # Errors
    /// A pattern that is not supported, or the message of the engine.
    pub(crate) fn new(normalizer: &NormalizerWrapper) -> Result<Self, String> {
        match normalizer {
            NormalizerWrapper::Sequence(parts) => {
                let parts = parts.as_ref().iter().map(Self::new);
                Ok(Self::Sequence(parts.collect::<Result<_, _>>()?))
            }
            NormalizerWrapper::Replace(replace) => {
                // The library keeps the pattern private.
                let json = serde_json::to_value(replace).map_err(|error| error.to_string())?;
                let content = replace.content.clone();
                let text = json["pattern"]["String"].as_str();
                match (json["pattern"]["Regex"].as_str(), text) {
                    (Some(regex), _) => Ok(Self::Replace {
                        pattern: BoundedRegex::new(regex)?,
                        content,
                    }),
                    // An empty text matches between all characters, as the empty pattern does.
                    (None, Some("")) => Ok(Self::Replace {
                        pattern: BoundedRegex::new("")?,
                        content,
                    }),
                    (None, Some(text)) => Ok(Self::ReplaceText {
                        text: text.to_owned(),
                        added: content.len().saturating_sub(text.len()),
                        rule: Box::new(normalizer.clone()),
                    }),
                    (None, None) => Ok(Self::Other(Box::new(normalizer.clone()))),
                }
            }
            other => Ok(Self::Other(Box::new(other.clone()))),
        }
    }
}

impl Normalizer for BoundedNormalizer {
    fn normalize(&self, normalized: &mut NormalizedString) -> tokenizers::Result<()> {
        match self {
            Self::Replace { pattern, content } => {
                normalized.replace(Limited { pattern, content }, content)
            }
            Self::ReplaceText { text, added, rule } => {
                if *added > 0 {
                    let matches = normalized.get().matches(text.as_str()).count();
                    check_growth(matches.saturating_mul(*added))?;
                }
                rule.normalize(normalized)
            }
            Self::Sequence(parts) => parts.iter().try_for_each(|part| part.normalize(normalized)),
            Self::Other(other) => {
                let before = normalized.get().len();
                other.normalize(normalized)?;
                check_growth(normalized.get().len().saturating_sub(before))
            }
        }
    }
}

/// A pattern whose matches are an error if replacing them by `content` would exceed the budget.
struct Limited<'a> {
    pattern: &'a BoundedRegex,
    content: &'a str,
}

impl Pattern for Limited<'_> {
    fn find_matches(&self, inside: &str) -> tokenizers::Result<Vec<(tokenizers::Offsets, bool)>> {
        let parts = self.pattern.find_matches(inside)?;
        check_growth(added_bytes(&parts, self.content))?;
        Ok(parts)
    }
}

/// Draws bytes that a rule adds on the budget.
fn check_growth(bytes: usize) -> tokenizers::Result<()> {
    if bytes == 0 || budget::grow(bytes) {
        return Ok(());
    }
    budget::exhaust(|| "the normalizer adds too much text".to_owned());
    Err("the normalizer adds too much text".into())
}
