//! The table `[preferences]` of a configuration.

use serde::{Deserialize, Serialize};

use crate::TrainError;

/// Loss of a run on preferences. Without this table, a run is supervised.
///
/// ```
/// use nextword_train::{PreferenceLoss, parse_config};
///
/// let text = "
///     start_from = 'models/support'
///     data.conversations = 'pairs.jsonl'
///     [preferences]
///     beta = 0.2
/// ";
/// let config = parse_config(text, "support.toml".as_ref(), &[])?;
/// let preferences = config.preferences.unwrap();
/// assert_eq!((preferences.loss, preferences.beta), (PreferenceLoss::Dpo, 0.2));
/// # Ok::<(), nextword_train::TrainError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PreferenceSettings {
    /// `dpo`, `ipo` or `kto`.
    pub loss: PreferenceLoss,
    /// How strongly the model is held to the reference: larger values allow less change.
    pub beta: f64,
    /// The share of pairs that are assumed to be labeled the wrong way around, at least 0 and below 0.5 (`dpo`; Mitchell
    /// 2023, conservative DPO).
    pub label_smoothing: f64,
    /// Weight of the loss of good completions (`kto`).
    pub desirable_weight: f64,
    /// Weight of the loss of bad completions (`kto`).
    pub undesirable_weight: f64,
}

/// A loss on preferences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PreferenceLoss {
    /// Direct preference optimization of pairs (Rafailov et al. 2023, arXiv 2305.18290).
    #[default]
    Dpo,
    /// Identity preference optimization of pairs (Azar et al. 2023, arXiv 2310.12036), with log probabilities per token
    /// as in TRL.
    Ipo,
    /// Kahneman-Tversky optimization of single completions that are good or bad (Ethayarajh et al. 2024,
    /// arXiv 2402.01306).
    Kto,
}

impl PreferenceLoss {
    /// Whether the loss compares two completions of a prompt; otherwise it rates single ones.
    pub fn is_pairwise(self) -> bool {
        self != Self::Kto
    }
}

impl Default for PreferenceSettings {
    fn default() -> Self {
        Self {
            loss: PreferenceLoss::default(),
            beta: 0.1,
            label_smoothing: 0.0,
            desirable_weight: 1.0,
            undesirable_weight: 1.0,
        }
    }
}

impl PreferenceSettings {
    /// A warning if the weighted numbers of good and bad completions are far from each other. The paper on KTO advises a
    /// ratio from 1 to 4/3.
    pub(crate) fn balance_warning(&self, good: usize, bad: usize) -> Option<String> {
        let [weighted_good, weighted_bad] = [
            self.desirable_weight * good as f64,
            self.undesirable_weight * bad as f64,
        ];
        let ratio = weighted_good / weighted_bad;
        if (0.75..=1.5).contains(&ratio) {
            return None;
        }
        let hint = if good == 0 || bad == 0 {
            "add completions of the other kind".to_string()
        } else if ratio < 1.0 {
            let weight = weighted_bad / good as f64;
            format!("set preferences.desirable_weight = {weight:.2}")
        } else {
            let weight = weighted_good / bad as f64;
            format!("set preferences.undesirable_weight = {weight:.2}")
        };
        Some(format!(
            "{good} good and {bad} bad completions count very differently in the loss; hint: {hint}"
        ))
    }

    pub(crate) fn validate(&self) -> Result<(), TrainError> {
        let positive = [
            ("preferences.beta", self.beta, "0.1 is common"),
            (
                "preferences.desirable_weight",
                self.desirable_weight,
                "1.0 is the default",
            ),
            (
                "preferences.undesirable_weight",
                self.undesirable_weight,
                "1.0 is the default",
            ),
        ];
        for (key, value, hint) in positive {
            if !(value.is_finite() && value > 0.0) {
                return Err(TrainError::config(
                    key,
                    format!("must be a finite number above 0, but is {value}"),
                    hint,
                ));
            }
        }
        if !(0.0..0.5).contains(&self.label_smoothing) {
            return Err(TrainError::config(
                "preferences.label_smoothing",
                format!(
                    "must be at least 0 and below 0.5, but is {}",
                    self.label_smoothing
                ),
                "0.1 assumes that a tenth of the pairs are labeled the wrong way around",
            ));
        }
        let is_set = |value: f64| (value - 1.0).abs() > f64::EPSILON;
        let weights = [self.desirable_weight, self.undesirable_weight];
        let (key, needed) = match self.loss {
            PreferenceLoss::Dpo | PreferenceLoss::Ipo if weights.into_iter().any(is_set) => {
                ("desirable_weight", "kto")
            }
            PreferenceLoss::Ipo | PreferenceLoss::Kto if self.label_smoothing > 0.0 => {
                ("label_smoothing", "dpo")
            }
            _ => return Ok(()),
        };
        Err(TrainError::config(
            format!("preferences.{key}"),
            format!("has an effect with preferences.loss = \"{needed}\" only"),
            "remove it, or set that loss",
        ))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn unbalanced_ratings_are_warned_about() {
        let settings = PreferenceSettings {
            loss: PreferenceLoss::Kto,
            ..PreferenceSettings::default()
        };
        assert_eq!(settings.balance_warning(10, 10), None);
        assert_eq!(settings.balance_warning(13, 10), None);
        let warning = settings.balance_warning(10, 40).unwrap();
        assert!(
            warning.ends_with("preferences.desirable_weight = 4.00"),
            "{warning}"
        );
        let heavier = PreferenceSettings {
            desirable_weight: 4.0,
            ..settings
        };
        assert_eq!(heavier.balance_warning(10, 40), None);
        assert!(
            settings
                .balance_warning(40, 10)
                .unwrap()
                .contains("undesirable_weight = 4.00")
        );
        assert!(
            settings
                .balance_warning(3, 0)
                .unwrap()
                .contains("other kind")
        );
    }
}
