//! Completions of held-out conversations during training.

use nextword_data::{DataError, Samples, TrainOn};
use nextword_model::Transformer;

use crate::TrainError;
use crate::report::{Completion, CompletionReport, CompletionRequest, Hooks, Reporter};
use crate::training_loop::TrainingLoop;

/// Messages with fewer tokens are compared token by token: there is hardly more than one right wording.
const SHORT_TOKENS: usize = 64;

/// Number of conversations that are shown when samples are due.
const SHOWN: usize = 3;

/// A prompt of a held-out conversation and the message that follows it.
#[derive(Debug, PartialEq, Eq)]
struct HeldOut {
    prompt: Vec<u32>,
    /// The message, with the token that ends it.
    wanted: Vec<u32>,
}

/// At most `count` prompts with the last messages of the samples `among`, spread over them.
fn held_out(samples: &Samples, among: &[usize], count: usize) -> Result<Vec<HeldOut>, DataError> {
    let used = count.min(among.len());
    let mut found = Vec::with_capacity(used);
    for number in 0..used {
        let sample = samples.sample(among[number * among.len() / used])?;
        // A message without a prompt is a text, which does not end in a certain way.
        let last = sample.trained.last().filter(|span| span.start > 1);
        if let Some(span) = last {
            found.push(HeldOut {
                prompt: sample.ids[..span.start].to_vec(),
                wanted: sample.ids[span.clone()].to_vec(),
            });
        }
    }
    Ok(found)
}

/// At most `count` held-out conversations of the run. Where all tokens are trained, no message is known to be the
/// assistant's.
fn of_run(training: &TrainingLoop, count: usize) -> Result<Vec<HeldOut>, DataError> {
    let setup = &training.setup;
    match &setup.conversations {
        Some(read) if setup.config.data.train_on != TrainOn::All => {
            held_out(&read.validation, &read.wanted_validation(), count)
        }
        _ => Ok(Vec::new()),
    }
}

/// Lets `model` complete a held-out conversation. Failures are warnings.
fn complete(
    training: &TrainingLoop,
    model: &Transformer,
    held_out: &HeldOut,
    reporter: &mut dyn Reporter,
    hooks: &mut dyn Hooks,
) -> Option<Completion> {
    let setup = &training.setup;
    let request = CompletionRequest {
        special: &setup.special,
        prompt: &held_out.prompt,
        // Longer ones do not end by themselves in time.
        max_tokens: 2 * held_out.wanted.len() + SHORT_TOKENS / 2,
    };
    let completed = hooks.complete(model, &setup.tokenizer(), &request);
    completed.unwrap_or_else(|error| {
        let step = training.state.step;
        reporter.warned(&format!(
            "cannot complete a conversation at step {step}: {error}"
        ));
        None
    })
}

/// Compares completions with the messages of held-out conversations. `None` without conversations, and if the hooks
/// generate nothing.
pub(super) fn evaluate(
    training: &TrainingLoop,
    reporter: &mut dyn Reporter,
    hooks: &mut dyn Hooks,
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
    for held_out in held_out {
        let Some(completion) = complete(training, &model, &held_out, reporter, hooks) else {
            return Ok(None);
        };
        count(&mut report, &completion, &held_out.wanted, &eos);
    }
    Ok(Some(report))
}

/// Adds a completion to the report; `wanted` is the message in the data.
fn count(report: &mut CompletionReport, completion: &Completion, wanted: &[u32], eos: &[u32]) {
    let wanted = match wanted {
        [message @ .., last] if eos.contains(last) => message,
        all => all,
    };
    report.completions += 1;
    report.ended += usize::from(completion.ended);
    if wanted.len() < SHORT_TOKENS {
        report.short += 1;
        report.exact += usize::from(completion.ended && completion.ids == wanted);
    }
}

/// Shows completions beside the messages of held-out conversations. Returns them as text for the file of samples.
pub(super) fn show(
    training: &TrainingLoop,
    model: &Transformer,
    reporter: &mut dyn Reporter,
    hooks: &mut dyn Hooks,
) -> Result<Vec<String>, TrainError> {
    let tokenizer = training.setup.tokenizer();
    let mut texts = Vec::new();
    for held_out in of_run(training, SHOWN)? {
        let Some(completion) = complete(training, model, &held_out, reporter, hooks) else {
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]
mod tests {
    use nextword_data::SamplesBuilder;

    use super::*;

    #[test]
    fn the_last_message_of_each_conversation_is_held_out() {
        let mut builder = SamplesBuilder::default();
        builder
            .push(&[1, 5, 6, 2, 7, 8, 2, 9], &[2..4, 5..7])
            .unwrap();
        builder.push(&[1, 3, 3], &[1..3]).unwrap(); // a text
        builder.push(&[1, 4, 6, 2], &[2..4]).unwrap();
        let samples = builder.finish();
        let found = held_out(&samples, &[0, 1, 2], 5).unwrap();
        let expected = [
            HeldOut {
                prompt: vec![1, 5, 6, 2, 7],
                wanted: vec![8, 2],
            },
            HeldOut {
                prompt: vec![1, 4],
                wanted: vec![6, 2],
            },
        ];
        assert_eq!(found, expected);
        assert_eq!(held_out(&samples, &[0, 1, 2], 1).unwrap().len(), 1);
        assert_eq!(held_out(&samples, &[2], 4).unwrap(), expected[1..]);
        assert_eq!(held_out(&Samples::default(), &[], 4).unwrap(), []);
    }

    #[test]
    fn an_exact_completion_ends_where_the_message_ends() {
        let counted = |ids: &[u32], ended, wanted: &[u32]| {
            let mut report = CompletionReport::default();
            let ids = ids.to_vec();
            count(&mut report, &Completion { ids, ended }, wanted, &[2]);
            assert_eq!(report.completions, 1);
            (report.ended, report.short, report.exact)
        };
        assert_eq!(counted(&[6, 7], true, &[6, 7, 2]), (1, 1, 1));
        assert_eq!(counted(&[6, 7], false, &[6, 7, 2]), (0, 1, 0));
        assert_eq!(counted(&[6, 8], true, &[6, 7, 2]), (1, 1, 0));
        assert_eq!(counted(&[6], true, &[6, 7, 2]), (1, 1, 0));
        assert_eq!(
            counted(&[9; 64], true, &[[9; 64].as_slice(), &[2]].concat()),
            (1, 0, 0)
        );
        assert_eq!(
            counted(&[9; 63], true, &[[9; 63].as_slice(), &[2]].concat()),
            (1, 1, 1)
        );
    }
}
