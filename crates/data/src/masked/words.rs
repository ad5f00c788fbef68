//! Which tokens are one word, for masking whole words.

use crate::tokenizer::Tokenizer;

/// The mark of a token that starts a word in vocabularies of `SentencePiece`.
const WORD_START: char = '▁';

/// The mark of a token that continues a word in vocabularies of `WordPiece`.
const CONTINUATION: &str = "##";

/// For each id, whether it can continue and be continued as part of a word.
#[derive(Debug, Clone)]
pub(super) struct Words {
    joins: Vec<Joins>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Joins {
    left: bool,
    right: bool,
}

impl Words {
    pub(super) fn new(tokenizer: &dyn Tokenizer) -> Self {
        let ids = 0..tokenizer.vocab_size() as u32;
        let tokens: Vec<String> = ids
            .clone()
            .map(|id| tokenizer.id_to_token(id).unwrap_or_default())
            .collect();
        if tokens.iter().any(|token| continues(token)) {
            let joins = |token: &String| Joins {
                left: continues(token),
                right: true,
            };
            return Self {
                joins: tokens.iter().map(joins).collect(),
            };
        }
        let is_concatenated = tokenizer.token_bytes(0).is_some()
            || tokens.iter().any(|token| token.starts_with(WORD_START));
        if !is_concatenated {
            return Self {
                joins: vec![Joins::default(); tokens.len()],
            };
        }
        let joins = ids.zip(&tokens).map(|(id, token)| {
            let bytes = tokenizer.single_token_bytes(id).unwrap_or_default();
            match std::str::from_utf8(&bytes) {
                Ok(text) => Joins {
                    left: text.starts_with(char::is_alphanumeric) && !token.starts_with(WORD_START),
                    right: text.ends_with(char::is_alphanumeric),
                },
                // A part of a character.
                Err(_) => Joins {
                    left: true,
                    right: true,
                },
            }
        });
        Self {
            joins: joins.collect(),
        }
    }

    /// Whether `id` continues the word that `previous` is part of.
    pub(super) fn continues(&self, previous: u32, id: u32) -> bool {
        let joins = |id: u32| self.joins.get(id as usize).copied().unwrap_or_default();
        joins(previous).right && joins(id).left
    }
}

fn continues(token: &str) -> bool {
    token.len() > CONTINUATION.len() && token.starts_with(CONTINUATION)
}
