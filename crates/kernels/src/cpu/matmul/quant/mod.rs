//! Weight matrices quantized to 2 to 8 bits in blocks of 32 values along k.
//!
//! Each block of a column has its own scale and, in some formats, a minimum ([`BlockFormat`]). The layout
//! follows the order in which decoding streams it: panels of sixteen columns, within a panel the
//! blocks along k, and within a block groups of four values along k for all sixteen columns. One
//! 64-byte line of 8-bit integers thus feeds one int8 dot product for sixteen columns ([`packing`] has the
//! other widths). The scales form a second stream, the minimums a third, and the factors a fourth: of GGUF's
//! blocks of 256 values, scale and minimum are those of eight blocks here, and each sub-block multiplies them by
//! small integers of its own.

mod activation;
mod backward;
mod encode;
mod format;
mod gguf;
mod gguf_blocks;
mod matvec;
mod packing;
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
/// Most factors of a block of a column.
const MAX_FACTORS: usize = 4;

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
    /// `BlockFormat::factor_rows` rows per block.
    pub(crate) factors: Vec<[i8; PANEL]>,
}

/// One block of a panel.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    pub(crate) format: BlockFormat,
    pub(crate) lines: &'a [Line],
    pub(crate) scales: &'a [u16; PANEL],
    pub(crate) minimums: Option<&'a [u16; PANEL]>,
    pub(crate) factors: &'a [[i8; PANEL]],
}

/// The blocks of one panel, to be filled.
struct PanelMut<'a> {
    format: BlockFormat,
    lines: &'a mut [Line],
    scales: &'a mut [[u16; PANEL]],
    minimums: &'a mut [[u16; PANEL]],
    factors: &'a mut [[i8; PANEL]],
}

/// One block of a column: unsigned integers (or indices into the table), scale, minimum and factors as they are in
/// memory.
#[derive(Clone, Copy)]
struct ColumnBlock {
    integers: [u8; BLOCK],
    scale: u16,
    minimum: u16,
    factors: [i8; MAX_FACTORS],
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
                for b in 0..w.rows.div_ceil(BLOCK) {
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

    /// Creates a matrix whose panels `fill` fills, on all cores. It gets the panel's first column.
    /// Before, all integers stand for 0 (in formats with a minimum, they are 0), which they remain where the last block is
    /// beyond `k`.
    ///
    /// Each task writes to its panel first, so that the operating system prepares the memory on all cores, too.
    fn build(
        (k, n): (usize, usize),
        format: BlockFormat,
        fill: &(impl Fn(&mut PanelMut<'_>, usize) + Sync),
    ) -> Self {
        let (blocks, panels) = (k.div_ceil(BLOCK), n.div_ceil(PANEL));
        let panel_scales = blocks.div_ceil(format.blocks_per_scale());
        let (panel_lines, panel_factors) = (blocks * format.lines(), blocks * format.factor_rows());
        let zero = match format.offset() {
            8 => 0x88,
            offset => offset as u8,
        };
        let mut lines = Line::zeroed(panels * panel_lines);
        let mut scales = vec![[0; PANEL]; panels * panel_scales];
        let minimum_count = if format.has_minimum() {
            scales.len()
        } else {
            0
        };
        let mut minimums = vec![[0; PANEL]; minimum_count];
        let mut factors = vec![[0; PANEL]; panels * panel_factors];
        if blocks > 0 {
            let mut minimum_chunks = minimums.chunks_mut(panel_scales);
            let mut factor_chunks = factors.chunks_mut(panel_factors.max(1));
            let panel_data: Vec<_> = lines
                .chunks_mut(panel_lines)
                .zip(scales.chunks_mut(panel_scales))
                .map(|(lines, scales)| {
                    let minimums = minimum_chunks.next().unwrap_or_default();
                    let factors = factor_chunks.next().unwrap_or_default();
                    std::sync::Mutex::new(PanelMut {
                        format,
                        lines,
                        scales,
                        minimums,
                        factors,
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
            factors,
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

    /// Returns the size of integers, scales, minimums and factors in bytes.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.lines)
            + size_of_val(&*self.scales)
            + size_of_val(&*self.minimums)
            + size_of_val(&*self.factors)
    }

    /// Returns the number of blocks along k.
    pub(crate) fn blocks(&self) -> usize {
        self.k.div_ceil(BLOCK)
    }

    /// Returns a block of a panel.
    #[inline(always)]
    pub(crate) fn block(&self, panel: usize, block: usize) -> Block<'_> {
        let (blocks, format) = (self.blocks(), self.format);
        let index = panel * blocks + block;
        // A power of two: divisions would take longer than the products of a block.
        let (per_scale, shift) = match format.blocks_per_scale() {
            1 => (1, 0),
            _ => (8, 3),
        };
        let scale = panel * ((blocks + per_scale - 1) >> shift) + (block >> shift);
        let (lines, factors) = (format.lines(), format.factor_rows());
        Block {
            format,
            lines: &self.lines[index * lines..][..lines],
            scales: &self.scales[scale],
            minimums: self.minimums.get(scale),
            factors: &self.factors[index * factors..][..factors],
        }
    }

    /// Returns the dequantized value at row `k` and column `n`.
    pub(crate) fn value(&self, k: usize, n: usize) -> f32 {
        let (block, c) = (self.block(n / PANEL, k / BLOCK), n % PANEL);
        let sub_block = k % BLOCK * self.format.sub_blocks() / BLOCK;
        let value = block.scale(sub_block, c) * self.integer(k, n) as f32;
        match block.minimum(sub_block, c) {
            Some(minimum) => value + minimum,
            None => value,
        }
    }

    /// Returns the integer that the scale is multiplied by.
    fn integer(&self, k: usize, n: usize) -> i32 {
        assert!(k < self.k && n < self.n, "index out of bounds");
        let lines = self.block(n / PANEL, k / BLOCK).lines;
        let (group, byte) = (k % BLOCK / 4, n % PANEL * 4 + k % 4);
        let stored = packing::integer_at(self.format.lines(), group, |line| lines[line].0[byte]);
        self.format.integer(stored)
    }

    /// Returns block `b` of column `n`.
    fn column_block(&self, n: usize, b: usize) -> ColumnBlock {
        let (block, c) = (self.block(n / PANEL, b), n % PANEL);
        let mut words = [[0; 4]; GROUPS];
        for (word, line) in words.iter_mut().zip(block.lines) {
            word.copy_from_slice(&line.0[4 * c..4 * c + 4]);
        }
        let mut factors = [0; MAX_FACTORS];
        for (factor, row) in factors.iter_mut().zip(block.factors) {
            *factor = row[c];
        }
        ColumnBlock {
            integers: packing::unpack_column(self.format.lines(), &words),
            scale: block.scales[c],
            minimum: block.minimums.map_or(0, |minimums| minimums[c]),
            factors,
        }
    }

    /// Writes the values of column `n` to `column`, which has `k` elements.
    pub(crate) fn dequantize_column(&self, n: usize, column: &mut [f32]) {
        let sub_blocks = self.format.sub_blocks();
        for (b, values) in column.chunks_mut(BLOCK).enumerate() {
            let integers = self.column_block(n, b).integers;
            let (block, c) = (self.block(n / PANEL, b), n % PANEL);
            let parts = values.chunks_mut(BLOCK / sub_blocks);
            let parts = parts.zip(integers.chunks(BLOCK / sub_blocks));
            for (sub_block, (values, integers)) in parts.enumerate() {
                let scale = block.scale(sub_block, c);
                for (value, integer) in values.iter_mut().zip(integers) {
                    *value = scale * self.format.integer(*integer) as f32;
                }
                if let Some(minimum) = block.minimum(sub_block, c) {
                    for value in values {
                        *value += minimum;
                    }
                }
            }
        }
    }
}

impl BlockFormat {
    /// Returns the integer that the scale is multiplied by, from an unsigned integer in memory.
    #[inline(always)]
    fn integer(self, stored: u8) -> i32 {
        let stored = if self.has_table() {
            format::NONLINEAR[usize::from(stored & 15)]
        } else {
            stored
        };
        i32::from(stored) - self.offset()
    }
}

impl Block<'_> {
    /// Returns the scale of a sub-block of column `c` of the panel.
    fn scale(&self, sub_block: usize, c: usize) -> f32 {
        let scale = self.format.to_f32(self.scales[c]);
        match self.factors.get(sub_block) {
            Some(factors) => scale * f32::from(factors[c]),
            None => scale,
        }
    }

    /// Returns the minimum of a sub-block of column `c` of the panel, if the format has minimums.
    fn minimum(&self, sub_block: usize, c: usize) -> Option<f32> {
        let minimum = self.format.to_f32(self.minimums?[c]);
        let factors = self.factors.get(self.format.sub_blocks() + sub_block);
        Some(match factors {
            Some(factors) => minimum * f32::from(factors[c]),
            None => minimum,
        })
    }

    /// Returns the scales of a sub-block.
    #[inline(always)]
    fn scales(&self, sub_block: usize) -> [f32; PANEL] {
        self.multiplied(self.scales, sub_block)
    }

    /// Returns the minimums of a sub-block, if the format has them.
    #[inline(always)]
    fn minimums(&self, sub_block: usize) -> Option<[f32; PANEL]> {
        let row = self.format.sub_blocks() + sub_block;
        self.minimums.map(|minimums| self.multiplied(minimums, row))
    }

    /// Returns scales or minimums times row `row` of the factors.
    #[inline(always)]
    fn multiplied(&self, halves: &[u16; PANEL], row: usize) -> [f32; PANEL] {
        let mut values = halves.map(|bits| self.format.to_f32(bits));
        if let Some(factors) = self.factors.get(row) {
            for (value, factor) in values.iter_mut().zip(factors) {
                *value *= f32::from(*factor);
            }
        }
        values
    }
}

impl PanelMut<'_> {
    /// Stores block `b` of column `c` of the panel.
    fn set(&mut self, b: usize, c: usize, block: &ColumnBlock) {
        let at = b / self.format.blocks_per_scale();
        self.scales[at][c] = block.scale;
        if let Some(minimums) = self.minimums.get_mut(at) {
            minimums[c] = block.minimum;
        }
        let rows = self.format.factor_rows();
        for (row, factor) in self.factors[b * rows..][..rows]
            .iter_mut()
            .zip(block.factors)
        {
            row[c] = factor;
        }
        let (bits, count) = (self.format.bits(), self.format.lines());
        let words = packing::pack(usize::from(bits), &block.integers);
        for (line, word) in self.lines[b * count..][..count].iter_mut().zip(words) {
            line.0[4 * c..4 * c + 4].copy_from_slice(&word);
        }
    }
}
