//! The scaling of rotary frequencies that a tensor of factors describes.

use nextword_model::{ModelConfig, RotaryConfig, RotaryScaling};

use super::frequency_factors;

/// Context lengths of the original training of published models.
const USUAL_LENGTHS: [usize; 2] = [8192, 4096];

/// Relative difference within which factors are equal: they were computed in f32.
const TOLERANCE: f32 = 1e-5;

/// The scaling that divides the frequencies of `config`, which has none, by `factors`. `original` is the context length
/// of the original training, if it is known. `None` if there is none with these factors.
#[allow(clippy::float_cmp)] // The factor was rounded to a short decimal.
pub(super) fn scaling(
    config: &ModelConfig,
    factors: &[f32],
    original: Option<usize>,
) -> Option<RotaryScaling> {
    let (first, last) = (*factors.first()?, *factors.last()?);
    let is_close = |a: f32, b: f32| (a - b).abs() <= TOLERANCE * b.abs();
    if factors.iter().all(|factor| is_close(*factor, first)) {
        let factor = shortest(first);
        return Some(if factor == 1.0 {
            RotaryScaling::None
        } else {
            RotaryScaling::Linear { factor }
        });
    }
    let factor = shortest(last);
    let usual = original
        .into_iter()
        .chain(USUAL_LENGTHS)
        .map(|original| (4.0, original));
    let candidates = usual.chain(solve(config, factors, f64::from(last)));
    candidates
        .map(
            |(high_freq_factor, original_context_length)| RotaryScaling::Llama3 {
                factor,
                low_freq_factor: 1.0,
                high_freq_factor,
                original_context_length,
            },
        )
        .find(|scaling| {
            let rotary = RotaryConfig {
                scaling: *scaling,
                ..config.rotary
            };
            let expected = frequency_factors(&rotary, config.head_dim()).unwrap_or_default();
            let mut pairs = factors.iter().zip(&expected);
            expected.len() == factors.len() && pairs.all(|(a, b)| is_close(*a, *b))
        })
}

/// High frequency factor and original context length, for a low frequency factor of 1: between the bounds, the weight of
/// the unscaled frequency is a linear function of the frequency, which two factors determine.
fn solve(config: &ModelConfig, factors: &[f32], factor: f64) -> Option<(f64, usize)> {
    let frequencies = config.rotary.frequencies(config.head_dim());
    let weight = |divisor: f32| (1.0 / f64::from(divisor) - 1.0 / factor) / (1.0 - 1.0 / factor);
    let between = frequencies.iter().zip(factors);
    let between: Vec<(f64, f64)> = between
        .map(|(frequency, divisor)| (*frequency, weight(*divisor)))
        .filter(|(_, weight)| *weight > 1e-3 && *weight < 1.0 - 1e-3)
        .collect();
    let (first, last) = (*between.first()?, *between.last()?);
    let slope = (first.1 - last.1) / (first.0 - last.0);
    let offset = first.1 - slope * first.0;
    // weight = (original * frequency / 2 pi - low) / (high - low), with low = 1.
    let high = 1.0 - 1.0 / offset;
    let original = slope * std::f64::consts::TAU * (high - 1.0);
    let is_valid =
        high.is_finite() && high > 1.0 && original.is_finite() && (1.0..1e9).contains(&original);
    is_valid.then(|| ((high * 1e3).round() / 1e3, original.round() as usize))
}

/// The number that the shortest decimal form of `value` denotes.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}
