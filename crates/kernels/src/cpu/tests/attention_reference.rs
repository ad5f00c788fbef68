//! Reference implementation of attention in f64.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::pedantic,
    clippy::unwrap_used
)]

use crate::cpu::attention::{Options, Shape};

use super::attention_masks::MaskCase;
use crate::cpu::testing::dropout_factor;

/// Contiguous `[batch, seq, heads, head_dim]` arrays in f64.
pub(crate) struct Reference {
    pub(crate) z: Vec<f64>,
    pub(crate) lse: Vec<f64>,
    pub(crate) weights: Vec<f64>,
}

fn row(s: &Shape, seq: usize, heads: usize, b: usize, i: usize, h: usize) -> usize {
    ((b * seq + i) * heads + h) * s.head_dim
}

pub(crate) fn q_row(s: &Shape, b: usize, i: usize, h: usize) -> usize {
    row(s, s.seq_q, s.n_heads, b, i, h)
}

pub(crate) fn k_row(s: &Shape, b: usize, j: usize, h: usize) -> usize {
    row(
        s,
        s.seq_k,
        s.n_kv_heads,
        b,
        j,
        h / (s.n_heads / s.n_kv_heads),
    )
}

pub(crate) fn factor(s: &Shape, o: &Options<'_>, b: usize, h: usize, i: usize, j: usize) -> f64 {
    o.dropout.map_or(1.0, |d| {
        let row = (d.first_sequence + b as u64) * s.n_heads as u64 + h as u64;
        let position = (row * s.seq_q as u64 + i as u64) * s.seq_k as u64 + j as u64;
        dropout_factor(d.mask.key, d.mask.rate, position)
    })
}

/// The shape, the options, and the definition of the options' mask.
pub(crate) type Setup<'a> = (&'a Shape, &'a Options<'a>, &'a MaskCase);

pub(crate) fn forward((s, o, mask): Setup<'_>, q: &[f64], k: &[f64], v: &[f64]) -> Reference {
    let mut z = vec![0.0; q.len()];
    let mut lse = vec![f64::NEG_INFINITY; s.batch * s.n_heads * s.seq_q];
    let mut weights = vec![0.0; s.batch * s.n_heads * s.seq_q * s.seq_k];
    for b in 0..s.batch {
        for h in 0..s.n_heads {
            for i in 0..s.seq_q {
                let position = mask.position(b, i);
                let query = (b * s.n_heads + h) * s.seq_q + i;
                let qi = &q[q_row(s, b, i, h)..][..s.head_dim];
                let score = |j: usize| {
                    let kj = &k[k_row(s, b, j, h)..][..s.head_dim];
                    let dot: f64 = qi.iter().zip(kj).map(|(a, b)| a * b).sum();
                    let slope = f64::from(o.alibi.get(h).copied().unwrap_or(0.0));
                    capped(dot * f64::from(o.scale), o.soft_cap)
                        - slope * position.abs_diff(j) as f64
                };
                let keys: Vec<usize> = (0..s.seq_k).filter(|j| mask.is_visible(b, i, *j)).collect();
                if keys.is_empty() {
                    continue;
                }
                let max_score = keys.iter().map(|j| score(*j)).fold(f64::MIN, f64::max);
                let sum: f64 = keys.iter().map(|j| (score(*j) - max_score).exp()).sum();
                lse[query] = max_score + sum.ln();
                for j in keys {
                    let p = (score(j) - lse[query]).exp();
                    weights[query * s.seq_k + j] = p;
                    let p = p * factor(s, o, b, h, i, j);
                    for d in 0..s.head_dim {
                        z[q_row(s, b, i, h) + d] += p * v[k_row(s, b, j, h) + d];
                    }
                }
            }
        }
    }
    Reference { z, lse, weights }
}

/// `cap * tanh(x / cap)`.
pub(crate) fn capped(x: f64, cap: Option<f32>) -> f64 {
    cap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh())
}

/// Returns the gradients of q, k and v.
pub(crate) fn backward(setup: Setup<'_>, [q, k, v]: [&[f64]; 3], dz: &[f64]) -> [Vec<f64>; 3] {
    let (s, o, _) = setup;
    let reference = forward(setup, q, k, v);
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    for b in 0..s.batch {
        for h in 0..s.n_heads {
            for i in 0..s.seq_q {
                let query = (b * s.n_heads + h) * s.seq_q + i;
                let p = &reference.weights[query * s.seq_k..][..s.seq_k];
                let qr = q_row(s, b, i, h);
                let dp: Vec<f64> = (0..s.seq_k)
                    .map(|j| {
                        let kr = k_row(s, b, j, h);
                        let dot: f64 = (0..s.head_dim).map(|d| dz[qr + d] * v[kr + d]).sum();
                        dot * factor(s, o, b, h, i, j)
                    })
                    .collect();
                let delta: f64 = p.iter().zip(&dp).map(|(p, d)| p * d).sum();
                for j in 0..s.seq_k {
                    let kr = k_row(s, b, j, h);
                    let score: f64 = (0..s.head_dim).map(|d| q[qr + d] * k[kr + d]).sum();
                    let score = score * f64::from(o.scale);
                    let cap_derivative = o
                        .soft_cap
                        .map_or(1.0, |cap| 1.0 - (score / f64::from(cap)).tanh().powi(2));
                    let ds = p[j] * (dp[j] - delta) * cap_derivative * f64::from(o.scale);
                    let dropped = p[j] * factor(s, o, b, h, i, j);
                    for d in 0..s.head_dim {
                        dq[qr + d] += ds * k[kr + d];
                        dk[kr + d] += ds * q[qr + d];
                        dv[kr + d] += dropped * dz[qr + d];
                    }
                }
            }
        }
    }
    [dq, dk, dv]
}
