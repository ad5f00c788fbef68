//! What a run tells while it goes, and to whom.

use std::path::{Path, PathBuf};

use nextword_data::Tokenizer;
use nextword_model::Transformer;

use crate::TrainError;

/// What is known when a run begins.
#[derive(Clone, Debug)]
pub struct RunInfo {
    /// The run's name.
    pub name: String,
    /// The run's folder.
    pub folder: PathBuf,
    /// The device's name.
    pub device: String,
    /// Parameters of the model.
    pub parameters: usize,
    /// Distinct tokens.
    pub vocab_size: usize,
    /// Tokens to train on.
    pub train_tokens: usize,
    /// Tokens to measure on.
    pub validation_tokens: usize,
    /// Updates that the run shall make.
    pub steps: u64,
    /// Tokens of one update.
    pub tokens_per_step: usize,
    /// Updates made before, if this continues a run.
    pub resumed_at: u64,
    /// How prompts are put, if not as they are: `{prompt}` stands for what the user types.
    pub prompt_template: Option<String>,
    /// Checkpoints that could not be used, with the reason.
    pub skipped: Vec<String>,
}

/// One update.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// Updates made, this one included.
    pub step: u64,
    /// Updates that the run shall make.
    pub steps: u64,
    /// Training loss, nats per token.
    pub loss: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Global norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Tokens per second of late, validation and saving left out.
    pub tokens_per_second: f64,
    /// Seconds until the end, validation and saving counted in.
    pub eta: f64,
}

/// One measurement of the validation loss.
#[derive(Clone, Copy, Debug)]
pub struct ValidationReport {
    /// Updates made.
    pub step: u64,
    /// Nats per token.
    pub loss: f64,
    /// The lowest so far, this one included.
    pub best: f64,
    /// Tokens measured on.
    pub tokens: usize,
    /// Seconds that it took.
    pub seconds: f64,
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// All updates were made.
    Finished,
    /// The validation loss stopped falling.
    Patience,
    /// The user asked.
    Interrupted,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why.
    pub reason: StopReason,
    /// Updates made.
    pub step: u64,
    /// The last training loss.
    pub loss: Option<f64>,
    /// The lowest validation loss.
    pub best: Option<f64>,
    /// The last validation loss.
    pub validation: Option<f64>,
    /// Seconds of the whole run.
    pub elapsed: f64,
    /// The run's folder.
    pub folder: PathBuf,
}

/// Hears what happens in a run. Every method does nothing unless it is written anew.
pub trait Reporter {
    /// The run begins.
    fn started(&mut self, _info: &RunInfo) {}
    /// An update was made. Called for every one, also where `log_every` is larger.
    fn stepped(&mut self, _report: &StepReport, _logged: bool) {}
    /// The validation loss was measured.
    fn validated(&mut self, _report: &ValidationReport) {}
    /// The model wrote text.
    fn sampled(&mut self, _step: u64, _prompt: &str, _text: &str) {}
    /// Training state was saved.
    fn saved(&mut self, _step: u64, _path: &Path) {}
    /// Something went wrong that the run survives.
    fn warned(&mut self, _message: &str) {}
    /// The run ended.
    fn ended(&mut self, _outcome: &Outcome) {}
}

/// Says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Reporter for Silent {}

/// What a run needs others to do: this crate does not generate text.
pub trait Hooks {
    /// The text that `model` continues `prompt` with, at most `max_tokens` tokens.
    ///
    /// # Errors
    /// Whatever goes wrong; the run warns and goes on.
    fn sample(
        &mut self,
        model: &Transformer,
        tokenizer: &std::sync::Arc<dyn Tokenizer>,
        prompt: &str,
        max_tokens: usize,
        temperature: f64,
        seed: u64,
    ) -> Result<String, TrainError>;

    /// What `model` makes of `sentence` inside, as JSON; `None` if nobody looks.
    ///
    /// # Errors
    /// Whatever goes wrong; the run warns and goes on.
    fn look(
        &mut self,
        _model: &Transformer,
        _tokenizer: &std::sync::Arc<dyn Tokenizer>,
        _sentence: &str,
    ) -> Result<Option<serde_json::Value>, TrainError> {
        Ok(None)
    }
}
