//! Weights quantized to 8 or 4 bits.
//!
//! Each weight is an integer times a scale shared by a block of 32 weights along the inner
//! dimension (block-wise quantization as in Dettmers et al. 2022, arXiv 2208.07339, without
//! outliers), plus a minimum in one format. The kernels for CPUs and GPUs multiply the integers directly;
//! other devices dequantize first.

use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};

#[cfg(feature = "gpu")]
use crate::Activation;
use crate::cpu::matmul::MatRef;
use crate::cpu::matmul::quant::{BLOCK, QuantMatrix, StoredMatrix};
pub use crate::cpu::matmul::quant::{Bits, BlockFormat};
#[cfg(feature = "flex")]
use crate::cpu::matmul::quant::{matmul_quant, matmul_quant_transposed};
#[cfg(feature = "flex")]
use crate::cpu::matmul::{MatMut, MatvecOptions};

/// A `d_in` by `d_out` matrix of integers in blocks ([`BlockFormat`]). Cloning is cheap: clones share the
/// data.
///
/// # Example
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use nextword_kernels::{Bits, QuantizedMatrix, linear, linear_quantized};
///
/// let device = Device::flex();
/// let weight = Tensor::<2>::random([64, 16], Distribution::Uniform(-1.0, 1.0), &device);
/// let small = QuantizedMatrix::from_weight(weight.clone(), Bits::Int8);
/// assert_eq!(small.shape(), [64, 16]);
/// assert!(small.bytes() < 4 * 64 * 16 / 3); // a byte per weight, and a scale per block of 32
///
/// let x = Tensor::<3>::ones([1, 1, 64], &device);
/// let exact = linear(x.clone(), weight, None);
/// assert!(linear_quantized(x, &small, None).all_close(exact, None, Some(0.2)));
/// ```
#[derive(Clone, Debug)]
pub struct QuantizedMatrix(
    Arc<QuantMatrix>,
    /// Copies on GPUs.
    #[cfg(feature = "gpu")]
    Arc<crate::gpu::quantized::DeviceCopies>,
);

impl QuantizedMatrix {
    /// Returns whether products on `device` read the integers directly. Elsewhere every product
    /// dequantizes the weight first, so it is better to dequantize it once.
    pub fn has_native_kernel(device: &Device) -> bool {
        #[cfg(feature = "gpu")]
        if crate::gpu::is_gpu(device) {
            return true;
        }
        crate::is_flex(device)
    }

    /// Quantizes `weight`, `[d_in, d_out]`: to [`BlockFormat::Q8_0`] or [`BlockFormat::Q4_1`], whose
    /// scales and minimums are found by a search; to a symmetric format if their range is too small.
    pub fn from_weight(weight: Tensor<2>, bits: Bits) -> Self {
        let [d_in, d_out] = weight.dims();
        let values = to_f32_vec(weight);
        Self::new(MatRef::row_major(&values, d_in, d_out), bits)
    }

    /// Quantizes the transpose of `table`, `[d_out, d_in]`, such as an embedding tied to the output
    /// layer, like [`from_weight`](Self::from_weight).
    pub fn from_table(table: Tensor<2>, bits: Bits) -> Self {
        let [d_out, d_in] = table.dims();
        let values = to_f32_vec(table);
        Self::new(MatRef::row_major(&values, d_out, d_in).t(), bits)
    }

    fn wrap(matrix: QuantMatrix) -> Self {
        Self(
            Arc::new(matrix),
            #[cfg(feature = "gpu")]
            Arc::default(),
        )
    }

    #[cfg(feature = "gpu")]
    fn gpu_weight(&self) -> crate::gpu::quantized::QuantizedWeight<'_> {
        crate::gpu::quantized::QuantizedWeight {
            matrix: &self.0,
            copies: &self.1,
        }
    }

    /// Whether the kernels for GPUs support products with `x`.
    #[cfg(feature = "gpu")]
    pub(crate) fn has_gpu_kernel(&self, x: &Tensor<3>) -> bool {
        crate::gpu::quantized::supports(x, self.shape())
    }

    /// `activation(x W + bias + residual)` on a GPU.
    #[cfg(feature = "gpu")]
    pub(crate) fn linear_on_gpu(
        &self,
        x: Tensor<3>,
        bias: Option<Tensor<1>>,
        residual: Option<Tensor<3>>,
        activation: Option<Activation>,
    ) -> Tensor<3> {
        crate::gpu::quantized::linear(x, &self.gpu_weight(), bias, residual, activation)
    }

    /// The dequantized values on the GPU of `like`, `[d_out, d_in]`.
    #[cfg(feature = "gpu")]
    pub(crate) fn table_on_gpu(&self, like: &Tensor<3>) -> Tensor<2> {
        crate::gpu::quantized::table(&self.gpu_weight(), like)
    }

    fn new(weight: MatRef<'_>, bits: Bits) -> Self {
        Self::wrap(QuantMatrix::quantize(weight, bits))
    }

    /// Creates a matrix of `shape`, `[d_in, d_out]`, from the tensor data of a GGUF file: for each of the
    /// `d_out` columns, `d_in / 32` blocks. Returns `None` if GGUF does not have `format`, `d_in` is not
    /// a multiple of 32, or the number of bytes does not match.
    ///
    /// ```
    /// use nextword_kernels::{BlockFormat, QuantizedMatrix};
    ///
    /// let mut block = vec![0x00, 0x3c]; // The scale: 1 in f16.
    /// block.extend([0x97; 16]); // 7 and 9 mean -1 and 1.
    /// let matrix = QuantizedMatrix::from_gguf([32, 1], BlockFormat::Q4_0, &block).unwrap();
    /// assert_eq!(matrix.dequantize(), [[-1.0; 16], [1.0; 16]].concat());
    /// assert_eq!(matrix.to_gguf(), Some(block));
    /// ```
    pub fn from_gguf(shape: [usize; 2], format: BlockFormat, bytes: &[u8]) -> Option<Self> {
        let matrix = QuantMatrix::from_gguf((shape[0], shape[1]), format, bytes)?;
        Some(Self::wrap(matrix))
    }

    /// Returns the data as in [`from_gguf`](Self::from_gguf), or `None` if GGUF does not have the format
    /// or `d_in` is not a multiple of 32.
    pub fn to_gguf(&self) -> Option<Vec<u8>> {
        self.0.to_gguf()
    }

    /// Creates a matrix from its bytes in a file: integers, `[d_out, stored_bytes]`; scales, `[d_out,
    /// blocks]` (bf16 or f16, little-endian); and minimums like the scales, empty if the format has none.
    /// 4-bit integers are unsigned (8 is added in formats without minimum), the first of two in the low
    /// half of a byte. Returns `None` if an integer of a symmetric format is -128 or, with 4 bits, -8,
    /// which are never written.
    ///
    /// # Panics
    /// If the number of integers, scales or minimums does not match `shape`, `[d_in, d_out]`.
    pub fn from_stored(
        shape: [usize; 2],
        format: BlockFormat,
        integers: &[u8],
        scales: &[u8],
        minimums: &[u8],
    ) -> Option<Self> {
        let stored = StoredMatrix {
            integers,
            scales,
            minimums,
        };
        let matrix = QuantMatrix::from_stored((shape[0], shape[1]), format, &stored)?;
        Some(Self::wrap(matrix))
    }

    /// Returns the integers as in [`from_stored`](Self::from_stored).
    pub fn stored_integers(&self) -> Vec<u8> {
        self.0.stored_integers()
    }

    /// Returns the scales as in [`from_stored`](Self::from_stored).
    pub fn stored_scales(&self) -> Vec<u8> {
        self.0.stored_scales()
    }

    /// Returns the minimums as in [`from_stored`](Self::from_stored).
    pub fn stored_minimums(&self) -> Vec<u8> {
        self.0.stored_minimums()
    }

    /// Number of bytes of the `d_in` integers of an output column in a file.
    pub fn stored_bytes(bits: Bits, d_in: usize) -> usize {
        bits.stored_bytes(d_in)
    }

    /// Shape, `[d_in, d_out]`.
    pub fn shape(&self) -> [usize; 2] {
        let (d_in, d_out) = self.0.shape();
        [d_in, d_out]
    }

    /// Number of blocks (and scales) per output column.
    pub fn blocks(d_in: usize) -> usize {
        d_in.div_ceil(BLOCK)
    }

    /// Format of the blocks.
    pub fn format(&self) -> BlockFormat {
        self.0.format()
    }

    /// Width of the integers.
    pub fn bits(&self) -> Bits {
        self.format().bits()
    }

    /// Size of integers, scales and minimums in bytes.
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// `y = x W + bias` for any number of rows. The bits of a row do not depend on the others.
    #[cfg(feature = "flex")]
    pub(crate) fn matmul(&self, x: &[f32], rows: usize, bias: Option<&[f32]>, y: &mut [f32]) {
        let [d_in, d_out] = self.shape();
        let x = MatRef::row_major(x, rows, d_in);
        let mut y = MatMut::row_major(y, rows, d_out);
        let options = MatvecOptions {
            bias,
            ..MatvecOptions::default()
        };
        matmul_quant(x, &self.0, &mut y, &options);
    }

    /// `dx = dy W^T` for `rows` rows, with the dequantized weights, plus a product of two matrices, if they are given.
    /// The bits of a row do not depend on the others.
    #[cfg(feature = "flex")]
    pub(crate) fn input_gradient(
        &self,
        dy: &[f32],
        rows: usize,
        update: Option<[MatRef<'_>; 2]>,
        dx: &mut [f32],
    ) {
        let [d_in, d_out] = self.shape();
        let dy = MatRef::row_major(dy, rows, d_out);
        let mut dx = MatMut::row_major(dx, rows, d_in);
        matmul_quant_transposed(dy, &self.0, update, &mut dx);
    }

    /// The dequantized weight, `[d_in, d_out]`, off the autodiff graph.
    pub(crate) fn to_tensor(&self, device: &Device) -> Tensor<2> {
        let data = TensorData::new(self.dequantize(), self.shape());
        Tensor::from_data(data, &device.clone().without_autodiff())
    }

    /// Dequantized values, `[d_in, d_out]` in row-major order.
    pub fn dequantize(&self) -> Vec<f32> {
        let [d_in, d_out] = self.shape();
        (0..d_in)
            .flat_map(|i| (0..d_out).map(move |j| self.0.value(i, j)))
            .collect()
    }
}

/// `x W + bias` for a quantized `W`: `[batch, seq, d_in]` to `[batch, seq, d_out]`. The weight has no gradient;
/// that of `x` is `dy W^T` with the same rounded weights.
///
/// # Panics
/// If the shapes do not match.
pub fn linear_quantized(
    x: Tensor<3>,
    weight: &QuantizedMatrix,
    bias: Option<Tensor<1>>,
) -> Tensor<3> {
    crate::linear::check_shapes(&x, weight.shape(), bias.as_ref());
    #[cfg(feature = "flex")]
    if crate::fused::is_flex_f32(&x) {
        return fast::linear(x, weight, bias);
    }
    #[cfg(feature = "gpu")]
    if weight.has_gpu_kernel(&x) {
        return weight.linear_on_gpu(x, bias, None, None);
    }
    let weight = weight.to_tensor(&x.device());
    crate::reference::linear(x, weight, bias)
}

/// Gathers the columns `ids` of a quantized table: `[batch, seq]` to `[batch, seq, d_in]`.
pub fn embed_quantized(table: &QuantizedMatrix, ids: Tensor<2, Int>) -> Tensor<3> {
    let ([batch, seq], device) = (ids.dims(), ids.device());
    let width = table.shape()[0];
    #[cfg(feature = "gpu")]
    if crate::gpu::is_gpu(&device) && batch * seq * width > 0 {
        return crate::gpu::quantized::embed(&table.gpu_weight(), ids);
    }
    let ids = ids.into_data().convert::<i32>().try_into_vec::<i32>();
    let ids = ids.unwrap_or_else(|e| unreachable!("just converted: {e:?}"));
    let column = |id: i32| (0..width).map(move |i| table.0.value(i, id.cast_unsigned() as usize));
    let values: Vec<f32> = ids.into_iter().flat_map(column).collect();
    Tensor::from_data(TensorData::new(values, [batch, seq, width]), &device)
}

fn to_f32_vec(tensor: Tensor<2>) -> Vec<f32> {
    let values = tensor.into_data().convert::<f32>().try_into_vec();
    values.unwrap_or_else(|e| unreachable!("just converted: {e:?}"))
}

#[cfg(feature = "flex")]
mod fast {
    use burn::tensor::Tensor;

    use super::QuantizedMatrix;
    use crate::cpu::reduce::add_column_sums;
    use crate::fused::{BackwardContext, Buffer, Op, apply};

    #[derive(Clone, Debug)]
    struct QuantizedLinear {
        rows: usize,
        weight: QuantizedMatrix,
    }

    pub(super) fn linear(
        x: Tensor<3>,
        weight: &QuantizedMatrix,
        bias: Option<Tensor<1>>,
    ) -> Tensor<3> {
        let ([batch, seq, _], [_, d_out]) = (x.dims(), weight.shape());
        let op = QuantizedLinear {
            rows: batch * seq,
            weight: weight.clone(),
        };
        let shape = [batch, seq, d_out];
        match bias {
            Some(bias) => apply(op, [x.into(), bias.into()], shape),
            None => apply(op, [x.into()], shape),
        }
    }

    impl QuantizedLinear {
        fn output(&self, x: &[f32], bias: Option<&[f32]>) -> Buffer {
            let [_, d_out] = self.weight.shape();
            let mut y = Buffer::new(self.rows * d_out);
            self.weight.matmul(x, self.rows, bias, &mut y);
            y
        }

        fn input_gradient(&self, dy: &[f32]) -> Buffer {
            let [d_in, _] = self.weight.shape();
            let mut dx = Buffer::new(self.rows * d_in);
            self.weight.input_gradient(dy, self.rows, None, &mut dx);
            dx
        }
    }

    impl Op<1> for QuantizedLinear {
        type Saved = ();
        const SAVES_INPUT: [bool; 1] = [false];

        fn forward(&self, [x]: [&[f32]; 1], _needs_grad: [bool; 1]) -> (Buffer, ()) {
            (self.output(x, None), ())
        }

        fn backward(&self, ctx: BackwardContext<'_, (), 1>) -> [Option<Buffer>; 1] {
            ctx.needs_grad
                .map(|needs_x| needs_x.then(|| self.input_gradient(ctx.grad)))
        }
    }

    impl Op<2> for QuantizedLinear {
        type Saved = ();
        const SAVES_INPUT: [bool; 2] = [false; 2];

        fn forward(&self, [x, bias]: [&[f32]; 2], _needs_grad: [bool; 2]) -> (Buffer, ()) {
            (self.output(x, Some(bias)), ())
        }

        fn backward(&self, ctx: BackwardContext<'_, (), 2>) -> [Option<Buffer>; 2] {
            let [needs_x, needs_b] = ctx.needs_grad;
            let db = needs_b.then(|| {
                let mut db = Buffer::zeros(self.weight.shape()[1]);
                add_column_sums(ctx.grad, &mut db);
                db
            });
            [needs_x.then(|| self.input_gradient(ctx.grad)), db]
        }
    }
}
