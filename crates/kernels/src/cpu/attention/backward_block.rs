//! The backward pass of one block of queries.

use std::f32::consts::LOG2_E;

use pulp::Simd;

use super::super::scratch;
use super::super::simd::{Ops, dispatch, for_lanes, load_part, store_part};
use super::super::view::Rows;
use super::block::{Block, transpose};
use super::mask::{KeySteps, QuerySteps, TileMask};
use super::sizes::{KEYS, QUERIES};
use super::tile::{Factor, accumulate, multiply};
use super::weights::{self, GradTile, QueryStats};

/// Outputs, gradients and gradient accumulators of one block.
#[derive(Clone, Copy)]
pub(super) struct GradViews {
    pub(super) z: Rows<*const f32>,
    pub(super) dz: Rows<*const f32>,
    pub(super) dq: Rows<*mut f32>,
    pub(super) dk: Rows<*mut f32>,
    pub(super) dv: Rows<*mut f32>,
}

/// Length of the scratch of one block.
pub(super) fn scratch_len(head_dim: usize, has_dropout: bool) -> usize {
    let tiles = if has_dropout { 3 } else { 2 };
    QUERIES * (2 * head_dim + tiles * KEYS + scratch::padded_len(head_dim) + 2)
}

dispatch!(
    /// Writes the gradient of the queries of one block and adds to those of keys and values.
    ///
    /// # Safety
    /// `block` must be valid and `lse` have an element for each of its queries. In `views`, each
    /// query must have a row of `block.head_dim` floats in `z`, `dz` and `dq`, and each key in `dk`
    /// and `dv`; nothing else may access these rows of `dq`, `dk` and `dv`.
    pub(super) unsafe fn run(
        block: &Block<'_>, views: GradViews, lse: &[f32], scratch: &mut [f32],
    ) => body
);

/// The scratch of a block, split into parts.
struct ScratchParts<'a> {
    /// Queries and output gradients, `[head_dim][QUERIES]`.
    q: &'a mut [f32],
    dz: &'a mut [f32],
    /// Attention weights and gradients of scores, `[KEYS][QUERIES]`.
    p: &'a mut [f32],
    ds: &'a mut [f32],
    /// Dropout factors, `[KEYS][QUERIES]`, or empty.
    dropout: &'a mut [f32],
    /// Gradients of the queries, `[QUERIES][head_dim]`, rows padded to whole cache lines.
    dq: &'a mut [f32],
    /// Log-sum-exp and `dz . z`, two rows of `[QUERIES]`.
    lse: &'a mut [f32],
    delta: &'a mut [f32],
}

impl<'a> ScratchParts<'a> {
    fn split(scratch: &'a mut [f32], head_dim: usize, has_dropout: bool) -> Self {
        let (q, rest) = scratch.split_at_mut(head_dim * QUERIES);
        let (dz, rest) = rest.split_at_mut(head_dim * QUERIES);
        let (p, rest) = rest.split_at_mut(KEYS * QUERIES);
        let (ds, rest) = rest.split_at_mut(KEYS * QUERIES);
        let (dropout, rest) = rest.split_at_mut(if has_dropout { KEYS * QUERIES } else { 0 });
        let (dq, rest) = rest.split_at_mut(scratch::padded_len(head_dim) * QUERIES);
        let (lse, delta) = rest.split_at_mut(QUERIES);
        Self {
            q,
            dz,
            p,
            ds,
            dropout,
            dq,
            lse,
            delta,
        }
    }
}

/// # Safety
/// See `run`.
#[inline(always)]
unsafe fn body<S: Simd>(
    s: S,
    block: &Block<'_>,
    views: GradViews,
    lse: &[f32],
    scratch: &mut [f32],
) {
    let parts = ScratchParts::split(scratch, block.head_dim, block.dropout.is_some());
    let (n, dim) = (block.mask.queries, block.head_dim);
    // SAFETY: scratch has room for QUERIES queries, and the caller guarantees that the block is
    // valid and that views and `lse` have its queries.
    unsafe {
        transpose(
            s,
            block.q,
            n,
            dim,
            block.scale * LOG2_E,
            parts.q.as_mut_ptr(),
        );
        transpose(s, views.dz, n, dim, 1.0, parts.dz.as_mut_ptr());
        for (i, lse) in lse.iter().enumerate() {
            parts.lse[i] = lse * LOG2_E;
            parts.delta[i] = dot(
                s,
                views.z.ptr.add(i * views.z.stride),
                views.dz.ptr.add(i * views.dz.stride),
                dim,
            );
        }
    }
    // Lanes without a query must stay finite.
    parts.lse[n..].fill(0.0);
    parts.delta[n..].fill(0.0);
    parts.dq.fill(0.0);
    let dq = Rows {
        ptr: parts.dq.as_mut_ptr(),
        stride: scratch::padded_len(dim),
    };
    let queries = QueryStats {
        lse: parts.lse,
        delta: parts.delta,
    };
    for mask in block.tiles() {
        if let Some(dropout) = block.dropout {
            dropout.fill(&mask, parts.dropout);
        }
        // SAFETY: the tile's keys exist in a valid block, and scratch has room for KEYS keys.
        unsafe {
            tile_products(s, block.k, &mask, dim, parts.q, parts.p);
            tile_products(s, block.v, &mask, dim, parts.dz, parts.ds);
        }
        let mut tile = GradTile {
            p: parts.p,
            ds: parts.ds,
            dropout: parts.dropout,
        };
        weights::backward_tile(s, block, &mask, &mut tile, &queries);
        // SAFETY: the tile's keys exist in a valid block and, as the caller guarantees, in the
        // gradients, which nothing else accesses; the arrays of the tile have room for KEYS keys,
        // and `dq` has QUERIES padded rows.
        unsafe { add_grads(s, block, &views, &mask, &tile, dq) };
    }
    for i in 0..n {
        for_lanes!(s, dim, |offset, part| {
            // SAFETY: `dq` has a row for each query of the block, in scratch and, as the caller
            // guarantees, in the output, which nothing else accesses.
            unsafe {
                let row = load_part(s, dq.ptr.add(i * dq.stride), offset, part);
                store_part(s, views.dq.ptr.add(i * views.dq.stride), offset, part, row);
            }
        });
    }
}

/// `out[key][query] = rows[key] . queries[..][query]` for a tile.
///
/// # Safety
/// The keys of `mask` must be valid rows of `dim` floats, `queries` must be `[dim][QUERIES]`, and
/// `out` must have room for `mask.keys` rows.
#[inline(always)]
unsafe fn tile_products<S: Simd>(
    s: S,
    rows: Rows<*const f32>,
    mask: &TileMask<'_>,
    dim: usize,
    queries: &[f32],
    out: &mut [f32],
) {
    let queries = Rows {
        ptr: queries.as_ptr(),
        stride: QUERIES,
    };
    let out = Rows {
        ptr: out.as_mut_ptr(),
        stride: QUERIES,
    };
    // SAFETY: the caller guarantees that rows, queries and output cover the keys of `mask` and
    // `dim`.
    unsafe {
        let ptr = rows.ptr.add(mask.first_key * rows.stride);
        let rows = Factor {
            ptr,
            row_stride: rows.stride,
            step_stride: 1,
        };
        multiply(s, mask.keys, dim, rows, queries, out, mask);
    }
}

/// Adds one tile's contribution to the gradients of queries, keys and values.
///
/// # Safety
/// The keys of `mask` must exist in the block and in `views`, `tile` must have `mask.keys` rows,
/// `dq` must have QUERIES padded rows, and nothing else may access the gradients.
#[inline(always)]
unsafe fn add_grads<S: Simd>(
    s: S,
    block: &Block<'_>,
    views: &GradViews,
    mask: &TileMask<'_>,
    tile: &GradTile<'_>,
    dq: Rows<*mut f32>,
) {
    let (n, dim) = (mask.queries, block.head_dim);
    let (key_steps, query_steps) = (KeySteps(*mask), QuerySteps(*mask));
    let rows = if n < 4 { n } else { n.next_multiple_of(8) };
    let by_query = Factor {
        ptr: tile.ds.as_ptr(),
        row_stride: 1,
        step_stride: QUERIES,
    };
    let by_key = Factor {
        ptr: tile.ds.as_ptr(),
        row_stride: QUERIES,
        step_stride: 1,
    };
    // SAFETY: the caller guarantees that all rows of `mask` exist in the inputs, the tile and the
    // gradients.
    unsafe {
        let k = Rows {
            ptr: block.k.ptr.add(mask.first_key * block.k.stride),
            ..block.k
        };
        accumulate(s, rows, dim, by_query, k, dq, &key_steps);
        let dk = Rows {
            ptr: views.dk.ptr.add(mask.first_key * views.dk.stride),
            ..views.dk
        };
        accumulate(s, mask.keys, dim, by_key, block.q, dk, &query_steps);
        let by_key = Factor {
            ptr: tile.p.as_ptr(),
            ..by_key
        };
        let dv = Rows {
            ptr: views.dv.ptr.add(mask.first_key * views.dv.stride),
            ..views.dv
        };
        accumulate(s, mask.keys, dim, by_key, views.dz, dv, &query_steps);
    }
}

/// Dot product.
///
/// # Safety
/// `len` floats must be readable at both addresses.
#[inline(always)]
pub(super) unsafe fn dot<S: Simd>(s: S, a: *const f32, b: *const f32, len: usize) -> f32 {
    let mut sum = s.zero();
    for_lanes!(s, len, |offset, part| {
        // SAFETY: the caller guarantees that `len` floats are readable at `a` and `b`.
        unsafe {
            sum = s.fma(
                load_part(s, a, offset, part),
                load_part(s, b, offset, part),
                sum,
            );
        }
    });
    s.reduce_sum_f32s(sum)
}
