//! Progress reports of a run, and the hooks that it calls.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nextword_data::Tokenizer;
use nextword_model::{Architecture, ModelTokens, Transformer};

use crate::{OtherTextLoss, PreferenceMetrics, TrainError};

/// Properties of a run, reported when it starts.
#[derive(Clone, Debug)]
pub struct RunInfo {
    /// The run's name.
    pub name: String,
    /// The run's folder.
    pub folder: PathBuf,
    /// The device's name.
    pub device: String,
    /// Number of parameters of the model.
    pub parameters: usize,
    /// What a run with `[lora]` trains.
    pub lora: Option<LoraInfo>,
    /// Vocabulary size.
    pub vocab_size: usize,
    /// Number of training tokens.
    pub train_tokens: usize,
    /// Of conversations, the number of training tokens that the model learns to predict; `None` for text.
    pub trained_tokens: Option<usize>,
    /// Number of validation tokens.
    pub validation_tokens: usize,
    /// Total number of updates.
    pub steps: u64,
    /// Tokens per update that the model learns to predict.
    pub tokens_per_step: usize,
    /// Number of updates made before this process resumed the run; 0 for a new run.
    pub resumed_at: u64,
    /// How prompts are formatted, if not used as they are; `{prompt}` is replaced by the user's text.
    pub prompt_template: Option<String>,
    /// A prompt for a first try of the model: the first one of `samples.prompts` that the vocabulary can
    /// encode, or the beginning of the training data if it can encode none of them.
    pub prompt: Option<String>,
    /// Whether the run trains on conversations.
    pub is_chat: bool,
    /// The architecture of the model; the `prompt` of an encoder has a blank.
    pub architecture: Architecture,
    /// Damaged checkpoints that were skipped, with the reasons.
    pub skipped: Vec<String>,
}

/// What a run with `[lora]` trains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoraInfo {
    /// Number of trained parameters.
    pub trained_parameters: usize,
    /// The model that stays as it is.
    pub base: PathBuf,
}

/// Report of one update.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// Updates made, including this one.
    pub step: u64,
    /// Total number of updates.
    pub steps: u64,
    /// Training loss, nats per token; in runs on preferences, that of a pair or a rated completion.
    pub loss: f64,
    /// Rewards and log probabilities, in runs on preferences.
    pub preferences: PreferenceMetrics,
    /// Learning rate.
    pub learning_rate: f64,
    /// Global norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Recent tokens per second, excluding validation and saving.
    pub tokens_per_second: f64,
    /// The share of the time of recent updates for which this rank waited for others; `None` for a rank that is alone.
    pub waited_share: Option<f64>,
    /// Estimated seconds until the end, including validation and saving.
    pub eta: f64,
}

/// How far a run has come with something other than its updates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// What it does, such as `validation`.
    pub what: &'a str,
    /// Number of parts that are done: batches of a validation, completions, or samples.
    pub done: usize,
    /// Number of all parts.
    pub total: usize,
}

/// Report of one validation.
#[derive(Clone, Copy, Debug)]
pub struct ValidationReport {
    /// Updates made.
    pub step: u64,
    /// Validation loss, nats per token; in runs on preferences, that of a pair or a rated completion.
    pub loss: f64,
    /// Lowest validation loss so far, including this one.
    pub best: f64,
    /// Number of tokens evaluated.
    pub tokens: usize,
    /// Duration in seconds.
    pub seconds: f64,
    /// Rewards and log probabilities, in runs on preferences.
    pub preferences: PreferenceMetrics,
    /// How the model completes held-out conversations, for runs on conversations.
    pub completions: Option<CompletionReport>,
}

/// How a model completes held-out conversations: it generates the most likely tokens after the prompt of the last
/// message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompletionReport {
    /// Number of completions.
    pub completions: usize,
    /// Those that ended by themselves: with an EOS token, within the maximum number of tokens.
    pub ended: usize,
    /// Number of completions whose message in the data is short: less than 64 tokens.
    pub short: usize,
    /// Those of them that are that message, token by token.
    pub exact: usize,
}

impl CompletionReport {
    /// The share of completions that ended by themselves; `None` without completions.
    ///
    /// ```
    /// use nextword_train::CompletionReport;
    ///
    /// let report = CompletionReport { completions: 16, ended: 12, ..Default::default() };
    /// assert_eq!(report.ended_share(), Some(0.75));
    /// assert_eq!(report.exact_share(), None); // no short messages
    /// ```
    pub fn ended_share(&self) -> Option<f64> {
        (self.completions > 0).then(|| self.ended as f64 / self.completions as f64)
    }

    /// The share of short messages that are completed exactly; `None` without short messages.
    pub fn exact_share(&self) -> Option<f64> {
        (self.short > 0).then(|| self.exact as f64 / self.short as f64)
    }
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// All updates were made.
    Finished,
    /// Early stopping: the validation loss stopped improving.
    EarlyStopped,
    /// A stop was requested.
    Interrupted,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why the run ended.
    pub reason: StopReason,
    /// Updates made.
    pub step: u64,
    /// The last training loss.
    pub loss: Option<f64>,
    /// The lowest validation loss.
    pub best: Option<f64>,
    /// The last validation loss.
    pub validation: Option<f64>,
    /// The last losses of the texts of `validation.also`.
    pub other_text: Vec<OtherTextLoss>,
    /// Duration of the whole run in seconds.
    pub elapsed: f64,
    /// The run's folder.
    pub folder: PathBuf,
}

/// Observes a run. All methods do nothing by default.
pub trait Reporter {
    /// The run starts.
    fn started(&mut self, _info: &RunInfo) {}
    /// The run prepares its first update, which may take long.
    fn preparing(&mut self, _message: &str) {}
    /// A part of a validation, of samples or of the preparation is done. Called often, for each batch or completion.
    fn progressed(&mut self, _progress: &Progress<'_>) {}
    /// An update was made. Called for every update; `logged` is true for those that `log_every`
    /// selects.
    fn stepped(&mut self, _report: &StepReport, _logged: bool) {}
    /// The validation loss was computed.
    fn validated(&mut self, _report: &ValidationReport) {}
    /// The losses of the texts of `validation.also` were computed, before the first step or at a validation.
    fn measured_other_text(&mut self, _step: u64, _losses: &[OtherTextLoss]) {}
    /// Text was sampled.
    fn sampled(&mut self, _step: u64, _prompt: &str, _text: &str) {}
    /// The model completed a held-out conversation; `wanted` is the message in the data.
    fn completed(&mut self, _step: u64, _prompt: &str, _text: &str, _wanted: &str) {}
    /// A checkpoint was saved.
    fn saved(&mut self, _step: u64, _path: &Path) {}
    /// A non-fatal problem occurred.
    fn warned(&mut self, _message: &str) {}
    /// The run ended.
    fn ended(&mut self, _outcome: &Outcome) {}
}

/// Ignores all reports.
#[derive(Clone, Copy, Debug, Default)]
pub struct NullReporter;

impl Reporter for NullReporter {}

/// A text sample that a run asks its [`Hooks`] for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleRequest<'a> {
    /// The special tokens of the model.
    pub special: &'a ModelTokens,
    /// The prompt to continue.
    pub prompt: &'a str,
    /// Maximum number of tokens to generate.
    pub max_tokens: usize,
    /// Sampling temperature; 0 is greedy.
    pub temperature: f64,
    /// Seed of the sample.
    pub seed: u64,
}

/// A completion that a run asks its [`Hooks`] for: of the most likely tokens after a prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CompletionRequest<'a> {
    /// The special tokens of the model, the EOS tokens among them.
    pub special: &'a ModelTokens,
    /// The ids of the prompt.
    pub prompt: &'a [u32],
    /// Maximum number of tokens to generate.
    pub max_tokens: usize,
}

/// The tokens that a model generated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// The ids, without the EOS token.
    pub ids: Vec<u32>,
    /// Whether an EOS token ended it.
    pub ended: bool,
}

/// Callbacks of a run: this crate does not generate text. All methods do nothing by default.
pub trait Hooks {
    /// Samples a continuation of a prompt from `model`, or returns `None` to skip it.
    ///
    /// # Errors
    /// Any error ([`TrainError::hook`]); the run reports a warning and continues.
    fn sample(
        &mut self,
        _model: &Transformer,
        _tokenizer: &Arc<dyn Tokenizer>,
        _request: &SampleRequest<'_>,
    ) -> Result<Option<String>, TrainError> {
        Ok(None)
    }

    /// Completes a prompt of token ids with `model`, or returns `None` to skip it.
    ///
    /// # Errors
    /// Any error ([`TrainError::hook`]); the run reports a warning and continues.
    fn complete(
        &mut self,
        _model: &Transformer,
        _tokenizer: &Arc<dyn Tokenizer>,
        _request: &CompletionRequest<'_>,
    ) -> Result<Option<Completion>, TrainError> {
        Ok(None)
    }

    /// Returns attention and predictions of `model` for `sentence` as JSON, or `None` to skip it.
    ///
    /// # Errors
    /// Any error; the run reports a warning and continues.
    fn probe(
        &mut self,
        _model: &Transformer,
        _tokenizer: &Arc<dyn Tokenizer>,
        _sentence: &str,
    ) -> Result<Option<serde_json::Value>, TrainError> {
        Ok(None)
    }
}

/// Skips all samples and probes.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHooks;

impl Hooks for NoHooks {}
