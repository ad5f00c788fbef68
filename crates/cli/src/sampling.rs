//! Text sampled while a model learns: what the train crate asks others to do.

use std::ops::ControlFlow;
use std::sync::Arc;

use nextword_data::Tokenizer;
use nextword_eval::EvalError;
use nextword_generate::{PROMPT, SamplingConfig, TextGenerator, TextOptions};
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
        let generator = TextGenerator::new(model.clone(), Arc::clone(tokenizer), Card::default());
        let answers = generator.and_then(|generator| {
            generator.generate(&[prompt], &options, |_, _| ControlFlow::Continue(()))
        });
        let mut answers = answers.map_err(EvalError::Generate)?;
        Ok(answers.pop().map(|answer| answer.text).unwrap_or_default())
    }
}
