//! Weights quantized to 8, 4 or, in GGUF's formats, 2 to 6 bits.
//!
//! Each weight is an integer times a scale shared by 16 or 32 weights along the inner
//! dimension (block-wise quantization as in Dettmers et al. 2022, arXiv 2208.07339, without
//! outliers), plus a minimum in some formats. The kernels for CPUs multiply the integers directly, those for GPUs
//! the integers of 8 and 4 bits whose blocks have one scale; elsewhere, weights are dequantized first.

#[cfg(feature = "flex")]
mod fast;

use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};
use bytes::Bytes;

#[cfg(feature = "gpu")]
use crate::Activation;
use crate::cpu::matmul::MatRef;
use crate::cpu::matmul::quant::{BLOCK, PANEL, QuantMatrix, StoredMatrix};
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
    /// Returns whether products on `device` read the integers of a matrix in `format` directly: on flex those of every
    /// format, on GPUs those of formats with [`separate_integers`](BlockFormat::separate_integers). Elsewhere every
    /// product dequantizes the weight first, so it is better to dequantize it once.
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use nextword_kernels::{BlockFormat, QuantizedMatrix};
    ///
    /// assert!(QuantizedMatrix::has_kernel(BlockFormat::Q4_K, &Device::flex()));
    /// ```
    pub fn has_kernel(format: BlockFormat, device: &Device) -> bool {
        #[cfg(feature = "gpu")]
        if crate::gpu::is_gpu(device) {
            return has_gpu_kernel(format);
        }
        #[cfg(not(feature = "gpu"))]
        let _ = format;
        crate::is_flex(device)
    }

    /// Quantizes `weight`, `[d_in, d_out]`: to [`BlockFormat::Q8_0`] or [`BlockFormat::Q4_1`], whose
    /// scales and minimums are found by a search; to a symmetric format if their range is too small.
    pub fn from_weight(weight: Tensor<2>, bits: Bits) -> Self {
        Self::from_weight_and_inputs(weight, bits, None)
    }

    /// Quantizes `weight`, `[d_in, d_out]`, as [`from_weight`](Self::from_weight). With 4 bits, the search minimizes the
    /// error of the product rather than of the weights if it knows the mean square of each of the `d_in` inputs: the
    /// squared error of a weight counts as often (as llama.cpp's importance matrix).
    ///
    /// # Panics
    /// If there are not `d_in` mean squares.
    ///
    /// ```
    /// use burn::tensor::{Device, Distribution, Tensor};
    /// use nextword_kernels::{Bits, QuantizedMatrix};
    ///
    /// let weight = Tensor::<2>::random([32, 16], Distribution::Normal(0.0, 1.0), &Device::flex());
    /// let values = weight.to_data().try_into_vec::<f32>().unwrap();
    /// let inputs: Vec<f32> = (0..32).map(|i| if i < 2 { 100.0 } else { 1.0 }).collect(); // Two matter most.
    /// let error = |inputs: Option<&[f32]>| -> f32 {
    ///     let matrix = QuantizedMatrix::from_weight_and_inputs(weight.clone(), Bits::Int4, inputs);
    ///     let pairs = matrix.dequantize().into_iter().zip(&values);
    ///     pairs.take(2 * 16).map(|(q, v)| (q - v).powi(2)).sum()
    /// };
    /// assert!(error(Some(&inputs)) < 0.5 * error(None));
    /// ```
    pub fn from_weight_and_inputs(
        weight: Tensor<2>,
        bits: Bits,
        mean_squares: Option<&[f32]>,
    ) -> Self {
        let [d_in, d_out] = weight.dims();
        let values = to_f32_vec(weight);
        Self::new(MatRef::row_major(&values, d_in, d_out), bits, mean_squares)
    }

    /// Quantizes the transpose of `table`, `[d_out, d_in]`, such as an embedding tied to the output
    /// layer, like [`from_weight`](Self::from_weight).
    pub fn from_table(table: Tensor<2>, bits: Bits) -> Self {
        let [d_out, d_in] = table.dims();
        let values = to_f32_vec(table);
        Self::new(MatRef::row_major(&values, d_out, d_in).t(), bits, None)
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
        has_gpu_kernel(self.format()) && crate::gpu::quantized::supports(x, self.shape())
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
        if !has_gpu_kernel(self.format()) {
            return self.to_tensor(&like.device()).transpose();
        }
        crate::gpu::quantized::table(&self.gpu_weight(), like)
    }

    fn new(weight: MatRef<'_>, bits: Bits, mean_squares: Option<&[f32]>) -> Self {
        Self::wrap(QuantMatrix::quantize(weight, bits, mean_squares))
    }

    /// Creates a matrix of `shape`, `[d_in, d_out]`, from the tensor data of a GGUF file: for each of the
    /// `d_out` columns, `d_in / format.block_len()` blocks. Returns `None` if GGUF does not have `format`, `d_in` is
    /// not a multiple of the block length, or the number of bytes does not match.
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
    /// or `d_in` is not a multiple of the block length.
    pub fn to_gguf(&self) -> Option<Vec<u8>> {
        self.0.to_gguf()
    }

    /// Creates a matrix from its bytes in a file: integers, `[d_out, stored_bytes]`; scales, `[d_out,
    /// blocks]` (bf16 or f16, little-endian); and minimums like the scales, empty if the format has none.
    /// 4-bit integers are unsigned (8 is added in formats without minimum), the first of two in the low
    /// half of a byte. Returns `None` if an integer of a symmetric format is -128 or, with 4 bits, -8,
    /// which are never written, and for formats without
    /// [`separate_integers`](BlockFormat::separate_integers).
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

    /// Returns the integers as in [`from_stored`](Self::from_stored); empty for formats without
    /// [`separate_integers`](BlockFormat::separate_integers).
    pub fn stored_integers(&self) -> Vec<u8> {
        self.0.stored_integers()
    }

    /// Returns the scales as in [`from_stored`](Self::from_stored); empty for formats without
    /// [`separate_integers`](BlockFormat::separate_integers).
    pub fn stored_scales(&self) -> Vec<u8> {
        self.0.stored_scales()
    }

    /// Returns the minimums as in [`from_stored`](Self::from_stored); empty for formats without
    /// [`separate_integers`](BlockFormat::separate_integers) or without minimums.
    pub fn stored_minimums(&self) -> Vec<u8> {
        self.0.stored_minimums()
    }

    /// Whether a matrix of `shape`, `[d_in, d_out]`, and this format can be in a file in the layout of memory
    /// ([`from_panels`](Self::from_panels)): multiples of 32 and 16, and `Q8_0`, `Q4_0` or `Q4_1`.
    pub fn has_panels([d_in, d_out]: [usize; 2], format: BlockFormat) -> bool {
        format.has_panels((d_in, d_out))
    }

    /// The shapes of lines, scales and minimums in the layout of memory: panels of 16 columns, the blocks of each
    /// along `d_in`, and in each block 4 or 8 lines of 64 bytes, or 16 scales or minimums.
    ///
    /// ```
    /// use nextword_kernels::{BlockFormat, QuantizedMatrix};
    ///
    /// let [lines, scales] = QuantizedMatrix::panel_shapes([64, 32], BlockFormat::Q4_0);
    /// assert_eq!((lines, scales), (vec![2, 2, 4, 64], vec![2, 2, 16]));
    /// ```
    pub fn panel_shapes([d_in, d_out]: [usize; 2], format: BlockFormat) -> [Vec<usize>; 2] {
        let (panels, blocks) = (d_out / PANEL, d_in / BLOCK);
        [
            vec![panels, blocks, format.lines(), 64],
            vec![panels, blocks, PANEL],
        ]
    }

    /// Creates a matrix of `shape`, `[d_in, d_out]`, from copies of lines, scales and minimums in the layout of memory
    /// ([`panel_shapes`](Self::panel_shapes)), little-endian; minimums are empty if the format has none. Returns `None`
    /// unless [`has_panels`](Self::has_panels) and the numbers of bytes are right.
    ///
    /// ```
    /// use burn::tensor::{Device, Distribution, Tensor};
    /// use nextword_kernels::{Bits, QuantizedMatrix};
    ///
    /// let weight = Tensor::random([64, 32], Distribution::Uniform(-1.0, 1.0), &Device::flex());
    /// let matrix = QuantizedMatrix::from_weight(weight, Bits::Int4);
    /// let data = [matrix.panel_lines(), matrix.panel_scales(), matrix.panel_minimums()];
    /// let copy = QuantizedMatrix::from_panels([64, 32], matrix.format(), data.each_ref().map(|v| &v[..])).unwrap();
    /// assert_eq!(copy.dequantize(), matrix.dequantize());
    /// let shared = QuantizedMatrix::from_shared_panels([64, 32], matrix.format(), data.map(Into::into)).unwrap();
    /// assert_eq!(shared.dequantize(), matrix.dequantize());
    /// ```
    pub fn from_panels(shape: [usize; 2], format: BlockFormat, data: [&[u8]; 3]) -> Option<Self> {
        let matrix = QuantMatrix::copy_panels(shape.into(), format, data)?;
        Some(Self::wrap(matrix))
    }

    /// As [`from_panels`](Self::from_panels), but without copying bytes that are aligned to 64: the matrix keeps
    /// `data`, such as parts of a file that is mapped into memory.
    pub fn from_shared_panels(
        shape: [usize; 2],
        format: BlockFormat,
        data: [Bytes; 3],
    ) -> Option<Self> {
        let matrix = QuantMatrix::share_panels(shape.into(), format, data)?;
        Some(Self::wrap(matrix))
    }

    /// Returns the lines as in [`from_panels`](Self::from_panels).
    pub fn panel_lines(&self) -> Vec<u8> {
        self.0.panel_lines()
    }

    /// Returns the scales as in [`from_panels`](Self::from_panels).
    pub fn panel_scales(&self) -> Vec<u8> {
        self.0.panel_scales()
    }

    /// Returns the minimums as in [`from_panels`](Self::from_panels).
    pub fn panel_minimums(&self) -> Vec<u8> {
        self.0.panel_minimums()
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

    /// Width of the integers in bits.
    pub fn bits(&self) -> u8 {
        self.format().bits()
    }

    /// Size of integers, scales, minimums and factors in bytes.
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

    /// Dequantized values column by column: those of [`dequantize`](Self::dequantize), transposed to `[d_out, d_in]`.
    ///
    /// ```
    /// use burn::tensor::{Device, Distribution, Tensor};
    /// use nextword_kernels::{Bits, QuantizedMatrix};
    ///
    /// let weight = Tensor::<2>::random([64, 3], Distribution::Uniform(-1.0, 1.0), &Device::flex());
    /// let matrix = QuantizedMatrix::from_weight(weight, Bits::Int8);
    /// assert_eq!(matrix.dequantize_columns()[64 + 5], matrix.dequantize()[5 * 3 + 1]);
    /// ```
    pub fn dequantize_columns(&self) -> Vec<f32> {
        let [d_in, d_out] = self.shape();
        let mut values = vec![0.0; d_in * d_out];
        let columns = values.chunks_exact_mut(d_in.max(1));
        for (n, column) in columns.enumerate() {
            self.0.dequantize_column(n, column);
        }
        values
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
    if crate::gpu::is_gpu(&device) && batch * seq * width > 0 && has_gpu_kernel(table.format()) {
        return crate::gpu::quantized::embed(&table.gpu_weight(), ids);
    }
    let ids = ids.into_data().convert::<i32>().try_into_vec::<i32>();
    let ids = ids.unwrap_or_else(|e| unreachable!("just converted: {e:?}"));
    let mut values = vec![0.0; ids.len() * width];
    for (id, row) in ids.into_iter().zip(values.chunks_exact_mut(width.max(1))) {
        table.0.dequantize_column(id.cast_unsigned() as usize, row);
    }
    Tensor::from_data(TensorData::new(values, [batch, seq, width]), &device)
}

/// Whether the kernels for GPUs read blocks of this format: those of 8 and 4 bits with one scale.
#[cfg(feature = "gpu")]
fn has_gpu_kernel(format: BlockFormat) -> bool {
    format.separate_integers().is_some()
}

fn to_f32_vec(tensor: Tensor<2>) -> Vec<f32> {
    let values = tensor.into_data().convert::<f32>().try_into_vec();
    values.unwrap_or_else(|e| unreachable!("just converted: {e:?}"))
}
