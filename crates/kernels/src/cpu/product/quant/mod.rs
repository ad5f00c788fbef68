//! Weight matrices quantized to 8 or 4 bits in blocks of 32 values along k.
//!
//! Each block of a column has a scale of its own; the integers are symmetric around zero. The
//! layout follows the order in which decoding streams it: panels of sixteen columns, in each the
//! blocks along k, in each block groups of four values along k for all sixteen columns, so that
//! one 64-byte line feeds one int8 dot product for sixteen columns. The scales, rounded up to
//! bf16, are a second stream.

mod activation;
mod dequant;
mod dot;
#[cfg(target_arch = "x86_64")]
mod dot_x86;
mod matvec;
#[cfg(test)]
mod tests;

pub use matvec::matvec_quant;

use crate::cpu::product::matrix::MatRef;
use crate::cpu::product::par::{Threads, run};

/// Values along k with one scale.
pub const BLOCK: usize = 32;
/// Columns of a panel.
pub(crate) const PANEL: usize = 16;
/// Groups of four values in a block.
pub(crate) const GROUPS: usize = BLOCK / 4;

/// The width of the integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// -127 to 127: 8.5 bits a weight with the scales.
    Int8,
    /// -7 to 7: 4.5 bits a weight with the scales.
    Int4,
}

impl Bits {
    /// The largest integer.
    pub(crate) fn max(self) -> i32 {
        match self {
            Self::Int8 => 127,
            Self::Int4 => 7,
        }
    }

    /// What is added to store the integers without a sign: int8 dot products take one unsigned
    /// factor.
    pub(crate) fn offset(self) -> i32 {
        match self {
            Self::Int8 => 128,
            Self::Int4 => 8,
        }
    }

    /// Cache lines of a block of a panel.
    pub(crate) fn lines(self) -> usize {
        match self {
            Self::Int8 => GROUPS,
            Self::Int4 => GROUPS / 2,
        }
    }
}

/// One cache line of integers.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; 64]);

/// A quantized matrix of `k` rows and `n` columns.
#[derive(Clone, Debug)]
pub struct QuantMatrix {
    pub(crate) k: usize,
    pub(crate) n: usize,
    pub(crate) bits: Bits,
    pub(crate) lines: Vec<Line>,
    /// The upper halves of the f32 scales.
    pub(crate) scales: Vec<[u16; PANEL]>,
}

impl QuantMatrix {
    /// Quantizes `w` (k by n, any strides).
    ///
    /// A block with a value that is not finite decodes to NaN throughout.
    pub fn quantize(w: MatRef<'_>, bits: Bits, threads: Threads) -> Self {
        let (blocks, panels) = (w.rows.div_ceil(BLOCK), w.cols.div_ceil(PANEL));
        let (per_panel, size) = (blocks * bits.lines(), panels * blocks);
        let mut lines = vec![Line([0; 64]); panels * per_panel];
        let mut scales = vec![[0; PANEL]; size];
        if size > 0 {
            let slots: Vec<_> = lines
                .chunks_mut(per_panel)
                .zip(scales.chunks_mut(blocks))
                .map(std::sync::Mutex::new)
                .collect();
            let workers = threads.workers(panels);
            run(workers, panels, &|p| {
                // Each panel is locked once, by the task that fills it.
                if let Ok(mut slot) = slots[p].lock() {
                    let (lines, scales) = &mut *slot;
                    for (b, scale) in scales.iter_mut().enumerate() {
                        let lines = &mut lines[b * bits.lines()..][..bits.lines()];
                        quantize_block(w, bits, p * PANEL, b * BLOCK, lines, scale);
                    }
                }
            });
        }
        Self {
            k: w.rows,
            n: w.cols,
            bits,
            lines,
            scales,
        }
    }

    /// The matrix of these integers, `[n, k]`, and scales, `[n, k / 32 rounded up]` (bf16): what
    /// [`parts`](Self::parts) gives.
    ///
    /// Panics where there are too few or too many of either. Integers out of range are cut off.
    pub fn from_parts(
        (k, n): (usize, usize),
        bits: Bits,
        integers: &[i8],
        scales_in: &[u16],
    ) -> Self {
        let (blocks, panels) = (k.div_ceil(BLOCK), n.div_ceil(PANEL));
        assert_eq!((integers.len(), scales_in.len()), (n * k, n * blocks));
        let zero = bits.offset() as u8;
        let blank = match bits {
            Bits::Int8 => zero,
            Bits::Int4 => zero | zero << 4,
        };
        let mut matrix = Self {
            k,
            n,
            bits,
            lines: vec![Line([blank; 64]); panels * blocks * bits.lines()],
            scales: vec![[0; PANEL]; panels * blocks],
        };
        for j in 0..n {
            for b in 0..blocks {
                let index = j / PANEL * blocks + b;
                matrix.scales[index][j % PANEL] = scales_in[j * blocks + b];
                let lines = &mut matrix.lines[index * bits.lines()..][..bits.lines()];
                let from = j * k + b * BLOCK;
                let to = (j * k + k).min(from + BLOCK);
                for (t, value) in integers[from..to].iter().enumerate() {
                    let q = i32::from(*value).clamp(-bits.max(), bits.max()) + bits.offset();
                    let (group, byte) = (t / 4, j % PANEL * 4 + t % 4);
                    match bits {
                        Bits::Int8 => lines[group].0[byte] = q as u8,
                        Bits::Int4 => {
                            let shift = group % 2 * 4;
                            let kept = lines[group / 2].0[byte] & !(15 << shift);
                            lines[group / 2].0[byte] = kept | (q as u8) << shift;
                        }
                    }
                }
            }
        }
        matrix
    }

    /// The integers, `[n, k]`, and their scales, `[n, k / 32 rounded up]` (bf16).
    pub fn parts(&self) -> (Vec<i8>, Vec<u16>) {
        let blocks = self.blocks();
        let mut integers = Vec::with_capacity(self.n * self.k);
        let mut scales = Vec::with_capacity(self.n * blocks);
        for j in 0..self.n {
            integers.extend((0..self.k).map(|k| self.integer(k, j) as i8));
            scales.extend((0..blocks).map(|b| self.block(j / PANEL, b).1[j % PANEL]));
        }
        (integers, scales)
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.k, self.n)
    }

    /// The width of the integers.
    pub fn bits(&self) -> Bits {
        self.bits
    }

    /// The memory of the integers and scales.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.lines) + size_of_val(&*self.scales)
    }

    /// Number of blocks along k.
    pub(crate) fn blocks(&self) -> usize {
        self.k.div_ceil(BLOCK)
    }

    /// The integers and scales of a block of a panel.
    pub(crate) fn block(&self, panel: usize, block: usize) -> (&[Line], &[u16; PANEL]) {
        let index = panel * self.blocks() + block;
        let lines = self.bits.lines();
        (&self.lines[index * lines..][..lines], &self.scales[index])
    }

    /// The value that the matrix stands for at row `k` and column `n`.
    pub fn value(&self, k: usize, n: usize) -> f32 {
        let scales = self.block(n / PANEL, k / BLOCK).1;
        scale(scales[n % PANEL]) * self.integer(k, n) as f32
    }

    fn integer(&self, k: usize, n: usize) -> i32 {
        assert!(k < self.k && n < self.n, "position");
        let (lines, _) = self.block(n / PANEL, k / BLOCK);
        let (group, byte) = (k % BLOCK / 4, n % PANEL * 4 + k % 4);
        let stored = match self.bits {
            Bits::Int8 => lines[group].0[byte],
            Bits::Int4 => lines[group / 2].0[byte] >> (group % 2 * 4) & 15,
        };
        i32::from(stored) - self.bits.offset()
    }
}

/// The f32 value of a stored scale.
#[inline(always)]
pub(crate) fn scale(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Quantizes one block of a panel; positions outside the matrix become zero.
fn quantize_block(
    w: MatRef<'_>,
    bits: Bits,
    n0: usize,
    k0: usize,
    lines: &mut [Line],
    scales: &mut [u16; PANEL],
) {
    for c in 0..PANEL {
        let mut values = [0.0_f32; BLOCK];
        if n0 + c < w.cols {
            for (t, value) in values.iter_mut().enumerate().take(w.rows - k0) {
                *value = w.data[(k0 + t) * w.row_stride + (n0 + c) * w.col_stride];
            }
        }
        scales[c] = choose_scale(&values, bits);
        let scale = scale(scales[c]);
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        for (t, value) in values.iter().enumerate() {
            let max = bits.max();
            let q = ((value * inverse).round_ties_even() as i32).clamp(-max, max) + bits.offset();
            let (group, byte) = (t / 4, c * 4 + t % 4);
            match bits {
                Bits::Int8 => lines[group].0[byte] = q as u8,
                Bits::Int4 => lines[group / 2].0[byte] |= (q as u8) << (group % 2 * 4),
            }
        }
    }
}

/// The smallest bf16 scale with which the largest value still fits.
fn choose_scale(values: &[f32; BLOCK], bits: Bits) -> u16 {
    if values.iter().any(|v| !v.is_finite()) {
        return 0x7fc0;
    }
    let largest = values.iter().fold(0.0_f32, |a, v| a.max(v.abs()));
    let exact = (largest / bits.max() as f32).to_bits();
    // Rounding up cannot overflow: the quotient is far below the largest f32.
    ((exact + 0xffff) >> 16) as u16
}
