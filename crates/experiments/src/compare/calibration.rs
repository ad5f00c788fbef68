//! Whether tokens that a model predicts with 70 % come in 70 % of cases.

use nextword_eval::TokenScore;
use serde::{Deserialize, Serialize};

/// Bins of equal width.
const BINS: usize = 15;

/// How well the probabilities of the most likely tokens match how often these come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// The share of tokens that were the most likely one.
    pub accuracy: f64,
    /// The mean probability of the most likely token.
    pub confidence: f64,
    /// The expected calibration error: the mean difference of the two within 15 bins of confidence, weighted by their
    /// tokens (Guo et al. 2017, "On Calibration of Modern Neural Networks"). 0 is perfect.
    pub error: f64,
}

impl Calibration {
    /// The calibration over `scores`.
    ///
    /// ```
    /// use nextword_eval::TokenScore;
    /// use nextword_experiments::compare::Calibration;
    ///
    /// let score = |target| TokenScore { target, nats: 0.0, predicted: 1, confidence: 0.75 };
    /// let calibration = Calibration::of(&[score(1), score(1), score(1), score(0)]);
    /// assert_eq!((calibration.accuracy, calibration.error), (0.75, 0.0));
    /// assert_eq!(Calibration::of(&[score(1), score(0)]).error, 0.25);
    /// ```
    pub fn of(scores: &[TokenScore]) -> Self {
        let mut bins = [(0.0, 0.0); BINS];
        for score in scores {
            let bin = ((score.confidence * BINS as f64) as usize).min(BINS - 1);
            bins[bin].0 += score.confidence;
            bins[bin].1 += f64::from(u8::from(score.predicted == score.target));
        }
        let count = scores.len().max(1) as f64;
        let sum = |value: fn(&(f64, f64)) -> f64| bins.iter().map(value).sum::<f64>() / count;
        Self {
            accuracy: sum(|bin| bin.1),
            confidence: sum(|bin| bin.0),
            error: sum(|bin| (bin.0 - bin.1).abs()),
        }
    }
}
