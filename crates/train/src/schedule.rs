//! The learning rate as a pure function of the step.

use serde::{Deserialize, Serialize};

/// The shape of the learning rate's course after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Stays at the peak.
    Constant,
    /// A straight line down to the floor.
    Linear,
    /// Half a cosine wave down to the floor (Loshchilov and Hutter 2016), where it stays.
    #[default]
    Cosine,
    /// Warm-up, stable, decay: at the peak until the last `decay_steps`, then a straight line down
    /// to the floor (Hu et al. 2024, arXiv 2404.06395).
    Wsd,
}

/// The course of the learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleConfig {
    /// The shape.
    pub kind: ScheduleKind,
    /// The highest learning rate, reached after warm-up.
    pub learning_rate: f64,
    /// The floor that falling shapes reach and hold.
    pub min_learning_rate: f64,
    /// Steps of linear warm-up from near 0 to the peak.
    pub warmup_steps: u64,
    /// The step at which the floor is reached; absent: the run's last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_step: Option<u64>,
    /// Steps of the final descent of `wsd`; absent: a fifth of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay_steps: Option<u64>,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            kind: ScheduleKind::Cosine,
            learning_rate: 1e-3,
            min_learning_rate: 1e-4,
            warmup_steps: 100,
            end_step: None,
            decay_steps: None,
        }
    }
}

impl ScheduleConfig {
    /// The learning rate of update number `step`, counted from 0, in a run of `steps` updates.
    ///
    /// Warm-up is nanoGPT's: `peak * (step + 1) / (warmup + 1)`.
    pub fn learning_rate(&self, step: u64, steps: u64) -> f64 {
        let (peak, floor) = (self.learning_rate, self.min_learning_rate);
        if step < self.warmup_steps {
            return peak * (step + 1) as f64 / (self.warmup_steps + 1) as f64;
        }
        let end = self.end_step.unwrap_or(steps).max(self.warmup_steps);
        let (begin, fall): (u64, fn(f64) -> f64) = match self.kind {
            ScheduleKind::Constant => return peak,
            ScheduleKind::Linear => (self.warmup_steps, |x| 1.0 - x),
            ScheduleKind::Cosine => (self.warmup_steps, |x| {
                0.5 * (1.0 + (std::f64::consts::PI * x).cos())
            }),
            ScheduleKind::Wsd => {
                let decay = self.decay_steps.unwrap_or(end / 5);
                (end.saturating_sub(decay).max(self.warmup_steps), |x| {
                    1.0 - x
                })
            }
        };
        if step >= end {
            return floor;
        }
        if step < begin {
            return peak;
        }
        let progress = (step - begin) as f64 / (end - begin) as f64;
        floor + (peak - floor) * fall(progress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: ScheduleKind) -> ScheduleConfig {
        ScheduleConfig {
            kind,
            warmup_steps: 10,
            ..ScheduleConfig::default()
        }
    }

    #[test]
    fn warm_up_rises_in_a_line_to_the_peak() {
        let config = of(ScheduleKind::Cosine);
        assert!((config.learning_rate(0, 100) - 1e-3 / 11.0).abs() < 1e-12);
        assert!((config.learning_rate(10, 100) - 1e-3).abs() < 1e-12);
    }

    #[test]
    fn cosine_is_half_way_in_the_middle_and_holds_its_floor() {
        let config = of(ScheduleKind::Cosine);
        assert!((config.learning_rate(55, 100) - 5.5e-4).abs() < 1e-12);
        for step in [100, 101, 1000] {
            assert!((config.learning_rate(step, 100) - 1e-4).abs() < 1e-12);
        }
    }

    #[test]
    fn wsd_stays_at_the_peak_until_the_last_fifth() {
        let config = of(ScheduleKind::Wsd);
        assert!((config.learning_rate(79, 100) - 1e-3).abs() < 1e-12);
        assert!((config.learning_rate(90, 100) - 5.5e-4).abs() < 1e-12);
        assert!((config.learning_rate(100, 100) - 1e-4).abs() < 1e-12);
    }

    #[test]
    fn falling_shapes_never_rise_after_warm_up() {
        for kind in [
            ScheduleKind::Linear,
            ScheduleKind::Cosine,
            ScheduleKind::Wsd,
        ] {
            let rates: Vec<_> = (10..200).map(|s| of(kind).learning_rate(s, 100)).collect();
            assert!(rates.windows(2).all(|pair| pair[1] <= pair[0]), "{kind:?}");
        }
    }
}
