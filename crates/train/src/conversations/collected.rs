//! The samples of all records, and their split.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use nextword_chat::{Example, SampleEncoder, SourcedRecord, TokenSample};
use nextword_data::{DataConfig, Samples, SamplesBuilder, Tokenizer, TooLong};

use super::fit::{Fitted, Misfit, fit};
use super::mismatched::mismatched;
use super::report::{CUT, NO_ROOM};
use super::{ConversationReport, Examples, Ratings, split, with_hint};
use crate::{PreferenceLoss, TrainError};

/// Maximum number of examples of unknown text.
const MAX_UNKNOWN: usize = 5;

/// The samples of all records, before they are split.
pub(super) struct Collected {
    pub(super) records: Vec<EncodedRecord>,
    pub(super) report: ConversationReport,
    max_length: usize,
    too_long: TooLong,
    pub(super) split_seed: u64,
    eos_ids: BTreeSet<u32>,
}

/// Why a record is left out whose sample [`SamplesBuilder::push`] refuses.
const NO_TARGET: &str =
    "with an empty prompt and a completion of one token, which nothing predicts";

/// A record: those of its samples that can be trained, each with what it was made of.
pub(super) struct EncodedRecord {
    /// Where it is.
    pub(super) place: String,
    /// Decides on the split.
    pub(super) key: u64,
    pub(super) samples: Vec<(Arc<Example>, Fitted)>,
    /// Whether a rated completion is good.
    pub(super) is_good: bool,
}

/// Both splits.
pub(super) struct Split {
    pub(super) train: Samples,
    pub(super) validation: Samples,
    pub(super) examples: Examples,
    pub(super) ratings: Ratings,
    pub(super) report: ConversationReport,
}

impl Collected {
    /// No records yet. Rows have `max_length` tokens.
    pub(super) fn new(data: &DataConfig, max_length: usize, report: ConversationReport) -> Self {
        Self {
            records: Vec::new(),
            report: ConversationReport {
                sequence_length: max_length,
                ..report
            },
            max_length,
            too_long: data.too_long,
            split_seed: data.split.seed,
            eos_ids: BTreeSet::new(),
        }
    }

    /// Encodes a record of a supervised run.
    pub(super) fn add_record(
        &mut self,
        record: SourcedRecord,
        encoder: &SampleEncoder,
    ) -> Result<(), TrainError> {
        let place = record.source.to_string();
        let encoded = self.encode(&record.example, encoder, &place)?;
        let ids = encoded.iter().map(|sample| sample.ids.clone());
        let key = split::content_key(self.split_seed, ids);
        let example = Arc::new(record.example);
        let mut samples = Vec::new();
        for sample in &encoded {
            if let Some(fitted) = self.fit(sample, &place)? {
                samples.push((Arc::clone(&example), fitted));
            }
        }
        self.records.push(EncodedRecord {
            place,
            key,
            samples,
            is_good: false,
        });
        Ok(())
    }

    /// The samples of an example, which the report takes note of.
    pub(super) fn encode(
        &mut self,
        example: &Example,
        encoder: &SampleEncoder,
        place: &str,
    ) -> Result<Vec<TokenSample>, TrainError> {
        let encoded = encoder.encode(example).map_err(|error| {
            let error = with_hint(error, example);
            TrainError::conversation(place, self.report.template.as_deref(), error)
        })?;
        for sample in &encoded {
            let method = sample.method.as_str().to_string();
            *self.report.methods.entry(method).or_default() += 1;
            self.report.split_samples += usize::from(sample.is_split);
            note_unknown(sample, &mut self.report.unknown);
            let last = sample.turn_ends.iter().filter_map(|end| end.checked_sub(1));
            let last = last.filter_map(|at| sample.ids.get(at).copied());
            self.eos_ids.extend(last);
        }
        Ok(encoded)
    }

    /// Fits a sample into a row; `None` if it cannot be trained.
    pub(super) fn fit(
        &mut self,
        sample: &TokenSample,
        place: &str,
    ) -> Result<Option<Fitted>, TrainError> {
        let fitted = fit(sample, self.max_length, self.too_long);
        let needed = sample.trained.last().map_or(0, |span| span.end);
        // The last token is predicted, and no input.
        self.report.needed_length = self.report.needed_length.max(needed.saturating_sub(1));
        if needed > self.max_length + 1 {
            self.report.add_too_long(place);
        }
        match fitted {
            Ok(fitted) if !fitted.has_target() => {
                self.report.leave_out(NO_TARGET, place);
                Ok(None)
            }
            Ok(fitted) => {
                if fitted.is_cut {
                    self.report.leave_out(CUT, place);
                }
                Ok(Some(fitted))
            }
            Err(Misfit::TooLong) => {
                self.report.leave_out(NO_ROOM, place);
                Ok(None)
            }
            Err(Misfit::Error) => Err(TrainError::config(
                "data.too_long",
                format!(
                    "{place}: the conversation has {} tokens, more than a sequence of {}",
                    sample.ids.len(),
                    self.max_length
                ),
                "shorten it, increase train.sequence_length, or set data.too_long = \"turns\"",
            )),
        }
    }

    /// Reports the tokens that end the trained messages.
    pub(super) fn note_eos_tokens(&mut self, tokenizer: &dyn Tokenizer) {
        let ids = self.eos_ids.iter();
        self.report.eos_tokens = ids.filter_map(|id| tokenizer.id_to_token(*id)).collect();
    }

    /// Assigns the records to the splits.
    pub(super) fn split(
        mut self,
        share: f64,
        loss: Option<PreferenceLoss>,
    ) -> Result<Split, TrainError> {
        self.records.retain(|record| !record.samples.is_empty());
        let keys: Vec<u64> = self.records.iter().map(|record| record.key).collect();
        let selected = split::select_validation(&keys, share);
        let mut sides = [Vec::new(), Vec::new()];
        for (record, is_validation) in self.records.into_iter().zip(selected) {
            sides[usize::from(is_validation)].push(record);
        }
        let mut report = self.report;
        let is_rated = loss.is_some_and(|loss| !loss.is_pairwise());
        if is_rated {
            for records in &mut sides {
                add_mismatched(records, self.max_length, &mut report);
            }
        }
        report.train = sides[0].len();
        report.validation = sides[1].len();
        report.shared_prompts = shared_prompts(&sides);
        let ratings = |records: &[EncodedRecord]| {
            let rated = records.iter().filter(|_| is_rated);
            rated.map(|record| record.is_good).collect()
        };
        let [of_train, of_validation] = &sides;
        let mut examples = Examples::default();
        for (example, fitted) in of_train.iter().flat_map(|record| &record.samples) {
            examples.train.push(Arc::clone(example));
            examples.prompt_ends.push(fitted.prompt_ends.clone());
        }
        let in_validation = of_validation.iter().flat_map(|record| &record.samples);
        examples.validation = in_validation
            .map(|(example, _)| Arc::clone(example))
            .collect();
        Ok(Split {
            train: samples(of_train)?,
            validation: samples(of_validation)?,
            examples,
            ratings: Ratings {
                train: ratings(of_train),
                validation: ratings(of_validation),
            },
            report,
        })
    }
}

/// Adds to each rated completion its prompt with the completion of another record. Records for which nothing predicts
/// that completion are left out.
fn add_mismatched(
    records: &mut Vec<EncodedRecord>,
    max_length: usize,
    report: &mut ConversationReport,
) {
    let completions: Vec<&Fitted> = records
        .iter()
        .filter_map(|record| record.samples.first())
        .map(|(_, fitted)| fitted)
        .collect();
    let added = mismatched(&completions, max_length);
    for (mut record, sample) in std::mem::take(records).into_iter().zip(added) {
        if !sample.has_target() {
            report.leave_out(NO_TARGET, &record.place);
            continue;
        }
        let example = record.samples.first();
        let example = example.map(|(example, _)| Arc::clone(example));
        record
            .samples
            .extend(example.map(|example| (example, sample)));
        records.push(record);
    }
}

/// The samples of records, in order.
fn samples(records: &[EncodedRecord]) -> Result<Samples, TrainError> {
    let mut builder = SamplesBuilder::default();
    for (_, fitted) in records.iter().flat_map(|record| &record.samples) {
        builder.push(&fitted.ids, &fitted.trained)?;
    }
    Ok(builder.finish())
}

/// Number of validation records whose prompt is one of the training records too.
fn shared_prompts([of_train, of_validation]: &[Vec<EncodedRecord>; 2]) -> usize {
    fn prompt(record: &EncodedRecord) -> Option<&[u32]> {
        let (_, first) = record.samples.first()?;
        Some(first.prompt())
    }
    let known: HashSet<&[u32]> = of_train.iter().filter_map(prompt).collect();
    let shared = of_validation.iter().filter_map(prompt);
    shared
        .filter(|prompt| !prompt.is_empty() && known.contains(*prompt))
        .count()
}

/// Keeps the first texts that are not in the vocabulary.
fn note_unknown(sample: &TokenSample, known: &mut Vec<String>) {
    for text in &sample.unknown.unknown {
        if known.len() < MAX_UNKNOWN && !known.contains(text) {
            known.push(text.clone());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use nextword_chat::Conversation;

    use super::*;

    #[test]
    fn records_are_left_out_if_nothing_predicts_their_mismatched_completion() {
        let record = |prompt: &[u32], completion: &[u32], place: &str| {
            let ids = [prompt, completion].concat();
            let fitted = Fitted {
                trained: std::iter::once(prompt.len()..ids.len()).collect(),
                prompt_ends: vec![prompt.len()],
                ids,
                is_cut: false,
            };
            let example = Example::Conversation(Conversation::new(Vec::new()));
            EncodedRecord {
                place: place.to_string(),
                key: 0,
                samples: vec![(Arc::new(example), fitted)],
                is_good: true,
            }
        };
        let mut records = vec![record(&[], &[7, 8], "first"), record(&[1], &[9], "second")];
        let mut report = ConversationReport::default();
        add_mismatched(&mut records, 9, &mut report);
        // The first would have an empty prompt and the one token of the second.
        assert_eq!(report.left_out[NO_TARGET].places, ["first"]);
        assert_eq!(samples(&records).unwrap().len(), 2);
    }
}
