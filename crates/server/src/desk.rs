//! Where explanations are made: one at a time, within bounds, and kept for the next question.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use nextword_explain::{ExplainError, Explainer, Explanation, Trace, TraceOptions, count_numbers};
use nextword_generate::TextOptions;
use nextword_model::ModelConfig;

use crate::api_error::ApiError;
use crate::served::Model;
use crate::turns::Turns;

/// Bytes of all weights that are held once more, in f64; those that were used last stay.
const MOST_BYTES: usize = 1 << 30;

/// Products of a recomputation at most: some seconds.
const MOST_WORK: usize = 4_000_000_000;

/// Numbers of a trace at most, and of those that are kept.
const MOST_NUMBERS: usize = 8_000_000;

/// Questions that may wait for their turn.
const WAITING: usize = 16;

/// Makes explanations in turn, and keeps models and traces for the next question.
#[derive(Debug)]
pub(crate) struct Desk {
    turns: Turns,
    kept: Arc<Mutex<Kept>>,
}

impl Default for Desk {
    fn default() -> Self {
        Self {
            turns: Turns::new(1, WAITING),
            kept: Arc::default(),
        }
    }
}

/// The last ones first.
#[derive(Debug, Default)]
struct Kept {
    explainers: VecDeque<(String, Arc<Explainer>)>,
    traces: VecDeque<Told>,
}

/// An explanation without its explainer.
#[derive(Debug)]
struct Told {
    model: String,
    text_options: TextOptions,
    prompt: String,
    unknown: Vec<String>,
    options: TraceOptions,
    trace: Trace,
}

impl Desk {
    /// Does `work` with what `model` computes for `prompt`.
    ///
    /// # Errors
    /// If too many wait, the model or the prompt is too large, or `work` fails.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        model: Arc<Model>,
        prompt: String,
        options: TextOptions,
        work: impl FnOnce(&Explanation<'_>) -> Result<T, ExplainError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let kept = self.kept.clone();
        let work = move || {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.explained(&model, prompt, options, work)
        };
        self.turns.run(work).await
    }
}

impl Kept {
    fn explained<T>(
        &mut self,
        model: &Model,
        prompt: String,
        options: TextOptions,
        work: impl FnOnce(&Explanation<'_>) -> Result<T, ExplainError>,
    ) -> Result<T, ApiError> {
        let explainer = self.explainer(model)?;
        let bad = |error: ExplainError| ApiError::bad(error.to_string());
        let same = |told: &Told| {
            told.model == model.name && told.prompt == prompt && told.text_options == options
        };
        let told = self.traces.iter().position(same);
        let explanation = match told.and_then(|at| self.traces.remove(at)) {
            Some(told) => Explanation {
                explainer: &explainer,
                prompt: told.prompt,
                unknown: told.unknown,
                options: told.options,
                trace: told.trace,
            },
            None => {
                let encoding = explainer.generator().prompt_ids(&prompt, &options);
                let encoding = encoding.map_err(|error| ApiError::bad(error.to_string()))?;
                check_size(model.config(), encoding.ids.len() + options.max_tokens)?;
                explainer.explain(&prompt, &options).map_err(bad)?
            }
        };
        let done = work(&explanation).map_err(bad);
        let Explanation {
            prompt,
            unknown,
            options: trace_options,
            trace,
            ..
        } = explanation;
        self.traces.push_front(Told {
            model: model.name.clone(),
            text_options: options,
            prompt,
            unknown,
            options: trace_options,
            trace,
        });
        let mut numbers = 0;
        self.traces.retain(|told| {
            numbers += count_numbers(&told.trace.config, told.trace.ids.len());
            numbers <= MOST_NUMBERS
        });
        done
    }

    /// `model` with its weights at hand; others give way to it.
    fn explainer(&mut self, model: &Model) -> Result<Arc<Explainer>, ApiError> {
        let found = self
            .explainers
            .iter()
            .position(|(name, _)| *name == model.name);
        if let Some(found) = found.and_then(|at| self.explainers.remove(at)) {
            self.explainers.push_front(found.clone());
            return Ok(found.1);
        }
        let bytes = |config: &ModelConfig| config.counts().total() * size_of::<f64>();
        let mut left = MOST_BYTES.checked_sub(bytes(model.config())).ok_or_else(|| {
            ApiError::bad(format!(
                "a model of {} parameters is too large to be explained here, where {} are the most; hint: \
                 `nextword explain` on the server's machine can, layer by layer",
                model.config().counts().total(),
                MOST_BYTES / size_of::<f64>()
            ))
        })?;
        self.explainers.retain(|(_, other)| {
            let others = bytes(other.generator().model().config());
            let stays = others <= left;
            left -= if stays { others } else { 0 };
            stays
        });
        let explainer = Arc::new(Explainer::new(model.generator.clone()));
        self.explainers
            .push_front((model.name.clone(), explainer.clone()));
        Ok(explainer)
    }
}

/// Refuses what would take longer or more memory than one request may have.
fn check_size(config: &ModelConfig, tokens: usize) -> Result<(), ApiError> {
    let tokens = tokens.min(config.context_length);
    let parameters = config.counts().total();
    let fits = |tokens: usize| {
        count_numbers(config, tokens) <= MOST_NUMBERS
            && parameters.saturating_mul(tokens) <= MOST_WORK
    };
    if fits(tokens) {
        return Ok(());
    }
    let (mut most, mut too_many) = (0, tokens);
    while too_many - most > 1 {
        let middle = usize::midpoint(most, too_many);
        if fits(middle) {
            most = middle;
        } else {
            too_many = middle;
        }
    }
    Err(ApiError::field(
        "prompt",
        format!(
            "prompt and answer have {tokens} tokens, and {most} are the most that are explained here for this \
             model; hint: shorten the prompt or `max_tokens`, or use `nextword explain` on the server's machine"
        ),
    ))
}
