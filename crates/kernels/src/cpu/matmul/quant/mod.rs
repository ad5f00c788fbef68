//! Weight matrices quantized to 8 or 4 bits in blocks of 32 values along k.
//!
//! Each block of a column has its own scale and, in one format, a minimum ([`BlockFormat`]). The layout
//! follows the order in which decoding streams it: panels of sixteen columns, within a panel the
//! blocks along k, and within a block groups of four values along k for all sixteen columns. One
//! 64-byte line thus feeds one int8 dot product for sixteen columns. The scales form a second stream,
//! the minimums a third.

mod activation;
mod backward;
mod encode;
mod format;
mod gguf;
mod matvec;
mod panel;
mod panels;
mod search;
mod storage;
mod stored;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tile_avx2;
#[cfg(target_arch = "x86_64")]
mod tile_x86;
#[cfg(target_arch = "x86_64")]
mod unpack;

use std::alloc::{self, Layout};

pub(crate) use backward::matmul_quant_transposed;
pub use format::{Bits, BlockFormat};
pub(crate) use matvec::matmul_quant;
pub(crate) use storage::Storage;
pub(crate) use stored::StoredMatrix;

use crate::cpu::matmul::matrix::MatRef;
use crate::cpu::par;

/// Number of values along k that share a scale.
pub(crate) const BLOCK: usize = 32;
/// Number of columns in a panel.
pub(crate) const PANEL: usize = 16;
/// Number of groups of four values in a block.
pub(crate) const GROUPS: usize = BLOCK / 4;

impl Bits {
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

impl Line {
    /// Allocates `count` lines of zero bytes without writing to them.
    #[allow(clippy::cast_ptr_alignment, reason = "the layout has the alignment")]
    fn zeroed(count: usize) -> Vec<Self> {
        let layout = Layout::array::<Self>(count)
            .unwrap_or_else(|_| unreachable!("{count} lines exceed the address space"));
        if layout.size() == 0 {
            return Vec::new();
        }
        // SAFETY: the size is not 0.
        let lines = unsafe { alloc::alloc_zeroed(layout) }.cast::<Self>();
        if lines.is_null() {
            alloc::handle_alloc_error(layout);
        }
        #[allow(clippy::same_length_and_capacity, reason = "the vector is full")]
        // SAFETY: the allocation is that of `count` lines, which zero bytes initialize.
        unsafe {
            Vec::from_raw_parts(lines, count, count)
        }
    }
}

/// A quantized matrix of `k` rows and `n` columns.
#[derive(Clone, Debug)]
pub(crate) struct QuantMatrix {
    pub(crate) k: usize,
    pub(crate) n: usize,
    pub(crate) format: BlockFormat,
    pub(crate) lines: Storage<Line>,
    /// Scales as bf16 or f16 bits.
    pub(crate) scales: Storage<[u16; PANEL]>,
    /// Minimums as f16 bits, if the format has them.
    pub(crate) minimums: Storage<[u16; PANEL]>,
}

/// One block of a panel.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    pub(crate) lines: &'a [Line],
    pub(crate) scales: &'a [u16; PANEL],
    pub(crate) minimums: Option<&'a [u16; PANEL]>,
}

/// The blocks of one panel, to be filled.
struct PanelMut<'a> {
    bits: Bits,
    lines: &'a mut [Line],
    scales: &'a mut [[u16; PANEL]],
    minimums: &'a mut [[u16; PANEL]],
}

/// One block of a column: unsigned integers, scale and minimum as they are in memory.
#[derive(Clone, Copy)]
struct ColumnBlock {
    integers: [u8; BLOCK],
    scale: u16,
    minimum: u16,
}

impl QuantMatrix {
    /// Quantizes `w` (k by n, any strides) to `format`.
    ///
    /// A block that contains a non-finite value decodes to NaN.
    #[cfg(test)]
    pub(crate) fn quantize_as(w: MatRef<'_>, format: BlockFormat) -> Self {
        Self::quantize_weighted(w, format, None)
    }

    /// Quantizes `w` to `format`. Where the format has a search, the squared error of row `i` counts `importance[i]`
    /// times relative to the other rows of its block.
    ///
    /// A block that contains a non-finite value decodes to NaN.
    ///
    /// # Panics
    /// If the length of `importance` is not the number of rows.
    pub(crate) fn quantize_weighted(
        w: MatRef<'_>,
        format: BlockFormat,
        importance: Option<&[f32]>,
    ) -> Self {
        if let Some(importance) = importance {
            assert_eq!(importance.len(), w.rows, "a weight for each row");
        }
        Self::build((w.rows, w.cols), format, &|panel, first| {
            for c in 0..PANEL.min(w.cols - first) {
                for b in 0..panel.scales.len() {
                    let len = BLOCK.min(w.rows - b * BLOCK);
                    let mut values = [0.0_f32; BLOCK];
                    for (t, value) in values.iter_mut().enumerate().take(len) {
                        *value =
                            w.data[(b * BLOCK + t) * w.row_stride + (first + c) * w.col_stride];
                    }
                    let importance = importance.map(|rows| &rows[b * BLOCK..][..len]);
                    panel.set(b, c, &encode::block(&values[..len], format, importance));
                }
            }
        })
    }

    /// Creates a matrix whose panels `fill` fills, on all cores. It gets the panel's first column. The
    /// integers are zero before.
    ///
    /// Each task writes to its panel first, so that the operating system prepares the memory on all cores, too.
    fn build(
        (k, n): (usize, usize),
        format: BlockFormat,
        fill: &(impl Fn(&mut PanelMut<'_>, usize) + Sync),
    ) -> Self {
        let (blocks, panels, bits) = (k.div_ceil(BLOCK), n.div_ceil(PANEL), format.bits());
        let zero = match format.offset() {
            8 => 0x88,
            offset => offset as u8,
        };
        let total = panels * blocks;
        let mut lines = Line::zeroed(total * bits.lines());
        let mut scales = vec![[0; PANEL]; total];
        let has_minimum = format.has_minimum();
        let mut minimums = vec![[0; PANEL]; if has_minimum { total } else { 0 }];
        if blocks > 0 {
            let mut minimum_chunks = minimums.chunks_mut(blocks);
            let panel_data: Vec<_> = lines
                .chunks_mut(blocks * bits.lines())
                .zip(scales.chunks_mut(blocks))
                .map(|(lines, scales)| {
                    let minimums = minimum_chunks.next().unwrap_or_default();
                    std::sync::Mutex::new(PanelMut {
                        bits,
                        lines,
                        scales,
                        minimums,
                    })
                })
                .collect();
            par::run(par::threads(), panels, &|p| {
                // Each panel is locked once, by the task that fills it.
                if let Ok(mut panel) = panel_data[p].lock() {
                    panel.lines.fill(Line([zero; 64]));
                    fill(&mut panel, p * PANEL);
                }
            });
        }
        Self {
            k,
            n,
            format,
            lines: lines.into(),
            scales: scales.into(),
            minimums: minimums.into(),
        }
    }

    /// Returns the number of rows and columns.
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.k, self.n)
    }

    /// Returns the format of the blocks.
    pub(crate) fn format(&self) -> BlockFormat {
        self.format
    }

    /// Returns the size of integers, scales and minimums in bytes.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.lines) + size_of_val(&*self.scales) + size_of_val(&*self.minimums)
    }

    /// Returns the number of blocks along k.
    pub(crate) fn blocks(&self) -> usize {
        self.k.div_ceil(BLOCK)
    }

    /// Returns a block of a panel.
    #[inline(always)]
    pub(crate) fn block(&self, panel: usize, block: usize) -> Block<'_> {
        let index = panel * self.blocks() + block;
        let lines = self.format.bits().lines();
        Block {
            lines: &self.lines[index * lines..][..lines],
            scales: &self.scales[index],
            minimums: self.minimums.get(index),
        }
    }

    /// Returns the dequantized value at row `k` and column `n`.
    pub(crate) fn value(&self, k: usize, n: usize) -> f32 {
        let block = self.block(n / PANEL, k / BLOCK);
        let scale = self.format.to_f32(block.scales[n % PANEL]);
        let value = scale * self.integer(k, n) as f32;
        match block.minimums {
            Some(minimums) => value + self.format.to_f32(minimums[n % PANEL]),
            None => value,
        }
    }

    /// Returns the integer that the scale is multiplied by.
    fn integer(&self, k: usize, n: usize) -> i32 {
        assert!(k < self.k && n < self.n, "index out of bounds");
        let lines = self.block(n / PANEL, k / BLOCK).lines;
        let (group, byte) = (k % BLOCK / 4, n % PANEL * 4 + k % 4);
        let stored = match self.format.bits() {
            Bits::Int8 => lines[group].0[byte],
            Bits::Int4 => lines[group / 2].0[byte] >> (group % 2 * 4) & 15,
        };
        i32::from(stored) - self.format.offset()
    }

    /// Returns block `b` of column `n`.
    fn column_block(&self, n: usize, b: usize) -> ColumnBlock {
        let (block, c) = (self.block(n / PANEL, b), n % PANEL);
        let mut integers = [0; BLOCK];
        for (i, line) in block.lines.iter().enumerate() {
            let bytes = &line.0[4 * c..4 * c + 4];
            match self.format.bits() {
                Bits::Int8 => integers[4 * i..4 * i + 4].copy_from_slice(bytes),
                Bits::Int4 => {
                    for (t, byte) in bytes.iter().enumerate() {
                        integers[8 * i + t] = byte & 15;
                        integers[8 * i + 4 + t] = byte >> 4;
                    }
                }
            }
        }
        ColumnBlock {
            integers,
            scale: block.scales[c],
            minimum: block.minimums.map_or(0, |minimums| minimums[c]),
        }
    }
}

impl PanelMut<'_> {
    /// Stores block `b` of column `c` of the panel.
    fn set(&mut self, b: usize, c: usize, block: &ColumnBlock) {
        self.scales[b][c] = block.scale;
        if let Some(minimums) = self.minimums.get_mut(b) {
            minimums[c] = block.minimum;
        }
        let count = self.bits.lines();
        for (i, line) in self.lines[b * count..][..count].iter_mut().enumerate() {
            let bytes = &mut line.0[4 * c..4 * c + 4];
            match self.bits {
                Bits::Int8 => bytes.copy_from_slice(&block.integers[4 * i..4 * i + 4]),
                Bits::Int4 => {
                    for (t, byte) in bytes.iter_mut().enumerate() {
                        *byte = block.integers[8 * i + t] | block.integers[8 * i + 4 + t] << 4;
                    }
                }
            }
        }
    }
}
