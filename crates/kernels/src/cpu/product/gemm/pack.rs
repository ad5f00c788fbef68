//! Packing: copies a block of an operand into panels in the order in which the tiles read it.

use super::tile::Format;
use crate::cpu::product::isa::Isa;
use crate::cpu::product::matrix::{Bf16, MatRef, round_to_bf16_bits};

/// The block of an operand to pack, seen from the side that the panels cut up.
///
/// For A the panels hold rows, for B columns; `panel_stride` steps along that side and
/// `k_stride` along k.
#[derive(Debug)]
pub(crate) struct Block<T> {
    pub(crate) start: *const T,
    pub(crate) panel_stride: usize,
    pub(crate) k_stride: usize,
    /// Rows of A or columns of B.
    pub(crate) len: usize,
    /// Values along k.
    pub(crate) kc: usize,
}

/// The shape of the panels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panels {
    /// Rows or columns of a full panel.
    pub(crate) width: usize,
    /// The last panel is padded with zeros to a multiple of this.
    pub(crate) pad: usize,
    pub(crate) format: Format,
}

impl<T> Block<T> {
    /// Rows `from..from + len` of `m`, and `k0..k0 + kc` of its columns.
    pub(crate) fn of_rows(
        m: &MatRef<'_, T>,
        from: usize,
        len: usize,
        k0: usize,
        kc: usize,
    ) -> Self {
        assert!(from + len <= m.rows && k0 + kc <= m.cols);
        let start = m
            .data
            .as_ptr()
            .wrapping_add(from * m.row_stride + k0 * m.col_stride);
        Self {
            start,
            panel_stride: m.row_stride,
            k_stride: m.col_stride,
            len,
            kc,
        }
    }
}

/// How the values of an operand become the words of a panel.
trait Encode {
    /// The operand's element.
    type T: Copy;
    /// Values per word.
    const K: usize;
    /// A word of one value, or of two neighbours along k.
    fn word(first: Self::T, second: Option<Self::T>) -> u32;
}

/// f32 values as they are.
struct Plain;
/// f32 values rounded to bf16, kept as f32.
struct Rounded;
/// bf16 values widened to f32.
struct Widened;
/// Pairs of f32 values rounded to bf16.
struct RoundedPair;
/// Pairs of bf16 values.
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

/// Packs f32 values; `bf16` asks for rounding where the format keeps f32.
pub(crate) fn pack_f32(isa: Isa, block: &Block<f32>, panels: Panels, bf16: bool, dst: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    if block.panel_stride == 1 || block.k_stride == 1 {
        let isa = isa.clamp_to_machine();
        match panels.format {
            Format::Bf16Pair if isa >= Isa::Avx512Bf16 => {
                // SAFETY: the machine has the features of the level.
                return unsafe { super::pack_avx512::rounded_pairs(block, panels, dst) };
            }
            Format::F32 if isa >= Isa::Avx512 && !bf16 => {
                // SAFETY: as above.
                return unsafe { super::pack_avx512::plain(block, panels, dst) };
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

/// Packs bf16 values.
pub(crate) fn pack_bf16(isa: Isa, block: &Block<Bf16>, panels: Panels, dst: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    {
        let contiguous = block.panel_stride == 1 || block.k_stride == 1;
        let wide = isa.clamp_to_machine() >= Isa::Avx512;
        if contiguous && wide && panels.format == Format::Bf16Pair {
            // SAFETY: the machine has the features of the level.
            return unsafe { super::pack_avx512::pairs(block, panels, dst) };
        }
    }
    match panels.format {
        Format::Bf16Pair => dispatch::<Pair>(isa, block, panels, dst),
        Format::F32 => dispatch::<Widened>(isa, block, panels, dst),
    }
}

/// Runs `pack` compiled for the machine: the rounding vectorises only then.
fn dispatch<E: Encode>(isa: Isa, block: &Block<E::T>, panels: Panels, dst: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn avx512<E: Encode>(block: &Block<E::T>, panels: Panels, dst: &mut [u32]) {
            pack::<E>(block, panels, dst);
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2<E: Encode>(block: &Block<E::T>, panels: Panels, dst: &mut [u32]) {
            pack::<E>(block, panels, dst);
        }
        let isa = isa.clamp_to_machine();
        if isa >= Isa::Avx512 {
            // SAFETY: the machine has the features of the level.
            return unsafe { avx512::<E>(block, panels, dst) };
        }
        if isa >= Isa::Avx2 {
            // SAFETY: as above.
            return unsafe { avx2::<E>(block, panels, dst) };
        }
    }
    let _ = isa;
    pack::<E>(block, panels, dst);
}

/// Packs panel by panel.
#[inline(always)]
fn pack<E: Encode>(block: &Block<E::T>, panels: Panels, dst: &mut [u32]) {
    let words = block.kc.div_ceil(E::K);
    let mut from = 0;
    while from < block.len {
        let used = panels.width.min(block.len - from);
        let width = used.next_multiple_of(panels.pad);
        let dst = &mut dst[from * words..(from + width) * words];
        let strip = Strip::<E> {
            start: block.start.wrapping_add(from * block.panel_stride),
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
        from += used;
    }
}

/// The part of a block that goes into one panel.
struct Strip<E: Encode> {
    start: *const E::T,
    panel_stride: usize,
    k_stride: usize,
    kc: usize,
}

impl<E: Encode> Strip<E> {
    /// The word at `(i, w)`.
    #[inline(always)]
    fn word(&self, i: usize, w: usize) -> u32 {
        let k = w * E::K;
        let at = self
            .start
            .wrapping_add(i * self.panel_stride + k * self.k_stride);
        // SAFETY: `Block::of_rows` has checked that the block lies within its slice, and
        // `i` and `k` lie within the block.
        unsafe {
            let second = (E::K == 2 && k + 1 < self.kc).then(|| *at.add(self.k_stride));
            E::word(*at, second)
        }
    }

    /// Any strides, one word at a time.
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

    /// Values contiguous across the panel: each word of k is a copy.
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

    /// `pack_across` for a full panel, with a constant width that vectorises.
    #[inline(always)]
    fn copy_across<const W: usize>(&self, dst: &mut [u32]) {
        let whole = self.kc / E::K;
        for (w, out) in dst.chunks_exact_mut(W).enumerate().take(whole) {
            let at = self.start.wrapping_add(w * E::K * self.k_stride);
            // SAFETY: words below `whole` have all their values within the block.
            unsafe {
                let first = at.cast::<[E::T; W]>().read_unaligned();
                let second = at.add((E::K - 1) * self.k_stride).cast::<[E::T; W]>();
                let second = second.read_unaligned();
                for i in 0..W {
                    out[i] = E::word(first[i], Some(second[i]));
                }
            }
        }
        self.pack_words(0..W, whole..self.kc.div_ceil(E::K), W, dst);
    }

    /// Values contiguous along k: squares of four by four words are transposed.
    ///
    /// Sixteen words of each row in turn: a whole cache line is used while it is near.
    #[inline(always)]
    fn pack_transposed(&self, used: usize, width: usize, dst: &mut [u32]) {
        let whole = self.kc / E::K / 4 * 4;
        let four = used / 4 * 4;
        for w0 in (0..whole).step_by(16) {
            for i in (0..four).step_by(4) {
                for w in (w0..whole.min(w0 + 16)).step_by(4) {
                    let rows = [0, 1, 2, 3].map(|r| self.four_words(i + r, w));
                    for (t, column) in transpose(rows).iter().enumerate() {
                        let at = (w + t) * width + i;
                        dst[at..at + 4].copy_from_slice(column);
                    }
                }
            }
        }
        self.pack_words(four..used, 0..whole, width, dst);
        self.pack_words(0..used, whole..self.kc.div_ceil(E::K), width, dst);
    }

    /// Four neighbouring words of row `i`.
    #[inline(always)]
    fn four_words(&self, i: usize, w: usize) -> [u32; 4] {
        let at = self.start.wrapping_add(i * self.panel_stride + w * E::K);
        // SAFETY: the caller keeps `w + 4` whole words within the block.
        unsafe {
            if E::K == 1 {
                at.cast::<[E::T; 4]>()
                    .read_unaligned()
                    .map(|v| E::word(v, None))
            } else {
                let v = at.cast::<[E::T; 8]>().read_unaligned();
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
    // SAFETY: SSE2 belongs to every x86-64, and the types are all 128 bits of plain data.
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
