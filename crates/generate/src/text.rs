//! Text in, text out, streamed.

mod options;
mod special_tokens;
mod tokenizer;

use std::ops::ControlFlow;
use std::sync::Arc;

use burn::tensor::Device;
use nextword_data::{Encoding, Tokenizer};
use nextword_model::{CachePrecision, ModelCard, ModelDir, Transformer};

pub use self::options::{Completion, PROMPT_PLACEHOLDER, TextOptions};
pub use self::tokenizer::open_tokenizer;
use self::tokenizer::{check_vocab_size, with_roles};
use crate::{
    DecodeOptions, Decoder, Detokenizer, FinishReason, GenerateError, Sequence, Speculation,
};

/// A model with its tokenizer.
#[derive(Clone, Debug)]
pub struct TextGenerator {
    model: Transformer,
    tokenizer: Arc<dyn Tokenizer>,
    card: ModelCard,
    speculation: Option<Speculation>,
    cache_precision: CachePrecision,
}

impl TextGenerator {
    /// Loads a model folder onto `device`.
    ///
    /// # Errors
    /// [`GenerateError::WrongTokenizer`] if the tokenizer belongs to another model; errors from
    /// reading the tokenizer or the weights.
    pub fn open(model_dir: &ModelDir, device: &Device) -> Result<Self, GenerateError> {
        let tokenizer = open_tokenizer(model_dir)?;
        let model = match model_dir.tokenizer_json() {
            Some(_) => model_dir.path.clone(),
            None => model_dir.path.join("config.json"),
        };
        let model = model.display().to_string();
        let tokenizer_name = model_dir.tokenizer_path().display().to_string();
        let used_ids = model_dir
            .config
            .vocab_size
            .saturating_sub(model_dir.card.unused_ids);
        check_vocab_size(&*tokenizer, tokenizer_name, used_ids, model)?;
        let model = model_dir.load(device)?;
        Ok(Self {
            model,
            tokenizer,
            card: model_dir.card.clone(),
            speculation: None,
            cache_precision: CachePrecision::default(),
        })
    }

    /// Combines a model (not on an autodiff device) with its tokenizer and card.
    ///
    /// # Errors
    /// [`GenerateError::WrongTokenizer`] if the vocabulary sizes differ.
    pub fn new(
        model: Transformer,
        tokenizer: Arc<dyn Tokenizer>,
        card: ModelCard,
    ) -> Result<Self, GenerateError> {
        let vocab_size = model.config().vocab_size.saturating_sub(card.unused_ids);
        check_vocab_size(
            &*tokenizer,
            "the tokenizer".into(),
            vocab_size,
            "the model".into(),
        )?;
        let tokenizer = with_roles(tokenizer, &card);
        Ok(Self {
            model,
            tokenizer,
            card,
            speculation: None,
            cache_precision: CachePrecision::default(),
        })
    }

    /// Combines a model (not on an autodiff device) with its tokenizer, without a description of its
    /// training. The model's vocabulary may be padded beyond the tokenizer's.
    ///
    /// # Errors
    /// [`GenerateError::WrongTokenizer`] if the model has fewer tokens than the tokenizer.
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use nextword_data::TokenizerConfig;
    /// use nextword_generate::TextGenerator;
    /// use nextword_model::presets;
    ///
    /// let tokenizer = TokenizerConfig::words().with_unk("").build("what is statquest")?; // With <EOS>: 4 tokens.
    /// let model = presets::statquest(5).init(&Device::flex(), 7)?;
    /// let generator = TextGenerator::without_card(model, tokenizer)?;
    /// assert_eq!((generator.card().parameters, generator.card().unused_ids), (37, 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn without_card(
        model: Transformer,
        tokenizer: Arc<dyn Tokenizer>,
    ) -> Result<Self, GenerateError> {
        let config = model.config();
        let card = ModelCard {
            version: env!("CARGO_PKG_VERSION").to_string(),
            parameters: config.parameter_counts().total() as u64,
            unused_ids: config.vocab_size.saturating_sub(tokenizer.vocab_size()),
            ..ModelCard::default()
        };
        Self::new(model, tokenizer, card)
    }

    /// Adds the model's adapter, if it has one, to its weights (see [`Transformer::into_merged`]).
    ///
    /// # Errors
    /// [`GenerateError::Model`] if that is not possible.
    pub fn with_merged_adapter(self) -> Result<Self, GenerateError> {
        let model = self.model.into_merged()?;
        Ok(Self { model, ..self })
    }

    /// Stores the keys and values of the KV cache in this precision.
    #[must_use]
    pub fn with_cache_precision(self, cache_precision: CachePrecision) -> Self {
        Self {
            cache_precision,
            ..self
        }
    }

    /// The precision of keys and values in the KV cache.
    pub fn cache_precision(&self) -> CachePrecision {
        self.cache_precision
    }

    /// Decodes with proposals from the context: up to `max_tokens` tokens that followed its last ones earlier.
    /// Completions stay the same; those that repeat parts of their prompt are faster.
    #[must_use]
    pub fn with_prompt_lookup(self, max_tokens: usize) -> Self {
        let speculation = Some(Speculation::PromptLookup { max_tokens });
        Self {
            speculation,
            ..self
        }
    }

    /// Decodes with proposals of up to `max_tokens` tokens from `draft`, a smaller model on the same device.
    /// Completions stay the same.
    ///
    /// # Errors
    /// [`GenerateError::Setting`] if the models have different tokenizers.
    pub fn with_draft(self, draft: &Self, max_tokens: usize) -> Result<Self, GenerateError> {
        let speculation = Speculation::Draft {
            model: Box::new(draft.model.clone()),
            max_tokens,
        };
        speculation.check(&self.model)?;
        if draft.tokenizer.hash() != self.tokenizer.hash() {
            return Err(GenerateError::Setting {
                key: "draft",
                problem: "the draft model has another tokenizer than the model".to_string(),
                hint: "use a draft model with the same tokenizer",
            });
        }
        Ok(Self {
            speculation: Some(speculation),
            ..self
        })
    }

    /// How tokens are proposed, if decoding is speculative.
    pub fn speculation(&self) -> Option<&Speculation> {
        self.speculation.as_ref()
    }

    /// The model.
    pub fn model(&self) -> &Transformer {
        &self.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<dyn Tokenizer> {
        &self.tokenizer
    }

    /// The model card.
    pub fn card(&self) -> &ModelCard {
        &self.card
    }

    /// Continues `prompts` as one batch and returns the completions in the same order.
    ///
    /// After each token, `on_delta` receives the prompt's index and the new text, which may be empty,
    /// and at the end any text held back. The deltas of a prompt add up to the text of its
    /// completion. Breaking ends that completion as [`FinishReason::Cancelled`].
    ///
    /// An empty prompt starts from the BOS token, else from the EOS token, else from a line break, else
    /// from id 0.
    ///
    /// # Errors
    /// [`GenerateError::Setting`] for invalid options, and those of [`Decoder::step`].
    ///
    /// # Example
    ///
    /// ```
    /// use std::ops::ControlFlow;
    ///
    /// use burn::tensor::Device;
    /// use nextword_generate::{FinishReason, TextGenerator, TextOptions};
    /// use nextword_model::ModelDir;
    ///
    /// let model = ModelDir::open("../../docs/models/letters".as_ref())?;
    /// let generator = TextGenerator::open(&model, &Device::flex())?;
    /// let options = TextOptions { max_tokens: 20, ..TextOptions::default() };
    /// let mut streamed = [String::new(), String::new()];
    /// let completions = generator.generate(&["One day", "The cat"], &options, |prompt, text| {
    ///     streamed[prompt].push_str(text);
    ///     ControlFlow::Continue(())
    /// })?;
    /// assert_eq!(completions[1].text, streamed[1]);
    /// assert_eq!(completions[1].finish, FinishReason::Length);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn generate(
        &self,
        prompts: &[impl AsRef<str>],
        options: &TextOptions,
        on_delta: impl FnMut(usize, &str) -> ControlFlow<()>,
    ) -> Result<Vec<Completion>, GenerateError> {
        let prompts = prompts
            .iter()
            .map(|prompt| self.encode_prompt(prompt.as_ref(), options));
        let prompts = prompts.collect::<Result<Vec<Encoding>, _>>()?;
        self.generate_encoded(prompts, options, on_delta)
    }

    /// As [`generate`](Self::generate), for prompts that are token ids already, at least one each: no template is
    /// applied, and no BOS token is added.
    ///
    /// # Errors
    /// The errors of [`generate`](Self::generate).
    ///
    /// ```
    /// use std::ops::ControlFlow;
    ///
    /// use burn::tensor::Device;
    /// use nextword_generate::{TextGenerator, TextOptions};
    /// use nextword_model::ModelDir;
    ///
    /// let model = ModelDir::open("../../docs/models/letters".as_ref())?;
    /// let generator = TextGenerator::open(&model, &Device::flex())?;
    /// let options = TextOptions { max_tokens: 20, ..TextOptions::default() };
    /// let prompt = generator.encode_prompt("One day", &options)?;
    /// let completions = generator.generate_encoded(vec![prompt], &options, |_, _| ControlFlow::Continue(()))?;
    /// assert_eq!(completions[0].text, generator.complete("One day", &options)?.text);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn generate_encoded(
        &self,
        prompts: Vec<Encoding>,
        options: &TextOptions,
        mut on_delta: impl FnMut(usize, &str) -> ControlFlow<()>,
    ) -> Result<Vec<Completion>, GenerateError> {
        let ids: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.ids.clone()).collect();
        let is_target = self.target_start().is_some();
        let detokenizers = ids.iter().map(|ids| {
            // A target is a text of its own, not the rest of its source.
            let before: &[u32] = if is_target { &[] } else { ids };
            self.detokenizer(before, options)
        });
        let mut detokenizers = detokenizers.collect::<Result<Vec<Detokenizer>, _>>()?;

        let decoder = Decoder::new(&self.model, &ids, self.decode_options(options))?
            .with_cache_precision(self.cache_precision);
        let mut decoder = match &self.speculation {
            Some(speculation) => decoder.with_speculation(speculation)?,
            None => decoder,
        };
        while !decoder.is_done() {
            for token in decoder.step()? {
                let detokenizer = &mut detokenizers[token.row];
                let is_eos = token.finish == Some(FinishReason::Eos);
                let delta = detokenizer.push(token.sampled.id, is_eos);
                if let Some(stop) = detokenizer.stop() {
                    decoder.finish(token.row, FinishReason::Stop(stop.to_owned()));
                }
                if on_delta(token.row, &delta).is_break() {
                    decoder.finish(token.row, FinishReason::Cancelled);
                }
            }
        }

        let sequences = decoder.into_sequences();
        let completions = prompts
            .into_iter()
            .zip(detokenizers)
            .zip(sequences)
            .enumerate();
        let completions = completions.map(|(row, ((prompt, mut detokenizer), sequence))| {
            let rest = detokenizer.finish();
            if !rest.is_empty() {
                // The completion has already ended, so breaking has no effect.
                let _ = on_delta(row, &rest);
            }
            let mut completion = completion(prompt, detokenizer, sequence);
            if completion.finish == FinishReason::Eos
                && let Some(stop) = self.stop_of_last(&completion.ids, options)
            {
                completion.finish = FinishReason::Stop(stop);
            }
            completion
        });
        Ok(completions.collect())
    }

    /// Continues one prompt and returns when the completion has ended. To receive the text while it is
    /// generated, see [`generate`](Self::generate).
    ///
    /// # Errors
    /// The errors of [`generate`](Self::generate).
    ///
    /// ```
    /// use nextword_data::TokenizerConfig;
    /// use nextword_generate::{TextGenerator, TextOptions};
    /// use nextword_model::{DeviceName, ModelCard, ModelConfig};
    ///
    /// # fn main() -> Result<(), nextword_generate::GenerateError> {
    /// let tokenizer = TokenizerConfig::chars().build("hello world")?;
    /// let config = ModelConfig { vocab_size: tokenizer.vocab_size(), ..ModelConfig::default() };
    /// let model = config.init(&DeviceName::Flex.open()?, 7)?;
    /// let generator = TextGenerator::new(model, tokenizer, ModelCard::default())?;
    /// let completion = generator.complete("hell", &TextOptions::default().with_max_tokens(5))?;
    /// assert!(completion.ids.len() <= 5); // Noise: the model is not trained.
    /// # Ok(())
    /// # }
    /// ```
    pub fn complete(
        &self,
        prompt: &str,
        options: &TextOptions,
    ) -> Result<Completion, GenerateError> {
        let completions = self.generate(&[prompt], options, |_, _| ControlFlow::Continue(()))?;
        let only = completions.into_iter().next();
        Ok(only.unwrap_or_else(|| unreachable!("each prompt has a completion")))
    }

    /// Applies the prompt template and encodes the prompt, as [`generate`](Self::generate) does.
    ///
    /// # Errors
    /// As [`format_prompt`](Self::format_prompt) and [`encode`](Self::encode).
    pub fn encode_prompt(
        &self,
        prompt: &str,
        options: &TextOptions,
    ) -> Result<Encoding, GenerateError> {
        let text = self.format_prompt(prompt, options)?;
        let has_template = options.prompt_template.is_some() || self.card.prompt_template.is_some();
        // A template of a source contains its end.
        if self.model.config().has_encoder() && !has_template {
            return self.encode_whole(&text);
        }
        if options.add_bos {
            self.encode(&text)
        } else {
            self.encode_formatted(&text)
        }
    }

    /// Applies the prompt template: that of `options`, otherwise the model card's.
    ///
    /// # Errors
    /// [`GenerateError::Setting`] for a template without [`PROMPT_PLACEHOLDER`].
    pub fn format_prompt(
        &self,
        prompt: &str,
        options: &TextOptions,
    ) -> Result<String, GenerateError> {
        let template = options
            .prompt_template
            .as_ref()
            .or(self.card.prompt_template.as_ref());
        let template = template.map_or(PROMPT_PLACEHOLDER, String::as_str);
        if !template.contains(PROMPT_PLACEHOLDER) {
            return Err(GenerateError::Setting {
                key: "prompt_template",
                problem: format!("`{template}` does not contain {PROMPT_PLACEHOLDER}"),
                hint: "write {prompt} where the prompt belongs",
            });
        }
        Ok(template.replace(PROMPT_PLACEHOLDER, prompt))
    }

    /// The ids of those `stop` strings that are the text of a special token. Such a token has no text in a
    /// completion, so its id ends the completion instead.
    pub fn special_stop_ids(&self, stop: &[String]) -> Vec<u32> {
        let special = |text: &String| match self.tokenizer.encode(text).ids[..] {
            [id] if self.tokenizer.decode(&[id]).is_empty() => self
                .tokenizer
                .id_to_token(id)
                .filter(|token| token == text)
                .map(|_| id),
            _ => None,
        };
        stop.iter().filter_map(special).collect()
    }

    /// The stop string that is the last of `ids`, unless that is an EOS token of the model.
    fn stop_of_last(&self, ids: &[u32], options: &TextOptions) -> Option<String> {
        let last = ids.last().filter(|id| !self.stop_ids().contains(id))?;
        let mut stops = options.stop.iter();
        let is_last = |stop: &&String| {
            self.special_stop_ids(std::slice::from_ref(*stop))
                .contains(last)
        };
        stops.find(is_last).cloned()
    }

    fn detokenizer(
        &self,
        prompt: &[u32],
        options: &TextOptions,
    ) -> Result<Detokenizer, GenerateError> {
        Detokenizer::new(self.tokenizer.clone(), prompt, &options.stop)
    }

    /// The first token of the decoder in encoder-decoder models.
    fn target_start(&self) -> Option<u32> {
        let has_encoder = self.model.config().has_encoder();
        has_encoder.then(|| self.target_start_id())
    }

    fn decode_options(&self, options: &TextOptions) -> DecodeOptions {
        let mut stop_ids = self.stop_ids();
        stop_ids.retain(|_| options.stop_at_eos);
        stop_ids.extend(self.special_stop_ids(&options.stop));
        DecodeOptions {
            sampling: self.sampling(&options.sampling),
            max_tokens: options.max_tokens,
            stop_ids,
            overflow: options.overflow,
            bos_id: self.first_id(),
            start_id: self.target_start(),
            first_sequence: options.first_sequence,
        }
    }
}

fn completion(prompt: Encoding, detokenizer: Detokenizer, sequence: Sequence) -> Completion {
    let (text, stop) = detokenizer.into_text();
    Completion {
        prompt_ids: prompt.ids,
        ids: sequence.ids(),
        logprobs: sequence.tokens.iter().map(|token| token.logprob).collect(),
        text,
        // A stop string takes precedence over the token limit reached with it.
        finish: stop.map_or(sequence.finish, FinishReason::Stop),
        unknown: prompt.unknown,
        truncated: sequence.truncated,
        context_shifts: sequence.context_shifts,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
