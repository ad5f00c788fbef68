//! What a model made of a sentence at each step of its training.

use nextword_generate::{TextGenerator, TextOptions};
use serde::{Deserialize, Serialize};

use crate::graph::PROBABILITIES;
use crate::{ExplainError, Explainer, Guess, Op};

/// Likeliest next tokens that are kept.
const KEPT: usize = 6;

/// A loss this many times the lowest before it is a spike.
const SPIKE: f64 = 1.5;

/// A percentage above this takes all.
const SATURATED: f32 = 0.999;

/// What the model made of one sentence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The sentence.
    pub prompt: String,
    /// Its tokens.
    pub tokens: Vec<String>,
    /// Percentages by layer, head, query and key; 0 where a token may not look.
    pub patterns: Vec<Vec<Vec<Vec<f32>>>>,
    /// After each token the likeliest next ones.
    pub next: Vec<Vec<Guess>>,
}

/// What is kept at one step: a file of the run's folder `probes`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Updates made.
    pub step: u64,
    /// The last training loss.
    pub loss: Option<f64>,
    /// One snapshot for each sentence.
    pub sentences: Vec<Snapshot>,
}

/// All that was kept, by sentence.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Learning {
    /// The sentences, each with its steps in order.
    pub sentences: Vec<Sentence>,
    /// What is worth pointing out.
    pub notes: Vec<String>,
}

/// One sentence over training.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sentence {
    /// The sentence.
    pub prompt: String,
    /// What the model made of it.
    pub steps: Vec<LearntStep>,
}

/// A sentence at one step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LearntStep {
    /// Updates made.
    pub step: u64,
    /// The last training loss.
    pub loss: Option<f64>,
    /// What the model made of the sentence.
    #[serde(flatten)]
    pub snapshot: Snapshot,
}

/// What `generator`'s model makes of `prompt` as it is.
///
/// # Errors
/// As [`Explainer::explain`].
pub fn snapshot(
    generator: TextGenerator,
    prompt: &str,
    options: &TextOptions,
) -> Result<Snapshot, ExplainError> {
    let explainer = Explainer::new(generator);
    let explanation = explainer.explain(prompt, options)?;
    let trace = &explanation.trace;
    let seq = trace.prompt;
    let patterns = trace
        .graph
        .iter()
        .filter(|node| node.is_square() && matches!(node.op, Op::Softmax { .. }));
    let patterns = patterns.map(|node| {
        let value = trace.value(&node.name);
        let row = |head: usize, query: usize| {
            let row = &value.row(head * trace.ids.len() + query)[..seq];
            // Four decimals are more than a picture shows.
            row.iter()
                .map(|x| ((x * 1e4).round() / 1e4) as f32)
                .collect()
        };
        (0..node.shape[0])
            .map(|head| (0..seq).map(|query| row(head, query)).collect())
            .collect()
    });
    let probabilities = trace.value(PROBABILITIES);
    Ok(Snapshot {
        prompt: prompt.to_string(),
        tokens: trace.ids[..seq]
            .iter()
            .map(|id| explainer.text(*id))
            .collect(),
        patterns: patterns.collect(),
        next: (0..seq)
            .map(|position| explanation.guesses(probabilities.row(position), KEPT))
            .collect(),
    })
}

impl Learning {
    /// Puts the records of a run in order; `losses` are its training losses by step.
    pub fn of(mut records: Vec<StepRecord>, losses: &[(u64, f64)]) -> Self {
        records.sort_by_key(|record| record.step);
        let mut learning = Self {
            sentences: Vec::new(),
            notes: spikes(losses),
        };
        for record in records {
            for snapshot in record.sentences {
                let at = learning
                    .sentences
                    .iter()
                    .position(|sentence| sentence.prompt == snapshot.prompt)
                    .unwrap_or_else(|| {
                        learning.sentences.push(Sentence {
                            prompt: snapshot.prompt.clone(),
                            steps: Vec::new(),
                        });
                        learning.sentences.len() - 1
                    });
                learning.sentences[at].steps.push(LearntStep {
                    step: record.step,
                    loss: record.loss,
                    snapshot,
                });
            }
        }
        learning.notes.extend(learning.heads());
        learning
    }

    /// Heads that choose nothing or only one token, after the last step.
    fn heads(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let Some(last) = self.sentences.first().and_then(|s| s.steps.last()) else {
            return notes;
        };
        for (layer, heads) in last.snapshot.patterns.iter().enumerate() {
            for (head, rows) in heads.iter().enumerate().filter(|(_, rows)| rows.len() >= 4) {
                let top = |row: &Vec<f32>| row.iter().copied().fold(0.0, f32::max);
                let rows = rows.iter().enumerate().skip(1);
                let name = format!("head {} of layer {}", head + 1, layer + 1);
                if rows.clone().all(|(_, row)| top(row) > SATURATED) {
                    notes.push(format!(
                        "{name} ended saturated: each row looks at one token alone"
                    ));
                } else if rows
                    .clone()
                    .all(|(n, row)| top(row) < 1.05 / (n + 1) as f32)
                {
                    notes.push(format!(
                        "{name} ended without a choice: it looks at all tokens alike"
                    ));
                }
            }
        }
        notes
    }
}

/// Where the loss jumped, in words.
fn spikes(losses: &[(u64, f64)]) -> Vec<String> {
    let mut notes = Vec::new();
    let mut lowest = f64::INFINITY;
    let mut above = false;
    for (step, loss) in losses {
        let is_spike = *loss > SPIKE * lowest && *loss > lowest + 0.1;
        if is_spike && !above {
            notes.push(format!(
                "the loss jumped to {loss:.3} at step {step}, from {lowest:.3} before: a lower \
                 learning rate or clipping would calm it"
            ));
        }
        above = is_spike;
        lowest = lowest.min(*loss);
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64, share: f32) -> StepRecord {
        let row = |n: usize| {
            let mut row = vec![0.0; 4];
            row[n] = share;
            row
        };
        StepRecord {
            step,
            loss: Some(1.0),
            sentences: vec![Snapshot {
                prompt: "a".to_string(),
                tokens: vec!["a".to_string(); 4],
                patterns: vec![vec![(0..4).map(row).collect()]],
                next: vec![Vec::new(); 4],
            }],
        }
    }

    #[test]
    fn steps_are_put_in_order_and_saturated_heads_are_named() {
        let learning = Learning::of(vec![record(20, 1.0), record(0, 0.4)], &[]);
        let steps: Vec<u64> = learning.sentences[0].steps.iter().map(|s| s.step).collect();
        assert_eq!(steps, [0, 20]);
        assert!(learning.notes[0].contains("head 1 of layer 1 ended saturated"));
        let fine = Learning::of(vec![record(0, 0.6)], &[]);
        assert!(fine.notes.is_empty());
    }

    #[test]
    fn a_jump_of_the_loss_is_named_once() {
        let losses = [(1, 3.0), (2, 2.0), (3, 4.0), (4, 4.1), (5, 1.9)];
        let notes = spikes(&losses);
        assert_eq!(notes.len(), 1);
        assert!(notes[0].contains("4.000 at step 3"), "{notes:?}");
    }
}
