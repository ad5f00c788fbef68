//! The explain service: computes one explanation at a time, within limits, and caches recent ones.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use nextword_explain::{ExplainError, Explainer, Explanation, Trace, TraceOptions, count_values};
use nextword_generate::TextOptions;
use nextword_model::ModelConfig;

use crate::api_error::ApiError;
use crate::limiter::ConcurrencyLimit;
use crate::loaded_model::Model;

/// Maximum total size of the f64 copies of model weights, in bytes; least recently used models are
/// evicted.
const MAX_WEIGHT_BYTES: usize = 1 << 30;

/// Maximum number of multiplications of a recomputation (a few seconds).
const MAX_MULTIPLICATIONS: usize = 4_000_000_000;

/// Maximum number of values in one trace, and in all cached traces together.
const MAX_TRACE_VALUES: usize = 8_000_000;

/// Maximum number of waiting queries.
const MAX_WAITING: usize = 16;

/// Computes explanations one at a time, and caches models and traces.
#[derive(Debug)]
pub(crate) struct ExplainService {
    limit: ConcurrencyLimit,
    cache: Arc<Mutex<Cache>>,
}

impl Default for ExplainService {
    fn default() -> Self {
        Self {
            limit: ConcurrencyLimit::new(1, MAX_WAITING),
            cache: Arc::default(),
        }
    }
}

/// Models and traces, most recently used first.
#[derive(Debug, Default)]
struct Cache {
    explainers: VecDeque<(String, Arc<Explainer>)>,
    traces: VecDeque<CachedTrace>,
}

/// An explanation without its explainer, and the options it was computed with.
#[derive(Debug)]
struct CachedTrace {
    model: String,
    text_options: TextOptions,
    prompt: String,
    unknown: Vec<String>,
    options: TraceOptions,
    trace: Trace,
}

impl ExplainService {
    /// Calls `work` with the explanation of what `model` computes for `prompt`.
    ///
    /// # Errors
    /// If too many queries are waiting, the model or the prompt is too large, or `work` fails.
    pub(crate) async fn with_explanation<T: Send + 'static>(
        &self,
        model: Arc<Model>,
        prompt: String,
        options: TextOptions,
        work: impl FnOnce(&Explanation<'_>) -> Result<T, ExplainError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let cache = self.cache.clone();
        let work = move || {
            let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
            cache.with_explanation(&model, prompt, options, work)
        };
        self.limit.run(work).await
    }
}

impl Cache {
    fn with_explanation<T>(
        &mut self,
        model: &Model,
        prompt: String,
        options: TextOptions,
        work: impl FnOnce(&Explanation<'_>) -> Result<T, ExplainError>,
    ) -> Result<T, ApiError> {
        let key = key(model);
        let explainer = self.explainer(model)?;
        let bad_request = |error: ExplainError| ApiError::bad_request(error.to_string());
        let matches = |cached: &CachedTrace| {
            cached.model == key && cached.prompt == prompt && cached.text_options == options
        };
        let found = self.traces.iter().position(matches);
        let explanation = match found.and_then(|at| self.traces.remove(at)) {
            Some(cached) => Explanation {
                explainer: &explainer,
                prompt: cached.prompt,
                unknown: cached.unknown,
                options: cached.options,
                trace: cached.trace,
            },
            None => {
                let encoded = explainer.encode(&prompt, &options).map_err(bad_request)?;
                check_size(model.config(), encoded.ids.len() + options.max_tokens)?;
                explainer.explain(&prompt, &options).map_err(bad_request)?
            }
        };
        let result = work(&explanation).map_err(bad_request);
        let Explanation {
            prompt,
            unknown,
            options: trace_options,
            trace,
            ..
        } = explanation;
        self.traces.push_front(CachedTrace {
            model: key,
            text_options: options,
            prompt,
            unknown,
            options: trace_options,
            trace,
        });
        let mut values = 0;
        self.traces.retain(|cached| {
            values += count_values(&cached.trace.config, cached.trace.lengths());
            values <= MAX_TRACE_VALUES
        });
        result
    }

    /// The explainer of `model`, from the cache if possible; evicts others to make room for its weights.
    fn explainer(&mut self, model: &Model) -> Result<Arc<Explainer>, ApiError> {
        let key = key(model);
        let found = self.explainers.iter().position(|(other, _)| *other == key);
        if let Some(found) = found.and_then(|at| self.explainers.remove(at)) {
            self.explainers.push_front(found.clone());
            return Ok(found.1);
        }
        let bytes = |config: &ModelConfig| config.parameter_counts().total() * size_of::<f64>();
        let mut bytes_left = MAX_WEIGHT_BYTES.checked_sub(bytes(model.config())).ok_or_else(|| {
            ApiError::bad_request(format!(
                "this model has {} parameters, more than the {} that can be explained here; hint: run `nextword \
                 explain` on the server's machine, which works layer by layer",
                model.config().parameter_counts().total(),
                MAX_WEIGHT_BYTES / size_of::<f64>()
            ))
        })?;
        self.explainers.retain(|(_, other)| {
            let other_bytes = bytes(other.generator().model().config());
            let keep = other_bytes <= bytes_left;
            bytes_left -= if keep { other_bytes } else { 0 };
            keep
        });
        let explainer = Arc::new(Explainer::new(model.generator.clone()));
        self.explainers.push_front((key, explainer.clone()));
        Ok(explainer)
    }
}

/// Identifies `model` in the cache: another one may get its name.
fn key(model: &Model) -> String {
    format!("{} {}", model.fingerprint, model.name)
}

/// Rejects prompts whose explanation would take too long or too much memory.
fn check_size(config: &ModelConfig, tokens: usize) -> Result<(), ApiError> {
    let tokens = tokens.min(config.context_length);
    let parameters = config.parameter_counts().total();
    let fits = |tokens: usize| {
        count_values(config, tokens) <= MAX_TRACE_VALUES
            && parameters.saturating_mul(tokens) <= MAX_MULTIPLICATIONS
    };
    if fits(tokens) {
        return Ok(());
    }
    let (mut max_tokens, mut too_many) = (0, tokens);
    while too_many - max_tokens > 1 {
        let middle = usize::midpoint(max_tokens, too_many);
        if fits(middle) {
            max_tokens = middle;
        } else {
            too_many = middle;
        }
    }
    Err(ApiError::invalid_field(
        "prompt",
        format!(
            "prompt and completion have {tokens} tokens, but at most {max_tokens} can be explained here for this \
             model; hint: shorten the prompt or lower `max_tokens`, or run `nextword explain` on the server's machine"
        ),
    ))
}
