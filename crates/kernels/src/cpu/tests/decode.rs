//! Decode attention over a paged KV cache.
#![allow(
    clippy::float_cmp,
    clippy::many_single_char_names,
    clippy::needless_for_each
)]

use std::ops::Range;

use super::attention_reference::capped;
use crate::cpu::attention::{DecodeOptions, DecodeRow, PageElements, PagedCache, decode, gather};
use crate::cpu::testing::{Rng, assert_close, assert_same_for_any_threads};

struct Case {
    group: usize,
    n_kv_heads: usize,
    page_len: usize,
    dim: usize,
    soft_cap: Option<f32>,
    alibi: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    rows: Vec<Row>,
    q: Vec<f32>,
}

struct Row {
    pages: Vec<usize>,
    keys: Range<usize>,
    position: usize,
}

impl Row {
    /// A query that attends to any range of tokens, from a position before, in or after it. Its pages are
    /// in any order, and other rows may have the same.
    fn random(rng: &mut Rng, pages: usize, page_len: usize, max_len: usize) -> Self {
        let end = rng.range(0, max_len);
        Self {
            pages: (0..end.div_ceil(page_len) + rng.below(2))
                .map(|_| rng.below(pages))
                .collect(),
            keys: rng.range(0, end)..end,
            position: rng.below(max_len + 2),
        }
    }
}

impl Case {
    fn random(rng: &mut Rng, max_len: usize) -> Self {
        let (group, n_kv_heads) = (rng.range(1, 3), rng.range(1, 3));
        let (page_len, dim) = (
            rng.pick(&[1, 3, 8, 16, 32, 100]),
            rng.pick(&[1, 8, 20, 32, 64, 128]),
        );
        let (pages, rows) = (rng.range(1, 12), rng.below(4));
        let len = pages * n_kv_heads * page_len * dim;
        Self {
            group,
            n_kv_heads,
            page_len,
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
                .map(|_| Row::random(rng, pages, page_len, max_len))
                .collect(),
            q: rng.floats(rows * group * n_kv_heads * dim),
        }
    }

    fn cache(&self) -> PagedCache<'_> {
        PagedCache {
            keys: PageElements::F32(&self.keys),
            values: PageElements::F32(&self.values),
            n_kv_heads: self.n_kv_heads,
            page_len: self.page_len,
            head_dim: self.dim,
        }
    }

    fn decode(&self, q: &[f32], cache: &PagedCache<'_>, rows: &[DecodeRow<'_>]) -> Vec<f32> {
        let options = DecodeOptions {
            scale: 0.2,
            soft_cap: self.soft_cap,
            alibi: &self.alibi,
        };
        let mut z = vec![f32::NAN; q.len()];
        decode(&options, q, cache, rows, &mut z);
        z
    }

    fn queries(&self, rows: Range<usize>) -> &[f32] {
        let each = self.group * self.n_kv_heads * self.dim;
        &self.q[rows.start * each..rows.end * each]
    }

    fn run(&self, range: Range<usize>) -> Vec<f32> {
        let rows = self.rows[range.clone()].iter().map(|row| DecodeRow {
            pages: &row.pages,
            keys: row.keys.clone(),
            position: row.position,
        });
        let rows: Vec<_> = rows.collect();
        self.decode(self.queries(range), &self.cache(), &rows)
    }

    /// The keys or values of a row in one run.
    fn run_of(&self, row: &Row, data: &[f32]) -> Vec<f32> {
        let cache = PagedCache {
            keys: PageElements::F32(data),
            values: PageElements::F32(data),
            ..self.cache()
        };
        let mut out = vec![f32::NAN; self.n_kv_heads * row.keys.end * self.dim];
        gather(&cache, &[&row.pages], row.keys.end, &mut out);
        out
    }

    /// Row `index` over one run of its tokens.
    fn run_contiguous(&self, index: usize) -> Vec<f32> {
        let row = &self.rows[index];
        let [keys, values] = [&self.keys, &self.values].map(|data| self.run_of(row, data));
        let cache = PagedCache {
            keys: PageElements::F32(&keys),
            values: PageElements::F32(&values),
            page_len: row.keys.end.max(1),
            ..self.cache()
        };
        let contiguous = DecodeRow {
            pages: if row.keys.end == 0 { &[] } else { &[0] },
            keys: row.keys.clone(),
            position: row.position,
        };
        self.decode(self.queries(index..index + 1), &cache, &[contiguous])
    }

    fn expected(&self) -> Vec<f64> {
        let mut z = vec![0.0; self.q.len()];
        let heads = self.group * self.n_kv_heads;
        for (index, z) in z.chunks_mut(self.dim).enumerate() {
            let (row, head) = (index / heads, index % heads);
            let row = &self.rows[row];
            let kv_head = head / self.group;
            let start = |token: usize| {
                let page = row.pages[token / self.page_len] * self.n_kv_heads + kv_head;
                (page * self.page_len + token % self.page_len) * self.dim
            };
            let slope = f64::from(self.alibi.get(head).copied().unwrap_or(0.0));
            let scores: Vec<f64> = row
                .keys
                .clone()
                .map(|token| {
                    let start = start(token);
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
                let start = start(row.keys.start + i);
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

#[test]
fn pages_have_the_bits_of_one_run() {
    let mut rng = Rng(3);
    let mut compared = 0;
    for max_len in [1, 7, 40, 300] {
        for _ in 0..25 {
            let case = Case::random(&mut rng, max_len);
            for row in 0..case.rows.len() {
                assert_eq!(case.run(row..row + 1), case.run_contiguous(row));
                compared += 1;
            }
        }
    }
    assert!(compared > 80);
}
