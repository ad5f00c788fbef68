//! The forward pass once more, in plain loops over f64: no tensor library, no kernel, nothing shared
//! with the model but its weights and what its configuration says (rotary frequencies, `ALiBi`'s slopes,
//! the scale of scores), which tests hold to PyTorch's.

use std::collections::BTreeMap;

use burn::tensor::TensorData;
use nextword_model::{Transformer, weights};

use crate::array::Array;
use crate::graph::{Function, Node, Op};

/// Named arrays.
pub type Arrays = BTreeMap<String, Array>;

/// Every weight of `model`, under the names of its file; quantized ones as the values that they stand
/// for.
pub fn weights_of(model: &Transformer) -> Arrays {
    let mut all = Arrays::new();
    let mut add = |name: &str, data: TensorData| {
        let shape = data.shape().to_vec();
        let data = weights::floats(data).into_iter().map(f64::from).collect();
        all.insert(name.to_string(), Array { shape, data });
    };
    weights::for_each(model, &mut add);
    for (name, data) in model.widened() {
        add(&name, data); // In the place of a parameter of no size.
    }
    all
}

/// Every tensor of `graph` for these token ids. Heads in `off` (layer, head) give zeros.
///
/// # Panics
/// If a weight that the graph names is missing.
pub fn evaluate(graph: &[Node], weights: &Arrays, ids: &[u32], off: &[(usize, usize)]) -> Arrays {
    let mut values = Arrays::new();
    for node in graph {
        let mut value = follow(node, &values, weights, ids);
        if matches!(node.op, Op::Mix { .. }) {
            for (_, head) in off.iter().filter(|(layer, _)| Some(*layer) == node.layer) {
                let size = node.shape[1] * node.shape[2];
                value.data[head * size..(head + 1) * size].fill(0.0);
            }
        }
        values.insert(node.name.clone(), value);
    }
    values
}

/// One tensor from those that it is made of.
///
/// # Panics
/// If one of them is missing.
pub fn follow(node: &Node, values: &Arrays, weights: &Arrays, ids: &[u32]) -> Array {
    let mut out = Array::zeros(&node.shape);
    compute(node, &mut out, values, weights, ids);
    out
}

fn compute(node: &Node, out: &mut Array, values: &Arrays, weights: &Arrays, ids: &[u32]) {
    let width = out.width();
    let bias_of = |name: &Option<String>| name.as_ref().map(|name| weights[name].data.as_slice());
    match &node.op {
        Op::Embed { table, scale } => {
            let scale = scale.unwrap_or(1.0);
            for (row, id) in out.data.chunks_exact_mut(width).zip(ids) {
                for (value, entry) in row.iter_mut().zip(weights[table].row(*id as usize)) {
                    *value = entry * scale;
                }
            }
        }
        Op::Places { table } => {
            let n = out.data.len();
            out.data.copy_from_slice(&weights[table].data[..n]);
        }
        Op::Waves => {
            for (at, value) in out.data.iter_mut().enumerate() {
                *value = wave(at / width, at % width, width);
            }
        }
        Op::Copy { of } => out.data.copy_from_slice(&values[of].data),
        Op::Add { a, b } => {
            let pairs = values[a].data.iter().zip(&values[b].data);
            for (value, (a, b)) in out.data.iter_mut().zip(pairs) {
                *value = a + b;
            }
        }
        Op::Norm {
            of,
            centered,
            eps,
            weight,
            unit_offset,
            bias,
        } => {
            let (weight, bias) = (&weights[weight].data, bias_of(bias));
            let offset = f64::from(u8::from(*unit_offset));
            for (y, x) in out.data.chunks_exact_mut(width).zip(values[of].rows()) {
                let Moments { mean, scale } = moments(x, *centered, *eps);
                for (i, y) in y.iter_mut().enumerate() {
                    let factor = offset + weight[i];
                    *y = (x[i] - mean) / scale * factor + bias.map_or(0.0, |bias| bias[i]);
                }
            }
        }
        Op::Linear {
            of,
            weight,
            bias,
            heads,
            transposed,
        } => linear(
            out,
            &values[of],
            &weights[weight],
            bias_of(bias),
            heads.is_some(),
            *transposed,
        ),
        Op::Join { of, weight, bias } => {
            let joined = join(&values[of]);
            match weight {
                Some(weight) => {
                    linear(out, &joined, &weights[weight], bias_of(bias), false, false);
                }
                None => out.data.copy_from_slice(&joined.data),
            }
        }
        Op::Turn { of, frequencies } => turn(out, &values[of], frequencies),
        Op::Scores { q, k, .. } => scores(out, &values[q], &values[k], &node.op),
        Op::Softmax { of } => {
            for (y, x) in out.data.chunks_exact_mut(width).zip(values[of].rows()) {
                softmax(x, y);
            }
        }
        Op::Mix { pattern, v } => mix(out, &values[pattern], &values[v]),
        Op::Activate { of, function } => {
            for (y, x) in out.data.iter_mut().zip(&values[of].data) {
                *y = activate(*function, *x);
            }
        }
        Op::Gate { gate, up, function } => {
            let pairs = values[gate].data.iter().zip(&values[up].data);
            for (y, (gate, up)) in out.data.iter_mut().zip(pairs) {
                *y = activate(*function, *gate) * up;
            }
        }
        Op::Cap { of, cap } => {
            for (y, x) in out.data.iter_mut().zip(&values[of].data) {
                *y = squeeze(*x, *cap);
            }
        }
    }
}

/// What a norm subtracts and divides by.
#[derive(Clone, Copy, Debug)]
pub struct Moments {
    /// The mean, or 0 for RMS norms.
    pub mean: f64,
    /// `sqrt(variance + eps)`, or `sqrt(mean square + eps)`.
    pub scale: f64,
}

/// What normalizing `x` subtracts and divides by.
pub fn moments(x: &[f64], centered: bool, eps: f64) -> Moments {
    let n = x.len() as f64;
    let mean = if centered {
        x.iter().sum::<f64>() / n
    } else {
        0.0
    };
    let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
    Moments {
        mean,
        scale: (variance + eps).sqrt(),
    }
}

/// The frequency of number `dim` of `width` in sine and cosine positions.
pub fn frequency(dim: usize, width: usize) -> f64 {
    10_000_f64.powf(-((dim / 2 * 2) as f64) / width as f64)
}

fn wave(place: usize, dim: usize, width: usize) -> f64 {
    let angle = place as f64 * frequency(dim, width);
    if dim.is_multiple_of(2) {
        angle.sin()
    } else {
        angle.cos()
    }
}

fn linear(
    out: &mut Array,
    x: &Array,
    weight: &Array,
    bias: Option<&[f64]>,
    into_heads: bool,
    transposed: bool,
) {
    let rows = x.data.len() / x.width();
    let d_out = weight.shape[usize::from(!transposed)];
    let mut y = vec![0.0; d_out];
    for (row, x) in x.rows().enumerate() {
        match bias {
            Some(bias) => y.copy_from_slice(bias),
            None => y.fill(0.0),
        }
        if transposed {
            for (y, weights) in y.iter_mut().zip(weight.rows()) {
                *y += x.iter().zip(weights).map(|(x, w)| x * w).sum::<f64>();
            }
        } else {
            for (x, weights) in x.iter().zip(weight.rows()) {
                for (y, w) in y.iter_mut().zip(weights) {
                    *y += x * w;
                }
            }
        }
        let width = out.width();
        if into_heads {
            for (head, y) in y.chunks_exact(width).enumerate() {
                let at = (head * rows + row) * width;
                out.data[at..at + width].copy_from_slice(y);
            }
        } else {
            out.data[row * width..(row + 1) * width].copy_from_slice(&y);
        }
    }
}

/// `[heads, seq, head_dim]` to `[seq, heads * head_dim]`.
pub fn join(z: &Array) -> Array {
    let (heads, seq, dim) = (z.shape[0], z.shape[1], z.shape[2]);
    let mut joined = Array::zeros(&[seq, heads * dim]);
    for head in 0..heads {
        for row in 0..seq {
            let at = row * heads * dim + head * dim;
            joined.data[at..at + dim].copy_from_slice(z.row(head * seq + row));
        }
    }
    joined
}

fn turn(out: &mut Array, x: &Array, frequencies: &[f64]) {
    let (seq, width) = (x.shape[1], x.width());
    let half = frequencies.len();
    for (at, (y, x)) in out.data.chunks_exact_mut(width).zip(x.rows()).enumerate() {
        y.copy_from_slice(x);
        for (pair, frequency) in frequencies.iter().enumerate() {
            let (sin, cos) = ((at % seq) as f64 * frequency).sin_cos();
            y[pair] = x[pair] * cos - x[pair + half] * sin;
            y[pair + half] = x[pair + half] * cos + x[pair] * sin;
        }
    }
}

/// Whether the token at `query` sees the one at `key`.
pub fn sees(query: usize, key: usize, window: Option<usize>) -> bool {
    key <= query && window.is_none_or(|window| query - key < window)
}

/// `cap * tanh(x / cap)`.
pub fn squeeze(x: f64, cap: f64) -> f64 {
    cap * (x / cap).tanh()
}

fn scores(out: &mut Array, q: &Array, k: &Array, op: &Op) {
    let Op::Scores {
        scale,
        cap,
        window,
        slopes,
        ..
    } = op
    else {
        unreachable!("the caller has looked");
    };
    let (heads, seq) = (q.shape[0], q.shape[1]);
    let group = heads / k.shape[0];
    for head in 0..heads {
        for query in 0..seq {
            let at = (head * seq + query) * seq;
            let asks = q.row(head * seq + query);
            for key in 0..seq {
                out.data[at + key] = if sees(query, key, *window) {
                    let answers = k.row(head / group * seq + key);
                    let dot: f64 = asks.iter().zip(answers).map(|(q, k)| q * k).sum();
                    let slope = slopes.get(head).copied().unwrap_or(0.0);
                    let score = cap.map_or(dot * scale, |cap| squeeze(dot * scale, cap));
                    score - slope * (query - key) as f64
                } else {
                    f64::NEG_INFINITY
                };
            }
        }
    }
}

/// `e^x` divided by the sum of all.
pub fn softmax(x: &[f64], out: &mut [f64]) {
    let top = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    for (out, x) in out.iter_mut().zip(x) {
        *out = (x - top).exp();
        sum += *out;
    }
    for out in out {
        *out /= sum;
    }
}

fn mix(out: &mut Array, pattern: &Array, v: &Array) {
    let (heads, seq) = (pattern.shape[0], pattern.shape[1]);
    let (group, width) = (heads / v.shape[0], v.width());
    for head in 0..heads {
        for query in 0..seq {
            let at = (head * seq + query) * width;
            for (key, share) in pattern.row(head * seq + query)[..=query].iter().enumerate() {
                let value = v.row(head / group * seq + key);
                for (out, v) in out.data[at..at + width].iter_mut().zip(value) {
                    *out += share * v;
                }
            }
        }
    }
}

/// An activation function of one number.
pub fn activate(function: Function, x: f64) -> f64 {
    match function {
        Function::Gelu => 0.5 * x * (1.0 + libm::erf(x / std::f64::consts::SQRT_2)),
        Function::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        Function::Relu => x.max(0.0),
        Function::ReluSquared => x.max(0.0) * x.max(0.0),
        Function::Silu => x / (1.0 + (-x).exp()),
    }
}
