//! Rotary positions: each pair of a query's and key's numbers is turned by an angle.

use burn::tensor::Tensor;
use nextword_kernels::RotaryTables;
use serde::{Deserialize, Serialize};

use super::Position;
use crate::{ModelConfig, ModelError};

/// Details of rotary positions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RotaryConfig {
    /// The slowest wave turns once in about `2 pi base` tokens.
    pub base: f64,
    /// How the angles are stretched for contexts longer than those of training.
    pub scaling: RotaryScaling,
    /// So many numbers of each head are turned, the others stay (GPT-NeoX); absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// The base of layers with a sliding window, whose angles are not stretched (Gemma 3); absent:
    /// they are like the others.
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
    /// Waves that turn fewer than `beta_slow` times in the first context are divided by `factor`,
    /// those that turn more than `beta_fast` times stay, between them the share falls evenly from
    /// wave to wave; similarities grow by `attention_factor` squared (`YaRN`, Peng et al. 2023,
    /// arXiv 2309.00071).
    Yarn {
        /// How many times longer the context becomes.
        factor: f64,
        /// The context of the first training, in tokens.
        original_context_length: usize,
        /// Turns of a fast wave, usually 32.
        beta_fast: f64,
        /// Turns of a slow wave, usually 1.
        beta_slow: f64,
        /// Factor on queries and keys, usually `0.1 ln(factor) + 1`.
        attention_factor: f64,
        /// The borders between fast and slow are whole numbers of pairs.
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
                    format!("{base} is not positive"),
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
                "leave it out to turn all numbers of a head",
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
            RotaryScaling::Yarn {
                factor,
                original_context_length: original,
                beta_fast,
                beta_slow,
                attention_factor,
                truncate: _,
            } => {
                let positive = [factor, beta_slow, attention_factor];
                let spread = beta_fast > beta_slow && beta_fast.is_finite();
                // Queries and keys as a whole grow: all their numbers have to be turned.
                let whole = self.width.is_none() && self.local_base.is_none();
                let positive = positive.iter().all(|n| n.is_finite() && *n > 0.0);
                positive && spread && whole && original > 0
            }
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

    /// The angle in radians that each pair of a head's numbers turns per token: as many as half of
    /// `width`, or of `head_dim`.
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
        let plain = Self {
            scaling: RotaryScaling::None,
            ..*self
        };
        let plain = plain.frequencies(head_dim);
        let RotaryScaling::Yarn {
            factor,
            original_context_length,
            beta_fast,
            beta_slow,
            truncate,
            ..
        } = self.scaling
        else {
            return plain;
        };
        // The pair whose wave turns so many times in the first context, as a broken number.
        let d = head_dim as f64;
        let pair = |turns: f64| {
            let wave = original_context_length as f64 / (turns * std::f64::consts::TAU);
            d * wave.ln() / (2.0 * self.base.ln())
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
            let slow = ((pair as f64 - low) / width).clamp(0.0, 1.0);
            frequency * (1.0 - slow + slow / factor)
        };
        plain.into_iter().enumerate().map(scale).collect()
    }

    /// Factor on queries and keys, which `YaRN` alone has.
    pub(crate) fn attention_factor(&self) -> f64 {
        match self.scaling {
            RotaryScaling::Yarn {
                attention_factor, ..
            } => attention_factor,
            _ => 1.0,
        }
    }

    /// The same for layers with a sliding window.
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
                let turns = original as f64 * frequency / std::f64::consts::TAU;
                let fast = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                frequency * (fast + (1.0 - fast) / factor)
            }
        }
    }
}

/// The turning of queries and keys: cosines and sines for every place of the context.
#[derive(Clone, Debug)]
pub(crate) struct Rotation {
    all: RotaryTables,
    local: Option<RotaryTables>,
    width: usize,
}

impl Rotation {
    pub(crate) fn new(config: &ModelConfig) -> Self {
        let (rotary, head_dim) = (config.rotary, config.head_dim());
        let tables = |frequencies: Vec<f64>| RotaryTables::new(&frequencies, config.context_length);
        Self {
            all: tables(rotary.frequencies(head_dim)),
            local: rotary
                .local_base
                .map(|_| tables(rotary.local_frequencies(head_dim))),
            width: rotary.width.unwrap_or(head_dim),
        }
    }

    /// Turns `x`, `[batch, seq, heads, head_dim]`, whose rows begin at the places `starts`.
    pub(crate) fn turn(&self, x: Tensor<4>, is_local: bool, starts: &[usize]) -> Tensor<4> {
        let tables = match &self.local {
            Some(local) if is_local => local,
            _ => &self.all,
        };
        let rest = x.dims()[3] - self.width;
        if rest == 0 {
            return nextword_kernels::rotate(x, tables, starts);
        }
        let stays = x.clone().narrow(3, self.width, rest);
        let turned = nextword_kernels::rotate(x.narrow(3, 0, self.width), tables, starts);
        Tensor::cat(vec![turned, stays], 3)
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
