//! The normalizer of a `tokenizer.json`, with bounded patterns.

use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper};

use super::BoundedRegex;

/// A normalizer whose patterns draw on the current budget.
#[derive(Debug)]
pub(crate) enum BoundedNormalizer {
    /// Replaces the matches of a pattern.
    Replace {
        pattern: BoundedRegex,
        content: String,
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
                match json["pattern"]["Regex"].as_str() {
                    Some(regex) => Ok(Self::Replace {
                        pattern: BoundedRegex::new(regex)?,
                        content: replace.content.clone(),
                    }),
                    None => Ok(Self::Other(Box::new(normalizer.clone()))),
                }
            }
            other => Ok(Self::Other(Box::new(other.clone()))),
        }
    }
}

impl Normalizer for BoundedNormalizer {
    fn normalize(&self, normalized: &mut NormalizedString) -> tokenizers::Result<()> {
        match self {
            Self::Replace { pattern, content } => normalized.replace(pattern, content),
            Self::Sequence(parts) => parts.iter().try_for_each(|part| part.normalize(normalized)),
            Self::Other(other) => other.normalize(normalized),
        }
    }
}
