//! The register tile: the innermost loop of every matrix product, for each instruction set.

#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::{__m512, __m512bh, _mm512_dpbf16_ps};

use crate::cpu::product::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::cpu::product::simd::{Avx2, Avx512};
use crate::cpu::product::simd::{Portable, Simd};

/// What the accumulated tile is added to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Init {
    /// Nothing: the result is overwritten.
    Zero,
    /// The result so far.
    Load,
    /// One row, added to each row of the result.
    Bias(*const f32),
}

/// Where a tile goes: `c = alpha * tile + init`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TileOut {
    pub(crate) c: *mut f32,
    pub(crate) row_stride: usize,
    /// Valid columns; the tile may be wider.
    pub(crate) cols: usize,
    pub(crate) alpha: f32,
    pub(crate) init: Init,
}

/// The rows of A that a tile multiplies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TileRows {
    pub(crate) start: *const u32,
    /// Words between the rows where they lie in A itself, contiguous along k; packed panels do not
    /// ask.
    pub(crate) stride: usize,
}

/// Multiplies rows of A by a packed panel of B over `kc` words.
///
/// # Safety
/// The machine must have the kernel's instruction set, the panels must hold `kc` words for each
/// of the kernel's rows and (padded) columns, and `out` must cover the kernel's rows and
/// `out.cols` columns.
pub(crate) type TileFn = unsafe fn(kc: usize, a: TileRows, b: *const u32, out: &TileOut);

/// What one 32-bit word of a packed panel holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// An f32 value.
    F32,
    /// Two bf16 values, neighbours along k; the earlier one in the lower half.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(dead_code, reason = "no other kernel takes pairs so far")
    )]
    Bf16Pair,
}

impl Format {
    /// Values along k in a word.
    pub(crate) fn values(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16Pair => 2,
        }
    }
}

/// The tiles of one instruction set.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// Largest number of rows of a tile. With AVX-512, eight rows of two registers were a little
    /// faster than the ten to fourteen that fit: enough sums to hide the latency, and the panels
    /// divide the usual sizes.
    pub(crate) mr: usize,
    /// Largest number of columns of a tile.
    pub(crate) nr: usize,
    /// Tile widths are multiples of this.
    pub(crate) lanes: usize,
    pub(crate) format: Format,
    /// `tiles[v - 1][r - 1]` computes `r` rows by `v * lanes` columns.
    tiles: &'static [&'static [TileFn]],
    /// The same for rows that are read where they lie; empty where the kernel cannot.
    direct: &'static [&'static [TileFn]],
}

impl Kernel {
    /// The tile for exactly `rows` rows and `width` (padded) columns.
    pub(crate) fn tile(&self, rows: usize, width: usize, direct: bool) -> TileFn {
        let tiles = if direct { self.direct } else { self.tiles };
        tiles[width / self.lanes - 1][rows - 1]
    }

    /// Whether it can read rows of f32 where they lie.
    pub(crate) fn reads_rows(&self) -> bool {
        !self.direct.is_empty()
    }
}

/// How two words are multiplied and accumulated.
trait Mac<S: Simd> {
    unsafe fn mac(a: S::V, b: S::V, c: S::V) -> S::V;
}

/// f32 words.
struct Fma;

impl<S: Simd> Mac<S> for Fma {
    #[inline(always)]
    unsafe fn mac(a: S::V, b: S::V, c: S::V) -> S::V {
        // SAFETY: the caller has the target features.
        unsafe { S::fma(a, b, c) }
    }
}

/// Words of two bf16 values.
#[cfg(target_arch = "x86_64")]
struct Bf16Dot;

#[cfg(target_arch = "x86_64")]
impl Mac<Avx512> for Bf16Dot {
    #[inline(always)]
    unsafe fn mac(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the caller has the target features; the types are plain 512-bit registers.
        unsafe {
            let pairs = |v| std::mem::transmute::<__m512, __m512bh>(v);
            _mm512_dpbf16_ps(c, pairs(a), pairs(b))
        }
    }
}

/// The tile loop. `MR * NV` accumulators stay in registers over all of `kc`.
#[inline(always)]
unsafe fn tile<S: Simd, M: Mac<S>, const MR: usize, const NV: usize, const DIRECT: bool>(
    kc: usize,
    a: TileRows,
    b: *const u32,
    out: &TileOut,
) {
    // SAFETY: see `TileFn`; `a` and `b` advance by exactly what the panels hold per word of k.
    unsafe {
        let (stride, mut a, mut b) = (a.stride, a.start.cast::<f32>(), b.cast::<f32>());
        let mut acc = [[S::zero(); NV]; MR];
        for i in 0..MR {
            // The first and the last value: the row of a tile spans two cache lines or three.
            let row = out.c.wrapping_add(i * out.row_stride);
            S::prefetch(row);
            S::prefetch(row.wrapping_add(out.cols / 2));
            S::prefetch(row.wrapping_add(out.cols - 1));
        }
        for _ in 0..kc {
            let mut bv = [S::zero(); NV];
            for v in 0..NV {
                bv[v] = S::load(b.add(v * S::LANES));
            }
            for i in 0..MR {
                let av = S::splat(a.add(if DIRECT { i * stride } else { i }));
                for v in 0..NV {
                    acc[i][v] = M::mac(av, bv[v], acc[i][v]);
                }
            }
            a = a.add(if DIRECT { 1 } else { MR });
            b = b.add(NV * S::LANES);
        }
        for i in 0..MR {
            for v in 0..NV {
                finish::<S>(acc[i][v], i, v * S::LANES, out);
            }
        }
    }
}

/// Writes one register of a tile: row `i`, columns from `j`.
#[inline(always)]
unsafe fn finish<S: Simd>(acc: S::V, i: usize, j: usize, out: &TileOut) {
    if j >= out.cols {
        return;
    }
    let left = out.cols - j;
    // SAFETY: row `i` and the columns from `j` to `out.cols` lie within the result (and the
    // bias); a register that would reach beyond them is accessed in part.
    unsafe {
        let c = out.c.add(i * out.row_stride + j);
        let alpha = S::splat(&raw const out.alpha);
        let from = match out.init {
            Init::Zero => std::ptr::null(),
            Init::Load => c.cast_const(),
            Init::Bias(bias) => bias.add(j),
        };
        let init = if from.is_null() {
            S::zero()
        } else if left >= S::LANES {
            S::load(from)
        } else {
            S::load_part(from, left)
        };
        let value = S::fma(alpha, acc, init);
        if left >= S::LANES {
            S::store(c, value);
        } else {
            S::store_part(c, value, left);
        }
    }
}

/// A row of the tile table: one entry per number of rows, compiled for a target feature set.
macro_rules! tiles {
    ($simd:ty, $mac:ty, $nv:literal, $direct:literal, [$($mr:literal)*], $attribute:tt) => {
        &[$({
            # $attribute
            unsafe fn entry(kc: usize, a: TileRows, b: *const u32, out: &TileOut) {
                // SAFETY: passed on from the caller.
                unsafe { tile::<$simd, $mac, $mr, $nv, $direct>(kc, a, b, out) }
            }
            entry as TileFn
        }),*]
    };
}

static PORTABLE: Kernel = Kernel {
    mr: 6,
    nr: 8,
    lanes: 8,
    format: Format::F32,
    tiles: &[tiles!(Portable, Fma, 1, false, [1 2 3 4 5 6], [inline])],
    direct: &[],
};

#[cfg(target_arch = "x86_64")]
static AVX2: Kernel = Kernel {
    mr: 6,
    nr: 16,
    lanes: 8,
    format: Format::F32,
    tiles: &[
        tiles!(Avx2, Fma, 1, false, [1 2 3 4 5 6], [target_feature(enable = "avx2,fma")]),
        tiles!(Avx2, Fma, 2, false, [1 2 3 4 5 6], [target_feature(enable = "avx2,fma")]),
    ],
    direct: &[
        tiles!(Avx2, Fma, 1, true, [1 2 3 4 5 6], [target_feature(enable = "avx2,fma")]),
        tiles!(Avx2, Fma, 2, true, [1 2 3 4 5 6], [target_feature(enable = "avx2,fma")]),
    ],
};

#[cfg(target_arch = "x86_64")]
static AVX512: Kernel = Kernel {
    mr: 8,
    nr: 32,
    lanes: 16,
    format: Format::F32,
    tiles: &[
        tiles!(Avx512, Fma, 1, false, [1 2 3 4 5 6 7 8], [target_feature(enable = "avx512f,avx512dq,avx512vl")]),
        tiles!(Avx512, Fma, 2, false, [1 2 3 4 5 6 7 8], [target_feature(enable = "avx512f,avx512dq,avx512vl")]),
    ],
    direct: &[
        tiles!(Avx512, Fma, 1, true, [1 2 3 4 5 6 7 8], [target_feature(enable = "avx512f,avx512dq,avx512vl")]),
        tiles!(Avx512, Fma, 2, true, [1 2 3 4 5 6 7 8], [target_feature(enable = "avx512f,avx512dq,avx512vl")]),
    ],
};

#[cfg(target_arch = "x86_64")]
static AVX512_BF16: Kernel = Kernel {
    mr: 8,
    nr: 32,
    lanes: 16,
    format: Format::Bf16Pair,
    tiles: &[
        tiles!(Avx512, Bf16Dot, 1, false, [1 2 3 4 5 6 7 8], [target_feature(enable = "avx512f,avx512dq,avx512vl,avx512bf16")]),
        tiles!(Avx512, Bf16Dot, 2, false, [1 2 3 4 5 6 7 8], [target_feature(enable = "avx512f,avx512dq,avx512vl,avx512bf16")]),
    ],
    direct: &[],
};

/// The f32 kernel for a level.
pub(crate) fn f32_kernel(isa: Isa) -> &'static Kernel {
    match isa.clamp_to_machine() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => &AVX2,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16 => &AVX512,
        _ => &PORTABLE,
    }
}

/// The bf16 kernel for a level. Without bf16 instructions it is the f32 kernel: the packing
/// then rounds the values to bf16 and keeps them as f32, which gives the same products.
///
/// A kernel for AMX tiles belongs here too; it needs a format of its own.
pub(crate) fn bf16_kernel(isa: Isa) -> &'static Kernel {
    match isa.clamp_to_machine() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 => &AVX512_BF16,
        lower => f32_kernel(lower),
    }
}
