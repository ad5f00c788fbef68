//! What a run on preferences reports.

use serde::{Deserialize, Serialize};

use super::losses::ScoredCompletion;

/// Rewards and log probabilities of completions, under the names of Hugging Face's TRL. A reward is `beta` times the
/// difference of the log probabilities under the model and the reference. `None` where there is nothing to average.
///
/// ```
/// use nextword_train::PreferenceMetrics;
///
/// let metrics = PreferenceMetrics { accuracy: Some(0.75), ..PreferenceMetrics::default() };
/// assert_eq!(serde_json::to_string(&metrics)?, r#"{"rewards/accuracies":0.75}"#);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PreferenceMetrics {
    /// Mean reward of the chosen completions; of the good ones for `kto`.
    #[serde(rename = "rewards/chosen", skip_serializing_if = "Option::is_none")]
    pub chosen_reward: Option<f64>,
    /// Mean reward of the rejected completions; of the bad ones for `kto`.
    #[serde(rename = "rewards/rejected", skip_serializing_if = "Option::is_none")]
    pub rejected_reward: Option<f64>,
    /// The share of pairs whose chosen completion has the larger reward.
    #[serde(rename = "rewards/accuracies", skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// The mean reward of chosen minus that of rejected completions.
    #[serde(rename = "rewards/margins", skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// Mean log probability of the chosen completions, nats.
    #[serde(rename = "logps/chosen", skip_serializing_if = "Option::is_none")]
    pub chosen_log_prob: Option<f64>,
    /// Mean log probability of the rejected completions, nats.
    #[serde(rename = "logps/rejected", skip_serializing_if = "Option::is_none")]
    pub rejected_log_prob: Option<f64>,
    /// Mean change of the chosen completions' log probability against the reference, nats per token.
    #[serde(
        rename = "logps/chosen_change",
        skip_serializing_if = "Option::is_none"
    )]
    pub chosen_change: Option<f64>,
    /// The estimated divergence from the reference that the loss of `kto` uses, nats.
    #[serde(rename = "kl", skip_serializing_if = "Option::is_none")]
    pub divergence: Option<f64>,
}

/// Sums over the completions of one side.
#[derive(Clone, Copy, Debug, Default)]
struct CompletionSums {
    count: f64,
    log_ratios: f64,
    log_probs: f64,
    changes: f64,
}

impl CompletionSums {
    fn add(&mut self, completion: ScoredCompletion) {
        self.count += 1.0;
        self.log_ratios += completion.log_ratio();
        self.log_probs += completion.log_prob;
        self.changes += completion.log_ratio_per_token();
    }

    fn mean(&self, sum: f64) -> Option<f64> {
        (self.count > 0.0).then(|| sum / self.count)
    }
}

/// Collects the metrics of a step or a validation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    chosen: CompletionSums,
    rejected: CompletionSums,
    pairs: usize,
    correct: usize,
}

impl Tally {
    pub(crate) fn add_pair(&mut self, chosen: ScoredCompletion, rejected: ScoredCompletion) {
        self.chosen.add(chosen);
        self.rejected.add(rejected);
        self.pairs += 1;
        self.correct += usize::from(chosen.log_ratio() > rejected.log_ratio());
    }

    pub(crate) fn add_rated(&mut self, completion: ScoredCompletion, is_good: bool) {
        let side = if is_good {
            &mut self.chosen
        } else {
            &mut self.rejected
        };
        side.add(completion);
    }

    pub(crate) fn metrics(&self, beta: f64, divergence: Option<f64>) -> PreferenceMetrics {
        let Self {
            chosen, rejected, ..
        } = self;
        let reward = |side: &CompletionSums| side.mean(beta * side.log_ratios);
        let (chosen_reward, rejected_reward) = (reward(chosen), reward(rejected));
        PreferenceMetrics {
            chosen_reward,
            rejected_reward,
            accuracy: (self.pairs > 0).then(|| self.correct as f64 / self.pairs as f64),
            margin: chosen_reward.zip(rejected_reward).map(|(c, r)| c - r),
            chosen_log_prob: chosen.mean(chosen.log_probs),
            rejected_log_prob: rejected.mean(rejected.log_probs),
            chosen_change: chosen.mean(chosen.changes),
            divergence,
        }
    }
}

/// A fall of the chosen completions' log probability per token, in nats, from which a run warns.
const MAX_FALL: f64 = 0.3;
/// A loss below which a run with perfect accuracy warns.
const MIN_LOSS: f64 = 0.01;

/// What a run on preferences warns about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PreferenceWarning {
    /// The chosen completions become less likely.
    Fall,
    /// Nothing is left to learn.
    Learned,
}

impl PreferenceMetrics {
    /// What a validation with these metrics and the loss `loss` warns about.
    pub(crate) fn warnings(&self, loss: f64) -> Vec<(PreferenceWarning, String)> {
        let mut warnings = Vec::new();
        if let Some(change) = self.chosen_change.filter(|change| *change < -MAX_FALL) {
            let warning = format!(
                "the chosen completions have become less likely, by {:.2} nats per token: the model learns to avoid \
                 the rejected ones at any price; hint: lower schedule.learning_rate, raise preferences.beta, or \
                 finetune on the chosen completions first",
                -change
            );
            warnings.push((PreferenceWarning::Fall, warning));
        }
        if self.accuracy.is_some_and(|accuracy| accuracy >= 1.0) && loss < MIN_LOSS {
            let warning = format!(
                "the model prefers all chosen completions already, and the loss is {loss:.4}: more steps hardly teach \
                 more; hint: stop earlier (validation.patience), or check that the pairs do not differ in their form"
            );
            warnings.push((PreferenceWarning::Learned, warning));
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completion(log_prob: f64, reference: f64, tokens: usize) -> ScoredCompletion {
        ScoredCompletion {
            log_prob,
            reference,
            tokens,
        }
    }

    #[test]
    fn metrics_are_means_over_completions() {
        let mut tally = Tally::default();
        tally.add_pair(completion(-4.0, -5.0, 2), completion(-7.0, -6.0, 3));
        tally.add_pair(completion(-9.0, -6.0, 3), completion(-9.0, -6.0, 2)); // equal: not correct
        let found = tally.metrics(0.1, None);
        let close = |found: Option<f64>, expected: f64| {
            found.is_some_and(|found| (found - expected).abs() < 1e-12)
        };
        assert!(close(found.chosen_reward, -0.1) && close(found.rejected_reward, -0.2));
        assert!(close(found.margin, 0.1) && close(found.accuracy, 0.5));
        assert!(close(found.chosen_log_prob, -6.5) && close(found.rejected_log_prob, -8.0));
        assert!(close(found.chosen_change, -0.25));
        let mut rated = Tally::default();
        rated.add_rated(completion(-4.0, -5.0, 2), true);
        let found = rated.metrics(0.5, Some(0.3));
        assert!(close(found.chosen_reward, 0.5) && close(found.divergence, 0.3));
        assert_eq!(
            (found.accuracy, found.margin, found.rejected_reward),
            (None, None, None)
        );
    }

    #[test]
    fn falling_log_probabilities_and_a_vanishing_loss_are_warned_about() {
        let metrics = |change, accuracy| PreferenceMetrics {
            chosen_change: Some(change),
            accuracy: Some(accuracy),
            ..PreferenceMetrics::default()
        };
        assert_eq!(metrics(-0.29, 1.0).warnings(0.02), []);
        let (kind, warning) = &metrics(-0.31, 0.9).warnings(0.001)[0];
        assert!(*kind == PreferenceWarning::Fall && warning.contains("0.31 nats per token"));
        let (kind, warning) = &metrics(0.0, 1.0).warnings(0.009)[0];
        assert!(*kind == PreferenceWarning::Learned && warning.contains("0.0090"));
    }
}
