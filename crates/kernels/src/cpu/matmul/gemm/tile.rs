//! The micro-kernel: the innermost loop of matrix multiplication, for each instruction set.

#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::{__m512, __m512bh, _mm512_dpbf16_ps};

use pulp::{Scalar256b, Simd};
#[cfg(target_arch = "x86_64")]
use pulp::{
    f32x16,
    x86::{V3, V4},
};

use crate::cpu::isa::Isa;
use crate::cpu::matmul::panel::Format;
use crate::cpu::simd::{Ops, load_part, prefetch, store_part, token};

/// The initial value that an accumulated tile is added to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Init {
    /// Zero: the result is overwritten.
    Zero,
    /// The current result.
    Load,
    /// A bias row, added to each row of the result.
    Bias(*const f32),
}

/// Destination of a tile: `c = tile + init`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TileOut {
    pub(crate) c: *mut f32,
    pub(crate) row_stride: usize,
    /// Number of valid columns; the tile may be wider.
    pub(crate) cols: usize,
    pub(crate) init: Init,
}

/// The rows of A for a tile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TileRows {
    pub(crate) start: *const u32,
    /// Distance between rows in words, for rows read in place; unused for packed panels.
    pub(crate) stride: usize,
}

/// Multiplies rows of A by a packed panel of B over `kc` words.
///
/// # Safety
/// The machine must support the kernel's instruction set, the panels must contain `kc` words for
/// each of the kernel's rows and (padded) columns, and `out` must cover the kernel's rows and
/// `out.cols` columns.
pub(crate) type TileFn = unsafe fn(kc: usize, a: TileRows, b: *const u32, out: &TileOut);

/// The micro-kernel of one instruction set and format.
#[derive(Debug)]
pub(crate) struct MicroKernel {
    /// Maximum number of rows of a tile. With AVX-512, eight rows of two registers were slightly
    /// faster than the ten to fourteen that fit: there are enough accumulators to hide the latency,
    /// and eight divides common sizes.
    pub(crate) mr: usize,
    /// Maximum number of columns of a tile.
    pub(crate) nr: usize,
    /// Tile widths are multiples of this.
    pub(crate) lanes: usize,
    pub(crate) format: Format,
    /// `tiles[v - 1][r - 1]` computes `r` rows by `v * lanes` columns.
    tiles: &'static [&'static [TileFn]],
    /// The same for rows of A read in place; empty if unsupported.
    direct: &'static [&'static [TileFn]],
}

impl MicroKernel {
    /// Returns the function for exactly `rows` rows and `width` (padded) columns.
    pub(crate) fn tile(&self, rows: usize, width: usize, direct: bool) -> TileFn {
        let tiles = if direct { self.direct } else { self.tiles };
        tiles[width / self.lanes - 1][rows - 1]
    }

    /// Returns whether the kernel can read f32 rows of A in place.
    pub(crate) fn supports_direct_rows(&self) -> bool {
        !self.direct.is_empty()
    }
}

/// Multiply-accumulate of two registers of words.
trait Mac<S: Simd> {
    /// Computes `a * b + c`.
    ///
    /// # Safety
    /// The machine must support the instruction.
    unsafe fn mac(s: S, a: S::f32s, b: S::f32s, c: S::f32s) -> S::f32s;
}

/// Words of one f32 element.
struct Fma;

impl<S: Simd> Mac<S> for Fma {
    #[inline(always)]
    unsafe fn mac(s: S, a: S::f32s, b: S::f32s, c: S::f32s) -> S::f32s {
        s.fma(a, b, c)
    }
}

/// Words of two bf16 elements.
#[cfg(target_arch = "x86_64")]
struct Bf16Dot;

#[cfg(target_arch = "x86_64")]
impl Mac<V4> for Bf16Dot {
    #[inline(always)]
    unsafe fn mac(_: V4, a: f32x16, b: f32x16, c: f32x16) -> f32x16 {
        // SAFETY: the caller guarantees the instruction; all types are plain 512-bit registers.
        unsafe {
            let pairs = |v| std::mem::transmute::<f32x16, __m512bh>(v);
            let sum =
                _mm512_dpbf16_ps(std::mem::transmute::<f32x16, __m512>(c), pairs(a), pairs(b));
            std::mem::transmute::<__m512, f32x16>(sum)
        }
    }
}

/// The micro-kernel loop. `MR * NV` accumulators stay in registers over all of `kc`.
///
/// # Safety
/// See [`TileFn`].
#[inline(always)]
unsafe fn tile<S: Simd, M: Mac<S>, const MR: usize, const NV: usize, const DIRECT: bool>(
    s: S,
    kc: usize,
    a: TileRows,
    b: *const u32,
    out: &TileOut,
) {
    // SAFETY: see `TileFn`; `a` and `b` advance by exactly one word of k of the panels.
    unsafe {
        let (stride, mut a, mut b) = (a.stride, a.start.cast::<f32>(), b.cast::<f32>());
        let mut acc = [[s.zero(); NV]; MR];
        for i in 0..MR {
            // First, middle and last element: a row of a tile spans two or three cache lines.
            let row = out.c.wrapping_add(i * out.row_stride);
            prefetch(row);
            prefetch(row.wrapping_add(out.cols / 2));
            prefetch(row.wrapping_add(out.cols - 1));
        }
        for _ in 0..kc {
            let mut bv = [s.zero(); NV];
            for v in 0..NV {
                bv[v] = s.load(b.add(v * S::LANES));
            }
            for i in 0..MR {
                let av = s.splat_f32s(*a.add(if DIRECT { i * stride } else { i }));
                for v in 0..NV {
                    acc[i][v] = M::mac(s, av, bv[v], acc[i][v]);
                }
            }
            a = a.add(if DIRECT { 1 } else { MR });
            b = b.add(NV * S::LANES);
        }
        for i in 0..MR {
            for v in 0..NV {
                store_register(s, acc[i][v], i, v * S::LANES, out);
            }
        }
    }
}

/// Stores one register of a tile: row `i`, columns from `j`.
///
/// # Safety
/// See [`TileFn`].
#[inline(always)]
unsafe fn store_register<S: Simd>(s: S, acc: S::f32s, i: usize, j: usize, out: &TileOut) {
    if j >= out.cols {
        return;
    }
    let part = (out.cols - j < S::LANES).then_some(out.cols - j);
    // SAFETY: row `i` and columns `j..out.cols` lie within the result (and the bias); a register
    // that would exceed them is accessed partially.
    unsafe {
        let c = out.c.add(i * out.row_stride + j);
        let src = match out.init {
            Init::Zero => std::ptr::null(),
            Init::Load => c.cast_const(),
            Init::Bias(bias) => bias.add(j),
        };
        let init = if src.is_null() {
            s.zero()
        } else {
            load_part(s, src, 0, part)
        };
        store_part(s, c, 0, part, s.add_f32s(acc, init));
    }
}

/// One row of the tile table: an entry per number of rows, compiled for a set of target features.
macro_rules! tiles {
    ($simd:ty, $mac:ty, $nv:literal, $direct:literal, [$($mr:literal)*], $attribute:tt) => {
        &[$({
            # $attribute
            unsafe fn entry(kc: usize, a: TileRows, b: *const u32, out: &TileOut) {
                // SAFETY: the caller upholds the contract of `TileFn`.
                unsafe { tile::<$simd, $mac, $mr, $nv, $direct>(token(), kc, a, b, out) }
            }
            entry as TileFn
        }),*]
    };
}

static SCALAR: MicroKernel = MicroKernel {
    mr: 6,
    nr: 8,
    lanes: 8,
    format: Format::F32,
    tiles: &[tiles!(Scalar256b, Fma, 1, false, [1 2 3 4 5 6], [inline])],
    direct: &[],
};

#[cfg(target_arch = "x86_64")]
static AVX2: MicroKernel = MicroKernel {
    mr: 6,
    nr: 16,
    lanes: 8,
    format: Format::F32,
    tiles: &[
        tiles!(V3, Fma, 1, false, [1 2 3 4 5 6], [target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]),
        tiles!(V3, Fma, 2, false, [1 2 3 4 5 6], [target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]),
    ],
    direct: &[
        tiles!(V3, Fma, 1, true, [1 2 3 4 5 6], [target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]),
        tiles!(V3, Fma, 2, true, [1 2 3 4 5 6], [target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]),
    ],
};

#[cfg(target_arch = "x86_64")]
static AVX512: MicroKernel = MicroKernel {
    mr: 8,
    nr: 32,
    lanes: 16,
    format: Format::F32,
    tiles: &[
        tiles!(V4, Fma, 1, false, [1 2 3 4 5 6 7 8], [target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]),
        tiles!(V4, Fma, 2, false, [1 2 3 4 5 6 7 8], [target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]),
    ],
    direct: &[
        tiles!(V4, Fma, 1, true, [1 2 3 4 5 6 7 8], [target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]),
        tiles!(V4, Fma, 2, true, [1 2 3 4 5 6 7 8], [target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]),
    ],
};

#[cfg(target_arch = "x86_64")]
static AVX512_BF16: MicroKernel = MicroKernel {
    mr: 8,
    nr: 32,
    lanes: 16,
    format: Format::Bf16Pair,
    tiles: &[
        tiles!(V4, Bf16Dot, 1, false, [1 2 3 4 5 6 7 8], [target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16")]),
        tiles!(V4, Bf16Dot, 2, false, [1 2 3 4 5 6 7 8], [target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16")]),
    ],
    direct: &[],
};

/// Returns the f32 micro-kernel for a level.
pub(crate) fn f32_microkernel(isa: Isa) -> &'static MicroKernel {
    match isa.clamp_to_current() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => &AVX2,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16 => &AVX512,
        _ => &SCALAR,
    }
}

/// Returns the bf16 micro-kernel for a level. Without bf16 instructions this is the f32 kernel:
/// packing then rounds elements to bf16 but stores them as f32, which gives the same products.
///
/// A kernel for AMX tiles would also belong here, with its own format.
pub(crate) fn bf16_microkernel(isa: Isa) -> &'static MicroKernel {
    match isa.clamp_to_current() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 => &AVX512_BF16,
        lower => f32_microkernel(lower),
    }
}
