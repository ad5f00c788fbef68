//! The backward pass of one block of queries.

use std::f32::consts::LOG2_E;

use pulp::Simd;

use super::super::scratch;
use super::super::simd::{Ops, dispatch, for_lanes, load_part, store_part};
use super::super::view::Rows;
use super::block::{Block, KEYS, QUERIES, transpose};
use super::sight::{OverKeys, OverQueries, Sight};
use super::tile::{Factor, accumulate, scores};
use super::weights::{self, Queries, Tile};

/// What one block reads and writes besides its queries, keys and values.
#[derive(Clone, Copy)]
pub(super) struct Sides {
    pub(super) z: Rows<*const f32>,
    pub(super) dz: Rows<*const f32>,
    pub(super) dq: Rows<*mut f32>,
    pub(super) dk: Rows<*mut f32>,
    pub(super) dv: Rows<*mut f32>,
}

/// Numbers of scratch that a block takes.
pub(super) fn scratch_len(head_dim: usize, keep: bool) -> usize {
    let tiles = if keep { 3 } else { 2 };
    QUERIES * (2 * head_dim + tiles * KEYS + scratch::lines(head_dim) + 2)
}

dispatch!(
    /// Writes the gradient of one block's queries and adds to those of keys and values.
    pub(super) fn run(block: &Block, sides: Sides, lse: &[f32], scratch: &mut [f32]) => body);

/// The scratch of a block, cut into parts.
struct Parts<'a> {
    /// Queries and gradients of the result, `[head_dim][QUERIES]`.
    q: &'a mut [f32],
    dz: &'a mut [f32],
    /// Percentages and gradients of scores, `[KEYS][QUERIES]`.
    p: &'a mut [f32],
    ds: &'a mut [f32],
    /// Dropout factors, as above, or empty.
    keep: &'a mut [f32],
    /// Gradients of the queries, `[QUERIES][head_dim]`, rows padded to whole cache lines.
    dq: &'a mut [f32],
    /// Log-sums and `dz . z`, two rows of `[QUERIES]`.
    lse: &'a mut [f32],
    delta: &'a mut [f32],
}

impl<'a> Parts<'a> {
    fn cut(scratch: &'a mut [f32], head_dim: usize, keep: bool) -> Self {
        let (q, rest) = scratch.split_at_mut(head_dim * QUERIES);
        let (dz, rest) = rest.split_at_mut(head_dim * QUERIES);
        let (p, rest) = rest.split_at_mut(KEYS * QUERIES);
        let (ds, rest) = rest.split_at_mut(KEYS * QUERIES);
        let (keep, rest) = rest.split_at_mut(if keep { KEYS * QUERIES } else { 0 });
        let (dq, rest) = rest.split_at_mut(scratch::lines(head_dim) * QUERIES);
        let (lse, delta) = rest.split_at_mut(QUERIES);
        Self {
            q,
            dz,
            p,
            ds,
            keep,
            dq,
            lse,
            delta,
        }
    }
}

#[inline(always)]
fn body<S: Simd>(s: S, block: &Block, sides: Sides, lse: &[f32], scratch: &mut [f32]) {
    let parts = Parts::cut(scratch, block.head_dim, block.keep.is_some());
    let (n, dim) = (block.sight.queries, block.head_dim);
    // SAFETY: scratch has room for QUERIES queries, and the sides have a row for each.
    unsafe {
        transpose(
            s,
            block.q,
            n,
            dim,
            block.scale * LOG2_E,
            parts.q.as_mut_ptr(),
        );
        transpose(s, sides.dz, n, dim, 1.0, parts.dz.as_mut_ptr());
        for (i, lse) in lse.iter().enumerate() {
            parts.lse[i] = lse * LOG2_E;
            parts.delta[i] = dot(
                s,
                sides.z.at.add(i * sides.z.row),
                sides.dz.at.add(i * sides.dz.row),
                dim,
            );
        }
    }
    // Lanes without a query must stay finite.
    parts.lse[n..].fill(0.0);
    parts.delta[n..].fill(0.0);
    parts.dq.fill(0.0);
    let dq = Rows {
        at: parts.dq.as_mut_ptr(),
        row: scratch::lines(dim),
    };
    let queries = Queries {
        lse: parts.lse,
        delta: parts.delta,
    };
    for sight in block.tiles() {
        if let Some(keep) = block.keep {
            keep.fill(&sight, parts.keep);
        }
        // SAFETY: the tile's keys exist, and scratch has room for KEYS keys.
        unsafe {
            products(s, block.k, &sight, dim, parts.q, parts.p);
            products(s, block.v, &sight, dim, parts.dz, parts.ds);
        }
        let mut tile = Tile {
            p: parts.p,
            ds: parts.ds,
            keep: parts.keep,
        };
        weights::tile(s, block, &sight, &mut tile, &queries);
        // SAFETY: as above.
        unsafe { add_grads(s, block, &sides, &sight, &tile, dq) };
    }
    for i in 0..n {
        for_lanes!(s, dim, |at, part| {
            // SAFETY: dq has a row for each query, in scratch and in the result.
            unsafe {
                let row = load_part(s, dq.at.add(i * dq.row), at, part);
                store_part(s, sides.dq.at.add(i * sides.dq.row), at, part, row);
            }
        });
    }
}

/// `out[key][query] = rows[key] . queries[..][query]` for a tile.
#[inline(always)]
unsafe fn products<S: Simd>(
    s: S,
    rows: Rows<*const f32>,
    sight: &Sight,
    dim: usize,
    queries: &[f32],
    out: &mut [f32],
) {
    let queries = Rows {
        at: queries.as_ptr(),
        row: QUERIES,
    };
    let out = Rows {
        at: out.as_mut_ptr(),
        row: QUERIES,
    };
    // SAFETY: the caller's promise.
    unsafe {
        let at = rows.at.add(sight.key * rows.row);
        let rows = Factor {
            at,
            row: rows.row,
            step: 1,
        };
        scores(s, sight.keys, dim, rows, queries, out, sight);
    }
}

/// Adds one tile's share to the gradients of queries, keys and values.
#[inline(always)]
unsafe fn add_grads<S: Simd>(
    s: S,
    block: &Block,
    sides: &Sides,
    sight: &Sight,
    tile: &Tile<'_>,
    dq: Rows<*mut f32>,
) {
    let (n, dim) = (sight.queries, block.head_dim);
    let (over_keys, over_queries) = (OverKeys(*sight), OverQueries(*sight));
    let rows = if n < 4 { n } else { n.next_multiple_of(8) };
    let by_query = Factor {
        at: tile.ds.as_ptr(),
        row: 1,
        step: QUERIES,
    };
    let by_key = Factor {
        at: tile.ds.as_ptr(),
        row: QUERIES,
        step: 1,
    };
    // SAFETY: the caller's promise.
    unsafe {
        let k = Rows {
            at: block.k.at.add(sight.key * block.k.row),
            ..block.k
        };
        accumulate(s, rows, dim, by_query, k, dq, &over_keys);
        let dk = Rows {
            at: sides.dk.at.add(sight.key * sides.dk.row),
            ..sides.dk
        };
        accumulate(s, sight.keys, dim, by_key, block.q, dk, &over_queries);
        let by_key = Factor {
            at: tile.p.as_ptr(),
            ..by_key
        };
        let dv = Rows {
            at: sides.dv.at.add(sight.key * sides.dv.row),
            ..sides.dv
        };
        accumulate(s, sight.keys, dim, by_key, sides.dz, dv, &over_queries);
    }
}

/// # Safety
/// `len` numbers must be readable at both addresses.
#[inline(always)]
pub(super) unsafe fn dot<S: Simd>(s: S, a: *const f32, b: *const f32, len: usize) -> f32 {
    let mut sum = s.zero();
    for_lanes!(s, len, |at, part| {
        // SAFETY: the caller's promise.
        unsafe {
            sum = s.fma(load_part(s, a, at, part), load_part(s, b, at, part), sum);
        }
    });
    s.reduce_sum_f32s(sum)
}
