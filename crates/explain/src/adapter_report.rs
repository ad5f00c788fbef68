//! What an adapter changes: the next token, and the output of each adapted layer.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::array::Array;
use crate::graph::Op;
use crate::trace::Trace;

/// What an adapter changes after the prompt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AdapterReport {
    /// The position of the first prediction.
    pub position: usize,
    /// The most likely next tokens of the base model and of the model with the adapter, sorted by the larger of their two
    /// probabilities.
    pub tokens: Vec<AdapterToken>,
    /// The adapted layers in the order of the forward pass.
    pub modules: Vec<ModuleChange>,
    /// Parameters of which the adapter has other values than the base model: full copies, and weights with magnitudes.
    pub replaced: Vec<String>,
}

/// The probability of a next token without and with the adapter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AdapterToken {
    /// The token.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// Its probability in the base model, recomputed in f64.
    pub base: f64,
    /// Its probability with the adapter, recomputed in f64.
    pub tuned: f64,
}

/// How much an adapter changes the output of one linear layer at one position.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModuleChange {
    /// The tensor that the layer computes.
    pub tensor: String,
    /// The path of the layer.
    pub module: String,
    /// The block.
    pub layer: Option<usize>,
    /// Columns of `A`.
    pub rank: usize,
    /// Factor on `(x A) B`.
    pub scale: f64,
    /// L2 norm of `x W + b`.
    pub base_norm: f64,
    /// L2 norm of `scale (x A) B`.
    pub update_norm: f64,
    /// `update_norm / base_norm`; `None` if the base layer's output is 0.
    pub ratio: Option<f64>,
}

impl AdapterReport {
    /// The report after the prompt of `trace`, with the most likely next tokens and the parameters that the adapter
    /// replaces.
    pub(crate) fn new(trace: &Trace, mut tokens: Vec<AdapterToken>, replaced: Vec<String>) -> Self {
        let larger = |token: &AdapterToken| token.base.max(token.tuned);
        tokens.sort_by(|a, b| larger(b).total_cmp(&larger(a)));
        let position = trace.focus();
        Self {
            position,
            tokens,
            modules: module_changes(trace, position),
            replaced,
        }
    }
}

/// What each adapted layer changes at `position`.
fn module_changes(trace: &Trace, position: usize) -> Vec<ModuleChange> {
    let paths = trace.graph.iter().filter_map(|node| match &node.op {
        Op::Linear { weight, .. } => Some((node.name.as_str(), weight.as_str())),
        Op::OutputProjection { weight, .. } => Some((node.name.as_str(), weight.as_deref()?)),
        _ => None,
    });
    let weights: BTreeMap<&str, &str> = paths.collect();
    let changes = trace.graph.iter().filter_map(|node| {
        let Op::AddScaled { a, b, scale } = &node.op else {
            return None;
        };
        let module = weights.get(a.as_str())?.strip_suffix(".weight")?;
        let base_norm = norm_at(trace.value(a), position);
        let update_norm = scale.abs() * norm_at(trace.value(b), position);
        Some(ModuleChange {
            tensor: node.name.clone(),
            module: module.to_string(),
            layer: node.layer,
            rank: trace.adapted.get(module)?.rank,
            scale: *scale,
            base_norm,
            update_norm,
            ratio: (base_norm > 0.0).then(|| update_norm / base_norm),
        })
    });
    changes.collect()
}

/// The L2 norm of the vector at `position`, over all heads.
fn norm_at(value: &Array, position: usize) -> f64 {
    let positions = value.shape[value.shape.len() - 2];
    let rows = value.rows().skip(position).step_by(positions);
    rows.flatten().map(|x| x * x).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_norm_at_a_position_spans_all_heads() {
        let value = Array {
            shape: vec![2, 3, 1], // heads, positions, elements
            data: vec![9.0, 3.0, 9.0, 9.0, 4.0, 9.0],
        };
        assert!((norm_at(&value, 1) - 5.0).abs() < 1e-12);
    }
}
