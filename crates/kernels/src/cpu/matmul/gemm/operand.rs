//! The operand types of a matrix product.

use std::ops::Range;

use super::pack::{Block, PanelLayout, pack_bf16, pack_f32};
use crate::cpu::matmul::isa::Isa;
use crate::cpu::matmul::matrix::{Bf16, MatRef};
use crate::cpu::matmul::quant::QuantMatrix;

/// An operand of a matrix product.
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a> {
    /// f32 elements.
    F32(MatRef<'a, f32>),
    /// bf16 elements.
    Bf16(MatRef<'a, Bf16>),
    /// Quantized weights; supported only as the right operand.
    Quant(&'a QuantMatrix),
}

impl<'a> From<&'a QuantMatrix> for Operand<'a> {
    fn from(m: &'a QuantMatrix) -> Self {
        Self::Quant(m)
    }
}

impl<'a> From<MatRef<'a, f32>> for Operand<'a> {
    fn from(m: MatRef<'a, f32>) -> Self {
        Self::F32(m)
    }
}

impl<'a> From<MatRef<'a, Bf16>> for Operand<'a> {
    fn from(m: MatRef<'a, Bf16>) -> Self {
        Self::Bf16(m)
    }
}

impl Operand<'_> {
    /// Returns the number of rows and columns.
    pub(crate) fn shape(&self) -> (usize, usize) {
        match self {
            Self::F32(m) => (m.rows, m.cols),
            Self::Bf16(m) => (m.rows, m.cols),
            Self::Quant(m) => m.shape(),
        }
    }

    /// Packs a block of rows of the left operand.
    pub(crate) fn pack_rows(
        &self,
        isa: Isa,
        rows: &Range<usize>,
        k: &Range<usize>,
        panels: PanelLayout,
        bf16: bool,
        dst: &mut [u32],
    ) {
        match self {
            Self::F32(m) => {
                let block = Block::from_rows(m, rows.start, rows.len(), k.start, k.len());
                pack_f32(isa, &block, panels, bf16, dst);
            }
            Self::Bf16(m) => {
                let block = Block::from_rows(m, rows.start, rows.len(), k.start, k.len());
                pack_bf16(isa, &block, panels, dst);
            }
            Self::Quant(_) => unreachable!("`launch` rejects a quantized left operand"),
        }
    }

    /// Packs a block of columns of the right operand.
    pub(crate) fn pack_cols(
        &self,
        isa: Isa,
        cols: &Range<usize>,
        k: &Range<usize>,
        panels: PanelLayout,
        bf16: bool,
        dst: &mut [u32],
    ) {
        match self {
            Self::F32(m) => Self::F32(m.t()).pack_rows(isa, cols, k, panels, bf16, dst),
            Self::Bf16(m) => Self::Bf16(m.t()).pack_rows(isa, cols, k, panels, bf16, dst),
            Self::Quant(m) => m.pack_cols(isa, cols, k, panels, bf16, dst),
        }
    }
}
