//! Weights of 8 or 4 bits.
//!
//! Each weight is an integer times a scale that it shares with 31 neighbours along the inner
//! dimension (the scheme of Dettmers et al. 2022, arXiv 2208.07339, by blocks and without outliers).
//! On the CPU the integers are multiplied as they are; elsewhere they are widened first.

use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::cpu::matmul::par::Threads;
pub use crate::cpu::matmul::quant::Bits;
use crate::cpu::matmul::quant::{BLOCK, QuantMatrix};
use crate::cpu::matmul::{GemmOptions, MatMut, MatRef, gemm};

/// A weight of `d_in` by `d_out` integers with their scales. A handle: copies are cheap.
#[derive(Clone, Debug)]
pub struct QuantizedMatrix(Arc<QuantMatrix>);

impl QuantizedMatrix {
    /// Whether products on `device` read the integers as they are. Elsewhere each product widens them
    /// first: better do it once.
    pub fn runs_on(device: &Device) -> bool {
        #[cfg(feature = "flex")]
        return *device == Device::flex();
        #[cfg(not(feature = "flex"))]
        {
            let _ = device;
            false
        }
    }

    /// Rounds `weight`, `[d_in, d_out]`.
    pub fn of_weight(weight: Tensor<2>, bits: Bits) -> Self {
        let [d_in, d_out] = weight.dims();
        let values = floats(weight);
        Self::new(MatRef::row_major(&values, d_in, d_out), bits)
    }

    /// Rounds the transpose of `table`, `[d_out, d_in]`, such as an embedding that serves as output
    /// layer.
    pub fn of_table(table: Tensor<2>, bits: Bits) -> Self {
        let [d_out, d_in] = table.dims();
        let values = floats(table);
        Self::new(MatRef::row_major(&values, d_out, d_in).t(), bits)
    }

    fn new(weight: MatRef<'_>, bits: Bits) -> Self {
        Self(Arc::new(QuantMatrix::quantize(weight, bits, Threads::Pool)))
    }

    /// The matrix of these integers, `[d_out, d_in]`, and scales, `[d_out, blocks]` (bits of bf16).
    ///
    /// # Panics
    /// If there are not as many of each as that.
    pub fn from_parts(shape: [usize; 2], bits: Bits, integers: &[i8], scales: &[u16]) -> Self {
        let shape = (shape[0], shape[1]);
        Self(Arc::new(QuantMatrix::from_parts(
            shape, bits, integers, scales,
        )))
    }

    /// The integers, `[d_out, d_in]`, and their scales, `[d_out, blocks]` (bits of bf16).
    pub fn parts(&self) -> (Vec<i8>, Vec<u16>) {
        self.0.parts()
    }

    /// `[d_in, d_out]`.
    pub fn shape(&self) -> [usize; 2] {
        let (d_in, d_out) = self.0.shape();
        [d_in, d_out]
    }

    /// Scales of each column.
    pub fn blocks(d_in: usize) -> usize {
        d_in.div_ceil(BLOCK)
    }

    /// The width of the integers.
    pub fn bits(&self) -> Bits {
        self.0.bits()
    }

    /// Bytes of integers and scales.
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// `y = x W + bias` for many rows: the integers are widened on the way.
    #[cfg(feature = "flex")]
    pub(crate) fn multiply(&self, x: &[f32], rows: usize, bias: Option<&[f32]>, y: &mut [f32]) {
        let [d_in, d_out] = self.shape();
        let options = GemmOptions {
            bias,
            ..GemmOptions::default()
        };
        let x = MatRef::row_major(x, rows, d_in);
        gemm(
            x,
            &*self.0,
            &mut MatMut::row_major(y, rows, d_out),
            &options,
        );
    }

    /// The values that it stands for, `[d_in, d_out]` row by row.
    pub fn values(&self) -> Vec<f32> {
        let [d_in, d_out] = self.shape();
        (0..d_in)
            .flat_map(|i| (0..d_out).map(move |j| self.0.value(i, j)))
            .collect()
    }
}

/// `x W + bias` for a quantized `W`: `[batch, seq, d_in]` to `[batch, seq, d_out]`. For inference:
/// nothing flows back.
pub fn linear_quantized(
    x: Tensor<3>,
    weight: &QuantizedMatrix,
    bias: Option<Tensor<1>>,
) -> Tensor<3> {
    #[cfg(feature = "flex")]
    if crate::fused::is_fast(&x) && !x.device().is_autodiff() {
        return fast::linear(x, weight, bias);
    }
    let data = TensorData::new(weight.values(), weight.shape());
    let weight = Tensor::from_data(data, &x.device());
    crate::reference::linear(x, weight, bias)
}

/// The columns `ids` of a quantized table: `[batch, seq]` to `[batch, seq, d_in]`.
pub fn embed_quantized(table: &QuantizedMatrix, ids: Tensor<2, Int>) -> Tensor<3> {
    let ([batch, seq], device) = (ids.dims(), ids.device());
    let width = table.shape()[0];
    let ids = ids.into_data().convert::<i32>().try_into_vec::<i32>();
    let ids = ids.unwrap_or_else(|e| unreachable!("just converted: {e:?}"));
    let column = |id: i32| (0..width).map(move |i| table.0.value(i, id.cast_unsigned() as usize));
    let values: Vec<f32> = ids.into_iter().flat_map(column).collect();
    Tensor::from_data(TensorData::new(values, [batch, seq, width]), &device)
}

fn floats(tensor: Tensor<2>) -> Vec<f32> {
    let values = tensor.into_data().convert::<f32>().try_into_vec();
    values.unwrap_or_else(|e| unreachable!("just converted: {e:?}"))
}

#[cfg(feature = "flex")]
mod fast {
    use burn::backend::Flex;
    use burn::tensor::Tensor;

    use super::QuantizedMatrix;
    use crate::cpu::matmul::quant::matvec_quant;
    use crate::cpu::matmul::{MatMut, MatRef, MatvecOptions};
    use crate::fused::{self, Buffer};
    use crate::linear::fast::FEW;

    pub(super) fn linear(
        x: Tensor<3>,
        weight: &QuantizedMatrix,
        bias: Option<Tensor<1>>,
    ) -> Tensor<3> {
        let ([batch, seq, d_in], [_, d_out]) = (x.dims(), weight.shape());
        let rows = batch * seq;
        let (x, bias) = (fused::plain(x), bias.map(fused::plain));
        let mut y = Buffer::new(rows * d_out);
        let (values, bias) = (fused::values(&x), bias.as_ref().map(fused::values));
        if seq <= FEW {
            let x = MatRef::row_major(values, rows, d_in);
            let mut out = MatMut::row_major(&mut y, rows, d_out);
            let options = MatvecOptions {
                bias,
                ..MatvecOptions::default()
            };
            matvec_quant(x, &weight.0, &mut out, &options);
        } else {
            weight.multiply(values, rows, bias, &mut y);
        }
        Tensor::from_primitive::<Flex>(fused::tensor(y, [batch, seq, d_out]))
    }
}
