//! The right operand of a matrix product.

use crate::cpu::matmul::matrix::MatRef;
use crate::cpu::matmul::quant::QuantMatrix;

/// The right operand of a matrix product.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operand<'a> {
    /// f32 elements.
    F32(MatRef<'a>),
    /// Quantized weights.
    Quant(&'a QuantMatrix),
}

impl<'a> From<&'a QuantMatrix> for Operand<'a> {
    fn from(m: &'a QuantMatrix) -> Self {
        Self::Quant(m)
    }
}

impl<'a> From<MatRef<'a>> for Operand<'a> {
    fn from(m: MatRef<'a>) -> Self {
        Self::F32(m)
    }
}

impl Operand<'_> {
    /// Returns the number of rows and columns.
    pub(crate) fn shape(&self) -> (usize, usize) {
        match self {
            Self::F32(m) => (m.rows, m.cols),
            Self::Quant(m) => m.shape(),
        }
    }
}
