//! The activations of one forward pass, by name.

use std::fmt;

use burn::tensor::Tensor;
use nextword_model::{Hook, Probe, Site, weights};

/// One tensor of a forward pass, without the batch axis.
#[derive(Clone, PartialEq)]
pub struct Activation {
    /// The name that `TransformerLens` uses, such as `blocks.0.attn.hook_pattern`.
    pub name: String,
    /// The shape, as in [`Hook`] without `batch`.
    pub shape: Vec<usize>,
    /// The values, row-major.
    pub values: Vec<f32>,
}

impl fmt::Debug for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.name, self.shape)
    }
}

impl Activation {
    /// The rows along the last axis.
    pub fn rows(&self) -> impl Iterator<Item = &[f32]> {
        let width = self.shape.last().copied().unwrap_or(1);
        self.values.chunks_exact(width.max(1))
    }
}

/// Every activation of one forward pass in the order of computation: a [`Probe`] that stores them.
///
/// [`LanguageModel::inspect`](crate::LanguageModel::inspect) returns one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Activations {
    tokens: Vec<String>,
    tensors: Vec<Activation>,
}

impl Activations {
    pub(crate) fn new(tokens: Vec<String>) -> Self {
        Self {
            tokens,
            tensors: Vec::new(),
        }
    }

    /// The text of each input token.
    pub fn tokens(&self) -> &[String] {
        &self.tokens
    }

    /// All tensors.
    pub fn iter(&self) -> impl Iterator<Item = &Activation> {
        self.tensors.iter()
    }

    /// The tensor with this name.
    pub fn get(&self, name: &str) -> Option<&Activation> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// The attention weights of the block `layer`, `[head, query, key]`; each row sums to 1.
    pub fn attention_weights(&self, layer: usize) -> Option<&Activation> {
        self.get(&Site::inside(layer, Hook::Pattern).to_string())
    }

    /// The logits, `[position, vocab_size]`.
    pub fn logits(&self) -> Option<&Activation> {
        self.get(&Site::outside(Hook::Logits).to_string())
    }

    /// The probability of each token of the vocabulary after the last position, by id.
    pub fn next_token_probabilities(&self) -> Vec<f64> {
        let logits = self.logits().and_then(|logits| logits.rows().last());
        let logits = logits.unwrap_or_default();
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights = logits.iter().map(|logit| f64::from(logit - max).exp());
        let weights: Vec<f64> = weights.collect();
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / sum).collect()
    }
}

impl Probe for Activations {
    fn record<const D: usize>(&mut self, site: Site, tensor: &Tensor<D>) {
        self.tensors.push(Activation {
            name: site.to_string(),
            shape: tensor.dims()[1..].to_vec(),
            values: weights::to_f32_vec(tensor.to_data()),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_a_softmax_of_the_last_row() {
        let logits = Activation {
            name: "logits".to_string(),
            shape: vec![2, 2],
            values: vec![9.0, 9.0, 1e4 + 3f32.ln(), 1e4],
        };
        let mut activations = Activations::new(vec!["a".to_string(), "b".to_string()]);
        assert!(activations.next_token_probabilities().is_empty());
        activations.tensors.push(logits);
        let [a, b] = activations.next_token_probabilities()[..] else {
            panic!("two tokens have two probabilities");
        };
        // 1e4 has few bits left for ln 3.
        assert!(
            (a - 0.75).abs() < 1e-3 && (a + b - 1.0).abs() < 1e-12,
            "{a} {b}"
        );
    }
}
