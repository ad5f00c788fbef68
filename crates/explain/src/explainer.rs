//! A loaded model that explains its predictions.

use nextword_generate::{SamplingConfig, TextGenerator, TextOptions};
use nextword_model::{ModelConfig, available_memory};

use crate::adapted::{base_values, has_magnitudes};
use crate::address::Address;
use crate::derive::{Derivation, derive};
use crate::evaluate::{Arrays, weights_of};
use crate::trace::{Trace, TraceOptions};
use crate::what_if::{Edit, WhatIf, what_if};
use crate::{ExplainError, Report, ReportOptions};

/// A model with its tokenizer and a copy of its weights.
#[derive(Debug)]
pub struct Explainer {
    generator: TextGenerator,
    weights: Arrays,
    /// With an adapter, the base model's values of the parameters that it replaces. Low-rank updates replace none.
    base_values: Option<Arrays>,
}

impl Explainer {
    /// Copies the weights of the model for lookups.
    ///
    /// The low-rank updates of an adapter are operations of their own. An adapter with magnitudes (`DoRA`) is merged into
    /// the weights first: the values then differ from those of the unmerged model by rounding.
    pub fn new(generator: TextGenerator) -> Self {
        let base = generator.model().has_adapter();
        let base = base.then(|| generator.model().clone());
        let has_magnitudes = base.as_ref().is_some_and(has_magnitudes);
        let merged = has_magnitudes.then(|| generator.clone().with_merged_adapter());
        let generator = merged.and_then(Result::ok).unwrap_or(generator);
        let weights = weights_of(generator.model());
        let base_values = base.map(|adapted| base_values(adapted, &weights));
        Self {
            generator,
            weights,
            base_values,
        }
    }

    /// With an adapter, the base model's values of the parameters that the adapter replaces: those with a full copy, and
    /// with magnitudes (`DoRA`) the weights that they scale. `None` without an adapter.
    pub fn base_values(&self) -> Option<&Arrays> {
        self.base_values.as_ref()
    }

    /// Checks, before the model is loaded, that its weights fit into memory twice: in f32, and in f64 for
    /// the recomputation. Succeeds where the system does not report its free memory.
    ///
    /// ```
    /// use nextword_explain::Explainer;
    /// use nextword_model::presets;
    ///
    /// assert!(Explainer::check_memory(&presets::statquest(5)).is_ok());
    /// ```
    ///
    /// # Errors
    /// [`ExplainError::InsufficientMemory`] if they do not.
    pub fn check_memory(config: &ModelConfig) -> Result<(), ExplainError> {
        let parameters = config.parameter_counts().total();
        match available_memory() {
            Some(available) => compare_memory(parameters, available),
            None => Ok(()),
        }
    }

    /// The model and its tokenizer.
    pub fn generator(&self) -> &TextGenerator {
        &self.generator
    }

    /// Every parameter by name.
    pub fn weights(&self) -> &Arrays {
        &self.weights
    }

    /// The name of the table with the embeddings of a prompt's tokens.
    pub(crate) fn prompt_table(&self) -> &'static str {
        let own = "encoder.token_embedding.weight";
        if self.weights.contains_key(own) {
            own
        } else {
            "token_embedding.weight"
        }
    }

    /// The embedding of token `id`, as part of a prompt.
    ///
    /// # Errors
    /// [`ExplainError::Address`] if the vocabulary has no such token.
    pub fn embedding(&self, id: u32) -> Result<&[f64], ExplainError> {
        let vocab_size = self.generator.model().config().vocab_size;
        if id as usize >= vocab_size {
            return Err(ExplainError::Address {
                address: format!("token {id}"),
                problem: format!("the vocabulary has token ids 0 to {}", vocab_size - 1),
                hint: "try token 0".to_string(),
            });
        }
        Ok(self.weights[self.prompt_table()].row(id as usize))
    }

    /// The text of a token.
    pub fn token_text(&self, id: u32) -> String {
        let text = self.generator.tokenizer().token_text(id);
        text.unwrap_or_else(|| format!("#{id}"))
    }

    /// The id of `text`, if it is a single token of the vocabulary.
    ///
    /// ```
    /// # use nextword_explain::Explainer;
    /// # use nextword_generate::TextGenerator;
    /// # let model = nextword_model::ModelDir::open("../../docs/models/statquest".as_ref())?;
    /// # let generator = TextGenerator::open(&model, &burn::tensor::Device::flex())?;
    /// let explainer = Explainer::new(generator);
    /// let id = explainer.token_id("awesome").unwrap();
    /// assert_eq!(explainer.token_text(id), "awesome");
    /// assert_eq!(explainer.token_id("awesom"), None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn token_id(&self, text: &str) -> Option<u32> {
        let encoding = self.generator.tokenizer().encode(text);
        match encoding.ids.as_slice() {
            [id] if encoding.unknown.is_empty() => Some(*id),
            _ => None,
        }
    }

    /// `sampling` that never yields an id beyond the tokenizer's vocabulary, as blanks are filled.
    fn known_tokens(&self, sampling: &SamplingConfig) -> SamplingConfig {
        let mut sampling = sampling.clone();
        let ids =
            self.generator.tokenizer().vocab_size()..self.generator.model().config().vocab_size;
        let unused = ids.filter_map(|id| u32::try_from(id).ok());
        for id in unused {
            sampling.logit_bias.entry(id).or_insert(f32::NEG_INFINITY);
        }
        sampling
    }

    /// The tokens of `prompt`, and how it is continued. In the text of an encoder, runs of three or more underscores and
    /// mask tokens are the tokens to predict.
    ///
    /// # Errors
    /// [`ExplainError::Generate`] for a prompt that the model cannot read.
    pub fn encode(
        &self,
        prompt: &str,
        options: &TextOptions,
    ) -> Result<EncodedPrompt, ExplainError> {
        let generator = &self.generator;
        let config = generator.model().config();
        let (encoding, mask_id) = if config.architecture.generates() {
            (generator.encode_prompt(prompt, options)?, None)
        } else {
            let (encoding, mask_id) = generator.encode_blanks(prompt)?;
            (encoding, Some(mask_id))
        };
        let mut stop_ids = generator.stop_ids();
        stop_ids.retain(|_| options.stop_at_eos);
        let sampling = if config.architecture.generates() {
            generator.sampling(&options.sampling)
        } else {
            self.known_tokens(&options.sampling)
        };
        let options = TraceOptions {
            sampling,
            max_tokens: options.max_tokens,
            stop_ids,
            bos_id: generator.first_id(),
            start_id: config.has_encoder().then(|| generator.target_start_id()),
            mask_id,
        };
        Ok(EncodedPrompt {
            ids: encoding.ids,
            unknown: encoding.unknown,
            options,
        })
    }

    /// Generates a completion of `prompt`, or fills its blanks with an encoder, and records every intermediate value.
    ///
    /// # Errors
    /// The errors of [`Trace::record`], and invalid options.
    pub fn explain(
        &self,
        prompt: &str,
        options: &TextOptions,
    ) -> Result<Explanation<'_>, ExplainError> {
        let encoded = self.encode(prompt, options)?;
        let model = self.generator.model();
        let trace = Trace::record(model, &self.weights, &encoded.ids, &encoded.options)?;
        Ok(Explanation {
            explainer: self,
            prompt: prompt.to_string(),
            unknown: encoded.unknown,
            options: encoded.options,
            trace,
        })
    }
}

/// The tokens of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct EncodedPrompt {
    /// Their ids.
    pub ids: Vec<u32>,
    /// Parts of the prompt that are not in the vocabulary.
    pub unknown: Vec<String>,
    /// How the prompt is continued.
    pub options: TraceOptions,
}

/// All values that the model computed for one prompt, with everything needed to inspect them.
#[derive(Debug)]
pub struct Explanation<'e> {
    /// The explainer that recorded the trace.
    pub explainer: &'e Explainer,
    /// The prompt as the user typed it.
    pub prompt: String,
    /// Parts of the prompt that are not in the vocabulary.
    pub unknown: Vec<String>,
    /// How the completion was generated.
    pub options: TraceOptions,
    /// The recorded values.
    pub trace: Trace,
}

impl Explanation<'_> {
    /// Derives the value at `address`: its formula and its operands. Axes that it leaves out are 0, and
    /// the index of a token may be its text: `logits[position=3,token=awesome]`.
    ///
    /// # Errors
    /// [`ExplainError::Address`] if there is no such value.
    ///
    /// # Example
    ///
    /// ```
    /// # use nextword_explain::Explainer;
    /// # use nextword_generate::{TextGenerator, TextOptions};
    /// # let model = nextword_model::ModelDir::open("../../docs/models/statquest".as_ref())?;
    /// # let generator = TextGenerator::open(&model, &burn::tensor::Device::flex())?;
    /// let explainer = Explainer::new(generator);
    /// let explanation = explainer.explain("what is statquest", &TextOptions::default())?;
    /// let score = explanation.why("blocks.0.attn.hook_attn_scores[head=0,query=2,key=1]")?;
    /// // An operand's address leads to the next derivation, down to weights and token ids.
    /// let query = score.operands[0].address.as_deref().unwrap();
    /// assert!(query.starts_with("blocks.0.attn.hook_q"));
    /// assert_eq!(explanation.why(query)?.value, Some(score.operands[0].value));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn why(&self, address: &str) -> Result<Derivation, ExplainError> {
        let weights = &self.explainer.weights;
        let address = self.with_token_ids(address);
        let address = Address::parse(&address, &self.trace, weights)?;
        let text = |id| self.explainer.token_text(id);
        Ok(derive(&self.trace, weights, &text, &address))
    }

    /// `address` with the ids of tokens that it names by their text.
    fn with_token_ids(&self, address: &str) -> String {
        let Some((name, index)) = address.split_once('[') else {
            return address.to_string();
        };
        let index = index.trim_end().trim_end_matches(']');
        let parts = index.split(',').map(|part| match part.split_once('=') {
            Some((axis, text))
                if axis.trim() == "token" && text.trim().parse::<usize>().is_err() =>
            {
                let id = self.explainer.token_id(text.trim());
                id.map_or_else(|| part.to_string(), |id| format!("token={id}"))
            }
            _ => part.to_string(),
        });
        format!("{name}[{}]", parts.collect::<Vec<_>>().join(","))
    }

    /// Predicts the next token after the prompt under the interventions `edits`.
    ///
    /// # Errors
    /// [`ExplainError::WhatIf`] if an edit is out of range.
    ///
    /// # Example
    ///
    /// ```
    /// # use nextword_explain::{AttentionKind, Edit, Explainer};
    /// # use nextword_generate::{TextGenerator, TextOptions};
    /// # let model = nextword_model::ModelDir::open("../../docs/models/statquest".as_ref())?;
    /// # let generator = TextGenerator::open(&model, &burn::tensor::Device::flex())?;
    /// let explainer = Explainer::new(generator);
    /// let explanation = explainer.explain("what is statquest", &TextOptions::default())?;
    /// let head = Edit::HeadOff { layer: 0, head: 0, attention: AttentionKind::SelfAttention };
    /// let without_head = explanation.what_if(&[head])?;
    /// assert_eq!(without_head.before[0].text, "awesome");
    /// let awesome = without_head.tokens.iter().find(|token| token.text == "awesome").unwrap();
    /// assert!(awesome.after < awesome.before);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn what_if(&self, edits: &[Edit]) -> Result<WhatIf, ExplainError> {
        what_if(self, edits)
    }

    /// Collects everything into one value that can be written as JSON.
    ///
    /// # Errors
    /// [`ExplainError::TooLarge`] if not even the smallest tensor fits the limit of `options`.
    ///
    /// # Example
    ///
    /// ```
    /// # use nextword_explain::{Explainer, ReportOptions};
    /// # use nextword_generate::{TextGenerator, TextOptions};
    /// # let model = nextword_model::ModelDir::open("../../docs/models/statquest".as_ref())?;
    /// # let generator = TextGenerator::open(&model, &burn::tensor::Device::flex())?;
    /// let explainer = Explainer::new(generator);
    /// let explanation = explainer.explain("what is statquest", &TextOptions::default())?;
    /// let report = explanation.report(&ReportOptions::default())?;
    /// let json = serde_json::to_value(&report)?; // see `SCHEMA`
    /// assert_eq!(json["format"], "explain/1");
    /// assert_eq!(json["tokens"][2]["text"], "statquest");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn report(&self, options: &ReportOptions) -> Result<Report, ExplainError> {
        Report::new(self, options)
    }
}

/// Compares the memory for the weights in f32 and f64 with the bytes that are `available`.
fn compare_memory(parameters: usize, available: u64) -> Result<(), ExplainError> {
    let needed = parameters as u64 * (4 + 8);
    if needed <= available {
        return Ok(());
    }
    Err(ExplainError::InsufficientMemory {
        parameters,
        needed,
        available,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_must_fit_in_f32_and_f64() {
        assert!(compare_memory(100, 1200).is_ok());
        let error = compare_memory(100, 1199).map_err(|error| error.to_string());
        assert!(
            matches!(&error, Err(message) if message.contains("needs 1.2 KiB of memory")),
            "{error:?}"
        );
    }
}
