//! The forward pass.

use std::f32::consts::{LN_2, LOG2_E};

use pulp::Simd;

use super::super::par::{self, Shared};
use super::super::scratch;
use super::super::simd::{Ops, dispatch, for_lanes, load_part, store_part};
use super::super::view::{Rows, Source, Target, View, ViewMut};
use super::block::{Block, KEYS, QUERIES, blocks, transpose};
use super::sight::{OverKeys, Sight};
use super::softmax::{self, Running};
use super::tile::{Factor, accumulate, scores};
use super::{Options, Shape};

/// `z = softmax(mask(cap(scale * q k^T) + bias)) v`, of the shape of q, and for each query
/// `[batch, n_heads, seq_q]` the log of the sum of exponentials, which backward needs.
///
/// A query that sees no key gets z = 0 and a log-sum of minus infinity.
pub fn forward(
    shape: &Shape,
    options: &Options<'_>,
    [q, k, v]: [View<'_>; 3],
    z: ViewMut<'_>,
    lse: &mut [f32],
) {
    options.check(shape);
    let queries = [shape.batch, shape.seq_q, shape.n_heads, shape.head_dim];
    let keys = [shape.batch, shape.seq_k, shape.n_kv_heads, shape.head_dim];
    let from = [
        Source::new(q, queries),
        Source::new(k, keys),
        Source::new(v, keys),
    ];
    let z = Target::new(z, queries);
    assert_eq!(lse.len(), shape.batch * shape.n_heads * shape.seq_q);
    let lse = Shared::new(lse);
    let per_head = blocks(shape);
    let units = shape.batch * shape.n_heads * per_head;
    let cost = 4 * QUERIES.min(shape.seq_q) * shape.seq_k * shape.head_dim / 32;
    par::for_each(units, cost, |unit| {
        let (row, index) = (unit / per_head, unit % per_head);
        let (batch, head) = (row / shape.n_heads, row % shape.n_heads);
        // SAFETY: the unit exists, and writes only its own queries' results.
        unsafe {
            let block = Block::new(shape, options, from, (batch, head, index));
            let lse = lse.slice(row * shape.seq_q + index * QUERIES, block.sight.queries);
            let z = z.tokens(batch, head, index * QUERIES);
            let len = Parts::len(shape.head_dim, block.keep.is_some());
            scratch::unit(len, |scratch| run(&block, scratch, z, lse));
        }
    });
}

dispatch!(fn run(block: &Block, scratch: &mut [f32], z: Rows<*mut f32>, lse: &mut [f32]) => body);

/// The scratch of a block, cut into parts.
struct Parts<'a> {
    /// Queries, `[head_dim][QUERIES]`.
    q: &'a mut [f32],
    /// Scores and percentages, `[KEYS][QUERIES]`.
    p: &'a mut [f32],
    /// Dropout factors, as above, or empty.
    keep: &'a mut [f32],
    /// Sums of values, `[QUERIES][head_dim]`, rows padded to whole cache lines.
    z: &'a mut [f32],
    /// Running softmax, three rows of `[QUERIES]`.
    running: &'a mut [f32],
}

impl<'a> Parts<'a> {
    fn len(head_dim: usize, keep: bool) -> usize {
        let tiles = if keep { 2 } else { 1 };
        QUERIES * (head_dim + tiles * KEYS + scratch::lines(head_dim) + 3)
    }

    fn cut(scratch: &'a mut [f32], head_dim: usize, keep: bool) -> Self {
        let (q, rest) = scratch.split_at_mut(head_dim * QUERIES);
        let (p, rest) = rest.split_at_mut(KEYS * QUERIES);
        let (keep, rest) = rest.split_at_mut(if keep { KEYS * QUERIES } else { 0 });
        let (z, running) = rest.split_at_mut(scratch::lines(head_dim) * QUERIES);
        Self {
            q,
            p,
            keep,
            z,
            running,
        }
    }
}

#[inline(always)]
fn body<S: Simd>(s: S, block: &Block, scratch: &mut [f32], z: Rows<*mut f32>, lse: &mut [f32]) {
    let parts = Parts::cut(scratch, block.head_dim, block.keep.is_some());
    let n = block.sight.queries;
    // Scores in units of log2 save a multiplication in each exponential.
    let factor = block.scale * LOG2_E;
    // SAFETY: scratch has room for QUERIES queries.
    unsafe { transpose(s, block.q, n, block.head_dim, factor, parts.q.as_mut_ptr()) };
    let (highest, rest) = parts.running.split_at_mut(QUERIES);
    let (sum, shrink) = rest.split_at_mut(QUERIES);
    highest.fill(f32::NEG_INFINITY);
    sum.fill(0.0);
    parts.z.fill(0.0);
    let mut running = Running {
        highest,
        sum,
        shrink,
    };
    let sums = Rows {
        at: parts.z.as_mut_ptr(),
        row: scratch::lines(block.head_dim),
    };
    for (i, sight) in block.tiles().enumerate() {
        if let Some(keep) = block.keep {
            keep.fill(&sight, parts.keep);
        }
        // SAFETY: the tile's keys exist, and scratch has room for KEYS keys.
        unsafe { fill_scores(s, block, &sight, parts.q, parts.p) };
        if let Some(cap) = block.soft_cap {
            softmax::soft_cap(s, &sight, cap, parts.p);
        }
        softmax::tile(s, &sight, block.slope, parts.p, parts.keep, &mut running);
        // SAFETY: as above.
        unsafe {
            if i > 0 {
                shrink_rows(s, n, block.head_dim, sums, running.shrink);
            }
            add_values(s, block, &sight, parts.p, sums);
        }
    }
    // SAFETY: z has a row for each query.
    unsafe { finish(s, block, &running, sums, z, lse) };
}

/// `p[key][query] = q k`.
#[inline(always)]
unsafe fn fill_scores<S: Simd>(s: S, block: &Block, sight: &Sight, q: &[f32], p: &mut [f32]) {
    let q = Rows {
        at: q.as_ptr(),
        row: QUERIES,
    };
    let p = Rows {
        at: p.as_mut_ptr(),
        row: QUERIES,
    };
    // SAFETY: the caller's promise.
    unsafe {
        let at = block.k.at.add(sight.key * block.k.row);
        let k = Factor {
            at,
            row: block.k.row,
            step: 1,
        };
        scores(s, sight.keys, block.head_dim, k, q, p, sight);
    }
}

/// `sums[query] += p[key][query] v[key]`.
#[inline(always)]
unsafe fn add_values<S: Simd>(s: S, block: &Block, sight: &Sight, p: &[f32], sums: Rows<*mut f32>) {
    let n = sight.queries;
    // Whole tiles of queries are faster than single ones; the surplus is never read.
    let rows = if n < 4 { n } else { n.next_multiple_of(8) };
    let p = Factor {
        at: p.as_ptr(),
        row: 1,
        step: QUERIES,
    };
    // SAFETY: the caller's promise.
    unsafe {
        let at = block.v.at.add(sight.key * block.v.row);
        let v = Rows {
            at,
            row: block.v.row,
        };
        accumulate(s, rows, block.head_dim, p, v, sums, &OverKeys(*sight));
    }
}

#[inline(always)]
unsafe fn shrink_rows<S: Simd>(s: S, n: usize, width: usize, sums: Rows<*mut f32>, by: &[f32]) {
    for (i, by) in by.iter().enumerate().take(n) {
        // SAFETY: rows are padded to whole cache lines.
        unsafe {
            let row = sums.at.add(i * sums.row);
            for d in (0..width).step_by(S::LANES) {
                let at = row.add(d);
                s.store(at, s.mul_f32s(s.load(at), s.splat_f32s(*by)));
            }
        }
    }
}

/// Divides by the sums of percentages and writes the results.
#[inline(always)]
unsafe fn finish<S: Simd>(
    s: S,
    block: &Block,
    running: &Running<'_>,
    sums: Rows<*mut f32>,
    z: Rows<*mut f32>,
    lse: &mut [f32],
) {
    for (i, lse) in lse.iter_mut().enumerate() {
        let (highest, sum) = (running.highest[i], running.sum[i]);
        let inverse = if sum == 0.0 { 0.0 } else { 1.0 / sum };
        *lse = (highest + sum.log2()) * LN_2;
        for_lanes!(s, block.head_dim, |at, part| {
            // SAFETY: the caller's promise.
            unsafe {
                let sum = load_part(s, sums.at.add(i * sums.row), at, part);
                let y = s.mul_f32s(sum, s.splat_f32s(inverse));
                store_part(s, z.at.add(i * z.row), at, part, y);
            }
        });
    }
}
