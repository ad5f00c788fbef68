//! Attention and predictions for probe sentences over the training of a run.

use nextword_generate::{TextGenerator, TextOptions};
use nextword_model::Architecture;
use serde::{Deserialize, Serialize};

use crate::graph::PROBABILITIES;
use crate::{ExplainError, Explainer, Op, TokenProb};

/// Number of most likely next tokens to record.
const TOP_TOKENS: usize = 6;

/// A loss above this multiple of the lowest earlier one is a spike.
const SPIKE: f64 = 1.5;

/// An attention weight above this counts as 1.
const SATURATED: f32 = 0.999;

/// Attention and predictions of one model for one sentence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The sentence.
    pub prompt: String,
    /// Its tokens.
    pub tokens: Vec<String>,
    /// Attention weights by layer, head, query and key; 0 where masked.
    pub patterns: Vec<Vec<Vec<Vec<f32>>>>,
    /// The most likely next tokens at each position.
    #[serde(rename = "next")]
    pub predictions: Vec<Vec<TokenProb>>,
    /// Mean L2 norm of each head's output, by layer. Absent in snapshots of older versions.
    #[serde(rename = "loudness", default)]
    pub head_norms: Vec<Vec<f32>>,
}

/// The snapshots of one training step: a file in the run's `probes` folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeStep {
    /// Number of optimizer steps.
    pub step: u64,
    /// The latest training loss.
    pub loss: Option<f64>,
    /// One snapshot per sentence.
    #[serde(rename = "sentences")]
    pub snapshots: Vec<Snapshot>,
}

/// All snapshots of a run, by sentence.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TrainingHistory {
    /// The sentences, each with its snapshots by step.
    pub sentences: Vec<SentenceHistory>,
    /// Observations, as text.
    pub notes: Vec<String>,
}

/// The snapshots of one sentence over training.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SentenceHistory {
    /// The sentence.
    pub prompt: String,
    /// Its snapshots, ordered by step.
    pub steps: Vec<TrainingStep>,
}

/// The snapshot of one training step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainingStep {
    /// Number of optimizer steps.
    pub step: u64,
    /// The latest training loss.
    pub loss: Option<f64>,
    /// Attention and predictions at that step.
    #[serde(flatten)]
    pub snapshot: Snapshot,
}

/// Takes a snapshot of attention and predictions for `prompt`.
///
/// # Errors
/// The errors of [`Explainer::explain`]; [`ExplainError::Model`] for models that do not continue their prompt.
pub fn snapshot(
    generator: TextGenerator,
    prompt: &str,
    options: &TextOptions,
) -> Result<Snapshot, ExplainError> {
    let continuing = [Architecture::Decoder, Architecture::Prefix];
    let config = generator.model().config();
    config.require(&continuing, "record attention during training")?;
    let explainer = Explainer::new(generator);
    let explanation = explainer.explain(prompt, options)?;
    let trace = &explanation.trace;
    let seq = trace.prompt_len;
    let patterns = trace
        .graph
        .iter()
        .filter(|node| node.is_square() && matches!(node.op, Op::Softmax { .. }));
    let patterns = patterns.map(|node| {
        let value = trace.value(&node.name);
        let row = |head: usize, query: usize| {
            let row = &value.row(head * trace.ids.len() + query)[..seq];
            // Four decimals are enough for plots.
            row.iter()
                .map(|x| ((x * 1e4).round() / 1e4) as f32)
                .collect()
        };
        (0..node.shape[0])
            .map(|head| (0..seq).map(|query| row(head, query)).collect())
            .collect()
    });
    let probabilities = trace.value(PROBABILITIES);
    let head_outputs = trace.graph.iter();
    let head_outputs = head_outputs.filter(|node| matches!(node.op, Op::WeightedSum { .. }));
    let head_norms = head_outputs.map(|node| {
        let value = trace.value(&node.name);
        let norm = |row: usize| value.row(row).iter().map(|x| x * x).sum::<f64>().sqrt();
        let rows = trace.ids.len();
        (0..node.shape[0])
            .map(|head| {
                let norms = (0..seq).map(|position| norm(head * rows + position));
                (norms.sum::<f64>() / seq as f64) as f32
            })
            .collect()
    });
    Ok(Snapshot {
        head_norms: head_norms.collect(),
        prompt: prompt.to_string(),
        tokens: trace.ids[..seq]
            .iter()
            .map(|id| explainer.token_text(*id))
            .collect(),
        patterns: patterns.collect(),
        predictions: (0..seq)
            .map(|position| explanation.top_tokens(probabilities.row(position), TOP_TOKENS))
            .collect(),
    })
}

impl TrainingHistory {
    /// Builds the history from the probe files of a run. `losses` are its training losses by step.
    ///
    /// # Example
    ///
    /// ```
    /// # use nextword_explain::history::{ProbeStep, TrainingHistory, snapshot};
    /// # use nextword_generate::{TextGenerator, TextOptions};
    /// # let model = nextword_model::ModelDir::open("../../docs/models/statquest".as_ref())?;
    /// # let generator = TextGenerator::open(&model, &burn::tensor::Device::flex())?;
    /// let snapshot = snapshot(generator, "what is statquest", &TextOptions::default())?;
    /// let probe = |step| ProbeStep { step, loss: None, snapshots: vec![snapshot.clone()] };
    /// let losses = [(0, 1.6), (10, 0.4), (20, 0.9)];
    /// let history = TrainingHistory::from_probes(vec![probe(20), probe(0)], &losses);
    /// assert_eq!(history.sentences[0].steps[1].step, 20); // sorted
    /// assert!(history.notes[0].starts_with("the loss jumped to 0.900 at step 20"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_probes(mut probes: Vec<ProbeStep>, losses: &[(u64, f64)]) -> Self {
        probes.sort_by_key(|probe| probe.step);
        let mut history = Self {
            sentences: Vec::new(),
            notes: loss_spikes(losses),
        };
        for probe in probes {
            for snapshot in probe.snapshots {
                let at = history
                    .sentences
                    .iter()
                    .position(|sentence| sentence.prompt == snapshot.prompt)
                    .unwrap_or_else(|| {
                        history.sentences.push(SentenceHistory {
                            prompt: snapshot.prompt.clone(),
                            steps: Vec::new(),
                        });
                        history.sentences.len() - 1
                    });
                history.sentences[at].steps.push(TrainingStep {
                    step: probe.step,
                    loss: probe.loss,
                    snapshot,
                });
            }
        }
        history.notes.extend(history.head_notes());
        history
    }

    /// Notes on heads that are inactive, saturated or uniform at the last step in every sentence.
    fn head_notes(&self) -> Vec<String> {
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
                let holds = |property: fn(&Snapshot, usize, usize) -> bool| {
                    last.iter().all(|snapshot| property(snapshot, layer, head))
                };
                if holds(is_inactive) {
                    Some(format!(
                        "{name} ended inactive: its output is less than a hundredth of the strongest head's"
                    ))
                } else if holds(is_saturated) {
                    Some(format!(
                        "{name} ended saturated: each row attends to a single token"
                    ))
                } else if holds(is_uniform) {
                    Some(format!(
                        "{name} ended uniform: it attends to all tokens equally"
                    ))
                } else {
                    None
                }
            })
            .collect()
    }
}

fn is_inactive(snapshot: &Snapshot, layer: usize, head: usize) -> bool {
    let Some(heads) = snapshot.head_norms.get(layer) else {
        return false; // Recorded by an older version.
    };
    let max_norm = heads.iter().copied().fold(0.0, f32::max);
    heads
        .get(head)
        .is_some_and(|norm| *norm < 0.01 * max_norm || max_norm <= 0.0)
}

/// The attention rows of a head without the first, which has only one key. Empty for short sentences.
fn attention_rows(snapshot: &Snapshot, layer: usize, head: usize) -> &[Vec<f32>] {
    let heads = snapshot.patterns.get(layer);
    let rows = heads
        .and_then(|heads| heads.get(head))
        .filter(|rows| rows.len() >= 4);
    rows.map_or(&[][..], |rows| &rows[1..])
}

fn max_weight(row: &[f32]) -> f32 {
    row.iter().copied().fold(0.0, f32::max)
}

fn is_saturated(snapshot: &Snapshot, layer: usize, head: usize) -> bool {
    let rows = attention_rows(snapshot, layer, head);
    !rows.is_empty() && rows.iter().all(|row| max_weight(row) > SATURATED)
}

fn is_uniform(snapshot: &Snapshot, layer: usize, head: usize) -> bool {
    let rows = attention_rows(snapshot, layer, head);
    let equal = |(n, row): (usize, &Vec<f32>)| max_weight(row) < 1.05 / (n + 2) as f32;
    !rows.is_empty() && rows.iter().enumerate().all(equal)
}

/// Notes on jumps of the loss.
fn loss_spikes(losses: &[(u64, f64)]) -> Vec<String> {
    let mut notes = Vec::new();
    let mut lowest = f64::INFINITY;
    let mut in_spike = false;
    for (step, loss) in losses {
        let is_spike = *loss > SPIKE * lowest && *loss > lowest + 0.1;
        if is_spike && !in_spike {
            notes.push(format!(
                "the loss jumped to {loss:.3} at step {step} (lowest so far: {lowest:.3}); try a lower \
                 learning rate or gradient clipping"
            ));
        }
        in_spike = is_spike;
        lowest = lowest.min(*loss);
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe_step(step: u64, weight: f32) -> ProbeStep {
        let row = |n: usize| {
            let mut row = vec![0.0; 4];
            row[n] = weight;
            row
        };
        ProbeStep {
            step,
            loss: Some(1.0),
            snapshots: vec![Snapshot {
                prompt: "a".to_string(),
                tokens: vec!["a".to_string(); 4],
                patterns: vec![vec![(0..4).map(row).collect()]],
                predictions: vec![Vec::new(); 4],
                head_norms: vec![vec![1.0]],
            }],
        }
    }

    #[test]
    fn steps_are_sorted_and_saturated_heads_noted() {
        let history =
            TrainingHistory::from_probes(vec![probe_step(20, 1.0), probe_step(0, 0.4)], &[]);
        let steps: Vec<u64> = history.sentences[0].steps.iter().map(|s| s.step).collect();
        assert_eq!(steps, [0, 20]);
        assert!(history.notes[0].contains("head 1 of layer 1 ended saturated"));
        let healthy = TrainingHistory::from_probes(vec![probe_step(0, 0.6)], &[]);
        assert!(healthy.notes.is_empty());

        // A head is noted only if the property holds for every sentence.
        let mut two = probe_step(20, 1.0);
        let mut other = probe_step(20, 0.6).snapshots.remove(0);
        other.prompt = "b".to_string();
        two.snapshots.push(other);
        assert!(
            TrainingHistory::from_probes(vec![two], &[])
                .notes
                .is_empty()
        );
    }

    #[test]
    fn inactive_heads_are_noted() {
        let mut probe = probe_step(0, 0.6);
        let snapshot = &mut probe.snapshots[0];
        let pattern = snapshot.patterns[0][0].clone();
        snapshot.patterns[0].push(pattern);
        snapshot.head_norms = vec![vec![3.0, 0.02]];
        let notes = TrainingHistory::from_probes(vec![probe], &[]).notes;
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(notes[0].contains("head 2 of layer 1 ended inactive"));
    }

    #[test]
    fn a_loss_spike_is_noted_once() {
        let losses = [(1, 3.0), (2, 2.0), (3, 4.0), (4, 4.1), (5, 1.9)];
        let notes = loss_spikes(&losses);
        assert_eq!(notes.len(), 1);
        assert!(notes[0].contains("4.000 at step 3"), "{notes:?}");
    }
}
