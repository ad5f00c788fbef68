//! The texts of a model's special tokens, for chat templates.

use crate::{ModelTokens, TokenSource};

/// Texts of special tokens for the variables of chat templates. Empty where the model has no such token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenTexts {
    /// `bos_token`.
    pub bos: String,
    /// `eos_token`.
    pub eos: String,
    /// `unk_token`.
    pub unk: String,
    /// `pad_token`.
    pub pad: String,
}

/// The special tokens that a tokenizer's file suggests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenizerRoles {
    /// The EOS token.
    pub eos: Option<u32>,
    /// The token for unknown text.
    pub unk: Option<u32>,
    /// The padding token.
    pub pad: Option<u32>,
}

impl TokenTexts {
    /// The texts that `tokens` has, otherwise those of the tokens in `roles`, which `text_of` returns. What the files
    /// of an imported model do not declare, chat templates do not have either.
    ///
    /// ```
    /// use nextword_model::{ModelTokens, TokenTexts, TokenizerRoles};
    ///
    /// let roles = TokenizerRoles { eos: Some(7), ..TokenizerRoles::default() };
    /// let texts = TokenTexts::new(&ModelTokens::trained(Some(7), None), roles, |id| Some(format!("<{id}>")));
    /// assert_eq!((texts.bos.as_str(), texts.eos.as_str()), ("", "<7>"));
    /// ```
    pub fn new(
        tokens: &ModelTokens,
        roles: TokenizerRoles,
        text_of: impl Fn(u32) -> Option<String>,
    ) -> Self {
        let is_declared = tokens.source == Some(TokenSource::Declared);
        let text = |text: &Option<String>, id: Option<u32>| {
            let from_id = || text_of(id?);
            text.clone().or_else(from_id).unwrap_or_default()
        };
        let undeclared = |id: Option<u32>| id.filter(|_| !is_declared);
        Self {
            // An imported tokenizer's settings without a `bos_token` have none for templates either.
            bos: text(
                &tokens.bos_token,
                tokens.bos_id.filter(|_| !tokens.is_imported()),
            ),
            eos: text(&tokens.eos_token, undeclared(roles.eos)),
            unk: text(&tokens.unk_token, undeclared(roles.unk)),
            pad: text(&tokens.pad_token, undeclared(roles.pad)),
        }
    }

    /// The variables besides `bos_token` and `eos_token`, with their texts.
    pub fn further(&self) -> Vec<(&'static str, String)> {
        let texts = [("unk_token", &self.unk), ("pad_token", &self.pad)];
        let known = texts.into_iter().filter(|(_, text)| !text.is_empty());
        known.map(|(name, text)| (name, text.clone())).collect()
    }
}
