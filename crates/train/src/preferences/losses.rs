//! The losses of preferences and their derivatives, in f64.

use super::settings::{PreferenceLoss, PreferenceSettings};

/// A completion under the model and under the reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ScoredCompletion {
    /// Log probability of its tokens under the model, nats.
    pub(crate) log_prob: f64,
    /// The same under the reference.
    pub(crate) reference: f64,
    /// Number of its tokens.
    pub(crate) tokens: usize,
}

impl ScoredCompletion {
    /// How much more likely the completion is than under the reference, nats.
    pub(crate) fn log_ratio(self) -> f64 {
        self.log_prob - self.reference
    }

    /// The log ratio divided by the number of tokens.
    pub(crate) fn log_ratio_per_token(self) -> f64 {
        self.log_ratio() / self.tokens.max(1) as f64
    }
}

/// A loss with its derivatives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Loss<const N: usize> {
    pub(crate) value: f64,
    /// Derivatives with respect to the log probabilities of the completions.
    pub(crate) slopes: [f64; N],
}

/// `1 / (1 + e^-x)`.
fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 {
        1.0 / (1.0 + (-x).exp())
    } else {
        let e = x.exp();
        e / (1.0 + e)
    }
}

/// `ln(sigmoid(x))`, also where the sigmoid is 0 in f64.
fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

/// The loss of a pair: `-ln sigmoid(beta (r_c - r_r))` with the log ratios r of the chosen and the rejected completion
/// (DPO), or `(r_c / n_c - r_r / n_r - 1 / (2 beta))^2` with their numbers of tokens n (IPO).
pub(crate) fn pair_loss(
    settings: &PreferenceSettings,
    chosen: ScoredCompletion,
    rejected: ScoredCompletion,
) -> Loss<2> {
    let beta = settings.beta;
    if settings.loss == PreferenceLoss::Ipo {
        let difference = chosen.log_ratio_per_token() - rejected.log_ratio_per_token();
        let distance = difference - 1.0 / (2.0 * beta);
        let slope = |completion: ScoredCompletion| 2.0 * distance / completion.tokens.max(1) as f64;
        return Loss {
            value: distance * distance,
            slopes: [slope(chosen), -slope(rejected)],
        };
    }
    let smoothing = settings.label_smoothing;
    let z = beta * (chosen.log_ratio() - rejected.log_ratio());
    let slope = beta * (smoothing * sigmoid(z) - (1.0 - smoothing) * sigmoid(-z));
    Loss {
        value: -(1.0 - smoothing) * log_sigmoid(z) - smoothing * log_sigmoid(-z),
        slopes: [slope, -slope],
    }
}

/// The loss of a rated completion: `w (1 - sigmoid(beta (r - z)))` for a good one and `w (1 - sigmoid(beta (z - r)))` for
/// a bad one, with its log ratio r, the weight w and the divergence from the reference z, a constant (KTO).
pub(crate) fn rated_loss(
    settings: &PreferenceSettings,
    completion: ScoredCompletion,
    is_good: bool,
    divergence: f64,
) -> Loss<1> {
    let (sign, weight) = if is_good {
        (1.0, settings.desirable_weight)
    } else {
        (-1.0, settings.undesirable_weight)
    };
    let z = sign * settings.beta * (completion.log_ratio() - divergence);
    let slope = -weight * sigmoid(z) * sigmoid(-z) * sign * settings.beta;
    Loss {
        value: weight * sigmoid(-z),
        slopes: [slope],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHOSEN: ScoredCompletion = ScoredCompletion {
        log_prob: -10.0,
        reference: -11.0,
        tokens: 5,
    };
    const REJECTED: ScoredCompletion = ScoredCompletion {
        log_prob: -12.0,
        reference: -11.0,
        tokens: 4,
    };

    fn settings(loss: PreferenceLoss, label_smoothing: f64) -> PreferenceSettings {
        PreferenceSettings {
            loss,
            label_smoothing,
            ..PreferenceSettings::default()
        }
    }

    /// The values of the formulas of TRL 1.16, computed in f64 by `PyTorch`.
    #[test]
    fn losses_are_those_of_the_formulas() {
        use PreferenceLoss::{Dpo, Ipo, Kto};
        for (loss, smoothing, expected) in [
            (Dpo, 0.0, 0.598_138_869_4),
            (Dpo, 0.1, 0.618_138_869_4),
            (Ipo, 0.0, 20.7025),
        ] {
            let found = pair_loss(&settings(loss, smoothing), CHOSEN, REJECTED).value;
            assert!((found - expected).abs() < 1e-9, "{loss:?}: {found}");
        }
        let kto = settings(Kto, 0.0);
        let good = rated_loss(&kto, CHOSEN, true, 0.2).value;
        let bad = rated_loss(&kto, REJECTED, false, 0.2).value;
        assert!((good - 0.480_010_659_8).abs() < 1e-9, "{good}");
        assert!((bad - 0.470_035_948_2).abs() < 1e-9, "{bad}");
    }

    #[test]
    fn derivatives_match_finite_differences() {
        let step = 1e-6;
        let moved = |completion: ScoredCompletion, by: f64| ScoredCompletion {
            log_prob: completion.log_prob + by,
            ..completion
        };
        for (loss, smoothing) in [
            (PreferenceLoss::Dpo, 0.0),
            (PreferenceLoss::Dpo, 0.2),
            (PreferenceLoss::Ipo, 0.0),
        ] {
            let settings = settings(loss, smoothing);
            let value =
                |c: f64, r: f64| pair_loss(&settings, moved(CHOSEN, c), moved(REJECTED, r)).value;
            let slopes = pair_loss(&settings, CHOSEN, REJECTED).slopes;
            let differences = [
                value(step, 0.0) - value(-step, 0.0),
                value(0.0, step) - value(0.0, -step),
            ];
            for (slope, difference) in slopes.into_iter().zip(differences) {
                let expected = difference / (2.0 * step);
                assert!(
                    (slope - expected).abs() < 1e-7,
                    "{loss:?}: {slope} {expected}"
                );
            }
        }
        let kto = PreferenceSettings {
            desirable_weight: 1.5,
            ..settings(PreferenceLoss::Kto, 0.0)
        };
        for (completion, is_good) in [(CHOSEN, true), (REJECTED, false), (CHOSEN, false)] {
            let value = |by| rated_loss(&kto, moved(completion, by), is_good, 0.2).value;
            let expected = (value(step) - value(-step)) / (2.0 * step);
            let [slope] = rated_loss(&kto, completion, is_good, 0.2).slopes;
            assert!((slope - expected).abs() < 1e-7, "{slope} {expected}");
        }
    }

    #[test]
    fn extreme_differences_stay_finite() {
        for log_prob in [-1e6, 1e6] {
            let chosen = ScoredCompletion { log_prob, ..CHOSEN };
            let settings = PreferenceSettings::default();
            let loss = pair_loss(&settings, chosen, REJECTED);
            assert!(
                loss.value.is_finite() && loss.slopes[0].is_finite(),
                "{loss:?}"
            );
        }
    }
}
