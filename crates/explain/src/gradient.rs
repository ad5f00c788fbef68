//! Backpropagation in plain loops over f64: the gradient of the loss at one position by every weight.

use crate::array::Array;
use crate::evaluate::{Arrays, Inputs, Moments, activate, concat_heads, moments};
use crate::graph::{ActivationFn, Node, Op, PROBABILITIES};

/// The gradients of `-ln p` of token `target` after `position` by all weights that it depends on, from the
/// values of a forward pass ([`evaluate`](crate::evaluate::evaluate)). Weights that have no effect at all are
/// missing.
///
/// # Panics
/// If a value or a weight that the graph names is missing.
///
/// # Example
///
/// ```
/// use nextword_explain::{evaluate::{evaluate, weights_of}, gradient::gradients, graph::graph};
/// use nextword_model::presets;
///
/// let model = presets::statquest(5).init(&burn::tensor::Device::flex(), 7)?;
/// let (graph, weights, ids) = (graph(model.config(), 3), weights_of(&model), [0, 1, 2]);
/// let values = evaluate(&graph, &weights, &ids, &[]);
/// let found = gradients(&graph, &values, &weights, &ids, 2, 4); // token 4 after position 2
/// // The gradient by the bias of the output layer is p, minus 1 for the target.
/// let p = values["probabilities"].at(&[2, 4]);
/// assert!((found["head.bias"].data[4] - (p - 1.0)).abs() < 1e-12);
/// # Ok::<(), nextword_model::ModelError>(())
/// ```
pub fn gradients<'a>(
    graph: &[Node],
    values: &'a Arrays,
    weights: &'a Arrays,
    ids: impl Into<Inputs<'a>>,
    position: usize,
    target: u32,
) -> Arrays {
    let mut backward = Backward {
        values,
        weights,
        ids: ids.into(),
        tensors: Arrays::new(),
        parameters: Arrays::new(),
    };
    // The gradient of softmax and logarithm together is p - 1 for the target and p for other tokens.
    let probabilities = &values[PROBABILITIES];
    let mut logits = Array::zeros(&probabilities.shape);
    let width = logits.width();
    let row = &mut logits.data[position * width..(position + 1) * width];
    row.copy_from_slice(probabilities.row(position));
    row[target as usize] -= 1.0;
    backward.tensors.insert("logits".to_string(), logits);
    for node in graph.iter().rev() {
        if let Some(gradient) = backward.tensors.remove(&node.name) {
            backward.node(node, &gradient);
        }
    }
    backward.parameters
}

struct Backward<'a> {
    values: &'a Arrays,
    weights: &'a Arrays,
    ids: Inputs<'a>,
    /// Gradients by tensors that are not yet passed on.
    tensors: Arrays,
    /// Gradients by weights.
    parameters: Arrays,
}

fn is_zero(row: &[f64]) -> bool {
    row.iter().all(|x| x.abs() <= 0.0)
}

/// Adds `factor * row` to the beginning of `sum`.
fn add_row(sum: &mut [f64], row: &[f64], factor: f64) {
    for (sum, x) in sum.iter_mut().zip(row) {
        *sum += factor * x;
    }
}

fn add_to(all: &mut Arrays, name: &str, gradient: Array) {
    match all.get_mut(name) {
        Some(sum) => {
            for (sum, x) in sum.data.iter_mut().zip(gradient.data) {
                *sum += x;
            }
        }
        None => {
            all.insert(name.to_string(), gradient);
        }
    }
}

impl Backward<'_> {
    /// Passes the gradient by the output of `node` on to its operands and weights.
    fn node(&mut self, node: &Node, g: &Array) {
        match &node.op {
            Op::Embed { table, scale } => {
                let ids = self.ids.of(node.rows);
                self.embedding(ids, table, scale.unwrap_or(1.0), g);
            }
            Op::LearnedPositions { table } => {
                let mut d = Array::zeros(&self.weights[table].shape);
                d.data[..g.data.len()].copy_from_slice(&g.data);
                add_to(&mut self.parameters, table, d);
            }
            Op::Sinusoidal => {}
            Op::Copy { input } => add_to(&mut self.tensors, input, g.clone()),
            Op::Add { a, b } => {
                add_to(&mut self.tensors, a, g.clone());
                add_to(&mut self.tensors, b, g.clone());
            }
            Op::AddScaled { a, b, scale } => {
                let mut d = g.clone();
                d.data.iter_mut().for_each(|d| *d *= scale);
                add_to(&mut self.tensors, a, g.clone());
                add_to(&mut self.tensors, b, d);
            }
            Op::Norm { .. } => self.norm(&node.op, g),
            Op::Linear {
                input,
                weight,
                bias,
                heads,
                transposed,
            } => {
                let joined = heads.is_some().then(|| concat_heads(g));
                let (values, g) = (self.values, joined.as_ref().unwrap_or(g));
                let bias = bias.as_deref();
                let d = self.linear(g, &values[input], weight, bias, *transposed);
                add_to(&mut self.tensors, input, d);
            }
            Op::OutputProjection {
                input,
                weight,
                bias,
            } => {
                let z = &self.values[input];
                let d = match weight {
                    Some(weight) => {
                        self.linear(g, &concat_heads(z), weight, bias.as_deref(), false)
                    }
                    None => g.clone(),
                };
                add_to(&mut self.tensors, input, split_heads(&d, &z.shape));
            }
            Op::Rope { input, frequencies } => {
                let d = unrotated(g, frequencies);
                add_to(&mut self.tensors, input, d);
            }
            Op::Scores { .. } => self.scores(node, g),
            Op::Softmax { input } => {
                let mut d = Array::zeros(&g.shape);
                let width = d.width();
                let rows = g.rows().zip(self.values[&node.name].rows());
                for (d, (g, p)) in d.data.chunks_exact_mut(width).zip(rows) {
                    let mean: f64 = g.iter().zip(p).map(|(g, p)| g * p).sum();
                    for ((d, g), p) in d.iter_mut().zip(g).zip(p) {
                        *d = p * (g - mean);
                    }
                }
                add_to(&mut self.tensors, input, d);
            }
            Op::WeightedSum { pattern, v } => self.weighted_sum(pattern, v, g),
            Op::Activate { input, function } => {
                let mut d = g.clone();
                for (d, x) in d.data.iter_mut().zip(&self.values[input].data) {
                    *d *= derivative(*function, *x);
                }
                add_to(&mut self.tensors, input, d);
            }
            Op::Gate { gate, up, function } => self.gate(gate, up, *function, g),
            Op::SoftCap { input, cap } => {
                let mut d = g.clone();
                for (d, y) in d.data.iter_mut().zip(&self.values[&node.name].data) {
                    *d *= 1.0 - (y / cap) * (y / cap);
                }
                add_to(&mut self.tensors, input, d);
            }
        }
    }

    fn gate(&mut self, gate: &str, up: &str, function: ActivationFn, g: &Array) {
        let (mut d_gate, mut d_up) = (g.clone(), g.clone());
        let pairs = self.values[gate].data.iter().zip(&self.values[up].data);
        let both = d_gate.data.iter_mut().zip(&mut d_up.data);
        for ((d_gate, d_up), (gate, up)) in both.zip(pairs) {
            *d_gate *= derivative(function, *gate) * up;
            *d_up *= activate(function, *gate);
        }
        add_to(&mut self.tensors, gate, d_gate);
        add_to(&mut self.tensors, up, d_up);
    }

    fn embedding(&mut self, ids: &[u32], table: &str, scale: f64, g: &Array) {
        let mut d = Array::zeros(&self.weights[table].shape);
        let width = d.width();
        for (id, g) in ids.iter().zip(g.rows()) {
            let start = *id as usize * width;
            add_row(&mut d.data[start..], g, scale);
        }
        add_to(&mut self.parameters, table, d);
    }

    fn norm(&mut self, op: &Op, g: &Array) {
        let Op::Norm {
            input,
            centered,
            eps,
            weight,
            unit_offset,
            bias,
        } = op
        else {
            return;
        };
        let (factors, width) = (&self.weights[weight].data, g.width());
        let offset = f64::from(u8::from(*unit_offset));
        let mut d = Array::zeros(&g.shape);
        let mut d_weight = Array::zeros(&[width]);
        let mut d_bias = Array::zeros(&[width]);
        let rows = g.rows().zip(self.values[input].rows());
        for (d, (g, x)) in d.data.chunks_exact_mut(width).zip(rows) {
            let Moments { mean, scale } = moments(x, *centered, *eps);
            let normalized: Vec<f64> = x.iter().map(|x| (x - mean) / scale).collect();
            let inner: Vec<f64> = (0..width).map(|i| g[i] * (offset + factors[i])).collect();
            let n = width as f64;
            let mean = if *centered {
                inner.iter().sum::<f64>() / n
            } else {
                0.0
            };
            let product = inner.iter().zip(&normalized);
            let product = product.map(|(g, x)| g * x).sum::<f64>() / n;
            for (d, (inner, x)) in d.iter_mut().zip(inner.iter().zip(&normalized)) {
                *d = (inner - mean - x * product) / scale;
            }
            for (sum, (g, x)) in d_weight.data.iter_mut().zip(g.iter().zip(&normalized)) {
                *sum += g * x;
            }
            add_row(&mut d_bias.data, g, 1.0);
        }
        add_to(&mut self.tensors, input, d);
        add_to(&mut self.parameters, weight, d_weight);
        if let Some(bias) = bias {
            add_to(&mut self.parameters, bias, d_bias);
        }
    }

    /// The gradient by `x` of `x W + b`; those by `W` and `b` are stored.
    fn linear(
        &mut self,
        g: &Array,
        x: &Array,
        weight: &str,
        bias: Option<&str>,
        transposed: bool,
    ) -> Array {
        let w = &self.weights[weight];
        let (mut d, mut d_weight) = (Array::zeros(&x.shape), Array::zeros(&w.shape));
        let (width, columns) = (x.width(), w.width());
        let mut d_bias = Array::zeros(&[g.width()]);
        let rows = g.rows().zip(x.rows());
        for (d, (g, x)) in d.data.chunks_exact_mut(width).zip(rows) {
            if is_zero(g) {
                continue;
            }
            add_row(&mut d_bias.data, g, 1.0);
            let rows = w.rows().zip(d_weight.data.chunks_exact_mut(columns));
            for (at, (w, d_w)) in rows.enumerate() {
                if transposed {
                    add_row(d, w, g[at]);
                    add_row(d_w, x, g[at]);
                } else {
                    d[at] += g.iter().zip(w).map(|(g, w)| g * w).sum::<f64>();
                    add_row(d_w, g, x[at]);
                }
            }
        }
        add_to(&mut self.parameters, weight, d_weight);
        if let Some(bias) = bias {
            add_to(&mut self.parameters, bias, d_bias);
        }
        d
    }

    fn scores(&mut self, node: &Node, g: &Array) {
        let Op::Scores {
            q,
            k,
            scale,
            cap,
            slopes,
            ..
        } = &node.op
        else {
            return;
        };
        let (queries, keys) = (&self.values[q], &self.values[k]);
        let (heads, seq, width) = (queries.shape[0], queries.shape[1], queries.width());
        let (group, key_count) = (heads / keys.shape[0], keys.shape[1]);
        let (mut d_q, mut d_k) = (Array::zeros(&queries.shape), Array::zeros(&keys.shape));
        for row in 0..heads * seq {
            let (head, query) = (row / seq, row % seq);
            let slope = slopes.get(head).copied().unwrap_or(0.0);
            let scores = self.values[&node.name].row(row);
            for (key, g) in g.row(row).iter().enumerate() {
                if g.abs() <= 0.0 {
                    continue; // Masked, or without effect.
                }
                let capped = scores[key] + slope * query.abs_diff(key) as f64;
                let g = g * cap.map_or(1.0, |cap| 1.0 - (capped / cap) * (capped / cap)) * scale;
                let other = head / group * key_count + key;
                add_row(&mut d_q.data[row * width..], keys.row(other), g);
                add_row(&mut d_k.data[other * width..], queries.row(row), g);
            }
        }
        add_to(&mut self.tensors, q, d_q);
        add_to(&mut self.tensors, k, d_k);
    }

    fn weighted_sum(&mut self, pattern: &str, v: &str, g: &Array) {
        let (weights, values) = (&self.values[pattern], &self.values[v]);
        let (heads, seq, width) = (weights.shape[0], weights.shape[1], values.width());
        let (group, keys) = (heads / values.shape[0], values.shape[1]);
        let (mut d_weights, mut d_values) =
            (Array::zeros(&weights.shape), Array::zeros(&values.shape));
        for row in 0..heads * seq {
            let g = g.row(row);
            if is_zero(g) {
                continue;
            }
            for (key, weight) in weights.row(row).iter().enumerate() {
                let other = row / seq / group * keys + key;
                let value = values.row(other);
                d_weights.data[row * keys + key] = g.iter().zip(value).map(|(g, v)| g * v).sum();
                add_row(&mut d_values.data[other * width..], g, *weight);
            }
        }
        add_to(&mut self.tensors, pattern, d_weights);
        add_to(&mut self.tensors, v, d_values);
    }
}

/// The inverse of [`concat_heads`].
fn split_heads(x: &Array, shape: &[usize]) -> Array {
    let (heads, seq, width) = (shape[0], shape[1], shape[2]);
    let mut out = Array::zeros(shape);
    for head in 0..heads {
        for row in 0..seq {
            let to = (head * seq + row) * width;
            let part = &x.row(row)[head * width..(head + 1) * width];
            out.data[to..to + width].copy_from_slice(part);
        }
    }
    out
}

/// Rotates by the opposite angles.
fn unrotated(g: &Array, frequencies: &[f64]) -> Array {
    let (seq, width, half) = (g.shape[1], g.width(), frequencies.len());
    let mut out = g.clone();
    for (at, row) in out.data.chunks_exact_mut(width).enumerate() {
        for (pair, frequency) in frequencies.iter().enumerate() {
            let (sin, cos) = ((at % seq) as f64 * frequency).sin_cos();
            let (x, y) = (row[pair], row[pair + half]);
            row[pair] = x * cos + y * sin;
            row[pair + half] = y * cos - x * sin;
        }
    }
    out
}

/// The derivative of an activation function.
fn derivative(function: ActivationFn, x: f64) -> f64 {
    use std::f64::consts::{PI, SQRT_2};
    match function {
        ActivationFn::Gelu => {
            let density = (-0.5 * x * x).exp() / (2.0 * PI).sqrt();
            0.5 * (1.0 + libm::erf(x / SQRT_2)) + x * density
        }
        ActivationFn::GeluTanh => {
            let (a, b) = ((2.0 / PI).sqrt(), 0.044_715);
            let tanh = (a * (x + b * x * x * x)).tanh();
            0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * a * (1.0 + 3.0 * b * x * x)
        }
        ActivationFn::Relu => f64::from(u8::from(x > 0.0)),
        ActivationFn::ReluSquared => 2.0 * x.max(0.0),
        ActivationFn::Silu => {
            let sigmoid = 1.0 / (1.0 + (-x).exp());
            sigmoid * (1.0 + x * (1.0 - sigmoid))
        }
    }
}
