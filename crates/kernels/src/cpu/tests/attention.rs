//! Attention compared with f64 and finite differences.
#![allow(
    clippy::float_cmp,
    clippy::many_single_char_names,
    clippy::needless_for_each
)]

use super::attention_reference as reference;

use crate::cpu::attention::{Dropout, Grads, Options, Saved, Shape, backward, forward};
use crate::cpu::dropout::Mask;
use crate::cpu::testing::{Rng, assert_close, assert_same_for_any_threads, check_gradient, to_f64};
use crate::cpu::view::{Strides, View, ViewMut};

/// One random case: shape, data and options.
struct Case {
    shape: Shape,
    data: [Vec<f32>; 4],
    offsets: Vec<usize>,
    alibi: Vec<f32>,
    window: Option<usize>,
    soft_cap: Option<f32>,
    dropout: Option<Dropout>,
}

impl Case {
    fn random(rng: &mut Rng, max_len: usize) -> Self {
        let n_kv_heads = rng.range(1, 3);
        let seq_q = rng.range(1, max_len);
        let shape = Shape {
            batch: rng.range(1, 3),
            seq_q,
            seq_k: if rng.below(2) == 0 {
                seq_q
            } else {
                rng.range(1, max_len + 40)
            },
            n_heads: n_kv_heads * rng.range(1, 3),
            n_kv_heads,
            head_dim: rng.pick(&[1, 3, 8, 16, 20, 32, 33, 40, 64, 72, 128]),
        };
        let q_len = shape.batch * shape.seq_q * shape.n_heads * shape.head_dim;
        let k_len = shape.batch * shape.seq_k * n_kv_heads * shape.head_dim;
        let some = |rng: &mut Rng| rng.below(3) == 0;
        Self {
            offsets: if some(rng) {
                vec![]
            } else {
                (0..shape.batch).map(|_| rng.below(60)).collect()
            },
            alibi: if some(rng) {
                (0..shape.n_heads).map(|h| 0.5 / (h + 1) as f32).collect()
            } else {
                vec![]
            },
            window: some(rng).then(|| rng.range(1, max_len)),
            soft_cap: some(rng).then(|| rng.pick(&[0.3, 1.5, 50.0])),
            dropout: some(rng).then(|| Dropout {
                mask: Mask {
                    key: rng.next(),
                    rate: 0.3,
                },
                first_sequence: rng.next() % 7,
            }),
            data: [q_len, k_len, k_len, q_len].map(|len| rng.floats(len)),
            shape,
        }
    }

    fn options(&self) -> Options<'_> {
        Options {
            scale: 1.0 / (self.shape.head_dim as f32).sqrt(),
            soft_cap: self.soft_cap,
            offsets: &self.offsets,
            window: self.window,
            alibi: &self.alibi,
            dropout: self.dropout,
        }
    }

    /// Token-first strides of queries and of keys.
    fn strides(&self) -> [Strides; 2] {
        let s = &self.shape;
        [
            Strides::token_first(s.seq_q, s.n_heads, s.head_dim),
            Strides::token_first(s.seq_k, s.n_kv_heads, s.head_dim),
        ]
    }

    /// Returns z, lse, dq, dk, dv, concatenated.
    fn run(&self) -> Vec<f32> {
        let [qs, ks] = self.strides();
        self.run_with(
            [&self.data[0], &self.data[1], &self.data[2], &self.data[3]],
            qs,
            ks,
        )
    }

    fn run_with(&self, [q, k, v, dz]: [&[f32]; 4], qs: Strides, ks: Strides) -> Vec<f32> {
        let (shape, options) = (&self.shape, self.options());
        let view = |data, strides| View { data, strides };
        let mut z = vec![f32::NAN; q.len()];
        let mut lse = vec![f32::NAN; shape.batch * shape.n_heads * shape.seq_q];
        let qkv = [view(q, qs), view(k, ks), view(v, ks)];
        forward(
            shape,
            &options,
            qkv,
            ViewMut {
                data: &mut z,
                strides: qs,
            },
            &mut lse,
        );
        let mut grads = [q.len(), k.len(), v.len()].map(|len| vec![f32::NAN; len]);
        let [dq, dk, dv] = &mut grads;
        let saved = Saved {
            q: qkv[0],
            k: qkv[1],
            v: qkv[2],
            z: view(&z, qs),
            lse: &lse,
        };
        let grad_views = Grads {
            q: ViewMut {
                data: dq,
                strides: qs,
            },
            k: ViewMut {
                data: dk,
                strides: ks,
            },
            v: ViewMut {
                data: dv,
                strides: ks,
            },
        };
        backward(shape, &options, &saved, view(dz, qs), grad_views);
        let [dq, dk, dv] = grads;
        [z, lse, dq, dk, dv].concat()
    }

    fn expected(&self) -> Vec<f64> {
        let [q, k, v, dz] = self.data.each_ref().map(|x| to_f64(x));
        let (shape, options) = (&self.shape, self.options());
        let r = reference::forward(shape, &options, &q, &k, &v);
        let [dq, dk, dv] = reference::backward(shape, &options, [&q, &k, &v], &dz);
        [r.z, r.lse, dq, dk, dv].concat()
    }
}

#[test]
fn matches_f64_on_random_cases() {
    let mut rng = Rng(1);
    for i in 0..120 {
        let max_len = rng.pick(&[1, 2, 9, 33, 70, 150]);
        let case = Case::random(&mut rng, max_len);
        let label = format!(
            "case {i}: {:?} offsets {:?} window {:?} cap {:?} alibi {:?} dropout {:?}",
            case.shape, case.offsets, case.window, case.soft_cap, case.alibi, case.dropout
        );
        assert_close(&case.run(), &case.expected(), 3e-5, &label);
    }
}

#[test]
fn long_sequences_match_f64_across_tiles() {
    let mut rng = Rng(2);
    for window in [None, Some(100)] {
        let mut case = Case::random(&mut rng, 3);
        case.shape = Shape {
            batch: 1,
            seq_q: 300,
            seq_k: 420,
            n_heads: 2,
            n_kv_heads: 1,
            head_dim: 16,
        };
        case.data = [300 * 32, 420 * 16, 420 * 16, 300 * 32].map(|len| rng.floats(len));
        (case.offsets, case.alibi, case.window) = (vec![120], vec![], window);
        assert_close(&case.run(), &case.expected(), 3e-5, "long");
    }
}

#[test]
fn large_scores_stay_finite() {
    let mut rng = Rng(3);
    let mut case = Case::random(&mut rng, 150);
    case.data[0].iter_mut().for_each(|x| *x *= 300.0);
    assert!(
        case.run()
            .iter()
            .all(|x| x.is_finite() || *x == f32::NEG_INFINITY)
    );
}

#[test]
fn reference_gradients_match_finite_differences() {
    let mut rng = Rng(4);
    for _ in 0..6 {
        let case = Case::random(&mut rng, 9);
        let [q, k, v, dz] = case.data.each_ref().map(|x| to_f64(x));
        let (shape, options) = (&case.shape, case.options());
        let [dq, dk, dv] = reference::backward(shape, &options, [&q, &k, &v], &dz);
        let loss = |q: &[f64], k: &[f64], v: &[f64]| -> f64 {
            let z = reference::forward(shape, &options, q, k, v).z;
            z.iter().zip(&dz).map(|(z, d)| z * d).sum()
        };
        check_gradient(&mut rng, &q, &dq, |q| loss(q, &k, &v), "dq");
        check_gradient(&mut rng, &k, &dk, |k| loss(&q, k, &v), "dk");
        check_gradient(&mut rng, &v, &dv, |v| loss(&q, &k, v), "dv");
    }
}

#[test]
fn results_are_identical_for_any_thread_count() {
    let mut rng = Rng(5);
    for _ in 0..8 {
        let case = Case::random(&mut rng, 150);
        assert_same_for_any_threads(|| case.run());
    }
}

/// Converts `[batch, seq, heads, dim]` to `[batch, heads, seq, dim]` with a gap between tokens.
fn head_first(x: &[f32], [b, s, h, d]: [usize; 4], gap: usize) -> (Vec<f32>, Strides) {
    let strides = Strides {
        batch: h * s * (d + gap),
        seq: d + gap,
        head: s * (d + gap),
    };
    let mut out = vec![0.5; b * strides.batch];
    for (i, row) in x.chunks_exact(d).enumerate() {
        let (bi, si, hi) = (i / h / s, i / h % s, i % h);
        let start = bi * strides.batch + si * strides.seq + hi * strides.head;
        out[start..start + d].copy_from_slice(row);
    }
    (out, strides)
}

#[test]
fn output_is_identical_for_any_layout() {
    let mut rng = Rng(6);
    for _ in 0..8 {
        let case = Case::random(&mut rng, 70);
        let s = case.shape;
        let q_sizes = [s.batch, s.seq_q, s.n_heads, s.head_dim];
        let k_sizes = [s.batch, s.seq_k, s.n_kv_heads, s.head_dim];
        let gap = rng.below(4);
        let sizes = [q_sizes, k_sizes, k_sizes, q_sizes];
        let permuted: Vec<_> = case
            .data
            .iter()
            .zip(sizes)
            .map(|(x, s)| head_first(x, s, gap))
            .collect();
        let data = [
            &permuted[0].0[..],
            &permuted[1].0[..],
            &permuted[2].0[..],
            &permuted[3].0[..],
        ];
        let got = case.run_with(data, permuted[0].1, permuted[1].1);
        let token_first = case.run();
        // Only z is compared element by element: it comes first in both.
        let (z, _) = head_first(&token_first[..case.data[0].len()], q_sizes, gap);
        for (row, want) in z.chunks_exact(s.head_dim + gap).enumerate() {
            let got = &got[row * (s.head_dim + gap)..][..s.head_dim];
            assert_eq!(got, &want[..s.head_dim]);
        }
    }
}

#[test]
fn empty_batches_and_zero_keys_are_accepted() {
    let mut rng = Rng(7);
    let mut case = Case::random(&mut rng, 5);
    case.shape.batch = 0;
    case.offsets.clear();
    case.data = Default::default();
    assert!(case.run().is_empty());
    let mut case = Case::random(&mut rng, 5);
    case.shape.seq_k = 0;
    case.data[1].clear();
    case.data[2].clear();
    assert_close(&case.run(), &case.expected(), 0.0, "no keys");
}
