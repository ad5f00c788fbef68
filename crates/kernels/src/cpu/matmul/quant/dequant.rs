//! Dequantization into GEMM panels, for prefill.

use std::ops::Range;

use super::{BLOCK, Bits, GROUPS, Line, PANEL, QuantMatrix, scale_to_f32};
use crate::cpu::isa::Isa;
use crate::cpu::matmul::matrix::round_to_bf16_bits;
use crate::cpu::matmul::panel::{Format, PanelLayout};

impl QuantMatrix {
    /// Packs a block of columns of the right operand. `k` must start at a multiple of `BLOCK`.
    pub(crate) fn pack_cols(
        &self,
        isa: Isa,
        cols: &Range<usize>,
        k: &Range<usize>,
        panels: PanelLayout,
        bf16: bool,
        dst: &mut [u32],
    ) {
        let isa = isa.clamp_to_current();
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx512 {
            // SAFETY: `clamp_to_current` ensures that the machine supports the level.
            return unsafe { pack_avx512(self, cols, k, panels, bf16, dst) };
        }
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx2 {
            // SAFETY: `clamp_to_current` ensures that the machine supports the level.
            return unsafe { pack_avx2(self, cols, k, panels, bf16, dst) };
        }
        let _ = isa;
        pack(self, cols, k, panels, bf16, dst);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn pack_avx512(
    w: &QuantMatrix,
    cols: &Range<usize>,
    k: &Range<usize>,
    panels: PanelLayout,
    bf16: bool,
    dst: &mut [u32],
) {
    pack(w, cols, k, panels, bf16, dst);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn pack_avx2(
    w: &QuantMatrix,
    cols: &Range<usize>,
    k: &Range<usize>,
    panels: PanelLayout,
    bf16: bool,
    dst: &mut [u32],
) {
    pack(w, cols, k, panels, bf16, dst);
}

/// Packs all quantized blocks that the panels cover.
#[inline(always)]
fn pack(
    w: &QuantMatrix,
    cols: &Range<usize>,
    k: &Range<usize>,
    panels: PanelLayout,
    bf16: bool,
    dst: &mut [u32],
) {
    let words = k.len().div_ceil(panels.format.elements_per_word());
    for j in cols.clone().step_by(panels.width) {
        let used = panels.width.min(cols.end - j);
        let width = used.next_multiple_of(panels.pad);
        let dst = &mut dst[(j - cols.start) * words..][..width * words];
        // A GEMM panel may be half a quantized panel (8 columns) or two (32).
        for c in (0..width).step_by(PANEL) {
            let first_col = (j + c) % PANEL;
            let count = PANEL.min(width - c).min(PANEL - first_col);
            if j + c >= w.n.next_multiple_of(PANEL) {
                continue;
            }
            for b in k.start / BLOCK..k.end.div_ceil(BLOCK) {
                let (lines, scales) = w.block((j + c) / PANEL, b);
                let scales = scales.map(scale_to_f32);
                for g in 0..GROUPS {
                    let values = group(lines, w.bits, g, &scales);
                    let first = b * BLOCK + 4 * g - k.start;
                    let mut store = |word: usize, row: [u32; PANEL]| {
                        if word < words {
                            let out = &mut dst[word * width + c..][..count];
                            out.copy_from_slice(&row[first_col..first_col + count]);
                        }
                    };
                    match panels.format {
                        Format::F32 => {
                            for (t, row) in values.into_iter().enumerate() {
                                store(first + t, as_words(row, bf16));
                            }
                        }
                        Format::Bf16Pair => {
                            store(first / 2, pairs(values[0], values[1]));
                            store(first / 2 + 1, pairs(values[2], values[3]));
                        }
                    }
                }
            }
        }
    }
}

/// Dequantizes four values along k of sixteen columns.
#[inline(always)]
fn group(lines: &[Line], bits: Bits, g: usize, scales: &[f32; PANEL]) -> [[f32; PANEL]; 4] {
    let (line, shift, mask) = match bits {
        Bits::Int8 => (&lines[g], 0, 255),
        Bits::Int4 => (&lines[g / 2], g % 2 * 4, 15),
    };
    let mut values = [[0.0; PANEL]; 4];
    for c in 0..PANEL {
        let i = 4 * c;
        let four = u32::from_le_bytes([line.0[i], line.0[i + 1], line.0[i + 2], line.0[i + 3]]);
        for (t, values) in values.iter_mut().enumerate() {
            let stored = (four >> (8 * t + shift)) & mask;
            values[c] = (stored.cast_signed() - bits.offset()) as f32 * scales[c];
        }
    }
    values
}

/// Converts to f32 words, rounded to bf16 if requested.
#[inline(always)]
fn as_words(row: [f32; PANEL], bf16: bool) -> [u32; PANEL] {
    if bf16 {
        row.map(round_to_bf16_bits)
    } else {
        row.map(f32::to_bits)
    }
}

/// Packs pairs of bf16 values into words.
#[inline(always)]
fn pairs(first: [f32; PANEL], second: [f32; PANEL]) -> [u32; PANEL] {
    let mut words = [0; PANEL];
    for c in 0..PANEL {
        words[c] = (round_to_bf16_bits(first[c]) >> 16) | round_to_bf16_bits(second[c]);
    }
    words
}
