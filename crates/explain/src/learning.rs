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
    /// How loud each head is, by layer: the mean length of what it hands over.
    #[serde(default)]
    pub loudness: Vec<Vec<f32>>,
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
    let mixed = trace.graph.iter();
    let mixed = mixed.filter(|node| matches!(node.op, Op::Mix { .. }));
    let loudness = mixed.map(|node| {
        let value = trace.value(&node.name);
        let length = |row: usize| value.row(row).iter().map(|x| x * x).sum::<f64>().sqrt();
        let rows = trace.ids.len();
        (0..node.shape[0])
            .map(|head| {
                let lengths = (0..seq).map(|position| length(head * rows + position));
                (lengths.sum::<f64>() / seq as f64) as f32
            })
            .collect()
    });
    Ok(Snapshot {
        loudness: loudness.collect(),
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

    /// Heads that say nothing, choose nothing or only one token, after the last step, whatever the
    /// sentence.
    fn heads(&self) -> Vec<String> {
        let last = self.sentences.iter().filter_map(|s| s.steps.last());
        let last: Vec<&Snapshot> = last.map(|step| &step.snapshot).collect();
        let Some(first) = last.first() else {
            return Vec::new();
        };
        let layers = first.patterns.iter().enumerate();
        let heads =
            layers.flat_map(|(layer, heads)| (0..heads.len()).map(move |head| (layer, head)));
        heads
            .filter_map(|(layer, head)| {
                let name = format!("head {} of layer {}", head + 1, layer + 1);
                let is = |what: fn(&Snapshot, usize, usize) -> bool| {
                    last.iter().all(|snapshot| what(snapshot, layer, head))
                };
                if is(is_silent) {
                    Some(format!(
                        "{name} ended silent: what it hands over is less than a hundredth of the loudest head's"
                    ))
                } else if is(is_saturated) {
                    Some(format!(
                        "{name} ended saturated: each row looks at one token alone"
                    ))
                } else if is(is_undecided) {
                    Some(format!(
                        "{name} ended without a choice: it looks at all tokens alike"
                    ))
                } else {
                    None
                }
            })
            .collect()
    }
}

fn is_silent(snapshot: &Snapshot, layer: usize, head: usize) -> bool {
    let Some(heads) = snapshot.loudness.get(layer) else {
        return false; // An older run did not keep it.
    };
    let loudest = heads.iter().copied().fold(0.0, f32::max);
    heads
        .get(head)
        .is_some_and(|loud| *loud < 0.01 * loudest || loudest <= 0.0)
}

/// The percentages of a head's rows that have a choice, where there are enough of them.
fn rows(snapshot: &Snapshot, layer: usize, head: usize) -> &[Vec<f32>] {
    let heads = snapshot.patterns.get(layer);
    let rows = heads
        .and_then(|heads| heads.get(head))
        .filter(|rows| rows.len() >= 4);
    rows.map_or(&[][..], |rows| &rows[1..])
}

fn top(row: &[f32]) -> f32 {
    row.iter().copied().fold(0.0, f32::max)
}

fn is_saturated(snapshot: &Snapshot, layer: usize, head: usize) -> bool {
    let rows = rows(snapshot, layer, head);
    !rows.is_empty() && rows.iter().all(|row| top(row) > SATURATED)
}

fn is_undecided(snapshot: &Snapshot, layer: usize, head: usize) -> bool {
    let rows = rows(snapshot, layer, head);
    let alike = |(n, row): (usize, &Vec<f32>)| top(row) < 1.05 / (n + 2) as f32;
    !rows.is_empty() && rows.iter().enumerate().all(alike)
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
                loudness: vec![vec![1.0]],
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

        // What one sentence shows, another may not.
        let mut two = record(20, 1.0);
        let mut other = record(20, 0.6).sentences.remove(0);
        other.prompt = "b".to_string();
        two.sentences.push(other);
        assert!(Learning::of(vec![two], &[]).notes.is_empty());
    }

    #[test]
    fn heads_that_hand_over_nothing_are_named() {
        let mut record = record(0, 0.6);
        let snapshot = &mut record.sentences[0];
        let pattern = snapshot.patterns[0][0].clone();
        snapshot.patterns[0].push(pattern);
        snapshot.loudness = vec![vec![3.0, 0.02]];
        let notes = Learning::of(vec![record], &[]).notes;
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(notes[0].contains("head 2 of layer 1 ended silent"));
    }

    #[test]
    fn a_jump_of_the_loss_is_named_once() {
        let losses = [(1, 3.0), (2, 2.0), (3, 4.0), (4, 4.1), (5, 1.9)];
        let notes = spikes(&losses);
        assert_eq!(notes.len(), 1);
        assert!(notes[0].contains("4.000 at step 3"), "{notes:?}");
    }
}
