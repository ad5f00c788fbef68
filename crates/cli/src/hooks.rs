//! Text sampled while a model learns: what the train crate asks others to do.

use std::ops::ControlFlow;
use std::sync::Arc;

use nextword_data::Tokenizer;
use nextword_eval::EvalError;
use nextword_explain::{ExplainError, learning};
use nextword_generate::{GenerateError, PROMPT, SamplingConfig, TextGenerator, TextOptions};
use nextword_model::{Card, Transformer};
use nextword_train::{Hooks, TrainError};

/// Samples through the generate crate, as the trained model's record would.
#[derive(Debug)]
pub(crate) struct Sampling {
    /// How a prompt is put; `None` takes it as it is.
    pub(crate) prompt_template: Option<String>,
}

impl Hooks for Sampling {
    fn sample(
        &mut self,
        model: &Transformer,
        tokenizer: &Arc<dyn Tokenizer>,
        prompt: &str,
        max_tokens: usize,
        temperature: f64,
        seed: u64,
    ) -> Result<String, TrainError> {
        let template = self.prompt_template.as_deref().unwrap_or(PROMPT);
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
        let answers = generator(model, tokenizer).and_then(|generator| {
            generator.generate(&[prompt], &options, |_, _| ControlFlow::Continue(()))
        });
        let mut answers = answers.map_err(EvalError::Generate)?;
        Ok(answers.pop().map(|answer| answer.text).unwrap_or_default())
    }

    fn look(
        &mut self,
        model: &Transformer,
        tokenizer: &Arc<dyn Tokenizer>,
        sentence: &str,
    ) -> Result<Option<serde_json::Value>, TrainError> {
        let template = self.prompt_template.as_deref().unwrap_or(PROMPT);
        let options = TextOptions {
            sampling: SamplingConfig::greedy(),
            max_tokens: 1,
            prompt_template: Some(template.to_string()),
            ..TextOptions::default()
        };
        let generator = generator(model, tokenizer).map_err(EvalError::Generate)?;
        let snapshot = match learning::snapshot(generator, sentence, &options) {
            Ok(snapshot) => snapshot,
            Err(ExplainError::Generate(error)) => return Err(EvalError::Generate(error).into()),
            Err(ExplainError::Model(error)) => return Err(error.into()),
            // Too long a sentence: the trainer's warning names it.
            Err(error) => {
                return Err(TrainError::Config {
                    key: "probes.sentences".into(),
                    problem: error.to_string(),
                    hint: "name a shorter sentence".into(),
                });
            }
        };
        Ok(serde_json::to_value(snapshot).ok())
    }
}

/// The model with its tokenizer, which may have fewer tokens than the model has room for.
fn generator(
    model: &Transformer,
    tokenizer: &Arc<dyn Tokenizer>,
) -> Result<TextGenerator, GenerateError> {
    let unused_ids = model
        .config()
        .vocab_size
        .saturating_sub(tokenizer.vocab_size());
    let card = Card {
        unused_ids,
        ..Card::default()
    };
    TextGenerator::new(model.clone(), Arc::clone(tokenizer), card)
}
