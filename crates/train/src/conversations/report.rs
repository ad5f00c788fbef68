//! What became of the records of conversations.

use std::collections::BTreeMap;

use nextword_base::count;
use nextword_chat::RecordCounts;
use serde::Serialize;

/// Maximum number of places that are listed of the records left out for one reason.
const MAX_PLACES: usize = 5;

/// What is done to a sample that is longer than a sequence.
pub(super) const CUT: &str = "cut to fit into a sequence";
/// Why a sample is left out of which no trained message fits.
pub(super) const NO_ROOM: &str = "with no trained message that fits into a sequence";

/// What became of the records of a run's conversations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ConversationReport {
    /// Number of records by format.
    pub formats: BTreeMap<String, usize>,
    /// Number of samples by the method that found their trained tokens.
    pub methods: BTreeMap<String, usize>,
    /// What was left out or cut, by reason.
    pub left_out: BTreeMap<String, LeftOut>,
    /// Number of conversations for training.
    pub train: usize,
    /// Number of conversations for validation.
    pub validation: usize,
    /// Number of validation conversations whose prompt occurs in the training data too.
    pub shared_prompts: usize,
    /// Number of pairs of completions, in runs on preferences.
    #[serde(skip_serializing_if = "is_zero")]
    pub pairs: usize,
    /// Those whose chosen completion has more tokens than the rejected one.
    #[serde(skip_serializing_if = "is_zero")]
    pub longer_chosen: usize,
    /// Number of samples with a token that would reach across the end of a prompt if the text was encoded as a whole.
    pub split_samples: usize,
    /// Number of samples that are longer than a sequence, and so were cut or left out.
    #[serde(skip_serializing_if = "is_zero")]
    pub too_long: usize,
    /// Where the first of them are.
    #[serde(skip)]
    pub too_long_places: Vec<String>,
    /// Maximum number of tokens of a sequence.
    pub sequence_length: usize,
    /// The length that all samples would fit into.
    pub needed_length: usize,
    /// Text that is not in the vocabulary: the first examples.
    pub unknown: Vec<String>,
    /// Where the chat template comes from; `None` if conversations are formatted without one.
    pub template: Option<String>,
    /// The texts of the tokens that end the trained messages.
    pub eos_tokens: Vec<String>,
}

/// Records that were left out or cut for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Their number.
    pub count: usize,
    /// Where the first of them are.
    pub places: Vec<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // The signature that serde calls.
fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// Places in one line: what several begin with, such as the name of a file, is not repeated.
pub(crate) fn list_places(places: &[String]) -> String {
    let mut listed = String::new();
    let mut earlier = None;
    for place in places {
        let (name, number) = place.rsplit_once(' ').unwrap_or((place, ""));
        if earlier == Some(name) && !number.is_empty() {
            listed.extend([", ", number]);
        } else {
            let separator = if listed.is_empty() { "" } else { "; " };
            listed.extend([separator, place]);
        }
        earlier = Some(name);
    }
    listed
}

/// The share of pairs with a longer chosen completion from which a run warns.
const MAX_LONGER_CHOSEN: f64 = 0.7;

impl ConversationReport {
    /// The report about records that were read.
    pub(super) fn of_records(counts: &RecordCounts) -> Self {
        let formats = counts.formats.iter();
        let mut report = Self {
            formats: formats
                .map(|(format, count)| (format.to_string(), *count))
                .collect(),
            ..Self::default()
        };
        for (reason, dropped) in &counts.dropped {
            let left_out = LeftOut {
                count: dropped.count,
                places: dropped.first.iter().map(ToString::to_string).collect(),
            };
            report.left_out.insert(reason.to_string(), left_out);
        }
        report
    }

    /// Counts a record that is left out or cut.
    pub(super) fn leave_out(&mut self, reason: &str, place: &str) {
        let left_out = self.left_out.entry(reason.to_string()).or_default();
        left_out.count += 1;
        if left_out.places.len() < MAX_PLACES {
            left_out.places.push(place.to_string());
        }
    }

    /// Sentences about what was left out, for people.
    pub fn left_out_lines(&self) -> Vec<String> {
        let lines = self.left_out.iter().map(|(reason, left_out)| {
            let listed = list_places(&left_out.places);
            let more = left_out.count - left_out.places.len().min(left_out.count);
            let more = if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
            format!(
                "{} {reason} ({listed}{more})",
                count(left_out.count as u64, "record")
            )
        });
        lines.collect()
    }

    pub(super) fn add_too_long(&mut self, place: &str) {
        self.too_long += 1;
        if self.too_long_places.len() < MAX_PLACES {
            self.too_long_places.push(place.to_string());
        }
    }

    /// Number of all samples, those that were left out among them.
    pub fn all_samples(&self) -> usize {
        self.methods.values().sum()
    }

    /// What was left out for reasons other than its length.
    pub fn damaged(&self) -> impl Iterator<Item = (&str, &LeftOut)> {
        let all = self.left_out.iter();
        let others = all.filter(|(reason, _)| ![CUT, NO_ROOM].contains(&reason.as_str()));
        others.map(|(reason, left_out)| (reason.as_str(), left_out))
    }

    /// A sentence about samples that are longer than a sequence, and how to train on all of them.
    pub fn too_long_line(&self) -> Option<String> {
        (self.too_long > 0).then(|| {
            format!(
                "{} of {} do not fit into a sequence of {}, and are cut or left out; hint: {}",
                self.too_long,
                count(self.all_samples() as u64, "sample"),
                count(self.sequence_length as u64, "token"),
                self.length_hint()
            )
        })
    }

    /// How to train on samples that are longer than a sequence.
    pub fn length_hint(&self) -> String {
        format!(
            "set model.context_length to {} or more, and train.sequence_length if it is set; a model in start_from \
             keeps the context that it was trained with, so train that one with a longer context first",
            self.needed_length
        )
    }

    /// What a run warns about.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> = self.too_long_line().into_iter().collect();
        warnings.extend(self.left_out_lines());
        if self.shared_prompts > 0 {
            warnings.push(format!(
                "{} of {} in the validation split have a prompt that is in the training split too, so that the \
                 validation loss is too low; hint: remove duplicates",
                self.shared_prompts,
                count(self.validation as u64, "conversation")
            ));
        }
        if self.longer_chosen as f64 > MAX_LONGER_CHOSEN * self.pairs as f64 {
            warnings.push(format!(
                "the chosen completion is longer in {} of {}, so that the model may learn to write more; hint: add \
                 pairs whose chosen completion is the shorter one, or set preferences.loss = \"ipo\", which compares \
                 log probabilities per token",
                self.longer_chosen,
                count(self.pairs as u64, "pair")
            ));
        }
        if !self.unknown.is_empty() {
            let examples: Vec<_> = self
                .unknown
                .iter()
                .map(|text| format!("{text:?}"))
                .collect();
            warnings.push(format!(
                "the conversations have text that is not in the vocabulary, such as {}; hint: use a model whose \
                 tokenizer knows it",
                examples.join(", ")
            ));
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_in_one_file_name_it_once() {
        let list = |places: &[&str]| {
            let places: Vec<String> = places.iter().map(ToString::to_string).collect();
            list_places(&places)
        };
        assert_eq!(list(&[]), "");
        assert_eq!(list(&["a.jsonl, line 3"]), "a.jsonl, line 3");
        assert_eq!(
            list(&[
                "a.jsonl, line 3",
                "a.jsonl, line 14",
                "b.json, record 1",
                "b.json, record 2"
            ]),
            "a.jsonl, line 3, 14; b.json, record 1, 2"
        );
        assert_eq!(
            list(&["first", "second", "second"]),
            "first; second; second"
        );
    }
}
