//! Rotary positions: each pair of a query's and key's numbers is turned by an angle.

use nextword_kernels::RotaryTables;
use serde::{Deserialize, Serialize};

use super::Position;
use crate::ModelError;

/// Details of rotary positions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RotaryConfig {
    /// The slowest wave turns once in about `2 pi base` tokens.
    pub base: f64,
    /// How the angles are stretched for contexts longer than those of training.
    pub scaling: RotaryScaling,
}

impl Default for RotaryConfig {
    fn default() -> Self {
        Self {
            base: 10_000.0,
            scaling: RotaryScaling::None,
        }
    }
}

/// How rotary angles are stretched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RotaryScaling {
    /// Not at all.
    #[default]
    None,
    /// Every place is divided by `factor` (Chen et al. 2023, arXiv 2306.15595).
    Linear {
        /// How many times longer the context becomes.
        factor: f64,
    },
    /// The base grows to `base * factor^(d / (d - 2))`, which slows the slow waves and spares the
    /// fast ones ("NTK-aware", bloc97 2023).
    Ntk {
        /// How many times longer the context becomes.
        factor: f64,
    },
    /// Slow waves are divided by `factor`, fast ones stay, those between are blended (Llama 3.1).
    Llama3 {
        /// How many times longer the context becomes.
        factor: f64,
        /// Waves longer than `original_context_length / low_freq_factor` are slow.
        low_freq_factor: f64,
        /// Waves shorter than `original_context_length / high_freq_factor` are fast.
        high_freq_factor: f64,
        /// The context of the first training, in tokens.
        original_context_length: usize,
    },
}

impl RotaryConfig {
    pub(crate) fn validate(&self, position: Position) -> Result<(), ModelError> {
        if position != Position::Rotary {
            return Ok(());
        }
        if !(self.base.is_finite() && self.base > 0.0) {
            return Err(ModelError::config(
                "rotary.base",
                format!("{} is not positive", self.base),
                "the usual value is 10000.0",
            ));
        }
        let sound = match self.scaling {
            RotaryScaling::None => true,
            RotaryScaling::Linear { factor } | RotaryScaling::Ntk { factor } => {
                factor.is_finite() && factor > 0.0
            }
            RotaryScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_context_length: original,
            } => factor.is_finite() && factor > 0.0 && low > 0.0 && high > low && original > 0,
        };
        if sound {
            return Ok(());
        }
        Err(ModelError::config(
            "rotary.scaling",
            format!("{:?} does not describe a scaling", self.scaling),
            "factors are positive, and high_freq_factor is above low_freq_factor",
        ))
    }

    /// The angle in radians that each of the `head_dim / 2` pairs turns per token.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        let d = head_dim as f64;
        let base = match self.scaling {
            RotaryScaling::Ntk { factor } if head_dim > 2 => self.base * factor.powf(d / (d - 2.0)),
            _ => self.base,
        };
        (0..head_dim / 2)
            .map(|pair| self.scale(base.powf(-2.0 * pair as f64 / d)))
            .collect()
    }

    /// Cosines and sines for `places` places.
    pub(crate) fn tables(&self, places: usize, head_dim: usize) -> RotaryTables {
        RotaryTables::new(&self.frequencies(head_dim), places)
    }

    fn scale(&self, frequency: f64) -> f64 {
        match self.scaling {
            RotaryScaling::None | RotaryScaling::Ntk { .. } => frequency,
            RotaryScaling::Linear { factor } => frequency / factor,
            RotaryScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_context_length: original,
            } => {
                let turns = original as f64 * frequency / std::f64::consts::TAU;
                let fast = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                frequency * (fast + (1.0 - fast) / factor)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_frequencies_are_powers_of_the_base() {
        let frequencies = RotaryConfig::default().frequencies(4);
        assert!((frequencies[0] - 1.0).abs() < 1e-12);
        assert!((frequencies[1] - 0.01).abs() < 1e-12);
    }

    #[test]
    fn llama3_scaling_spares_fast_waves_and_divides_slow_ones() {
        let config = RotaryConfig {
            scaling: RotaryScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_context_length: 64,
            },
            ..RotaryConfig::default()
        };
        let plain = RotaryConfig::default().frequencies(32);
        let scaled = config.frequencies(32);
        assert!((scaled[0] - plain[0]).abs() < 1e-12);
        assert!((scaled[15] - plain[15] / 8.0).abs() < 1e-12);
    }
}
