//! Mean squares of the inputs of linear layers (an importance matrix), for calibrated quantization.

use std::collections::BTreeMap;

use burn::tensor::Tensor;

use crate::tensor_data::to_f32_vec;
use crate::{Hook, Probe, Site};

/// A probe that sums the squares of each input of the linear layers in the blocks over all tokens, in f64 and in the
/// order of the tokens, so that the sums do not depend on the division into batches.
///
/// ```
/// use burn::tensor::{Device, Int, Tensor};
/// use nextword_model::{Bits, ForwardContext, InputSquares, presets};
///
/// let model = presets::shakespeare_char_cpu(65).init(&Device::flex(), 1)?;
/// let mut inputs = InputSquares::default();
/// let tokens = Tensor::<2, Int>::from_ints([[5, 6, 7], [8, 9, 10]], &Device::flex());
/// model.hidden_states(tokens, &mut ForwardContext::with_probe(&mut inputs));
/// assert_eq!(inputs.tokens(), 6);
/// // After an RMS or layer norm, the inputs of a token have a mean square of about 1.
/// let squares = inputs.mean("blocks.0.attention.query.weight").unwrap();
/// assert!((squares.iter().sum::<f32>() / squares.len() as f32 - 1.0).abs() < 0.1);
/// let small = model.quantize_for_inputs(Bits::Int4, Bits::Int8, &inputs);
/// assert_eq!(small.bits(), Some(4));
/// # Ok::<(), nextword_model::ModelError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct InputSquares {
    /// By the name of the layer's weight.
    layers: BTreeMap<String, Sums>,
}

#[derive(Clone, Debug, Default)]
struct Sums {
    tokens: u64,
    squares: Vec<f64>,
}

impl InputSquares {
    /// The mean square of each input of the layer with this weight, if it was used.
    pub fn mean(&self, weight: &str) -> Option<Vec<f32>> {
        let sums = self.layers.get(weight)?;
        let mean = |sum: &f64| (sum / sums.tokens as f64) as f32;
        Some(sums.squares.iter().map(mean).collect())
    }

    /// Number of tokens that the layers have seen.
    pub fn tokens(&self) -> u64 {
        let tokens = self.layers.values().map(|sums| sums.tokens);
        tokens.max().unwrap_or_default()
    }
}

impl Probe for InputSquares {
    const ENABLED: bool = false;
    const SEES_INPUTS: bool = true;

    fn record<const D: usize>(&mut self, _site: Site, _tensor: &Tensor<D>) {}

    fn record_input(&mut self, site: Site, input: &Tensor<3>) {
        let Some(name) = weight_name(site) else {
            return;
        };
        let [batch, seq, width] = input.dims();
        let sums = self.layers.entry(name).or_default();
        sums.tokens += (batch * seq) as u64;
        sums.squares.resize(width, 0.0);
        let values = to_f32_vec(input.to_data());
        for token in values.chunks_exact(width.max(1)) {
            for (sum, value) in sums.squares.iter_mut().zip(token) {
                *sum += f64::from(*value) * f64::from(*value);
            }
        }
    }
}

/// The name of the weight of the linear layer whose adapter has the hook of `site`.
fn weight_name(site: Site) -> Option<String> {
    let layer = match site.hook {
        Hook::LoraQuery => "attention.query",
        Hook::LoraKey => "attention.key",
        Hook::LoraValue => "attention.value",
        Hook::LoraOutput => "attention.output",
        Hook::LoraCrossQuery => "cross_attention.query",
        Hook::LoraCrossKey => "cross_attention.key",
        Hook::LoraCrossValue => "cross_attention.value",
        Hook::LoraCrossOutput => "cross_attention.output",
        Hook::LoraGate => "feed_forward.gate",
        Hook::LoraUp => "feed_forward.up",
        Hook::LoraDown => "feed_forward.down",
        _ => return None,
    };
    let stack = if site.in_encoder { "encoder." } else { "" };
    Some(format!("{stack}blocks.{}.{layer}.weight", site.layer?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn::tensor::{Device, Int};

    use super::*;
    use crate::{FeedForwardKind, ForwardContext, ModelConfig, NormPlacement, Transformer};

    fn model(placement: NormPlacement) -> Transformer {
        let config = ModelConfig {
            vocab_size: 11,
            context_length: 8,
            n_layers: 2,
            n_heads: 2,
            d_model: 12,
            norm_placement: placement,
            feed_forward: FeedForwardKind::Swiglu,
            ..ModelConfig::default()
        };
        config.init(&Device::flex(), 3).unwrap()
    }

    /// The values of one hook in all blocks.
    struct Values(Hook, Vec<Vec<f32>>);

    impl Probe for Values {
        fn record<const D: usize>(&mut self, site: Site, tensor: &Tensor<D>) {
            if site.hook == self.0 {
                self.1.push(to_f32_vec(tensor.to_data()));
            }
        }
    }

    fn tokens(rows: &[[i32; 4]]) -> Tensor<2, Int> {
        let ids: Vec<i32> = rows.as_flattened().to_vec();
        Tensor::<1, Int>::from_ints(&ids[..], &Device::flex()).reshape([rows.len(), 4])
    }

    const ROWS: [[i32; 4]; 2] = [[1, 2, 3, 4], [5, 6, 7, 10]];

    #[test]
    fn mean_squares_are_those_of_the_inputs_that_a_probe_sees() {
        let placements = [
            (NormPlacement::Pre, Hook::Ln1),
            (NormPlacement::Post, Hook::ResidPre),
        ];
        for (placement, attention_input) in placements {
            let model = model(placement);
            let mut inputs = InputSquares::default();
            model.hidden_states(tokens(&ROWS), &mut ForwardContext::with_probe(&mut inputs));
            assert_eq!(inputs.tokens(), 8);
            assert_eq!(inputs.layers.len(), 2 * 7);
            for (hook, layers) in [
                (attention_input, &["attention.query", "attention.value"][..]),
                (Hook::MlpPost, &["feed_forward.down"]),
            ] {
                let mut seen = Values(hook, Vec::new());
                model.hidden_states(tokens(&ROWS), &mut ForwardContext::with_probe(&mut seen));
                for (block, values) in seen.1.iter().enumerate() {
                    for layer in layers {
                        let found = inputs.mean(&format!("blocks.{block}.{layer}.weight"));
                        let found = found.unwrap();
                        for (i, found) in found.iter().enumerate() {
                            let column = values.iter().skip(i).step_by(values_per_token(values));
                            let expected: f64 = column.map(|v| f64::from(*v).powi(2)).sum();
                            let expected = (expected / 8.0) as f32;
                            assert_eq!(found.to_bits(), expected.to_bits(), "{layer} {i}");
                        }
                    }
                }
            }
        }
    }

    /// Values per token of the eight tokens.
    fn values_per_token(values: &[f32]) -> usize {
        values.len() / 8
    }

    #[test]
    fn batches_do_not_change_the_sums() {
        let model = model(NormPlacement::Pre);
        let [mut together, mut apart] = [InputSquares::default(), InputSquares::default()];
        model.hidden_states(
            tokens(&ROWS),
            &mut ForwardContext::with_probe(&mut together),
        );
        for row in ROWS {
            model.hidden_states(tokens(&[row]), &mut ForwardContext::with_probe(&mut apart));
        }
        for (name, sums) in &together.layers {
            assert_eq!(sums.squares, apart.layers[name].squares, "{name}");
        }
    }
}
