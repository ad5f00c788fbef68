//! Completions of held-out conversations and pairs during training.

use nextword_data::{DataError, SampleLayout, TrainOn};
use nextword_model::Transformer;

use super::StopFlag;
use crate::TrainError;
use crate::completion_check::{HeldOut, count, held_out};
use crate::report::{Completion, CompletionReport, CompletionRequest, Hooks, Progress, Reporter};
use crate::training_loop::TrainingLoop;

/// Number of conversations that are shown when samples are due.
const SHOWN: usize = 3;

/// At most `count` held-out conversations or pairs of the run. Where all tokens are trained, no message is known to be
/// the assistant's, and no target of a pair begins where they begin.
fn of_run(training: &TrainingLoop, count: usize) -> Result<Vec<HeldOut>, DataError> {
    let setup = &training.setup;
    match (&setup.conversations, &setup.pairs) {
        (Some(read), _) if setup.config.data.train_on != TrainOn::All => {
            held_out(&read.validation, &read.wanted_validation(), count)
        }
        (None, Some(read)) => {
            let all: Vec<usize> = (0..read.held_out.len()).collect();
            let mut found = held_out(&read.held_out, &all, count)?;
            if read.held_out.layout() == SampleLayout::EncoderDecoder {
                // The decoder begins with the last token, which is not part of the source.
                for pair in &mut found {
                    pair.prompt.pop();
                }
            }
            Ok(found)
        }
        _ => Ok(Vec::new()),
    }
}

/// Lets `model` complete a held-out conversation. Failures other than a stop are warnings.
fn complete(
    training: &TrainingLoop,
    model: &Transformer,
    held_out: &HeldOut,
    reporter: &mut dyn Reporter,
    hooks: &mut dyn Hooks,
) -> Result<Option<Completion>, TrainError> {
    let setup = &training.setup;
    let request = CompletionRequest {
        special: &setup.special,
        prompt: &held_out.prompt,
        max_tokens: held_out.max_tokens(),
    };
    match hooks.complete(model, &setup.tokenizer(), &request) {
        Err(error) if !matches!(error, TrainError::Interrupted) => {
            let step = training.state.step;
            reporter.warned(&format!(
                "cannot complete held-out data at step {step}: {error}"
            ));
            Ok(None)
        }
        completed => completed,
    }
}

/// Compares completions with the messages of held-out conversations. `None` without conversations, and if the hooks
/// generate nothing.
pub(super) fn evaluate(
    training: &TrainingLoop,
    reporter: &mut dyn Reporter,
    hooks: &mut dyn Hooks,
    stop: &StopFlag,
) -> Result<Option<CompletionReport>, TrainError> {
    let setup = &training.setup;
    let held_out = of_run(training, setup.config.validation.completions)?;
    if held_out.is_empty() {
        return Ok(None);
    }
    let model = training.stepper.inference_model();
    let eos = setup
        .special
        .stop_ids(setup.dataset.tokenizer.special_tokens().eos);
    let mut report = CompletionReport::default();
    let total = held_out.len();
    for (done, held_out) in held_out.into_iter().enumerate() {
        reporter.progressed(&Progress {
            what: "completions of held-out data",
            done,
            total,
        });
        stop.check()?;
        let Some(completion) = complete(training, &model, &held_out, reporter, hooks)? else {
            return Ok(None);
        };
        count(&mut report, &completion, &held_out.wanted, &eos);
    }
    Ok(Some(report))
}

/// Shows completions beside the messages of held-out conversations. Returns them as text for the file of samples.
pub(super) fn show(
    training: &TrainingLoop,
    model: &Transformer,
    reporter: &mut dyn Reporter,
    hooks: &mut dyn Hooks,
    stop: &StopFlag,
) -> Result<Vec<String>, TrainError> {
    let tokenizer = training.setup.tokenizer();
    let mut texts = Vec::new();
    let shown = of_run(training, SHOWN)?;
    let total = shown.len();
    for (done, held_out) in shown.into_iter().enumerate() {
        reporter.progressed(&Progress {
            what: "samples of held-out data",
            done,
            total,
        });
        stop.check()?;
        let Some(completion) = complete(training, model, &held_out, reporter, hooks)? else {
            return Ok(texts);
        };
        let prompt = tokenizer.decode_with_special_tokens(&held_out.prompt);
        let wanted = tokenizer.decode(&held_out.wanted);
        let mut text = tokenizer.decode(&completion.ids);
        if !completion.ended {
            text.push('…');
        }
        reporter.completed(training.state.step, &prompt, &text, &wanted);
        texts.push(format!(
            "--- conversation:\n{prompt}\n--- completion:\n{text}\n--- in the data:\n{wanted}\n"
        ));
    }
    Ok(texts)
}
