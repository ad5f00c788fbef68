//! Recomputes the forward pass with plain loops in f64, without a tensor library or kernels. It shares
//! with the model only the weights and the constants of its configuration (`RoPE` frequencies, `ALiBi`
//! slopes, the scale of scores), which tests compare with PyTorch's.

use std::collections::BTreeMap;

use burn::tensor::TensorData;
use nextword_model::{Transformer, weights};

use crate::array::Array;
use crate::graph::{ActivationFn, AttentionKind, Input, Node, Op};

/// Arrays by name.
pub type Arrays = BTreeMap<String, Array>;

/// The token ids that a model reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inputs<'a> {
    /// Those of the only stack, or of the decoder.
    pub target: &'a [u32],
    /// Those of the encoder in encoder-decoder models, otherwise empty.
    pub source: &'a [u32],
}

impl<'a> Inputs<'a> {
    /// The ids of `input`.
    pub fn of(self, input: Input) -> &'a [u32] {
        match input {
            Input::Target => self.target,
            Input::Source => self.source,
        }
    }
}

impl<'a> From<&'a [u32]> for Inputs<'a> {
    fn from(target: &'a [u32]) -> Self {
        let source = &[];
        Self { target, source }
    }
}

impl<'a, const N: usize> From<&'a [u32; N]> for Inputs<'a> {
    fn from(target: &'a [u32; N]) -> Self {
        Self::from(target.as_slice())
    }
}

/// Every parameter of `model` under its name in the weights file, also those of an adapter. Quantized ones are
/// dequantized.
pub fn weights_of(model: &Transformer) -> Arrays {
    let mut all = Arrays::new();
    let mut add = |name: &str, data: TensorData| {
        let shape = data.shape().to_vec();
        let data = weights::to_f32_vec(data)
            .into_iter()
            .map(f64::from)
            .collect();
        all.insert(name.to_string(), Array { shape, data });
    };
    weights::for_each(model, &mut add);
    for (name, data) in model.dequantized() {
        add(&name, data); // Replaces the empty parameter of a quantized matrix.
    }
    all
}

/// Evaluates every tensor of `graph` for these token ids. The output of the heads in `disabled_heads` is zero.
///
/// # Panics
/// If a weight that the graph names is missing.
///
/// # Example
///
/// ```
/// use burn::tensor::{Device, Int, Tensor};
/// use nextword_explain::{evaluate::{evaluate, weights_of}, graph::graph};
/// use nextword_model::{ForwardContext, presets, weights::to_f32_vec};
///
/// let device = Device::flex();
/// let model = presets::statquest(5).init(&device, 7)?;
/// let values = evaluate(&graph(model.config(), 3), &weights_of(&model), &[0, 1, 2], &[]);
///
/// let tokens = Tensor::<2, Int>::from_ints([[0, 1, 2]], &device);
/// let logits = model.forward(tokens, &mut ForwardContext::inference());
/// for (exact, logit) in values["logits"].data.iter().zip(to_f32_vec(logits.into_data())) {
///     assert!((exact - f64::from(logit)).abs() < 1e-5);
/// }
/// # Ok::<(), nextword_model::ModelError>(())
/// ```
pub fn evaluate<'a>(
    graph: &[Node],
    weights: &Arrays,
    ids: impl Into<Inputs<'a>>,
    disabled_heads: &[DisabledHead],
) -> Arrays {
    let ids = ids.into();
    let mut values = Arrays::new();
    for node in graph {
        let mut value = eval_node(node, &values, weights, ids);
        if matches!(node.op, Op::WeightedSum { .. }) {
            for disabled in disabled_heads.iter().filter(|head| head.is_in(node)) {
                let (head, size) = (disabled.head, node.shape[1] * node.shape[2]);
                value.data[head * size..(head + 1) * size].fill(0.0);
            }
        }
        values.insert(node.name.clone(), value);
    }
    values
}

/// An attention head whose output is replaced by zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DisabledHead {
    /// The attention that it belongs to.
    pub attention: AttentionKind,
    /// The layer, from 0.
    pub layer: usize,
    /// The head, from 0.
    pub head: usize,
}

impl DisabledHead {
    fn is_in(&self, node: &Node) -> bool {
        node.layer == Some(self.layer) && AttentionKind::of(node) == self.attention
    }
}

/// Evaluates one tensor from its operands in `values` and `weights`.
///
/// # Panics
/// If an operand is missing.
pub fn eval_node<'a>(
    node: &Node,
    values: &Arrays,
    weights: &Arrays,
    ids: impl Into<Inputs<'a>>,
) -> Array {
    let mut out = Array::zeros(&node.shape);
    compute(node, &mut out, values, weights, ids.into().of(node.rows));
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
        Op::LearnedPositions { table } => {
            let n = out.data.len();
            out.data.copy_from_slice(&weights[table].data[..n]);
        }
        Op::Sinusoidal => {
            for (at, value) in out.data.iter_mut().enumerate() {
                *value = sinusoid(at / width, at % width, width);
            }
        }
        Op::Copy { input } => out.data.copy_from_slice(&values[input].data),
        Op::Add { a, b } => add_scaled(out, &values[a], &values[b], 1.0),
        Op::AddScaled { a, b, scale } => add_scaled(out, &values[a], &values[b], *scale),
        Op::Norm {
            input,
            centered,
            eps,
            weight,
            unit_offset,
            bias,
        } => {
            let (weight, bias) = (&weights[weight].data, bias_of(bias));
            let offset = f64::from(u8::from(*unit_offset));
            for (y, x) in out.data.chunks_exact_mut(width).zip(values[input].rows()) {
                let Moments { mean, scale } = moments(x, *centered, *eps);
                for (i, y) in y.iter_mut().enumerate() {
                    let factor = offset + weight[i];
                    *y = (x[i] - mean) / scale * factor + bias.map_or(0.0, |bias| bias[i]);
                }
            }
        }
        Op::Linear {
            input,
            weight,
            bias,
            heads,
            transposed,
        } => linear(
            out,
            &values[input],
            &weights[weight],
            bias_of(bias),
            heads.is_some(),
            *transposed,
        ),
        Op::OutputProjection {
            input,
            weight,
            bias,
        } => {
            let heads = concat_heads(&values[input]);
            match weight {
                Some(weight) => {
                    linear(out, &heads, &weights[weight], bias_of(bias), false, false);
                }
                None => out.data.copy_from_slice(&heads.data),
            }
        }
        Op::Rope { input, frequencies } => rope(out, &values[input], frequencies),
        Op::Scores { q, k, .. } => scores(out, &values[q], &values[k], &node.op),
        Op::Softmax { input } => {
            for (y, x) in out.data.chunks_exact_mut(width).zip(values[input].rows()) {
                softmax(x, y);
            }
        }
        Op::WeightedSum { pattern, v } => weighted_sum(out, &values[pattern], &values[v]),
        Op::Activate { input, function } => {
            for (y, x) in out.data.iter_mut().zip(&values[input].data) {
                *y = activate(*function, *x);
            }
        }
        Op::Gate { gate, up, function } => {
            let pairs = values[gate].data.iter().zip(&values[up].data);
            for (y, (gate, up)) in out.data.iter_mut().zip(pairs) {
                *y = activate(*function, *gate) * up;
            }
        }
        Op::SoftCap { input, cap } => {
            for (y, x) in out.data.iter_mut().zip(&values[input].data) {
                *y = soft_cap(*x, *cap);
            }
        }
    }
}

fn add_scaled(out: &mut Array, a: &Array, b: &Array, scale: f64) {
    for (value, (a, b)) in out.data.iter_mut().zip(a.data.iter().zip(&b.data)) {
        *value = a + scale * b;
    }
}

/// The mean that a norm subtracts and the scale that it divides by.
#[derive(Clone, Copy, Debug)]
pub struct Moments {
    /// The mean, or 0 for RMS norms.
    pub mean: f64,
    /// `sqrt(variance + eps)`, or `sqrt(mean square + eps)`.
    pub scale: f64,
}

/// Computes the mean and the scale for normalizing `x`.
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

/// The frequency of element `dim` of `width` in the sinusoidal position encoding.
pub fn frequency(dim: usize, width: usize) -> f64 {
    10_000_f64.powf(-((dim / 2 * 2) as f64) / width as f64)
}

fn sinusoid(position: usize, dim: usize, width: usize) -> f64 {
    let angle = position as f64 * frequency(dim, width);
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
    split_heads: bool,
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
        if split_heads {
            for (head, y) in y.chunks_exact(width).enumerate() {
                let at = (head * rows + row) * width;
                out.data[at..at + width].copy_from_slice(y);
            }
        } else {
            out.data[row * width..(row + 1) * width].copy_from_slice(&y);
        }
    }
}

/// Concatenates heads: `[heads, seq, head_dim]` to `[seq, heads * head_dim]`.
pub fn concat_heads(z: &Array) -> Array {
    let (heads, seq, dim) = (z.shape[0], z.shape[1], z.shape[2]);
    let mut out = Array::zeros(&[seq, heads * dim]);
    for head in 0..heads {
        for row in 0..seq {
            let at = row * heads * dim + head * dim;
            out.data[at..at + dim].copy_from_slice(z.row(head * seq + row));
        }
    }
    out
}

fn rope(out: &mut Array, x: &Array, frequencies: &[f64]) {
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

/// `cap * tanh(x / cap)`.
pub fn soft_cap(x: f64, cap: f64) -> f64 {
    cap * (x / cap).tanh()
}

fn scores(out: &mut Array, q: &Array, k: &Array, op: &Op) {
    let Op::Scores {
        scale, cap, slopes, ..
    } = op
    else {
        unreachable!("only called for scores");
    };
    let (heads, queries, keys) = (q.shape[0], q.shape[1], k.shape[1]);
    let group = heads / k.shape[0];
    for head in 0..heads {
        for query in 0..queries {
            let at = (head * queries + query) * keys;
            let q_row = q.row(head * queries + query);
            for key in 0..keys {
                out.data[at + key] = if op.is_visible(query, key) {
                    let k_row = k.row(head / group * keys + key);
                    let dot: f64 = q_row.iter().zip(k_row).map(|(q, k)| q * k).sum();
                    let slope = slopes.get(head).copied().unwrap_or(0.0);
                    let score = cap.map_or(dot * scale, |cap| soft_cap(dot * scale, cap));
                    score - slope * query.abs_diff(key) as f64
                } else {
                    f64::NEG_INFINITY
                };
            }
        }
    }
}

/// Each `e^x` divided by their sum.
///
/// # Example
///
/// ```
/// use nextword_explain::evaluate::softmax;
///
/// let mut out = [0.0; 2];
/// softmax(&[1000.0, 1000.0 + 3f64.ln()], &mut out); // does not overflow
/// assert!((out[0] - 0.25).abs() < 1e-12 && (out[1] - 0.75).abs() < 1e-12);
/// ```
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

fn weighted_sum(out: &mut Array, pattern: &Array, v: &Array) {
    let (heads, queries, keys) = (pattern.shape[0], pattern.shape[1], v.shape[1]);
    let (group, width) = (heads / v.shape[0], v.width());
    for head in 0..heads {
        for query in 0..queries {
            let at = (head * queries + query) * width;
            for (key, weight) in pattern.row(head * queries + query).iter().enumerate() {
                if weight.abs() <= 0.0 {
                    continue; // Masked, or without effect.
                }
                let value = v.row(head / group * keys + key);
                for (out, v) in out.data[at..at + width].iter_mut().zip(value) {
                    *out += weight * v;
                }
            }
        }
    }
}

/// Applies an activation function to one value.
pub fn activate(function: ActivationFn, x: f64) -> f64 {
    match function {
        ActivationFn::Gelu => 0.5 * x * (1.0 + libm::erf(x / std::f64::consts::SQRT_2)),
        ActivationFn::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        ActivationFn::Relu => x.max(0.0),
        ActivationFn::ReluSquared => x.max(0.0) * x.max(0.0),
        ActivationFn::Silu => x / (1.0 + (-x).exp()),
    }
}
