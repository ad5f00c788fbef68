//! Compares a model's completions with the messages of conversations that it has not seen.

use nextword_data::{DataError, Samples};

use crate::TrainError;
use crate::report::{Completion, CompletionReport};

/// Messages with fewer tokens are compared token by token: there is hardly more than one right wording.
const SHORT_TOKENS: usize = 64;

/// A prompt of a held-out conversation and the message that follows it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct HeldOut {
    pub(crate) prompt: Vec<u32>,
    /// The message, with the token that ends it.
    pub(crate) wanted: Vec<u32>,
}

impl HeldOut {
    /// Maximum number of tokens of a completion. Longer ones do not end by themselves in time.
    pub(crate) fn max_tokens(&self) -> usize {
        2 * self.wanted.len() + SHORT_TOKENS / 2
    }
}

/// At most `count` prompts with the last messages of the samples `among`, spread over them.
pub(crate) fn held_out(
    samples: &Samples,
    among: &[usize],
    count: usize,
) -> Result<Vec<HeldOut>, DataError> {
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

/// Lets a model complete at most `completions` conversations of `samples`, spread over them, and compares the result with
/// the last message of each. A completion ends with one of the ids `eos`.
///
/// `complete` generates the most likely tokens after a prompt, at most as many as its second argument says.
///
/// # Errors
/// Those of `complete`, and [`TrainError::Data`] if the samples cannot be read.
///
/// # Example
///
/// ```
/// use nextword_data::SamplesBuilder;
/// use nextword_train::{Completion, check_completions};
///
/// let mut builder = SamplesBuilder::default();
/// builder.push(&[1, 5, 6, 2], &[2..4])?; // a prompt of 2 ids, the message 6, and EOS
/// let samples = builder.finish();
/// let report = check_completions(&samples, 8, &[2], |prompt, _| {
///     assert_eq!(prompt, [1, 5]);
///     Ok(Completion { ids: vec![6], ended: true })
/// })?;
/// assert_eq!((report.completions, report.ended_share(), report.exact_share()), (1, Some(1.0), Some(1.0)));
/// # Ok::<(), nextword_train::TrainError>(())
/// ```
pub fn check_completions(
    samples: &Samples,
    completions: usize,
    eos: &[u32],
    mut complete: impl FnMut(&[u32], usize) -> Result<Completion, TrainError>,
) -> Result<CompletionReport, TrainError> {
    let mut report = CompletionReport::default();
    let all: Vec<usize> = (0..samples.len()).collect();
    for held_out in held_out(samples, &all, completions)? {
        let completion = complete(&held_out.prompt, held_out.max_tokens())?;
        count(&mut report, &completion, &held_out.wanted, eos);
    }
    Ok(report)
}

/// Adds a completion to the report; `wanted` is the message in the data.
pub(crate) fn count(
    report: &mut CompletionReport,
    completion: &Completion,
    wanted: &[u32],
    eos: &[u32],
) {
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
