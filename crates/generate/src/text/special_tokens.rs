//! The special tokens around a prompt, and those that end a completion.

use nextword_data::Encoding;
use nextword_model::{TokenTexts, TokenizerRoles};

use super::TextGenerator;
use crate::{GenerateError, SamplingConfig};

impl TextGenerator {
    /// Text of the BOS token for chat templates: the model card's, or else that of its id. Empty without one.
    pub fn bos_text(&self) -> String {
        self.token_texts().bos
    }

    /// Text of the EOS token for chat templates: the model card's, or else the tokenizer's. Empty without one.
    pub fn eos_text(&self) -> String {
        self.token_texts().eos
    }

    /// Further variables of chat templates with their texts: `unk_token` and `pad_token`, where the model card
    /// or else the tokenizer has such a token.
    pub fn further_token_texts(&self) -> Vec<(&'static str, String)> {
        self.token_texts().further()
    }

    fn token_texts(&self) -> TokenTexts {
        let by_name = self.tokenizer.special_tokens();
        let roles = TokenizerRoles {
            eos: by_name.eos,
            unk: by_name.unk,
            pad: by_name.pad,
        };
        TokenTexts::new(&self.card.special, roles, |id| {
            self.tokenizer.id_to_token(id)
        })
    }

    /// Encodes `text` as in training: with the tokens that the model expects before every text, unless the
    /// text already starts with them, and with at least one token.
    ///
    /// # Errors
    /// [`GenerateError::Data`] if the tokenizer would need too much work for `text`.
    pub fn encode(&self, text: &str) -> Result<Encoding, GenerateError> {
        let mut encoding = self.tokenizer.try_encode(text)?;
        encoding.ids = self.card.special.with_prefix(encoding.ids);
        if encoding.ids.is_empty() {
            encoding.ids.push(self.start_id());
        }
        Ok(encoding)
    }

    /// Encodes the output of a chat template, which writes its own special tokens: none is added, unless the
    /// text is empty.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_formatted(&self, text: &str) -> Result<Encoding, GenerateError> {
        let mut encoding = self.tokenizer.try_encode(text)?;
        if encoding.ids.is_empty() {
            encoding.ids.push(self.start_id());
        }
        Ok(encoding)
    }

    /// Ids that end a completion: the EOS tokens that the model declares.
    pub fn stop_ids(&self) -> Vec<u32> {
        let tokenizer_eos = self.tokenizer.special_tokens().eos;
        self.card.special.stop_ids(tokenizer_eos)
    }

    /// `sampling` that never generates a token which the model has not learned: an id beyond the tokenizer's
    /// vocabulary and, for a model that nextword trained, the token for unknown text. A `logit_bias` for such
    /// a token takes precedence. Log-probabilities stay those of the model.
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use nextword_data::TokenizerConfig;
    /// use nextword_generate::{SamplingConfig, TextGenerator};
    /// use nextword_model::presets;
    ///
    /// let tokenizer = TokenizerConfig::words().build("what is")?; // With <EOS> and <unk>: 4 tokens.
    /// let model = presets::statquest(5).init(&Device::flex(), 7)?;
    /// let generator = TextGenerator::without_card(model, tokenizer)?;
    /// let sampling = generator.sampling(&SamplingConfig::greedy());
    /// assert!(sampling.logit_bias.keys().eq(&[3, 4]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn sampling(&self, sampling: &SamplingConfig) -> SamplingConfig {
        let mut sampling = sampling.clone();
        let size = self.model.config().vocab_size;
        let used = self.tokenizer.vocab_size();
        let unused = (used..size).filter_map(|id| u32::try_from(id).ok());
        for id in unused.chain(self.unlearned_unknown()) {
            sampling.logit_bias.entry(id).or_insert(f32::NEG_INFINITY);
        }
        sampling
    }

    /// The token for unknown text of a model that nextword trained, unless it ends a text.
    fn unlearned_unknown(&self) -> Option<u32> {
        let unknown = self.tokenizer.special_tokens().unk?;
        let is_ours = !self.card.special.is_imported();
        (is_ours && !self.stop_ids().contains(&unknown)).then_some(unknown)
    }

    /// The first of the tokens before every text, which a context shift keeps.
    pub fn first_id(&self) -> Option<u32> {
        self.card.special.prefix().first().copied()
    }

    /// The first token of the decoder in encoder-decoder models: the one that an imported model declares, otherwise
    /// [`start_id`](Self::start_id).
    pub fn target_start_id(&self) -> u32 {
        let declared = self.card.special.target_start_id;
        declared.unwrap_or_else(|| self.start_id())
    }

    /// The token that an empty prompt starts from: the first before every text, otherwise the BOS token, otherwise the
    /// EOS token, otherwise a line break, otherwise id 0.
    pub fn start_id(&self) -> u32 {
        let line_break = || {
            let encoding = self.tokenizer.encode("\n");
            encoding
                .ids
                .last()
                .copied()
                .filter(|_| encoding.unknown.is_empty())
        };
        let tokenizer_eos = self.tokenizer.special_tokens().eos;
        let start = self.card.special.start_id(tokenizer_eos);
        start.or_else(line_break).unwrap_or(0)
    }
}
