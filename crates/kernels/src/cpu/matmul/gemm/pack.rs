//! Packing: copies a block of an operand into panels, in the order the micro-kernel reads them.

use super::tile::Format;
use crate::cpu::matmul::isa::Isa;
use crate::cpu::matmul::matrix::{Bf16, MatRef, round_to_bf16_bits};

/// The block of an operand to pack.
///
/// Panels hold rows of A or columns of B. `panel_stride` is the stride between these rows or columns,
/// `k_stride` the stride along k.
#[derive(Debug)]
pub(crate) struct Block<T> {
    pub(crate) start: *const T,
    pub(crate) panel_stride: usize,
    pub(crate) k_stride: usize,
    /// Number of rows of A or columns of B.
    pub(crate) len: usize,
    /// Number of elements along k.
    pub(crate) kc: usize,
}

/// Shape and element format of the panels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PanelLayout {
    /// Number of rows or columns in a full panel.
    pub(crate) width: usize,
    /// The last panel is zero-padded to a multiple of this.
    pub(crate) pad: usize,
    pub(crate) format: Format,
}

impl<T> Block<T> {
    /// Selects rows `first..first + len` and columns `k0..k0 + kc` of `m`.
    pub(crate) fn from_rows(
        m: &MatRef<'_, T>,
        first: usize,
        len: usize,
        k0: usize,
        kc: usize,
    ) -> Self {
        assert!(first + len <= m.rows && k0 + kc <= m.cols);
        let start = m
            .data
            .as_ptr()
            .wrapping_add(first * m.row_stride + k0 * m.col_stride);
        Self {
            start,
            panel_stride: m.row_stride,
            k_stride: m.col_stride,
            len,
            kc,
        }
    }
}

/// Converts elements of an operand to 32-bit words of a panel.
trait Encode {
    /// Element type of the operand.
    type T: Copy;
    /// Number of elements per word.
    const K: usize;
    /// Packs one element, or two adjacent ones along k, into a word.
    fn word(first: Self::T, second: Option<Self::T>) -> u32;
}

/// f32 elements, unchanged.
struct Plain;
/// f32 elements rounded to bf16 but stored as f32.
struct Rounded;
/// bf16 elements widened to f32.
struct Widened;
/// Pairs of f32 elements rounded to bf16.
struct RoundedPair;
/// Pairs of bf16 elements.
struct Pair;

impl Encode for Plain {
    type T = f32;
    const K: usize = 1;
    #[inline(always)]
    fn word(first: f32, _: Option<f32>) -> u32 {
        first.to_bits()
    }
}

impl Encode for Rounded {
    type T = f32;
    const K: usize = 1;
    #[inline(always)]
    fn word(first: f32, _: Option<f32>) -> u32 {
        round_to_bf16_bits(first)
    }
}

impl Encode for Widened {
    type T = Bf16;
    const K: usize = 1;
    #[inline(always)]
    fn word(first: Bf16, _: Option<Bf16>) -> u32 {
        u32::from(first.0) << 16
    }
}

impl Encode for RoundedPair {
    type T = f32;
    const K: usize = 2;
    #[inline(always)]
    fn word(first: f32, second: Option<f32>) -> u32 {
        (round_to_bf16_bits(first) >> 16) | second.map_or(0, round_to_bf16_bits)
    }
}

impl Encode for Pair {
    type T = Bf16;
    const K: usize = 2;
    #[inline(always)]
    fn word(first: Bf16, second: Option<Bf16>) -> u32 {
        u32::from(first.0) | second.map_or(0, |s| u32::from(s.0) << 16)
    }
}

/// Packs f32 elements. `bf16` requests rounding to bf16 where the panel format is f32.
pub(crate) fn pack_f32(
    isa: Isa,
    block: &Block<f32>,
    panels: PanelLayout,
    bf16: bool,
    dst: &mut [u32],
) {
    #[cfg(target_arch = "x86_64")]
    if block.panel_stride == 1 || block.k_stride == 1 {
        let isa = isa.clamp_to_machine();
        match panels.format {
            Format::Bf16Pair if isa >= Isa::Avx512Bf16 => {
                // SAFETY: `clamp_to_machine` ensures that the machine supports the level.
                return unsafe { super::pack_avx512::pack_f32_as_pairs(block, panels, dst) };
            }
            Format::F32 if isa >= Isa::Avx512 && !bf16 => {
                // SAFETY: `clamp_to_machine` ensures that the machine supports the level.
                return unsafe { super::pack_avx512::pack_f32(block, panels, dst) };
            }
            _ => {}
        }
    }
    match (panels.format, bf16) {
        (Format::Bf16Pair, _) => dispatch::<RoundedPair>(isa, block, panels, dst),
        (Format::F32, true) => dispatch::<Rounded>(isa, block, panels, dst),
        (Format::F32, false) => dispatch::<Plain>(isa, block, panels, dst),
    }
}

/// Packs bf16 elements.
pub(crate) fn pack_bf16(isa: Isa, block: &Block<Bf16>, panels: PanelLayout, dst: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    {
        let contiguous = block.panel_stride == 1 || block.k_stride == 1;
        let wide = isa.clamp_to_machine() >= Isa::Avx512;
        if contiguous && wide && panels.format == Format::Bf16Pair {
            // SAFETY: `clamp_to_machine` ensures that the machine supports the level.
            return unsafe { super::pack_avx512::pack_pairs(block, panels, dst) };
        }
    }
    match panels.format {
        Format::Bf16Pair => dispatch::<Pair>(isa, block, panels, dst),
        Format::F32 => dispatch::<Widened>(isa, block, panels, dst),
    }
}

/// Runs `pack` compiled for the machine's instruction set; otherwise the rounding would not vectorize.
fn dispatch<E: Encode>(isa: Isa, block: &Block<E::T>, panels: PanelLayout, dst: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn avx512<E: Encode>(block: &Block<E::T>, panels: PanelLayout, dst: &mut [u32]) {
            pack::<E>(block, panels, dst);
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2<E: Encode>(block: &Block<E::T>, panels: PanelLayout, dst: &mut [u32]) {
            pack::<E>(block, panels, dst);
        }
        let isa = isa.clamp_to_machine();
        if isa >= Isa::Avx512 {
            // SAFETY: `clamp_to_machine` ensures that the machine supports the level.
            return unsafe { avx512::<E>(block, panels, dst) };
        }
        if isa >= Isa::Avx2 {
            // SAFETY: `clamp_to_machine` ensures that the machine supports the level.
            return unsafe { avx2::<E>(block, panels, dst) };
        }
    }
    let _ = isa;
    pack::<E>(block, panels, dst);
}

/// Packs the block panel by panel.
#[inline(always)]
fn pack<E: Encode>(block: &Block<E::T>, panels: PanelLayout, dst: &mut [u32]) {
    let words = block.kc.div_ceil(E::K);
    let mut first = 0;
    while first < block.len {
        let used = panels.width.min(block.len - first);
        let width = used.next_multiple_of(panels.pad);
        let dst = &mut dst[first * words..(first + width) * words];
        let strip = Strip::<E> {
            start: block.start.wrapping_add(first * block.panel_stride),
            panel_stride: block.panel_stride,
            k_stride: block.k_stride,
            kc: block.kc,
        };
        if used < width {
            dst.fill(0);
        }
        if block.panel_stride == 1 {
            strip.pack_across(used, width, dst);
        } else if block.k_stride == 1 {
            strip.pack_transposed(used, width, dst);
        } else {
            strip.pack_words(0..used, 0..words, width, dst);
        }
        first += used;
    }
}

/// The part of a block that fills one panel.
struct Strip<E: Encode> {
    start: *const E::T,
    panel_stride: usize,
    k_stride: usize,
    kc: usize,
}

impl<E: Encode> Strip<E> {
    /// Returns the word at row `i` and word index `w`.
    #[inline(always)]
    fn word(&self, i: usize, w: usize) -> u32 {
        let k = w * E::K;
        let ptr = self
            .start
            .wrapping_add(i * self.panel_stride + k * self.k_stride);
        // SAFETY: `Block::from_rows` has checked that the block lies within its slice, and `i` and
        // `k` lie within the block.
        unsafe {
            let second = (E::K == 2 && k + 1 < self.kc).then(|| *ptr.add(self.k_stride));
            E::word(*ptr, second)
        }
    }

    /// Packs one word at a time, for arbitrary strides.
    #[inline(always)]
    fn pack_words(
        &self,
        rows: std::ops::Range<usize>,
        words: std::ops::Range<usize>,
        width: usize,
        dst: &mut [u32],
    ) {
        for w in words {
            for i in rows.clone() {
                dst[w * width + i] = self.word(i, w);
            }
        }
    }

    /// Packs elements that are contiguous across the panel: a copy for each word of k.
    #[inline(always)]
    fn pack_across(&self, used: usize, width: usize, dst: &mut [u32]) {
        match used {
            32 => self.copy_across::<32>(dst),
            16 if width == 16 => self.copy_across::<16>(dst),
            8 if width == 8 => self.copy_across::<8>(dst),
            6 if width == 6 => self.copy_across::<6>(dst),
            _ => self.pack_words(0..used, 0..self.kc.div_ceil(E::K), width, dst),
        }
    }

    /// `pack_across` for a full panel, with a constant width so that it vectorizes.
    #[inline(always)]
    fn copy_across<const W: usize>(&self, dst: &mut [u32]) {
        let full_words = self.kc / E::K;
        for (w, out) in dst.chunks_exact_mut(W).enumerate().take(full_words) {
            let ptr = self.start.wrapping_add(w * E::K * self.k_stride);
            // SAFETY: all elements of words below `full_words` lie within the block.
            unsafe {
                let first = ptr.cast::<[E::T; W]>().read_unaligned();
                let second = ptr.add((E::K - 1) * self.k_stride).cast::<[E::T; W]>();
                let second = second.read_unaligned();
                for i in 0..W {
                    out[i] = E::word(first[i], Some(second[i]));
                }
            }
        }
        self.pack_words(0..W, full_words..self.kc.div_ceil(E::K), W, dst);
    }

    /// Packs elements that are contiguous along k by transposing blocks of four by four words.
    ///
    /// Each row contributes sixteen words at a time, so that a cache line is fully used while it is
    /// in the cache.
    #[inline(always)]
    fn pack_transposed(&self, used: usize, width: usize, dst: &mut [u32]) {
        let full_words = self.kc / E::K / 4 * 4;
        let full_rows = used / 4 * 4;
        for w0 in (0..full_words).step_by(16) {
            for i in (0..full_rows).step_by(4) {
                for w in (w0..full_words.min(w0 + 16)).step_by(4) {
                    let rows = [0, 1, 2, 3].map(|r| self.four_words(i + r, w));
                    for (t, column) in transpose(rows).iter().enumerate() {
                        let start = (w + t) * width + i;
                        dst[start..start + 4].copy_from_slice(column);
                    }
                }
            }
        }
        self.pack_words(full_rows..used, 0..full_words, width, dst);
        self.pack_words(0..used, full_words..self.kc.div_ceil(E::K), width, dst);
    }

    /// Returns four adjacent words of row `i`.
    #[inline(always)]
    fn four_words(&self, i: usize, w: usize) -> [u32; 4] {
        let ptr = self.start.wrapping_add(i * self.panel_stride + w * E::K);
        // SAFETY: the caller ensures that words `w..w + 4` lie within the block.
        unsafe {
            if E::K == 1 {
                ptr.cast::<[E::T; 4]>()
                    .read_unaligned()
                    .map(|v| E::word(v, None))
            } else {
                let v = ptr.cast::<[E::T; 8]>().read_unaligned();
                [0, 2, 4, 6].map(|t| E::word(v[t], Some(v[t + 1])))
            }
        }
    }
}

/// Transposes four rows of four words.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transpose(rows: [[u32; 4]; 4]) -> [[u32; 4]; 4] {
    use core::arch::x86_64::{
        _mm_unpackhi_epi32, _mm_unpackhi_epi64, _mm_unpacklo_epi32, _mm_unpacklo_epi64,
    };
    // SAFETY: every x86-64 CPU has SSE2, and all types are 128 bits of plain data.
    unsafe {
        let r: [core::arch::x86_64::__m128i; 4] = std::mem::transmute(rows);
        let (a, b) = (
            _mm_unpacklo_epi32(r[0], r[1]),
            _mm_unpacklo_epi32(r[2], r[3]),
        );
        let (c, d) = (
            _mm_unpackhi_epi32(r[0], r[1]),
            _mm_unpackhi_epi32(r[2], r[3]),
        );
        std::mem::transmute([
            _mm_unpacklo_epi64(a, b),
            _mm_unpackhi_epi64(a, b),
            _mm_unpacklo_epi64(c, d),
            _mm_unpackhi_epi64(c, d),
        ])
    }
}

/// Transposes four rows of four words.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn transpose(rows: [[u32; 4]; 4]) -> [[u32; 4]; 4] {
    [0, 1, 2, 3].map(|t| [0, 1, 2, 3].map(|r| rows[r][t]))
}
