//! A model that can be asked about its numbers.

use nextword_generate::{TextGenerator, TextOptions};

use crate::address::Address;
use crate::derive::{Derivation, derive};
use crate::evaluate::{Arrays, weights_of};
use crate::trace::{Trace, TraceOptions};
use crate::what_if::{Edit, WhatIf, what_if};
use crate::{ExplainError, Story, StoryOptions};

/// A model with its tokenizer and its weights at hand.
#[derive(Debug)]
pub struct Explainer {
    generator: TextGenerator,
    weights: Arrays,
}

impl Explainer {
    /// Takes the weights out of the model, for looking things up.
    pub fn new(generator: TextGenerator) -> Self {
        let weights = weights_of(generator.model());
        Self { generator, weights }
    }

    /// The model and its tokenizer.
    pub fn generator(&self) -> &TextGenerator {
        &self.generator
    }

    /// Every weight by name.
    pub fn weights(&self) -> &Arrays {
        &self.weights
    }

    /// The embedding of token `id`.
    ///
    /// # Errors
    /// [`ExplainError::Address`] if there is no such token.
    pub fn embedding(&self, id: u32) -> Result<&[f64], ExplainError> {
        let vocab_size = self.generator.model().config().vocab_size;
        if id as usize >= vocab_size {
            return Err(ExplainError::Address {
                address: format!("token {id}"),
                problem: format!("the tokens are 0 to {}", vocab_size - 1),
                hint: "token 0".to_string(),
            });
        }
        Ok(self.weights["token_embedding.weight"].row(id as usize))
    }

    /// How a token is shown to a reader.
    pub fn text(&self, id: u32) -> String {
        let text = self.generator.tokenizer().token(id);
        text.unwrap_or_else(|| format!("#{id}"))
    }

    /// Reads `prompt` and answers as `options` say, watched.
    ///
    /// # Errors
    /// As [`Trace::record`], and if the options describe no answer.
    pub fn explain(
        &self,
        prompt: &str,
        options: &TextOptions,
    ) -> Result<Explanation<'_>, ExplainError> {
        let encoding = self.generator.prompt_ids(prompt, options)?;
        let mut stop_ids = self.generator.stop_ids();
        stop_ids.retain(|_| options.stop_at_eos);
        let trace_options = TraceOptions {
            sampling: options.sampling.clone(),
            max_tokens: options.max_tokens,
            stop_ids,
            first_id: self.generator.card().bos_id,
        };
        let model = self.generator.model();
        let trace = Trace::record(model, &self.weights, &encoding.ids, &trace_options)?;
        Ok(Explanation {
            explainer: self,
            prompt: prompt.to_string(),
            unknown: encoding.unknown,
            options: trace_options,
            trace,
        })
    }
}

/// What the model computed for one prompt, with all that is needed to ask about it.
#[derive(Debug)]
pub struct Explanation<'e> {
    /// Who explained.
    pub explainer: &'e Explainer,
    /// The prompt as the user typed it.
    pub prompt: String,
    /// Pieces of the prompt that the vocabulary does not have.
    pub unknown: Vec<String>,
    /// How the answer was made.
    pub options: TraceOptions,
    /// The numbers.
    pub trace: Trace,
}

impl Explanation<'_> {
    /// Where the number at `address` comes from.
    ///
    /// # Errors
    /// [`ExplainError::Address`] if there is no such number.
    pub fn why(&self, address: &str) -> Result<Derivation, ExplainError> {
        let weights = &self.explainer.weights;
        let address = Address::parse(address, &self.trace, weights)?;
        let text = |id| self.explainer.text(id);
        Ok(derive(&self.trace, weights, &text, &address))
    }

    /// What would come after the prompt if things were otherwise.
    ///
    /// # Errors
    /// [`ExplainError::WhatIf`] if an edit names nothing that is there.
    pub fn what_if(&self, edits: &[Edit]) -> Result<WhatIf, ExplainError> {
        what_if(self, edits)
    }

    /// Everything in one value that can be written as JSON.
    ///
    /// # Errors
    /// [`ExplainError::TooLarge`] if what was asked for is more than a reader can open.
    pub fn story(&self, options: &StoryOptions) -> Result<Story, ExplainError> {
        Story::of(self, options)
    }
}
