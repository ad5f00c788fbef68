//! Decode attention over a KV cache.
#![allow(
    clippy::float_cmp,
    clippy::many_single_char_names,
    clippy::needless_for_each
)]

use super::attention_reference::capped;
use crate::cpu::attention::{DecodeOptions, DecodeRow, KvCache, decode};
use crate::cpu::testing::{Rng, assert_close, assert_same_for_any_threads};

struct Case {
    group: usize,
    n_kv_heads: usize,
    capacity: usize,
    dim: usize,
    soft_cap: Option<f32>,
    alibi: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    rows: Vec<DecodeRow>,
    q: Vec<f32>,
}

impl Case {
    fn random(rng: &mut Rng, max_len: usize) -> Self {
        let (group, n_kv_heads) = (rng.range(1, 3), rng.range(1, 3));
        let (capacity, dim) = (rng.range(1, max_len), rng.pick(&[1, 8, 20, 32, 64, 128]));
        let (slots, rows) = (rng.range(1, 4), rng.below(4));
        let len = slots * n_kv_heads * capacity * dim;
        Self {
            group,
            n_kv_heads,
            capacity,
            dim,
            soft_cap: (rng.below(3) == 0).then(|| rng.pick(&[0.3, 1.5, 50.0])),
            alibi: if rng.below(2) == 0 {
                vec![]
            } else {
                rng.floats(group * n_kv_heads)
            },
            keys: rng.floats(len),
            values: rng.floats(len),
            rows: (0..rows)
                .map(|_| Self::random_row(rng, slots, capacity))
                .collect(),
            q: rng.floats(rows * group * n_kv_heads * dim),
        }
    }

    /// A query that attends to any range of tokens, from a position before, in or after it.
    fn random_row(rng: &mut Rng, slots: usize, capacity: usize) -> DecodeRow {
        let end = rng.range(0, capacity);
        DecodeRow {
            slot: rng.below(slots),
            keys: rng.range(0, end)..end,
            position: rng.below(capacity + 2),
        }
    }

    fn run(&self, rows: std::ops::Range<usize>) -> Vec<f32> {
        let each = self.group * self.n_kv_heads * self.dim;
        let cache = KvCache {
            keys: &self.keys,
            values: &self.values,
            n_kv_heads: self.n_kv_heads,
            capacity: self.capacity,
            head_dim: self.dim,
        };
        let options = DecodeOptions {
            scale: 0.2,
            soft_cap: self.soft_cap,
            alibi: &self.alibi,
        };
        let q = &self.q[rows.start * each..rows.end * each];
        let mut z = vec![f32::NAN; q.len()];
        decode(&options, q, &cache, &self.rows[rows], &mut z);
        z
    }

    fn expected(&self) -> Vec<f64> {
        let mut z = vec![0.0; self.q.len()];
        let heads = self.group * self.n_kv_heads;
        for (index, z) in z.chunks_mut(self.dim).enumerate() {
            let (row, head) = (index / heads, index % heads);
            let row = &self.rows[row];
            let cache = (row.slot * self.n_kv_heads + head / self.group) * self.capacity;
            let first = row.keys.start;
            let slope = f64::from(self.alibi.get(head).copied().unwrap_or(0.0));
            let scores: Vec<f64> = row
                .keys
                .clone()
                .map(|token| {
                    let start = (cache + token) * self.dim;
                    let dot: f64 = (0..self.dim)
                        .map(|d| {
                            f64::from(self.q[index * self.dim + d])
                                * f64::from(self.keys[start + d])
                        })
                        .sum();
                    let score = capped(dot * f64::from(0.2_f32), self.soft_cap);
                    score - slope * row.position.abs_diff(token) as f64
                })
                .collect();
            let max_score = scores.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max_score).exp()).sum();
            for (i, score) in scores.iter().enumerate() {
                let start = (cache + first + i) * self.dim;
                let p = (score - max_score).exp() / sum;
                z.iter_mut()
                    .enumerate()
                    .for_each(|(d, z)| *z += p * f64::from(self.values[start + d]));
            }
        }
        z
    }
}

#[test]
fn matches_f64() {
    let mut rng = Rng(1);
    for max_len in [1, 5, 40, 300] {
        for _ in 0..20 {
            let case = Case::random(&mut rng, max_len);
            assert_close(
                &case.run(0..case.rows.len()),
                &case.expected(),
                2e-5,
                "decode",
            );
        }
    }
}

#[test]
fn rows_are_independent_of_batch_and_thread_count() {
    let mut rng = Rng(2);
    for _ in 0..10 {
        let case = Case::random(&mut rng, 200);
        let rows = case.rows.len();
        let together = assert_same_for_any_threads(|| case.run(0..rows));
        let alone: Vec<f32> = (0..rows).flat_map(|row| case.run(row..row + 1)).collect();
        assert_eq!(together, alone);
    }
}
