//! One block of queries of one head, as used by both passes.

use std::f32::consts::LOG2_E;

use pulp::Simd;

use super::super::simd::Ops;
use super::super::view::{Rows, SharedView};
use super::dropout::DropoutTile;
use super::mask::TileMask;
use super::query_ranges::QueryRanges;
use super::sizes::{KEYS, QUERIES};
use super::{Options, Shape};

/// One block of queries of one head, with its keys and values.
///
/// Functions that read a block require it to be valid: `mask.queries` rows, at most [`QUERIES`],
/// are readable at `q` and `seq_k` rows at `k` and `v`, of `head_dim` floats each, and no key that
/// `mask` makes visible is beyond `seq_k`.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    pub(super) q: Rows<*const f32>,
    pub(super) k: Rows<*const f32>,
    pub(super) v: Rows<*const f32>,
    /// The mask of the block; its tile of keys is set by [`Block::tiles`].
    pub(super) mask: TileMask<'a>,
    pub(super) seq_k: usize,
    pub(super) head_dim: usize,
    /// Factor on the scores.
    pub(super) scale: f32,
    /// Soft cap of the scores, in units of log2.
    pub(super) soft_cap: Option<f32>,
    /// ALiBi slope, in units of log2.
    pub(super) alibi_slope: f32,
    pub(super) dropout: Option<DropoutTile>,
}

impl<'a> Block<'a> {
    /// Creates block number `index` of one head; `ranges` are those of its queries, see
    /// [`query_ranges`]. The block is valid while the data of the views is borrowed.
    ///
    /// # Safety
    /// `batch`, `head` and `index` must exist in `shape`, the views must have its sizes, and no
    /// range may end beyond its `seq_k`.
    pub(super) unsafe fn new(
        shape: &Shape,
        options: &Options<'_>,
        [q, k, v]: [SharedView; 3],
        (batch, head, index): (usize, usize, usize),
        ranges: Option<&'a QueryRanges>,
    ) -> Self {
        let (first, kv_head) = (index * QUERIES, head / shape.group());
        let offset = options.mask.position_offset(batch);
        let alibi_slope = options.alibi.get(head).copied().unwrap_or(0.0);
        // SAFETY: the caller guarantees that the indices exist in `shape`, whose sizes the views
        // have.
        unsafe {
            Self {
                q: q.tokens(batch, head, first),
                k: k.tokens(batch, kv_head, 0),
                v: v.tokens(batch, kv_head, 0),
                mask: TileMask {
                    position: offset + first,
                    queries: QUERIES.min(shape.seq_q - first),
                    window: options.window.unwrap_or(usize::MAX),
                    ranges,
                    first_key: 0,
                    keys: 0,
                },
                seq_k: shape.seq_k,
                head_dim: shape.head_dim,
                scale: options.scale,
                soft_cap: options.soft_cap.map(|cap| cap * LOG2_E),
                alibi_slope: alibi_slope * LOG2_E,
                dropout: DropoutTile::new(shape, options, batch, head, first),
            }
        }
    }

    /// The tiles of keys that are visible to the block, in order.
    pub(super) fn tiles(&self) -> impl Iterator<Item = TileMask<'a>> + use<'a> {
        let mask = self.mask;
        let (first, end) = mask.visible_keys(self.seq_k);
        (first..end).step_by(KEYS).map(move |first_key| TileMask {
            first_key,
            keys: KEYS.min(end - first_key),
            ..mask
        })
    }
}

/// The keys that each query of block number `index` of a row attends to; `None` for a causal mask.
pub(super) fn query_ranges(
    shape: &Shape,
    options: &Options<'_>,
    batch: usize,
    index: usize,
) -> Option<QueryRanges> {
    let first = index * QUERIES;
    let queries = QUERIES.min(shape.seq_q - first);
    QueryRanges::new(options, batch, first, queries, shape.seq_k)
}

/// Number of query blocks per head.
pub(super) fn block_count(shape: &Shape) -> usize {
    shape.seq_q.div_ceil(QUERIES)
}

/// `out[d][i] = rows[i][d] * factor`, for full registers of i (0 where there is no row).
///
/// # Safety
/// `n` rows of `head_dim` floats must be readable, and `head_dim` times [`QUERIES`] floats writable
/// at `out`.
#[inline(always)]
pub(super) unsafe fn transpose<S: Simd>(
    s: S,
    rows: Rows<*const f32>,
    n: usize,
    head_dim: usize,
    factor: f32,
    out: *mut f32,
) {
    let full = (n - n % 4, head_dim - head_dim % 4);
    let padded = n.next_multiple_of(S::LANES);
    // SAFETY: the caller guarantees that rows and output are valid; i stays below `n`, d below
    // `head_dim`, and `padded` is at most QUERIES.
    unsafe {
        for i in (0..full.0).step_by(4) {
            for d in (0..full.1).step_by(4) {
                transpose_4x4(
                    rows.ptr.add(i * rows.stride + d),
                    rows.stride,
                    out.add(d * QUERIES + i),
                );
            }
        }
        for i in 0..n {
            let first = if i < full.0 { full.1 } else { 0 };
            for d in first..head_dim {
                *out.add(d * QUERIES + i) = *rows.ptr.add(i * rows.stride + d);
            }
        }
        let factor = s.splat_f32s(factor);
        for d in 0..head_dim {
            let row = out.add(d * QUERIES);
            for i in n..padded {
                *row.add(i) = 0.0;
            }
            for i in (0..padded).step_by(S::LANES) {
                s.store(row.add(i), s.mul_f32s(s.load(row.add(i)), factor));
            }
        }
    }
}

/// Transposes a 4x4 block with shuffles: for plain code, LLVM may generate slow scatters.
///
/// # Safety
/// Four rows of four floats must be readable at `from` with the given stride, and writable at `to`
/// with stride [`QUERIES`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn transpose_4x4(from: *const f32, stride: usize, to: *mut f32) {
    use std::arch::x86_64::{_MM_TRANSPOSE4_PS, _mm_loadu_ps, _mm_storeu_ps};
    // SAFETY: the caller guarantees that four rows are valid at both addresses; SSE is part of
    // x86-64.
    unsafe {
        let mut a = _mm_loadu_ps(from);
        let mut b = _mm_loadu_ps(from.add(stride));
        let mut c = _mm_loadu_ps(from.add(2 * stride));
        let mut d = _mm_loadu_ps(from.add(3 * stride));
        _MM_TRANSPOSE4_PS(&mut a, &mut b, &mut c, &mut d);
        _mm_storeu_ps(to, a);
        _mm_storeu_ps(to.add(QUERIES), b);
        _mm_storeu_ps(to.add(2 * QUERIES), c);
        _mm_storeu_ps(to.add(3 * QUERIES), d);
    }
}

/// Transposes a 4x4 block; the compiler generates shuffles.
///
/// # Safety
/// Four rows of four floats must be readable at `from` with the given stride, and writable at `to`
/// with stride [`QUERIES`].
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
unsafe fn transpose_4x4(from: *const f32, stride: usize, to: *mut f32) {
    // SAFETY: the caller guarantees that four rows are valid at both addresses.
    unsafe {
        let load = |i: usize| from.add(i * stride).cast::<[f32; 4]>().read_unaligned();
        let (a, b, c, d) = (load(0), load(1), load(2), load(3));
        for j in 0..4 {
            let column = [a[j], b[j], c[j], d[j]];
            to.add(j * QUERIES)
                .cast::<[f32; 4]>()
                .write_unaligned(column);
        }
    }
}
