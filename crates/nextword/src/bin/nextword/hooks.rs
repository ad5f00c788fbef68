//! Hooks called by the trainer: sampling text and probing sentences during training.

use std::ops::ControlFlow;
use std::sync::Arc;

use nextword_data::Tokenizer;
use nextword_eval::EvalError;
use nextword_explain::{ExplainError, history};
use nextword_generate::{
    GenerateError, PROMPT_PLACEHOLDER, SamplingConfig, TextGenerator, TextOptions,
};
use nextword_model::{ModelCard, Transformer};
use nextword_train::{Hooks, TrainError};

/// Samples with the generate crate, exactly as `nextword generate` does with the saved model.
#[derive(Debug)]
pub(crate) struct TrainingHooks {
    /// How prompts are formatted; `None` uses them verbatim.
    pub(crate) prompt_template: Option<String>,
}

impl Hooks for TrainingHooks {
    fn sample(
        &mut self,
        model: &Transformer,
        tokenizer: &Arc<dyn Tokenizer>,
        prompt: &str,
        max_tokens: usize,
        temperature: f64,
        seed: u64,
    ) -> Result<String, TrainError> {
        let template = self
            .prompt_template
            .as_deref()
            .unwrap_or(PROMPT_PLACEHOLDER);
        let options = TextOptions {
            sampling: SamplingConfig {
                temperature,
                seed,
                ..SamplingConfig::default()
            },
            max_tokens,
            prompt_template: Some(template.to_string()),
            ..TextOptions::default()
        };
        let completions = generator(model, tokenizer).and_then(|generator| {
            generator.generate(&[prompt], &options, |_, _| ControlFlow::Continue(()))
        });
        let mut completions = completions.map_err(EvalError::Generate)?;
        Ok(completions
            .pop()
            .map(|completion| completion.text)
            .unwrap_or_default())
    }

    fn probe(
        &mut self,
        model: &Transformer,
        tokenizer: &Arc<dyn Tokenizer>,
        sentence: &str,
    ) -> Result<Option<serde_json::Value>, TrainError> {
        let template = self
            .prompt_template
            .as_deref()
            .unwrap_or(PROMPT_PLACEHOLDER);
        let options = TextOptions {
            sampling: SamplingConfig::greedy(),
            max_tokens: 1,
            prompt_template: Some(template.to_string()),
            ..TextOptions::default()
        };
        let generator = generator(model, tokenizer).map_err(EvalError::Generate)?;
        let snapshot = match history::snapshot(generator, sentence, &options) {
            Ok(snapshot) => snapshot,
            Err(ExplainError::Generate(error)) => return Err(EvalError::Generate(error).into()),
            Err(ExplainError::Model(error)) => return Err(error.into()),
            // The sentence is too long: the trainer's warning names it.
            Err(error) => {
                return Err(TrainError::Config {
                    key: "probes.sentences".into(),
                    problem: error.to_string(),
                    hint: "use a shorter sentence".into(),
                });
            }
        };
        Ok(serde_json::to_value(snapshot).ok())
    }
}

/// Combines the model with its tokenizer. The model's vocabulary may be padded beyond the
/// tokenizer's.
fn generator(
    model: &Transformer,
    tokenizer: &Arc<dyn Tokenizer>,
) -> Result<TextGenerator, GenerateError> {
    let unused_ids = model
        .config()
        .vocab_size
        .saturating_sub(tokenizer.vocab_size());
    let card = ModelCard {
        unused_ids,
        ..ModelCard::default()
    };
    TextGenerator::new(model.clone(), Arc::clone(tokenizer), card)
}
