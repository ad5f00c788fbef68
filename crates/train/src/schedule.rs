//! The learning rate schedule, a pure function of the step.

use serde::{Deserialize, Serialize};

/// The smallest default warmup of finetuning, where the run is long enough.
const MIN_WARMUP: u64 = 5;

/// The longest default warmup of other runs.
const MAX_WARMUP: u64 = 100;

/// The default warmup of finetuning: a twentieth of the steps, but at least 5; a tenth of a run that is not longer than
/// that.
pub(crate) fn finetuning_warmup(steps: u64) -> u64 {
    let warmup = (steps / 20).max(MIN_WARMUP);
    if warmup < steps { warmup } else { steps / 10 }
}

/// The shape of the learning rate schedule after warmup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Stays at the maximum.
    Constant,
    /// Linear decay to the minimum.
    Linear,
    /// Cosine decay to the minimum (Loshchilov and Hutter 2016).
    #[default]
    Cosine,
    /// Warmup-stable-decay: the maximum until the last `decay_steps`, then linear decay to the
    /// minimum (Hu et al. 2024, arXiv 2404.06395).
    Wsd,
}

/// The learning rate schedule.
///
/// # Example
///
/// ```
/// use nextword_train::ScheduleConfig;
///
/// let schedule = ScheduleConfig { learning_rate: 1e-3, warmup_steps: 100, ..Default::default() };
/// let lr = |step| schedule.learning_rate(step, 1000); // of a run of 1000 steps
/// assert!(lr(0) < lr(50) && lr(50) < lr(100)); // linear warmup
/// assert!((lr(100) - 1e-3).abs() < 1e-12);
/// assert!((lr(550) - 5.5e-4).abs() < 1e-12); // half of the cosine
/// assert!((lr(1000) - 1e-4).abs() < 1e-12); // `min_learning_rate`
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleConfig {
    /// The shape.
    pub kind: ScheduleKind,
    /// Maximum learning rate, reached after warmup.
    pub learning_rate: f64,
    /// Minimum learning rate, reached at the end of the decay and constant from there on.
    pub min_learning_rate: f64,
    /// Steps of linear warmup from near 0 to the maximum. In a configuration that leaves it out, it depends on the
    /// length of the run (see [`default_warmup`](Self::default_warmup)).
    pub warmup_steps: u64,
    /// Step at which the minimum is reached; absent: the last step of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_step: Option<u64>,
    /// Steps of the final decay of `wsd`; absent: a fifth of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay_steps: Option<u64>,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            kind: ScheduleKind::Cosine,
            learning_rate: 1e-3,
            min_learning_rate: 1e-4,
            warmup_steps: MAX_WARMUP,
            end_step: None,
            decay_steps: None,
        }
    }
}

impl ScheduleConfig {
    /// The warmup of a run of `steps` updates whose configuration leaves it out: a tenth of them, but at most 100. Runs
    /// with `[lora]`, and those for a number of epochs, have another one.
    ///
    /// ```
    /// use nextword_train::ScheduleConfig;
    ///
    /// assert_eq!([5, 40, 1000, 5000].map(ScheduleConfig::default_warmup), [0, 4, 100, 100]);
    /// ```
    pub fn default_warmup(steps: u64) -> u64 {
        (steps / 10).min(MAX_WARMUP)
    }

    /// The learning rate of update `step`, counted from 0, in a run of `steps` updates.
    ///
    /// Warmup is nanoGPT's: `max_lr * (step + 1) / (warmup_steps + 1)`.
    pub fn learning_rate(&self, step: u64, steps: u64) -> f64 {
        let (max_lr, min_lr) = (self.learning_rate, self.min_learning_rate);
        if step < self.warmup_steps {
            return max_lr * (step + 1) as f64 / (self.warmup_steps + 1) as f64;
        }
        let end = self.end_step.unwrap_or(steps).max(self.warmup_steps);
        let (decay_start, decay): (u64, fn(f64) -> f64) = match self.kind {
            ScheduleKind::Constant => return max_lr,
            ScheduleKind::Linear => (self.warmup_steps, |x| 1.0 - x),
            ScheduleKind::Cosine => (self.warmup_steps, |x| {
                0.5 * (1.0 + (std::f64::consts::PI * x).cos())
            }),
            ScheduleKind::Wsd => {
                let decay_steps = self.decay_steps.unwrap_or(end / 5);
                (
                    end.saturating_sub(decay_steps).max(self.warmup_steps),
                    |x| 1.0 - x,
                )
            }
        };
        if step >= end {
            return min_lr;
        }
        if step < decay_start {
            return max_lr;
        }
        let progress = (step - decay_start) as f64 / (end - decay_start) as f64;
        min_lr + (max_lr - min_lr) * decay(progress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind) -> ScheduleConfig {
        ScheduleConfig {
            kind,
            warmup_steps: 10,
            ..ScheduleConfig::default()
        }
    }

    #[test]
    fn warmup_is_linear_to_the_maximum() {
        let config = schedule(ScheduleKind::Cosine);
        assert!((config.learning_rate(0, 100) - 1e-3 / 11.0).abs() < 1e-12);
        assert!((config.learning_rate(10, 100) - 1e-3).abs() < 1e-12);
    }

    #[test]
    fn cosine_is_halfway_at_the_middle_then_stays_at_the_minimum() {
        let config = schedule(ScheduleKind::Cosine);
        assert!((config.learning_rate(55, 100) - 5.5e-4).abs() < 1e-12);
        for step in [100, 101, 1000] {
            assert!((config.learning_rate(step, 100) - 1e-4).abs() < 1e-12);
        }
    }

    #[test]
    fn wsd_keeps_the_maximum_until_the_last_fifth() {
        let config = schedule(ScheduleKind::Wsd);
        assert!((config.learning_rate(79, 100) - 1e-3).abs() < 1e-12);
        assert!((config.learning_rate(90, 100) - 5.5e-4).abs() < 1e-12);
        assert!((config.learning_rate(100, 100) - 1e-4).abs() < 1e-12);
    }

    #[test]
    fn decay_never_rises_after_warmup() {
        for kind in [
            ScheduleKind::Linear,
            ScheduleKind::Cosine,
            ScheduleKind::Wsd,
        ] {
            let lrs: Vec<_> = (10..200)
                .map(|s| schedule(kind).learning_rate(s, 100))
                .collect();
            assert!(lrs.windows(2).all(|pair| pair[1] <= pair[0]), "{kind:?}");
        }
    }
}
