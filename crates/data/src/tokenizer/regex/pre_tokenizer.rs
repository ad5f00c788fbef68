//! The pre-tokenizer of a `tokenizer.json`, with bounded patterns.

use tokenizers::pattern::Invert;
use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{PreTokenizedString, PreTokenizer, PreTokenizerWrapper};

use super::BoundedRegex;

/// A pre-tokenizer whose patterns draw on the current budget.
#[derive(Debug)]
pub(crate) enum BoundedPreTokenizer {
    /// Splits at the matches of a pattern, or between them.
    Split {
        pattern: BoundedRegex,
        behavior: SplitDelimiterBehavior,
        invert: bool,
    },
    Sequence(Vec<Self>),
    /// A pre-tokenizer without a pattern of the file.
    Other(Box<PreTokenizerWrapper>),
}

impl BoundedPreTokenizer {
    /// Takes the patterns out of a pre-tokenizer of the library.
    ///
    /// # Errors
    /// A pattern that is not supported, or the message of the engine.
    pub(crate) fn new(pre_tokenizer: &PreTokenizerWrapper) -> Result<Self, String> {
        match pre_tokenizer {
            PreTokenizerWrapper::Sequence(parts) => {
                let parts = parts.as_ref().iter().map(Self::new);
                Ok(Self::Sequence(parts.collect::<Result<_, _>>()?))
            }
            PreTokenizerWrapper::Split(split) => match &split.pattern {
                SplitPattern::Regex(regex) => Ok(Self::Split {
                    pattern: BoundedRegex::new(regex)?,
                    behavior: split.behavior,
                    invert: split.invert,
                }),
                SplitPattern::String(_) => Ok(Self::Other(Box::new(pre_tokenizer.clone()))),
            },
            other => Ok(Self::Other(Box::new(other.clone()))),
        }
    }
}

impl PreTokenizer for BoundedPreTokenizer {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> tokenizers::Result<()> {
        match self {
            Self::Split {
                pattern,
                behavior,
                invert: false,
            } => text.split(|_, part| part.split(pattern, *behavior)),
            Self::Split {
                pattern, behavior, ..
            } => text.split(|_, part| part.split(Invert(pattern), *behavior)),
            Self::Sequence(parts) => parts.iter().try_for_each(|part| part.pre_tokenize(text)),
            Self::Other(other) => other.pre_tokenize(text),
        }
    }
}
