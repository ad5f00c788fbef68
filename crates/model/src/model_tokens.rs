//! The special tokens that a model declares.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where the special tokens of a model come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenSource {
    /// The tokenizer settings of the run that trained the model.
    Trained,
    /// The files of an imported model.
    Declared,
    /// The files of an imported model, which declare no EOS token: it was guessed by its name.
    Guessed,
}

/// The special tokens of a model: everything that its files declare about them. Part of a
/// [`ModelCard`](crate::ModelCard), and unchanged by training, quantization and export.
///
/// Cards written before there was a [`source`](Self::source) are incomplete: the roles of their tokens are
/// detected by name in the tokenizer's file, in addition to what the card contains.
///
/// # Example
///
/// ```
/// use nextword_model::{ModelTokens, TokenSource};
///
/// let tokens = ModelTokens {
///     bos_id: Some(1),
///     eos_ids: vec![2, 7],
///     prefix_ids: Some(Vec::new()),
///     source: Some(TokenSource::Declared),
///     ..ModelTokens::default()
/// };
/// assert_eq!(tokens.stop_ids(Some(0)), [2, 7]); // what a tokenizer's file suggests does not matter
/// assert!(tokens.prefix().is_empty()); // this tokenizer does not put BOS before a text
/// assert_eq!(tokens.evaluation_prefix(None), [1]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelTokens {
    /// The BOS token, whether or not it is put before every text (see [`prefix`](Self::prefix)).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bos_id: Option<u32>,
    /// The `bos_token` of chat templates, if the tokenizer's settings name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bos_token: Option<String>,
    /// The `eos_token` of chat templates, if the tokenizer's settings name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eos_token: Option<String>,
    /// EOS tokens, which end a completion, in the order of the model's files. Chat models also have one
    /// for the end of a turn.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub eos_ids: Vec<u32>,
    /// The EOS tokens in an imported `config.json`, if `generation_config.json` has others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_eos_ids: Option<Vec<u32>>,
    /// The EOS token that ends a document: the one that the tokenizer's settings name, otherwise the first
    /// of `eos_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document_eos_id: Option<u32>,
    /// The token before a text whose first token is predicted too, where the tokenizer puts none before every
    /// text: the `bos_token` that the settings of an imported tokenizer name, otherwise its `eos_token`.
    /// Unlike `bos_id`, it does not come from `config.json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evaluation_id: Option<u32>,
    /// The padding token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pad_id: Option<u32>,
    /// The text of the padding token, if the tokenizer's settings name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pad_token: Option<String>,
    /// The text of the unknown token, if the tokenizer's settings name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unk_token: Option<String>,
    /// The tokens that the tokenizer puts before every text (`add_special_tokens=True` in transformers).
    /// Without this list, they are `bos_id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix_ids: Option<Vec<u32>>,
    /// The first token of the decoder in imported encoder-decoder models (`decoder_start_token_id` in transformers).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_start_id: Option<u32>,
    /// The tokens that the tokenizer puts after every text. They are exported, and put after the sources of
    /// encoder-decoder models and the texts of encoders; other prompts do not get them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub suffix_ids: Vec<u32>,
    /// Settings of an imported tokenizer that name more special tokens, by their keys (`extra_special_tokens`,
    /// `additional_special_tokens`) and as they are. They are exported, and have no other effect.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub further_settings: BTreeMap<String, serde_json::Value>,
    /// How transformers samples a completion of an imported model, by the keys of `generation_config.json`. Exported, and
    /// without other effect.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sampling_settings: BTreeMap<String, serde_json::Value>,
    /// Where these tokens come from; `None` for an incomplete card of an earlier version.
    #[serde(rename = "token_source", skip_serializing_if = "Option::is_none")]
    pub source: Option<TokenSource>,
}

impl ModelTokens {
    /// The tokens of a model trained with a tokenizer that has this EOS and this padding token.
    pub fn trained(eos: Option<u32>, pad: Option<u32>) -> Self {
        Self {
            eos_ids: eos.into_iter().collect(),
            document_eos_id: eos,
            pad_id: pad,
            source: Some(TokenSource::Trained),
            ..Self::default()
        }
    }

    /// Whether the model was imported, so that its tokens are those of its files.
    pub fn is_imported(&self) -> bool {
        matches!(
            self.source,
            Some(TokenSource::Declared | TokenSource::Guessed)
        )
    }

    /// The EOS token that ends a document, and the padding token, for the tokenizer. `None` if the card is
    /// incomplete: then they are those that the tokenizer's file suggests.
    pub fn roles(&self) -> Option<(Option<u32>, Option<u32>)> {
        self.source?;
        Some((self.document_eos_id, self.pad_id))
    }

    /// The ids that end a completion. `tokenizer_eos`: the EOS token of the tokenizer, which counts only if
    /// the card is incomplete.
    pub fn stop_ids(&self, tokenizer_eos: Option<u32>) -> Vec<u32> {
        let eos = tokenizer_eos.filter(|id| self.source.is_none() && !self.eos_ids.contains(id));
        eos.into_iter()
            .chain(self.eos_ids.iter().copied())
            .collect()
    }

    /// The tokens before every text.
    pub fn prefix(&self) -> &[u32] {
        match &self.prefix_ids {
            Some(ids) => ids,
            None => self.bos_id.as_slice(),
        }
    }

    /// `ids` with the tokens before every text, unless they are there already.
    pub fn with_prefix(&self, mut ids: Vec<u32>) -> Vec<u32> {
        let prefix = self.prefix();
        if !ids.starts_with(prefix) {
            ids.splice(0..0, prefix.iter().copied());
        }
        ids
    }

    /// The tokens before a text whose first token is predicted too, as in lm-evaluation-harness: those
    /// before every text, otherwise the tokenizer's BOS token, otherwise its EOS token. Empty if there are
    /// none. `tokenizer_eos`: the EOS token of the tokenizer.
    pub fn evaluation_prefix(&self, tokenizer_eos: Option<u32>) -> Vec<u32> {
        if !self.prefix().is_empty() {
            return self.prefix().to_vec();
        }
        let first = self.evaluation_id.or_else(|| self.start_id(tokenizer_eos));
        first.into_iter().collect()
    }

    /// The token that a completion without a prompt starts from: the first before every text, otherwise the
    /// BOS token, otherwise the EOS token. `tokenizer_eos`: the EOS token of the tokenizer.
    pub fn start_id(&self, tokenizer_eos: Option<u32>) -> Option<u32> {
        let first = self.prefix().first().copied().or(self.bos_id);
        first.or(self.end_id(tokenizer_eos))
    }

    /// The first token of the decoder in encoder-decoder models: the one that an imported model declares, otherwise
    /// [`start_id`](Self::start_id).
    pub fn target_start(&self, tokenizer_eos: Option<u32>) -> Option<u32> {
        self.target_start_id
            .or_else(|| self.start_id(tokenizer_eos))
    }

    /// The token that ends a text which is generated: the EOS token of the tokenizer, otherwise the first one that the
    /// model declares.
    pub fn end_id(&self, tokenizer_eos: Option<u32>) -> Option<u32> {
        tokenizer_eos.or(self.eos_ids.first().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_of_earlier_versions_keep_their_meaning() {
        let tokens = ModelTokens {
            bos_id: Some(1),
            eos_ids: vec![7],
            ..ModelTokens::default()
        };
        assert_eq!(tokens.prefix(), [1]);
        assert_eq!(tokens.stop_ids(Some(2)), [2, 7]);
        assert_eq!(tokens.roles(), None);
        assert_eq!(tokens.with_prefix(vec![1, 5]), [1, 5]);
        assert_eq!(tokens.with_prefix(vec![5]), [1, 5]);
        assert_eq!(
            (tokens.end_id(None), tokens.end_id(Some(3))),
            (Some(7), Some(3))
        );
    }

    #[test]
    fn evaluation_starts_with_the_token_of_the_tokenizers_settings() {
        let mut tokens = ModelTokens {
            bos_id: Some(1),
            evaluation_id: Some(2),
            prefix_ids: Some(vec![]),
            ..ModelTokens::default()
        };
        assert_eq!(tokens.evaluation_prefix(Some(9)), [2]);
        assert_eq!(tokens.start_id(Some(9)), Some(1));
        tokens.evaluation_id = None;
        assert_eq!(tokens.evaluation_prefix(Some(9)), [1]);
        tokens.target_start_id = Some(4);
        assert_eq!(tokens.target_start(Some(9)), Some(4));
        tokens.target_start_id = None;
        assert_eq!(tokens.target_start(Some(9)), Some(1));
        tokens.prefix_ids = Some(vec![7, 8]);
        assert_eq!(tokens.evaluation_prefix(Some(9)), [7, 8]);
        assert_eq!(tokens.start_id(Some(9)), Some(7));
    }

    #[test]
    fn trained_models_have_the_tokens_of_their_tokenizer() {
        let tokens = ModelTokens::trained(Some(4), None);
        assert_eq!(tokens.stop_ids(Some(9)), [4]);
        assert!(tokens.prefix().is_empty() && !tokens.is_imported());
        assert_eq!(tokens.roles(), Some((Some(4), None)));
        assert!(ModelTokens::trained(None, None).stop_ids(None).is_empty());
    }
}
