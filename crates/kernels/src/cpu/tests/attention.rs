//! Attention compared with f64 and finite differences.
#![allow(
    clippy::float_cmp,
    clippy::many_single_char_names,
    clippy::needless_for_each
)]

use super::attention_masks::{KINDS, Kind, MaskCase};
use super::attention_reference as reference;

use crate::AttentionMask;
use crate::cpu::attention::{Dropout, Grads, Options, Saved, Shape, backward, forward};
use crate::cpu::dropout::Mask;
use crate::cpu::testing::{Rng, assert_same_for_any_threads, check_gradient, to_f64};
use crate::cpu::view::{Strides, View, ViewMut};

/// One random case: shape, data and options.
struct Case {
    shape: Shape,
    data: [Vec<f32>; 4],
    case: MaskCase,
    mask: AttentionMask,
    alibi: Vec<f32>,
    soft_cap: Option<f32>,
    dropout: Option<Dropout>,
}

impl Case {
    fn random(rng: &mut Rng, kind: Kind, max_len: usize) -> Self {
        let (rows, queries) = (rng.range(1, 3), rng.range(1, max_len));
        let case = MaskCase::random(rng, kind, rows, queries);
        // Keys of a KV cache may be fewer or more than the mask needs.
        let seq_k = if rng.below(4) == 0 {
            rng.range(1, max_len + 40)
        } else {
            case.keys
        };
        Self::with_mask(rng, case, seq_k)
    }

    fn with_mask(rng: &mut Rng, case: MaskCase, seq_k: usize) -> Self {
        let n_kv_heads = rng.range(1, 3);
        let shape = Shape {
            batch: case.offsets.len(),
            seq_q: case.queries,
            seq_k,
            n_heads: n_kv_heads * rng.range(1, 3),
            n_kv_heads,
            head_dim: rng.pick(&[1, 3, 8, 16, 20, 32, 33, 40, 64, 72, 128]),
        };
        let q_len = shape.batch * shape.seq_q * shape.n_heads * shape.head_dim;
        let k_len = shape.batch * shape.seq_k * n_kv_heads * shape.head_dim;
        let some = |rng: &mut Rng| rng.below(3) == 0;
        Self {
            mask: case.mask(),
            case,
            alibi: if some(rng) {
                (0..shape.n_heads).map(|h| 0.5 / (h + 1) as f32).collect()
            } else {
                vec![]
            },
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
            mask: &self.mask,
            window: self.case.window,
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
        let setup = (shape, &options, &self.case);
        let r = reference::forward(setup, &q, &k, &v);
        let [dq, dk, dv] = reference::backward(setup, [&q, &k, &v], &dz);
        [r.z, r.lse, dq, dk, dv].concat()
    }
}

/// Panics unless each element agrees within `1e-5` of its magnitude plus `2e-5`: sums of up to 300
/// products of standard normal values.
#[track_caller]
fn assert_each_close(got: &[f32], want: &[f64], label: &str) {
    assert_eq!(got.len(), want.len(), "{label}: lengths");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let close = (f64::from(*g) - w).abs() <= 1e-5 * w.abs() + 2e-5;
        assert!(
            close || f64::from(*g) == *w,
            "{label}: [{i}] is {g}, not {w}"
        );
    }
}

#[test]
fn matches_f64_for_every_kind_of_mask() {
    let mut rng = Rng(1);
    for i in 0..40 * KINDS.len() {
        let max_len = rng.pick(&[1, 2, 9, 33, 70, 150]);
        let case = Case::random(&mut rng, KINDS[i % KINDS.len()], max_len);
        let label = format!(
            "case {i}: {:?} mask {:?} cap {:?} alibi {:?} dropout {:?}",
            case.shape, case.case, case.soft_cap, case.alibi, case.dropout
        );
        assert_each_close(&case.run(), &case.expected(), &label);
    }
}

#[test]
fn long_sequences_match_f64_across_tiles() {
    let mut rng = Rng(2);
    for kind in KINDS {
        for window in [None, Some(100)] {
            let mut mask = MaskCase::random(&mut rng, kind, 1, 150);
            mask.window = window;
            let keys = mask.keys;
            let mut case = Case::with_mask(&mut rng, mask, keys);
            case.alibi.clear();
            assert_each_close(&case.run(), &case.expected(), &format!("{:?}", case.case));
        }
    }
}

/// Queries without visible keys: rows of length 0, padding after segments, keys out of the window.
#[test]
fn a_query_without_visible_keys_gets_zero_and_no_gradient() {
    let mut rng = Rng(8);
    let mut empty = 0;
    for i in 0..40 {
        let kind = [Kind::Bidirectional, Kind::Cross, Kind::CausalSegments][i % 3];
        let mut mask = MaskCase::random(&mut rng, kind, 2, 70);
        mask.lengths[0] = 0;
        mask.segments[0].truncate(1);
        let keys = mask.keys;
        let case = Case::with_mask(&mut rng, mask, keys);
        let results = case.run();
        assert!(results.iter().all(|x| !x.is_nan()));
        let (z, rest) = results.split_at(case.data[0].len());
        let dq = &rest[rest.len() - case.data[0].len() - 2 * case.data[1].len()..];
        let is_empty = |query| (0..keys).all(|key| !case.case.is_visible(0, query, key));
        for query in (0..70).filter(|query| is_empty(*query)) {
            empty += 1;
            let width = case.shape.n_heads * case.shape.head_dim;
            for row in [z, dq] {
                assert!(row[query * width..][..width].iter().all(|x| *x == 0.0));
            }
        }
    }
    assert!(empty > 1000, "only {empty} queries without keys");
}

#[test]
fn without_keys_outputs_and_gradients_are_zero() {
    let mut rng = Rng(14);
    let mut most_heads = 0;
    for _ in 0..20 {
        let mut mask = MaskCase::random(&mut rng, Kind::Cross, 2, 70);
        mask.keys = 0;
        mask.lengths = vec![0, 0];
        let case = Case::with_mask(&mut rng, mask, 0);
        most_heads = most_heads.max(case.shape.n_kv_heads);
        let results = case.run();
        let (z, rest) = results.split_at(case.data[0].len());
        let (lse, dq) = rest.split_at(rest.len() - case.data[0].len());
        assert!(z.iter().chain(dq).all(|x| *x == 0.0));
        assert!(lse.iter().all(|x| *x == f32::NEG_INFINITY));
    }
    assert!(
        most_heads > 1,
        "the views of later heads are the critical ones"
    );
}

#[test]
fn large_scores_stay_finite() {
    let mut rng = Rng(3);
    let mut case = Case::random(&mut rng, Kind::Causal, 150);
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
    for i in 0..24 {
        let case = Case::random(&mut rng, KINDS[i % KINDS.len()], 9);
        let [q, k, v, dz] = case.data.each_ref().map(|x| to_f64(x));
        let options = case.options();
        let setup = (&case.shape, &options, &case.case);
        let [dq, dk, dv] = reference::backward(setup, [&q, &k, &v], &dz);
        let loss = |q: &[f64], k: &[f64], v: &[f64]| -> f64 {
            let z = reference::forward(setup, q, k, v).z;
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
    for i in 0..12 {
        let case = Case::random(&mut rng, KINDS[i % KINDS.len()], 150);
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
    for i in 0..12 {
        let case = Case::random(&mut rng, KINDS[i % KINDS.len()], 70);
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
    let mut case = Case::random(&mut rng, Kind::Causal, 5);
    case.shape.batch = 0;
    case.mask = AttentionMask::causal(vec![], case.shape.seq_q);
    case.data = Default::default();
    assert!(case.run().is_empty());
    for kind in KINDS {
        let mut case = Case::random(&mut rng, kind, 5);
        case.shape.seq_k = 0;
        case.data[1].clear();
        case.data[2].clear();
        // Nothing is visible, whatever the mask allows.
        case.case.kind = Kind::Cross;
        case.case.lengths.fill(0);
        assert_each_close(&case.run(), &case.expected(), "no keys");
    }
}
