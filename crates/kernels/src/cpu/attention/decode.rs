//! Decode attention: one new query per row over a paged KV cache.
//!
//! Each row is computed independently, in an order that depends only on its own keys, so the rest of
//! the batch cannot change its result.

use std::f32::consts::LOG2_E;
use std::ops::Range;

use pulp::Simd;

use super::super::math::{self, exp2};
use super::super::par::{self, Shared};
use super::super::scratch;
use super::super::simd::{Ops, dispatch, for_lanes, load_part, store_part};
use super::backward_block::dot;
use super::pages::PagedCache;

/// One query of decode attention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DecodeRow<'a> {
    /// Pages of the sequence, in order.
    pub(crate) pages: &'a [usize],
    /// The tokens of the sequence that the query attends to.
    pub(crate) keys: Range<usize>,
    /// Position of the query.
    pub(crate) position: usize,
}

/// Scale and bias of decode attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DecodeOptions<'a> {
    /// Factor on the scores.
    pub(crate) scale: f32,
    /// Soft cap of the scaled scores: maps them to (-c, c) by `c * tanh(score / c)`.
    pub(crate) soft_cap: Option<f32>,
    /// ALiBi slope of each head: adds `-slope * abs(distance)` to the scores. Empty for none.
    pub(crate) alibi: &'a [f32],
}

/// Computes for each row the attention of its query, `[rows, n_heads, head_dim]`, over the tokens
/// that it attends to; 0 if there are none.
pub(crate) fn decode(
    options: &DecodeOptions<'_>,
    q: &[f32],
    cache: &PagedCache<'_>,
    rows: &[DecodeRow<'_>],
    z: &mut [f32],
) {
    assert_eq!(z.len(), q.len());
    for row in rows {
        cache.check(row.pages);
        assert!(row.keys.end <= row.pages.len() * cache.page_len);
    }
    let tasks = rows.len() * cache.n_kv_heads;
    let Some(task_len) = q.len().checked_div(tasks) else {
        return;
    };
    let group = task_len / cache.head_dim;
    assert_eq!(q.len(), tasks * group * cache.head_dim);
    assert!(options.alibi.is_empty() || options.alibi.len() == cache.n_kv_heads * group);
    let z = Shared::new(z);
    let max_len = rows.iter().map(|row| row.keys.len()).max().unwrap_or(0);
    // The cost of a key is its products plus a horizontal sum, which takes as long as many products.
    par::for_each(tasks, max_len * (task_len + 128 * group), |index| {
        let (row, kv_head) = (&rows[index / cache.n_kv_heads], index % cache.n_kv_heads);
        let task = DecodeTask {
            q: &q[index * task_len..(index + 1) * task_len],
            cache: *cache,
            pages: row.pages,
            kv_head,
            tokens: row.keys.start.min(row.keys.end)..row.keys.end,
            position: row.position,
            scale: options.scale * LOG2_E,
            soft_cap: options.soft_cap.map(|cap| cap * LOG2_E),
            slopes: options
                .alibi
                .get(kv_head * group..(kv_head + 1) * group)
                .unwrap_or(&[]),
        };
        // SAFETY: the range is within `z`, which is as long as `q`, and each task writes only its
        // own heads.
        let z = unsafe { z.slice(index * task_len, task_len) };
        let scores = group * scratch::padded_len(task.tokens.len());
        let len = scores + KEYS * cache.head_dim;
        scratch::with_task_scratch(len, |scratch| {
            let (scores, block) = scratch.split_at_mut(scores);
            run(&task, scores, block, z);
        });
    });
}

/// The queries of one row that share a key/value head, and the visible tokens.
struct DecodeTask<'a> {
    q: &'a [f32],
    cache: PagedCache<'a>,
    pages: &'a [usize],
    kv_head: usize,
    /// The visible tokens.
    tokens: Range<usize>,
    /// Position of the query.
    position: usize,
    /// Factor on the scores, in units of log2.
    scale: f32,
    /// Soft cap of the scores, in units of log2.
    soft_cap: Option<f32>,
    slopes: &'a [f32],
}

/// Maximum number of keys per block, processed for all heads of a group in turn so that they stay in the
/// L1 cache. The division into blocks changes no bit: scores are independent, and the sums over values are
/// added token by token.
const KEYS: usize = 64;

dispatch!(
    /// `scratch` has room for the elements of a block.
    fn run(
        task: &DecodeTask<'_>, scores: &mut [f32], scratch: &mut [f32], z: &mut [f32],
    ) => body
);

#[inline(always)]
fn body<S: Simd>(
    s: S,
    task: &DecodeTask<'_>,
    scores: &mut [f32],
    scratch: &mut [f32],
    z: &mut [f32],
) {
    let (cache, dim) = (&task.cache, task.cache.head_dim);
    let (start, count) = (task.tokens.start, task.tokens.len());
    let padded = scratch::padded_len(count);
    for block in cache.blocks(task.tokens.clone(), KEYS) {
        let range = cache.range(task.pages, task.kv_head, &block);
        let keys = cache.keys.read(range, dim, scratch);
        for (head, q) in task.q.chunks_exact(dim).enumerate() {
            let scores = &mut scores[head * padded + block.start - start..][..block.len()];
            for (key, score) in keys.chunks_exact(dim).zip(&mut *scores) {
                // SAFETY: `q` and `key` have `dim` elements.
                let dot = unsafe { dot(s, q.as_ptr(), key.as_ptr(), dim) };
                *score = dot * task.scale;
            }
            if let Some(cap) = task.soft_cap {
                soft_cap(s, scores, cap);
            }
            if let Some(slope) = task.slopes.get(head) {
                for (token, score) in block.clone().zip(scores) {
                    let distance = task.position.abs_diff(token);
                    *score -= slope * LOG2_E * distance as f32;
                }
            }
        }
    }
    z.fill(0.0);
    for head in 0..z.len() / dim {
        softmax_in_place(s, &mut scores[head * padded..head * padded + count]);
    }
    for block in cache.blocks(task.tokens.clone(), KEYS) {
        let range = cache.range(task.pages, task.kv_head, &block);
        let values = cache.values.read(range, dim, scratch);
        for (head, z) in z.chunks_exact_mut(dim).enumerate() {
            let p = &scores[head * padded + block.start - start..][..block.len()];
            add_values(s, p, values, z);
        }
    }
}

/// Soft-caps the scores to (-cap, cap).
#[inline(always)]
fn soft_cap<S: Simd>(s: S, scores: &mut [f32], cap: f32) {
    let ptr = scores.as_mut_ptr();
    for_lanes!(s, scores.len(), |i, part| {
        // SAFETY: `i` and `part` stay within the scores.
        unsafe {
            let score = math::soft_cap(s, load_part(s, ptr, i, part), cap);
            store_part(s, ptr, i, part, score);
        }
    });
}

/// Replaces scores in units of log2 by attention weights.
#[inline(always)]
fn softmax_in_place<S: Simd>(s: S, scores: &mut [f32]) {
    let max_score = scores.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    let ptr = scores.as_mut_ptr();
    let mut sum = s.zero();
    for_lanes!(s, scores.len(), |i, part| {
        // SAFETY: `i` and `part` stay within the scores.
        unsafe {
            let p = exp2(
                s,
                s.sub_f32s(load_part(s, ptr, i, part), s.splat_f32s(max_score)),
            );
            store_part(s, ptr, i, part, p);
            // Loaded again because the lanes beyond a partial register are then 0.
            sum = s.add_f32s(sum, load_part(s, ptr, i, part));
        }
    });
    let inverse = 1.0 / s.reduce_sum_f32s(sum);
    for p in scores {
        *p *= inverse;
    }
}

/// `z += sum over tokens of p[token] * values[token]`.
#[inline(always)]
fn add_values<S: Simd>(s: S, p: &[f32], values: &[f32], z: &mut [f32]) {
    let dim = z.len();
    assert_eq!(values.len(), p.len() * dim);
    for_lanes!(s, dim, |offset, part| {
        // SAFETY: `offset` and `part` stay within a row of `dim` elements, which `z` and each token
        // have.
        unsafe {
            let mut sum = load_part(s, z.as_ptr(), offset, part);
            for (token, p) in p.iter().enumerate() {
                let value = load_part(s, values.as_ptr().add(token * dim), offset, part);
                sum = s.fma(s.splat_f32s(*p), value, sum);
            }
            store_part(s, z.as_mut_ptr(), offset, part, sum);
        }
    });
}
