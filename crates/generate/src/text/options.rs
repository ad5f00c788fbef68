//! Settings for generating text, and the result.

use serde::{Deserialize, Serialize};

use crate::{FinishReason, Overflow, SamplingConfig};

/// Placeholder for the user's prompt in a prompt template.
pub const PROMPT_PLACEHOLDER: &str = "{prompt}";

/// Settings for generating text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TextOptions {
    /// How each token is sampled.
    pub sampling: SamplingConfig,
    /// Maximum number of tokens to generate. Default 256.
    pub max_tokens: usize,
    /// Strings that end the completion; their text is not part of it. Default: none.
    pub stop: Vec<String>,
    /// Whether an EOS token ends the completion. Default true.
    pub stop_at_eos: bool,
    /// What to do when the context is full.
    pub overflow: Overflow,
    /// Whether the model's BOS token is prepended to a prompt that does not begin with it. Default true. False
    /// for the output of a chat template, which writes its own special tokens.
    pub add_bos: bool,
    /// Prompt template, instead of the model's own. `{prompt}` is replaced by the prompt; `{prompt}`
    /// alone leaves it unchanged. `StatQuest`'s template is `{prompt} <EOS>`.
    pub prompt_template: Option<String>,
    /// Sequence number of the first prompt (see [`DecodeOptions::first_sequence`](crate::DecodeOptions::first_sequence)).
    pub first_sequence: u64,
}

impl Default for TextOptions {
    fn default() -> Self {
        Self {
            sampling: SamplingConfig::default(),
            max_tokens: 256,
            stop: Vec::new(),
            stop_at_eos: true,
            overflow: Overflow::default(),
            add_bos: true,
            prompt_template: None,
            first_sequence: 0,
        }
    }
}

impl TextOptions {
    /// Greedy decoding: always the most probable token.
    pub fn greedy() -> Self {
        Self {
            sampling: SamplingConfig::greedy(),
            ..Self::default()
        }
    }

    /// Sets the maximum number of tokens to generate.
    ///
    /// ```
    /// use nextword_generate::TextOptions;
    ///
    /// let options = TextOptions::default().with_max_tokens(50).with_temperature(0.8).with_seed(7);
    /// assert_eq!((options.max_tokens, options.sampling.temperature), (50, 0.8));
    /// ```
    #[must_use]
    pub fn with_max_tokens(self, max_tokens: usize) -> Self {
        Self { max_tokens, ..self }
    }

    /// Sets the sampling temperature.
    #[must_use]
    pub fn with_temperature(mut self, temperature: f64) -> Self {
        self.sampling.temperature = temperature;
        self
    }

    /// Sets the seed: the same seed gives the same text.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.sampling.seed = seed;
        self
    }
}

/// The completion of one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Ids of the prompt after the template is applied and before truncation to the context.
    pub prompt_ids: Vec<u32>,
    /// All generated ids, including a final EOS token and the tokens of a stop string.
    pub ids: Vec<u32>,
    /// Log-probability of each of `ids` under the model, before temperature.
    pub logprobs: Vec<f64>,
    /// The text, without special tokens and without the stop string and anything after it.
    ///
    /// It continues the prompt's text (a word tokenizer starts it with a space), unless the prompt
    /// ends with the EOS token: then it is a separate text.
    pub text: String,
    /// Why the completion ended.
    pub finish: FinishReason,
    /// Parts of the prompt that are not in the vocabulary. Each was replaced by the unknown token, or
    /// dropped without one.
    pub unknown: Vec<String>,
    /// Number of prompt tokens truncated to fit the context: the oldest ones after BOS.
    pub truncated: usize,
    /// How often the full context was shifted to its last half.
    pub context_shifts: usize,
}
