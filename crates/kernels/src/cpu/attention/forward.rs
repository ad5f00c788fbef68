//! The forward pass.

use std::f32::consts::{LN_2, LOG2_E};

use pulp::Simd;

use super::super::par::{self, Shared};
use super::super::scratch;
use super::super::simd::{Ops, dispatch, for_lanes, load_part, store_part};
use super::super::view::{Rows, SharedView, SharedViewMut, View, ViewMut};
use super::block::{Block, block_count, query_ranges, transpose};
use super::mask::{KeySteps, TileMask};
use super::sizes::{KEYS, QUERIES};
use super::softmax::{self, RunningSoftmax};
use super::tile::{Factor, accumulate, multiply};
use super::{Options, Shape};

/// `z = softmax(mask(cap(scale * q k^T) + bias)) v`, with the shape of q, and the log-sum-exp of
/// the scores, `[batch, n_heads, seq_q]`, needed by the backward pass.
///
/// A query without a visible key gets z = 0 and a log-sum-exp of minus infinity.
pub(crate) fn forward(
    shape: &Shape,
    options: &Options<'_>,
    [q, k, v]: [View<'_>; 3],
    z: ViewMut<'_>,
    lse: &mut [f32],
) {
    options.check(shape);
    let queries = [shape.batch, shape.seq_q, shape.n_heads, shape.head_dim];
    let keys = [shape.batch, shape.seq_k, shape.n_kv_heads, shape.head_dim];
    let qkv = [
        SharedView::new(q, queries),
        SharedView::new(k, keys),
        SharedView::new(v, keys),
    ];
    let z = SharedViewMut::new(z, queries);
    assert_eq!(lse.len(), shape.batch * shape.n_heads * shape.seq_q);
    let lse = Shared::new(lse);
    let per_head = block_count(shape);
    let tasks = shape.batch * shape.n_heads * per_head;
    let cost = 4 * QUERIES.min(shape.seq_q) * shape.seq_k * shape.head_dim / 32;
    par::for_each(tasks, cost, |task| {
        let (row, index) = (task / per_head, task % per_head);
        let (batch, head) = (row / shape.n_heads, row % shape.n_heads);
        let ranges = query_ranges(shape, options, batch, index);
        // SAFETY: the indices are within `shape`, for which the views and the length of `lse` were
        // checked, and ranges end within `seq_k`. So the block is valid, and `z` and `lse` have its
        // queries. Each task accesses only the results of its own queries.
        unsafe {
            let block = Block::new(shape, options, qkv, (batch, head, index), ranges.as_ref());
            let lse = lse.slice(row * shape.seq_q + index * QUERIES, block.mask.queries);
            let z = z.tokens(batch, head, index * QUERIES);
            let len = ScratchParts::len(shape.head_dim, block.dropout.is_some());
            scratch::with_task_scratch(len, |scratch| run(&block, scratch, z, lse));
        }
    });
}

dispatch!(
    /// Writes the output and the log-sum-exp of the queries of one block.
    ///
    /// # Safety
    /// `block` must be valid and `lse` have an element for each of its queries. `z` must have a
    /// writable row of `block.head_dim` floats for each of them, which nothing else may access.
    unsafe fn run(
        block: &Block<'_>, scratch: &mut [f32], z: Rows<*mut f32>, lse: &mut [f32],
    ) => body
);

/// The scratch of a block, split into parts.
struct ScratchParts<'a> {
    /// Queries, `[head_dim][QUERIES]`.
    q: &'a mut [f32],
    /// Scores and attention weights, `[KEYS][QUERIES]`.
    p: &'a mut [f32],
    /// Dropout factors, `[KEYS][QUERIES]`, or empty.
    dropout: &'a mut [f32],
    /// Weighted sums of values, `[QUERIES][head_dim]`, rows padded to full cache lines.
    z: &'a mut [f32],
    /// Running softmax, three rows of `[QUERIES]`.
    running: &'a mut [f32],
}

impl<'a> ScratchParts<'a> {
    fn len(head_dim: usize, has_dropout: bool) -> usize {
        let tiles = if has_dropout { 2 } else { 1 };
        QUERIES * (head_dim + tiles * KEYS + scratch::padded_len(head_dim) + 3)
    }

    fn split(scratch: &'a mut [f32], head_dim: usize, has_dropout: bool) -> Self {
        let (q, rest) = scratch.split_at_mut(head_dim * QUERIES);
        let (p, rest) = rest.split_at_mut(KEYS * QUERIES);
        let (dropout, rest) = rest.split_at_mut(if has_dropout { KEYS * QUERIES } else { 0 });
        let (z, running) = rest.split_at_mut(scratch::padded_len(head_dim) * QUERIES);
        Self {
            q,
            p,
            dropout,
            z,
            running,
        }
    }
}

/// # Safety
/// See `run`.
#[inline(always)]
unsafe fn body<S: Simd>(
    s: S,
    block: &Block<'_>,
    scratch: &mut [f32],
    z: Rows<*mut f32>,
    lse: &mut [f32],
) {
    let parts = ScratchParts::split(scratch, block.head_dim, block.dropout.is_some());
    let n = block.mask.queries;
    // Scores in units of log2 save a multiplication per exponential.
    let factor = block.scale * LOG2_E;
    // SAFETY: scratch has room for QUERIES queries, and the caller guarantees that the block is
    // valid, hence has `n` of them.
    unsafe { transpose(s, block.q, n, block.head_dim, factor, parts.q.as_mut_ptr()) };
    let (row_max, rest) = parts.running.split_at_mut(QUERIES);
    let (sum, rescale) = rest.split_at_mut(QUERIES);
    row_max.fill(f32::NEG_INFINITY);
    sum.fill(0.0);
    parts.z.fill(0.0);
    let mut running = RunningSoftmax {
        row_max,
        sum,
        rescale,
    };
    let sums = Rows {
        ptr: parts.z.as_mut_ptr(),
        stride: scratch::padded_len(block.head_dim),
    };
    for (i, mask) in block.tiles().enumerate() {
        if let Some(dropout) = block.dropout {
            dropout.fill(&mask, parts.dropout);
        }
        // SAFETY: the tile's keys exist in a valid block, and scratch has room for KEYS keys.
        unsafe { compute_scores(s, block, &mask, parts.q, parts.p) };
        if let Some(cap) = block.soft_cap {
            softmax::soft_cap(s, &mask, cap, parts.p);
        }
        softmax::update_tile(
            s,
            &mask,
            block.alibi_slope,
            parts.p,
            parts.dropout,
            &mut running,
        );
        // SAFETY: the tile's keys exist in a valid block, and scratch has QUERIES rows padded to
        // full cache lines.
        unsafe {
            if i > 0 {
                rescale_rows(s, n, block.head_dim, sums, running.rescale);
            }
            add_values(s, block, &mask, parts.p, sums);
        }
    }
    // SAFETY: the caller guarantees that `z` has a row for each query of the block, which nothing
    // else accesses; `sums` has QUERIES rows.
    unsafe { normalize_and_store(s, block, &running, sums, z, lse) };
}

/// `p[key][query] = q k`.
///
/// # Safety
/// The keys of `mask` must exist in the block, `q` must be `[head_dim][QUERIES]`, and `p` must have
/// room for `mask.keys` rows.
#[inline(always)]
unsafe fn compute_scores<S: Simd>(
    s: S,
    block: &Block<'_>,
    mask: &TileMask<'_>,
    q: &[f32],
    p: &mut [f32],
) {
    let q = Rows {
        ptr: q.as_ptr(),
        stride: QUERIES,
    };
    let p = Rows {
        ptr: p.as_mut_ptr(),
        stride: QUERIES,
    };
    // SAFETY: the caller guarantees that keys, queries and scores cover the keys of `mask`.
    unsafe {
        let ptr = block.k.ptr.add(mask.first_key * block.k.stride);
        let k = Factor {
            ptr,
            row_stride: block.k.stride,
            step_stride: 1,
        };
        multiply(s, mask.keys, block.head_dim, k, q, p, mask);
    }
}

/// `sums[query] += p[key][query] v[key]`.
///
/// # Safety
/// The keys of `mask` must exist in the block, `p` must have `mask.keys` rows, and `sums` must have
/// QUERIES padded rows.
#[inline(always)]
unsafe fn add_values<S: Simd>(
    s: S,
    block: &Block<'_>,
    mask: &TileMask<'_>,
    p: &[f32],
    sums: Rows<*mut f32>,
) {
    let n = mask.queries;
    // Full tiles of queries are faster than single rows; the surplus rows are never read.
    let rows = if n < 4 { n } else { n.next_multiple_of(8) };
    let p = Factor {
        ptr: p.as_ptr(),
        row_stride: 1,
        step_stride: QUERIES,
    };
    // SAFETY: the caller guarantees that values, weights and sums cover the keys of `mask` and the
    // queries.
    unsafe {
        let ptr = block.v.ptr.add(mask.first_key * block.v.stride);
        let v = Rows {
            ptr,
            stride: block.v.stride,
        };
        accumulate(s, rows, block.head_dim, p, v, sums, &KeySteps(*mask));
    }
}

/// Multiplies the rows of `sums` by `factors`.
///
/// # Safety
/// `sums` must have `n` rows of `width` floats, padded to full cache lines.
#[inline(always)]
unsafe fn rescale_rows<S: Simd>(
    s: S,
    n: usize,
    width: usize,
    sums: Rows<*mut f32>,
    factors: &[f32],
) {
    for (i, factor) in factors.iter().enumerate().take(n) {
        // SAFETY: the caller guarantees that `sums` has `n` rows padded to full cache lines.
        unsafe {
            let row = sums.ptr.add(i * sums.stride);
            for d in (0..width).step_by(S::LANES) {
                let ptr = row.add(d);
                s.store(ptr, s.mul_f32s(s.load(ptr), s.splat_f32s(*factor)));
            }
        }
    }
}

/// Divides by the sums of the exponentials and stores the output.
///
/// # Safety
/// `sums` and `z` must have a row of `head_dim` floats for each element of `lse`.
#[inline(always)]
unsafe fn normalize_and_store<S: Simd>(
    s: S,
    block: &Block<'_>,
    running: &RunningSoftmax<'_>,
    sums: Rows<*mut f32>,
    z: Rows<*mut f32>,
    lse: &mut [f32],
) {
    for (i, lse) in lse.iter_mut().enumerate() {
        let (row_max, sum) = (running.row_max[i], running.sum[i]);
        let inverse = if sum == 0.0 { 0.0 } else { 1.0 / sum };
        *lse = (row_max + sum.log2()) * LN_2;
        for_lanes!(s, block.head_dim, |offset, part| {
            // SAFETY: the caller guarantees that `sums` and `z` have a row of `head_dim` floats for
            // each query.
            unsafe {
                let sum = load_part(s, sums.ptr.add(i * sums.stride), offset, part);
                let y = s.mul_f32s(sum, s.splat_f32s(inverse));
                store_part(s, z.ptr.add(i * z.stride), offset, part, y);
            }
        });
    }
}
