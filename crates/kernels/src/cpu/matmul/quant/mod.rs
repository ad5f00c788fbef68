//! Weight matrices quantized to 8 or 4 bits in blocks of 32 values along k.
//!
//! Each block of a column has its own scale; the integers are symmetric around zero. The layout
//! follows the order in which decoding streams it: panels of sixteen columns, within a panel the
//! blocks along k, and within a block groups of four values along k for all sixteen columns. One
//! 64-byte line thus feeds one int8 dot product for sixteen columns. The scales, rounded up to
//! bf16, form a second stream.

mod activation;
mod dequant;
mod dot;
#[cfg(target_arch = "x86_64")]
mod dot_x86;
mod matvec;
mod stored;
#[cfg(test)]
mod tests;

pub(crate) use matvec::matvec_quant;

use crate::cpu::matmul::matrix::MatRef;
use crate::cpu::par;

/// Number of values along k that share a scale.
pub(crate) const BLOCK: usize = 32;
/// Number of columns in a panel.
pub(crate) const PANEL: usize = 16;
/// Number of groups of four values in a block.
pub(crate) const GROUPS: usize = BLOCK / 4;

/// Width of the quantized integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// -127 to 127: 8.5 bits per weight including scales.
    Int8,
    /// -7 to 7: 4.5 bits per weight including scales.
    Int4,
}

impl Bits {
    /// Returns the largest integer.
    pub(crate) fn max(self) -> i32 {
        match self {
            Self::Int8 => 127,
            Self::Int4 => 7,
        }
    }

    /// Returns the offset added to store integers unsigned, since int8 dot products take one unsigned
    /// operand.
    pub(crate) fn offset(self) -> i32 {
        match self {
            Self::Int8 => 128,
            Self::Int4 => 8,
        }
    }

    /// Returns the number of cache lines per block of a panel.
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
pub(crate) struct QuantMatrix {
    pub(crate) k: usize,
    pub(crate) n: usize,
    pub(crate) bits: Bits,
    pub(crate) lines: Vec<Line>,
    /// Scales as bf16 bits.
    pub(crate) scales: Vec<[u16; PANEL]>,
}

impl QuantMatrix {
    /// Quantizes `w` (k by n, any strides).
    ///
    /// A block that contains a non-finite value decodes to NaN.
    pub(crate) fn quantize(w: MatRef<'_>, bits: Bits) -> Self {
        let (blocks, panels) = (w.rows.div_ceil(BLOCK), w.cols.div_ceil(PANEL));
        let (lines_per_panel, total_blocks) = (blocks * bits.lines(), panels * blocks);
        let mut lines = vec![Line([0; 64]); panels * lines_per_panel];
        let mut scales = vec![[0; PANEL]; total_blocks];
        if total_blocks > 0 {
            let panel_data: Vec<_> = lines
                .chunks_mut(lines_per_panel)
                .zip(scales.chunks_mut(blocks))
                .map(std::sync::Mutex::new)
                .collect();
            par::run(par::threads(), panels, &|p| {
                // Each panel is locked once, by the task that fills it.
                if let Ok(mut panel) = panel_data[p].lock() {
                    let (lines, scales) = &mut *panel;
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

    /// Returns the number of rows and columns.
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.k, self.n)
    }

    /// Returns the width of the integers.
    pub(crate) fn bits(&self) -> Bits {
        self.bits
    }

    /// Returns the size of the integers and scales in bytes.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.lines) + size_of_val(&*self.scales)
    }

    /// Returns the number of blocks along k.
    pub(crate) fn blocks(&self) -> usize {
        self.k.div_ceil(BLOCK)
    }

    /// Returns the integers and scales of a block of a panel.
    pub(crate) fn block(&self, panel: usize, block: usize) -> (&[Line], &[u16; PANEL]) {
        let index = panel * self.blocks() + block;
        let lines = self.bits.lines();
        (&self.lines[index * lines..][..lines], &self.scales[index])
    }

    /// Returns the dequantized value at row `k` and column `n`.
    pub(crate) fn value(&self, k: usize, n: usize) -> f32 {
        let scales = self.block(n / PANEL, k / BLOCK).1;
        scale_to_f32(scales[n % PANEL]) * self.integer(k, n) as f32
    }

    fn integer(&self, k: usize, n: usize) -> i32 {
        assert!(k < self.k && n < self.n, "index out of bounds");
        let (lines, _) = self.block(n / PANEL, k / BLOCK);
        let (group, byte) = (k % BLOCK / 4, n % PANEL * 4 + k % 4);
        let stored = match self.bits {
            Bits::Int8 => lines[group].0[byte],
            Bits::Int4 => lines[group / 2].0[byte] >> (group % 2 * 4) & 15,
        };
        i32::from(stored) - self.bits.offset()
    }
}

/// Returns the f32 value of a stored scale.
#[inline(always)]
pub(crate) fn scale_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Quantizes one block of a panel. Elements outside the matrix are zero.
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
        let scale = scale_to_f32(scales[c]);
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

/// Returns the smallest bf16 scale that can represent the largest value.
fn choose_scale(values: &[f32; BLOCK], bits: Bits) -> u16 {
    if values.iter().any(|v| !v.is_finite()) {
        return 0x7fc0;
    }
    let max_abs = values.iter().fold(0.0_f32, |a, v| a.max(v.abs()));
    let exact = (max_abs / bits.max() as f32).to_bits();
    // Rounding up cannot overflow: the quotient is far below the largest f32.
    ((exact + 0xffff) >> 16) as u16
}
