//! Rotary position embedding (`RoPE`): rotates each pair of query and key elements by an angle.

use burn::tensor::Tensor;
use nextword_kernels::RotaryTables;
use serde::{Deserialize, Serialize};

use super::Position;
use crate::{ModelConfig, ModelError};

/// Settings of rotary positions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RotaryConfig {
    /// Base of the frequencies (`rope_theta`): the longest wavelength is about `2 pi base` tokens.
    pub base: f64,
    /// Frequency scaling for contexts longer than in training.
    pub scaling: RotaryScaling,
    /// Number of elements of each head that are rotated; the rest is left unchanged (partial rotary,
    /// GPT-NeoX). Absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// Base of layers with a sliding window, which use no scaling (Gemma 3); absent: `base` and
    /// `scaling`, as in the other layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_base: Option<f64>,
}

impl Default for RotaryConfig {
    fn default() -> Self {
        Self {
            base: 10_000.0,
            scaling: RotaryScaling::None,
            width: None,
            local_base: None,
        }
    }
}

/// How the rotary frequencies are scaled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RotaryScaling {
    /// No scaling.
    #[default]
    None,
    /// Divides positions by `factor` (position interpolation, Chen et al. 2023, arXiv 2306.15595).
    Linear {
        /// Factor by which the context is extended.
        factor: f64,
    },
    /// Raises the base to `base * factor^(d / (d - 2))`, which mainly lowers the low frequencies
    /// ("NTK-aware", bloc97 2023).
    Ntk {
        /// Factor by which the context is extended.
        factor: f64,
    },
    /// Divides low frequencies by `factor`, leaves high ones unchanged, and interpolates in between
    /// (Llama 3.1).
    Llama3 {
        /// Factor by which the context is extended.
        factor: f64,
        /// Wavelengths above `original_context_length / low_freq_factor` count as low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original_context_length / high_freq_factor` count as high frequencies.
        high_freq_factor: f64,
        /// Context length of the original training, in tokens.
        original_context_length: usize,
    },
    /// `YaRN` (Peng et al. 2023, arXiv 2309.00071): divides frequencies with fewer than `beta_slow`
    /// rotations in the original context by `factor`, leaves those with more than `beta_fast`
    /// unchanged, and interpolates linearly over the pairs in between. Scales scores by
    /// `attention_factor` squared.
    Yarn {
        /// Factor by which the context is extended.
        factor: f64,
        /// Context length of the original training, in tokens.
        original_context_length: usize,
        /// Rotations above which a frequency is high, usually 32.
        beta_fast: f64,
        /// Rotations below which a frequency is low, usually 1.
        beta_slow: f64,
        /// Factor on queries and on keys, usually `0.1 ln(factor) + 1`.
        attention_factor: f64,
        /// Round the bounds of the interpolation to whole pairs.
        truncate: bool,
    },
}

impl RotaryConfig {
    pub(crate) fn validate(&self, position: Position, head_dim: usize) -> Result<(), ModelError> {
        if position != Position::Rotary {
            return Ok(());
        }
        let bases = [
            ("rotary.base", Some(self.base)),
            ("rotary.local_base", self.local_base),
        ];
        for (key, base) in bases {
            if let Some(base) = base
                && !(base.is_finite() && base > 0.0)
            {
                return Err(ModelError::config(
                    key,
                    format!("{base} is not a positive, finite number"),
                    "the usual value is 10000.0",
                ));
            }
        }
        if let Some(width) = self.width
            && (width == 0 || width > head_dim || !width.is_multiple_of(2))
        {
            return Err(ModelError::config(
                "rotary.width",
                format!("{width} is not an even number from 2 to head_dim = {head_dim}"),
                "leave it out to rotate all elements of a head",
            ));
        }
        let is_valid = match self.scaling {
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
            RotaryScaling::Yarn {
                factor,
                original_context_length: original,
                beta_fast,
                beta_slow,
                attention_factor,
                truncate: _,
            } => {
                let factors = [factor, beta_slow, attention_factor];
                let is_ordered = beta_fast > beta_slow && beta_fast.is_finite();
                let positive = factors.iter().all(|n| n.is_finite() && *n > 0.0);
                positive && is_ordered && original > 0
            }
        };
        if !is_valid {
            return Err(ModelError::config(
                "rotary.scaling",
                format!("{:?} is not a valid scaling", self.scaling),
                "use positive factors, high_freq_factor above low_freq_factor and beta_fast above \
                 beta_slow",
            ));
        }
        self.check_partial_factor(head_dim)
    }

    /// `YaRN`'s factor belongs to the rotated elements. Here it scales the scores, which is the same only
    /// if all elements are rotated.
    #[allow(clippy::float_cmp)] // Compares a stored value.
    fn check_partial_factor(&self, head_dim: usize) -> Result<(), ModelError> {
        let factor = self.attention_factor();
        match self.width {
            Some(width) if width < head_dim && factor != 1.0 => Err(ModelError::config(
                "rotary.scaling",
                format!(
                    "attention_factor = {factor} scales only the {width} rotated elements of {head_dim}, \
                     which nextword does not support"
                ),
                "rotate all elements, or use attention_factor = 1.0",
            )),
            _ => Ok(()),
        }
    }

    /// The rotation of each pair of elements per token, in radians. There are `width / 2` pairs, or
    /// `head_dim / 2` without a width.
    ///
    /// # Example
    ///
    /// ```
    /// use nextword_model::RotaryConfig;
    ///
    /// let frequencies = RotaryConfig::default().frequencies(8); // one per pair, radians per token
    /// assert_eq!(frequencies.len(), 4);
    /// assert!((frequencies[0] - 1.0).abs() < 1e-12);
    /// assert!((frequencies[2] - 10_000f64.powf(-0.5)).abs() < 1e-12); // base^(-2 i / head_dim)
    /// ```
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        let head_dim = self.width.unwrap_or(head_dim);
        let d = head_dim as f64;
        if let RotaryScaling::Yarn { .. } = self.scaling {
            return self.yarn_frequencies(head_dim);
        }
        let base = match self.scaling {
            RotaryScaling::Ntk { factor } if head_dim > 2 => self.base * factor.powf(d / (d - 2.0)),
            _ => self.base,
        };
        (0..head_dim / 2)
            .map(|pair| self.scale(base.powf(-2.0 * pair as f64 / d)))
            .collect()
    }

    fn yarn_frequencies(&self, head_dim: usize) -> Vec<f64> {
        let unscaled = Self {
            scaling: RotaryScaling::None,
            ..*self
        };
        let unscaled = unscaled.frequencies(head_dim);
        let RotaryScaling::Yarn {
            factor,
            original_context_length,
            beta_fast,
            beta_slow,
            truncate,
            ..
        } = self.scaling
        else {
            return unscaled;
        };
        // The fractional index of the pair with this many rotations in the original context.
        let d = head_dim as f64;
        let pair = |rotations: f64| {
            let inverse_frequency =
                original_context_length as f64 / (rotations * std::f64::consts::TAU);
            d * inverse_frequency.ln() / (2.0 * self.base.ln())
        };
        let (mut low, mut high) = (pair(beta_fast), pair(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(d - 1.0));
        let width = if (high - low).abs() > 0.0 {
            high - low
        } else {
            0.001
        };
        let scale = |(pair, frequency): (usize, f64)| {
            let interpolated = ((pair as f64 - low) / width).clamp(0.0, 1.0);
            frequency * (1.0 - interpolated + interpolated / factor)
        };
        unscaled.into_iter().enumerate().map(scale).collect()
    }

    /// Factor on queries and keys; 1 except with `YaRN`.
    pub(crate) fn attention_factor(&self) -> f64 {
        match self.scaling {
            RotaryScaling::Yarn {
                attention_factor, ..
            } => attention_factor,
            _ => 1.0,
        }
    }

    /// The [`frequencies`](Self::frequencies) of layers with a sliding window.
    pub fn local_frequencies(&self, head_dim: usize) -> Vec<f64> {
        let local = self.local_base.map_or(*self, |base| Self {
            base,
            scaling: RotaryScaling::None,
            ..*self
        });
        local.frequencies(head_dim)
    }

    fn scale(&self, frequency: f64) -> f64 {
        match self.scaling {
            RotaryScaling::None | RotaryScaling::Ntk { .. } | RotaryScaling::Yarn { .. } => {
                frequency
            }
            RotaryScaling::Linear { factor } => frequency / factor,
            RotaryScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_context_length: original,
            } => {
                let rotations = original as f64 * frequency / std::f64::consts::TAU;
                let unscaled = ((rotations - low) / (high - low)).clamp(0.0, 1.0);
                frequency * (unscaled + (1.0 - unscaled) / factor)
            }
        }
    }
}

/// Cosine and sine tables for every position of the context.
#[derive(Clone, Debug)]
pub(crate) struct Rope {
    global: RotaryTables,
    local: Option<RotaryTables>,
    width: usize,
}

impl Rope {
    pub(crate) fn new(config: &ModelConfig) -> Self {
        let (rotary, head_dim) = (config.rotary, config.head_dim());
        let tables = |frequencies: Vec<f64>| RotaryTables::new(&frequencies, config.context_length);
        Self {
            global: tables(rotary.frequencies(head_dim)),
            local: rotary
                .local_base
                .map(|_| tables(rotary.local_frequencies(head_dim))),
            width: rotary.width.unwrap_or(head_dim),
        }
    }

    /// Rotates `x`, `[batch, seq, heads, head_dim]`, whose rows start at the positions `offsets`.
    pub(crate) fn apply(&self, x: Tensor<4>, is_local: bool, offsets: &[usize]) -> Tensor<4> {
        let tables = match &self.local {
            Some(local) if is_local => local,
            _ => &self.global,
        };
        let rest = x.dims()[3] - self.width;
        if rest == 0 {
            return nextword_kernels::rotate(x, tables, offsets);
        }
        let unrotated = x.clone().narrow(3, self.width, rest);
        let rotated = nextword_kernels::rotate(x.narrow(3, 0, self.width), tables, offsets);
        Tensor::cat(vec![rotated, unrotated], 3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unscaled_frequencies_are_powers_of_the_base() {
        let frequencies = RotaryConfig::default().frequencies(4);
        assert!((frequencies[0] - 1.0).abs() < 1e-12);
        assert!((frequencies[1] - 0.01).abs() < 1e-12);
    }

    #[test]
    fn llama3_scaling_divides_only_low_frequencies() {
        let config = RotaryConfig {
            scaling: RotaryScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_context_length: 64,
            },
            ..RotaryConfig::default()
        };
        let unscaled = RotaryConfig::default().frequencies(32);
        let scaled = config.frequencies(32);
        assert!((scaled[0] - unscaled[0]).abs() < 1e-12);
        assert!((scaled[15] - unscaled[15] / 8.0).abs() < 1e-12);
    }
}
