//! Records that compare or rate completions.

use std::sync::Arc;

use nextword_chat::{
    Conversation, Example, Json, Message, Preference, RatedCompletion, SampleEncoder, SourcedRecord,
};

use super::collected::{Collected, EncodedRecord};
use super::fit::Fitted;
use super::split;
use crate::{PreferenceLoss, TrainError};

/// The key of the configuration in errors.
const KEY: &str = "preferences.loss";

impl Collected {
    /// Encodes a record of a run on preferences: a pair as two samples, or a rated completion as one. The completions of a
    /// pair are rated completions for a loss that needs those: the chosen one is good.
    pub(super) fn add_comparison(
        &mut self,
        record: SourcedRecord,
        encoder: &SampleEncoder,
        loss: PreferenceLoss,
    ) -> Result<(), TrainError> {
        let place = record.source.to_string();
        let (prompt, tools, completions) = match record.example {
            Example::Preference(Preference {
                prompt,
                chosen,
                rejected,
                tools,
            }) => (prompt, tools, vec![(chosen, true), (rejected, false)]),
            Example::Rated(RatedCompletion {
                prompt,
                completion,
                is_good,
                tools,
            }) if !loss.is_pairwise() => (prompt, tools, vec![(completion, is_good)]),
            Example::Rated(_) => {
                let problem =
                    format!("{place}: the record rates one completion, but this loss compares two");
                return Err(TrainError::config(KEY, problem, "set it to \"kto\""));
            }
            _ => {
                let problem = format!("{place}: the record has no completions to compare");
                let hint = "give it `chosen` and `rejected`, or remove [preferences] to train on its messages";
                return Err(TrainError::config(KEY, problem, hint));
            }
        };
        let mut samples = Vec::new();
        for (completion, is_good) in completions {
            let example = conversation(&prompt, completion, tools.as_deref());
            if let Some(fitted) = self.one_sample(&example, encoder, &place)? {
                samples.push((Arc::new(example), fitted, is_good));
            }
        }
        if loss.is_pairwise() {
            if let [(_, chosen, _), (_, rejected, _)] = &samples[..] {
                self.report.pairs += 1;
                let is_longer = trained_count(chosen) > trained_count(rejected);
                self.report.longer_chosen += usize::from(is_longer);
                self.push_comparison(place, samples, true);
            }
            return Ok(());
        }
        for sample in samples {
            let (_, _, is_good) = sample;
            self.push_comparison(place.clone(), vec![sample], is_good);
        }
        Ok(())
    }

    /// The sample of a completion; `None` if it cannot be trained.
    fn one_sample(
        &mut self,
        example: &Example,
        encoder: &SampleEncoder,
        place: &str,
    ) -> Result<Option<Fitted>, TrainError> {
        let encoded = self.encode(example, encoder, place)?;
        match &encoded[..] {
            [sample] => self.fit(sample, place),
            _ => {
                let reason = "with a completion of several messages that the chat template formats one by one";
                self.report.leave_out(reason, place);
                Ok(None)
            }
        }
    }

    /// Adds a record. Records with the same prompt are in the same split.
    fn push_comparison(
        &mut self,
        place: String,
        samples: Vec<(Arc<Example>, Fitted, bool)>,
        is_good: bool,
    ) {
        let prompt = samples
            .first()
            .map(|(_, fitted, _)| fitted.prompt().to_vec());
        let key = split::content_key(self.split_seed, prompt);
        let samples = samples.into_iter();
        self.records.push(EncodedRecord {
            place,
            key,
            samples: samples
                .map(|(example, fitted, _)| (example, fitted))
                .collect(),
            is_good,
        });
    }
}

/// The conversation of a prompt and a completion, of which only the completion is trained.
fn conversation(prompt: &[Message], completion: Vec<Message>, tools: Option<&[Json]>) -> Example {
    let mut messages = prompt.to_vec();
    messages.extend(completion);
    let mut conversation = Conversation::new(messages);
    conversation.trained[..prompt.len()].fill(false);
    conversation.tools = tools.map(<[Json]>::to_vec);
    Example::Conversation(conversation)
}

fn trained_count(sample: &Fitted) -> usize {
    sample.trained.iter().map(ExactSizeIterator::len).sum()
}
