//! Every operation in plain Burn operations: the implementation for backends without a fast one,
//! and the baseline in tests.

use burn::tensor::activation::{self, log_softmax};
use burn::tensor::{DType, Int, Tensor, TensorData};

pub use crate::attention_options::Stage;
use crate::{
    Activation, AttentionOptions, DropoutMask, IGNORE, LowRankUpdate, NormKind, Precision,
    RotaryTables, dropout,
};

/// Reference for [`linear`](crate::linear()).
pub fn linear(x: Tensor<3>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<3> {
    let ([batch, seq, d_in], d_out) = (x.dims(), weight.dims()[1]);
    let y: Tensor<2> = x.reshape([batch * seq, d_in]).matmul(weight);
    let y = match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    };
    y.reshape([batch, seq, d_out])
}

/// Reference for [`linear_with_precision`](crate::linear_with_precision()). In bf16, the device's
/// product also rounds its result.
pub fn linear_with_precision(
    precision: Precision,
    x: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<3> {
    if precision == Precision::F32 {
        return linear(x, weight, bias);
    }
    let dtype = x.dtype();
    let y = linear(x.cast(DType::BF16), weight.cast(DType::BF16), None).cast(dtype);
    match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    }
}

/// Reference for [`linear_lora`](crate::linear_lora()) with a float weight.
pub fn linear_lora(
    precision: Precision,
    x: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    update: LowRankUpdate,
) -> Tensor<3> {
    let y = linear_with_precision(precision, x.clone(), weight, bias);
    let x = match update.dropout {
        Some(mask) => dropout(x, mask),
        None => x,
    };
    y + linear(linear(x, update.a, None), update.b, None) * update.scale
}

/// Reference for [`normalize`](crate::normalize()).
pub fn normalize<const D: usize>(
    kind: NormKind,
    x: Tensor<D>,
    weight: Tensor<1>,
    bias: Option<Tensor<1>>,
    eps: f64,
) -> Tensor<D> {
    let centered = match kind {
        NormKind::Layer => {
            let mean = x.clone().mean_dim(D - 1);
            x - mean
        }
        NormKind::Rms => x,
    };
    let variance = (centered.clone() * centered.clone()).mean_dim(D - 1);
    let scaled = centered / (variance + eps).sqrt() * weight.unsqueeze();
    match bias {
        Some(bias) => scaled + bias.unsqueeze(),
        None => scaled,
    }
}

/// Reference for [`activate`](crate::activate()).
pub fn activate<const D: usize>(f: Activation, x: Tensor<D>) -> Tensor<D> {
    match f {
        Activation::Gelu => gelu(x),
        Activation::GeluTanh => activation::gelu_approximate(x),
        Activation::Relu => activation::relu(x),
        Activation::ReluSquared => activation::relu(x).square(),
        Activation::Silu => activation::silu(x),
    }
}

/// The exact GELU, `x (1 + erf(x / sqrt 2)) / 2`. Burn's own function computes the same, but its backward
/// pass is that of the tanh approximation.
fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let phi = (x.clone() / std::f64::consts::SQRT_2).erf() + 1.0;
    x * phi / 2.0
}

/// Reference for [`rotate`](crate::rotate()).
pub fn rotate(x: Tensor<4>, tables: &RotaryTables, position_offsets: &[usize]) -> Tensor<4> {
    let [_, seq, _, head_dim] = x.dims();
    let device = x.device().without_autodiff();
    let dtype = x.dtype();
    let [cos, sin] = tables
        .gather_rows(position_offsets, seq, &device)
        .map(|table| table.cast(dtype));
    let first = x.clone().narrow(3, 0, head_dim / 2);
    let second = x.clone().narrow(3, head_dim / 2, head_dim / 2);
    let rotated_half = Tensor::cat(vec![second.neg(), first], 3);
    x * cos + rotated_half * sin
}

/// Reference for [`attention`](crate::attention()). Calls `probe` with the masked scores and with
/// the attention weights, `[batch, n_heads, query, key]`. The weights of a query without any visible
/// key are 0.
///
/// # Panics
/// If the shapes do not match, `n_heads` is not a multiple of `n_kv_heads`, the mask does not fit, or
/// the window is 0.
pub fn attention(
    qkv: [Tensor<4>; 3],
    options: &AttentionOptions<'_>,
    mut probe: impl FnMut(Stage, &Tensor<4>),
) -> Tensor<4> {
    options.check(&qkv);
    let [q, k, v] = qkv;
    let ([batch, seq, n_heads, head_dim], [_, keys, n_kv_heads, _]) = (q.dims(), k.dims());
    // Stacks the query heads that share a key/value head, so that one product covers them all and
    // no key is copied.
    let group = |x: Tensor<4>| -> Tensor<4> {
        let [_, _, _, width] = x.dims();
        x.reshape([batch, n_kv_heads, n_heads / n_kv_heads * seq, width])
    };
    let [q, k, v] = [q, k, v].map(|x| x.swap_dims(1, 2)); // [batch, heads, seq, head_dim]
    let scores = group(q * options.scale).matmul(k.swap_dims(2, 3));
    let scores = scores.reshape([batch, n_heads, seq, keys]);
    let scores = match options.soft_cap {
        Some(cap) => soft_cap(scores, cap),
        None => scores,
    };
    let scores = options.mask.apply(scores, options.window, options.alibi);
    probe(Stage::Scores, &scores);
    let pattern = options.mask.softmax(scores, options.window);
    probe(Stage::Pattern, &pattern);
    let pattern = match options.dropout {
        Some(mask) => dropout(
            pattern,
            DropoutMask {
                rng: mask.rng,
                rate: mask.rate,
                offset: mask.first_sequence * (n_heads * seq * keys) as u64,
            },
        ),
        None => pattern,
    };
    let z = group(pattern).matmul(v); // [batch, n_kv_heads, group * seq, head_dim]
    z.reshape([batch, n_heads, seq, head_dim]).swap_dims(1, 2)
}

/// Sum of `-ln p(target)` over all targets that are not [`IGNORE`]; `logits` is `[n, vocab]`.
///
/// # Panics
/// If `targets` does not have `n` elements.
pub fn cross_entropy_sum(logits: Tensor<2>, targets: &[u32]) -> Tensor<1> {
    target_log_probs(logits, targets).sum().neg()
}

/// Sum of `-ln p(target)` of each sequence over its targets that are not [`IGNORE`], `[batch]`; `logits` is
/// `[batch, seq, vocab]`.
///
/// # Panics
/// If `targets` does not have `batch * seq` elements.
pub fn cross_entropy_per_sequence(logits: Tensor<3>, targets: &[u32]) -> Tensor<1> {
    let [batch, seq, vocab] = logits.dims();
    let log_probs = target_log_probs(logits.reshape([batch * seq, vocab]), targets);
    let sums = log_probs.reshape([batch, seq]).sum_dim(1);
    sums.reshape([batch]).neg()
}

/// The log probabilities of the targets, `[n, 1]`; 0 where the target is [`IGNORE`].
fn target_log_probs(logits: Tensor<2>, targets: &[u32]) -> Tensor<2> {
    let [n, _] = logits.dims();
    assert_eq!(targets.len(), n, "one target for each position");
    let device = logits.device().without_autodiff();
    let is_counted = |target: &u32| *target != IGNORE;
    let ids: Vec<i32> = targets
        .iter()
        .map(|t| if is_counted(t) { *t as i32 } else { 0 })
        .collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [n, 1]), &device);
    let log_probs = log_softmax(logits, 1).gather(1, ids);
    if targets.iter().all(is_counted) {
        return log_probs;
    }
    let weights: Vec<f32> = targets
        .iter()
        .map(|t| f32::from(u8::from(is_counted(t))))
        .collect();
    let weights = Tensor::<2>::from_data(TensorData::new(weights, [n, 1]), &device);
    let dtype = log_probs.dtype();
    log_probs * weights.cast(dtype)
}

/// Soft cap: `cap * tanh(x / cap)`.
pub fn soft_cap<const D: usize>(x: Tensor<D>, cap: f64) -> Tensor<D> {
    (x / cap).tanh() * cap
}
