//! Hooks called by the trainer: sampling text and probing sentences during training.

use std::ops::ControlFlow;
use std::sync::Arc;

use nextword_data::Tokenizer;
use nextword_explain::{ExplainError, history};
use nextword_generate::{
    DecodeOptions, FinishReason, Overflow, PROMPT_PLACEHOLDER, SamplingConfig, Sequence,
    TextGenerator, TextOptions, generate_ids,
};
use nextword_model::{ModelCard, Transformer};
use nextword_train::{Completion, CompletionRequest, Hooks, SampleRequest, StopFlag, TrainError};

/// Samples with the generate crate, exactly as `nextword generate` does with the saved model.
#[derive(Debug)]
pub(crate) struct TrainingHooks {
    /// How prompts are formatted; `None` uses them verbatim.
    pub(crate) prompt_template: Option<String>,
    /// Ends a completion between two tokens.
    pub(crate) stop: StopFlag,
}

impl Hooks for TrainingHooks {
    fn sample(
        &mut self,
        model: &Transformer,
        tokenizer: &Arc<dyn Tokenizer>,
        request: &SampleRequest<'_>,
    ) -> Result<Option<String>, TrainError> {
        let template = self
            .prompt_template
            .as_deref()
            .unwrap_or(PROMPT_PLACEHOLDER);
        let options = TextOptions {
            sampling: SamplingConfig {
                temperature: request.temperature,
                seed: request.seed,
                ..SamplingConfig::default()
            },
            max_tokens: request.max_tokens,
            prompt_template: Some(template.to_string()),
            ..TextOptions::default()
        };
        let card = ModelCard {
            special: request.special.clone(),
            unused_ids: model
                .config()
                .vocab_size
                .saturating_sub(tokenizer.vocab_size()),
            ..ModelCard::default()
        };
        let completions =
            TextGenerator::new(model.clone(), tokenizer.clone(), card).and_then(|generator| {
                generator.generate(&[request.prompt], &options, |_, _| flow(&self.stop))
            });
        let completion = completions.map_err(TrainError::hook)?.into_iter().next();
        match completion {
            Some(completion) if completion.finish == FinishReason::Cancelled => {
                Err(TrainError::Interrupted)
            }
            completion => Ok(completion.map(|completion| completion.text)),
        }
    }

    fn complete(
        &mut self,
        model: &Transformer,
        tokenizer: &Arc<dyn Tokenizer>,
        request: &CompletionRequest<'_>,
    ) -> Result<Option<Completion>, TrainError> {
        let eos = request.special.end_id(tokenizer.special_tokens().eos);
        let stop_ids = request.special.stop_ids(eos);
        let start_id = request.special.target_start(eos);
        complete(
            model,
            request.prompt,
            request.max_tokens,
            stop_ids,
            start_id,
            &self.stop,
        )
        .map(Some)
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
        let generator = TextGenerator::without_card(model.clone(), tokenizer.clone())
            .map_err(TrainError::hook)?;
        let snapshot = match history::snapshot(generator, sentence, &options) {
            Ok(snapshot) => snapshot,
            Err(ExplainError::Generate(error)) => return Err(TrainError::hook(error)),
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

/// Whether to generate another token.
fn flow(stop: &StopFlag) -> ControlFlow<()> {
    if stop.is_raised() {
        ControlFlow::Break(())
    } else {
        ControlFlow::Continue(())
    }
}

/// The most likely tokens after `prompt`, without the token of `stop_ids` that ends them.
///
/// # Errors
/// [`TrainError::Interrupted`] if `stop` is raised meanwhile.
pub(crate) fn complete(
    model: &Transformer,
    prompt: &[u32],
    max_tokens: usize,
    stop_ids: Vec<u32>,
    start_id: Option<u32>,
    stop: &StopFlag,
) -> Result<Completion, TrainError> {
    let options = DecodeOptions {
        sampling: SamplingConfig::greedy(),
        max_tokens,
        stop_ids,
        start_id,
        overflow: Overflow::Stop,
        ..DecodeOptions::default()
    };
    let prompts = [prompt.to_vec()];
    let sequences = generate_ids(model, &prompts, options, |_| flow(stop));
    let sequence = sequences.map_err(TrainError::hook)?.into_iter().next();
    let is_stopped = |sequence: &Sequence| sequence.finish == FinishReason::Cancelled;
    if sequence.as_ref().is_some_and(is_stopped) {
        return Err(TrainError::Interrupted);
    }
    let mut ids = sequence.as_ref().map(Sequence::ids).unwrap_or_default();
    let ended = sequence.is_some_and(|sequence| sequence.finish == FinishReason::Eos);
    if ended {
        ids.pop(); // the EOS token
    }
    Ok(Completion { ids, ended })
}
