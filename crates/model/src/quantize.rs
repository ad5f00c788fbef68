//! Models with quantized matrices: quantizing, writing and reading them.
//!
//! In a file, a matrix `NAME` consists of two or three tensors: the integers, `NAME.int8` (I8, `[d_out,
//! d_in]`) or `NAME.int4` (U8, `[d_out, ceil(d_in / 2)]`, the first of two in the low nibble); the scales,
//! `NAME.scale` (`[d_out, ceil(d_in / 32)]`), one for 32 values of a row; and possibly minimums,
//! `NAME.minimum`, shaped like the scales. They tell the [`BlockFormat`]:
//!
//! | integers | scale | minimum | a value is | written for |
//! |---|---|---|---|---|
//! | `int8` | F16 | | `scale * q` | 8 bits (GGUF's `Q8_0`) |
//! | `int4` | F16 | F16 | `scale * q + minimum` | 4 bits (GGUF's `Q4_1`) |
//! | `int4` | F16 | | `scale * (q - 8)` | imported matrices (GGUF's `Q4_0`) |
//! | `int8` | BF16 | | `scale * q` | values beyond the range of f16; all by earlier versions |
//! | `int4` | BF16 | | `scale * (q - 8)` | as above |
//!
//! A matrix in another format of GGUF is one tensor, named by the format, such as `NAME.q4_k` (U8, `[d_out, bytes of
//! d_in values]`), with the blocks of a GGUF file.
//! Of the formats with F16 scales, a matrix whose sides are multiples of 32 and 16 is stored in the layout of memory
//! ([`QuantizedMatrix::panel_shapes`]), so that it is used from a mapped file as it is: as `NAME.int8_panels` or
//! `NAME.int4_panels` (U64, at a multiple of 64 bytes), `NAME.scale_panels` and `NAME.minimum_panels`. Earlier versions
//! stored all matrices column by column, as in the table.
//!
//! With BF16, the smallest integer, -128 or 0, is unused, so that the values are symmetric. The padding of
//! an odd row is the nibble 8. Vectors and position embeddings stay in f32. The token embedding is
//! `[vocab_size, d_model]`, as in float files. Each matrix has its own format, and may also be a float
//! matrix: that of the token embedding and of the output layer has 8 bits by default, as 4 bits raise the
//! loss further.

mod file;
mod panels;

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use nextword_kernels::{Bits, QuantizedMatrix};

pub(crate) use self::file::{
    dequantized_values, detect_bits, embedding_bits, expected, load, matrix_format, matrix_shape,
    read_matrix, save, write,
};
use crate::linear::{Linear, empty_param};
use crate::{InputSquares, Transformer};

pub(crate) const TABLE: &str = "token_embedding.weight";
pub(crate) const HEAD: &str = "head.weight";

/// Adds the linear layers of `$blocks` with the names of their weights to `$found`. `$ref` is `&` or `&mut`.
macro_rules! linears {
    ($found:ident, $prefix:literal, $blocks:expr, [$($ref:tt)+]) => {
        for (layer, block) in $blocks.enumerate() {
            let mut add = |name: &str, linear| {
                $found.push((format!("{}blocks.{layer}.{name}.weight", $prefix), linear));
            };
            let attention = $($ref)+ block.attention;
            add("attention.query", $($ref)+ attention.query);
            add("attention.key", $($ref)+ attention.key);
            add("attention.value", $($ref)+ attention.value);
            if let Some(output) = $($ref)+ attention.output {
                add("attention.output", output);
            }
            if let Some(attention) = $($ref)+ block.cross_attention {
                add("cross_attention.query", $($ref)+ attention.query);
                add("cross_attention.key", $($ref)+ attention.key);
                add("cross_attention.value", $($ref)+ attention.value);
                if let Some(output) = $($ref)+ attention.output {
                    add("cross_attention.output", output);
                }
            }
            if let Some(feed_forward) = $($ref)+ block.feed_forward {
                if let Some(gate) = $($ref)+ feed_forward.gate {
                    add("feed_forward.gate", gate);
                }
                add("feed_forward.up", $($ref)+ feed_forward.up);
                add("feed_forward.down", $($ref)+ feed_forward.down);
            }
        }
    };
}

impl Transformer {
    /// The linear layers of the blocks, with the names of their weights.
    pub(crate) fn linears(&self) -> Vec<(String, &Linear)> {
        let mut found = Vec::new();
        linears!(found, "", self.blocks.iter(), [&]);
        if let Some(encoder) = &self.encoder {
            linears!(found, "encoder.", encoder.blocks.iter(), [&]);
        }
        found
    }

    /// The linear layers of the blocks, mutably, with the names of their weights.
    pub(crate) fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        let mut found = Vec::new();
        linears!(found, "", self.blocks.iter_mut(), [&mut]);
        if let Some(encoder) = &mut self.encoder {
            linears!(found, "encoder.", encoder.blocks.iter_mut(), [&mut]);
        }
        found
    }

    /// Quantizes all matrices except the position embedding: the linear layers of the blocks to `bits`,
    /// token embedding and output layer to 8 bits. The result is for inference only.
    ///
    /// # Panics
    /// If the model is already quantized.
    ///
    /// # Example
    ///
    /// ```
    /// use burn::tensor::{Device, Int, Tensor};
    /// use nextword_model::{Bits, ForwardContext, presets};
    ///
    /// let device = Device::flex();
    /// let model = presets::shakespeare_char_cpu(65).init(&device, 1)?;
    /// let logits = |model: &nextword_model::Transformer| {
    ///     let tokens = Tensor::<2, Int>::from_ints([[5, 6, 7]], &device);
    ///     model.forward(tokens, &mut ForwardContext::inference())
    /// };
    /// let small = model.clone().quantize(Bits::Int8);
    /// assert!(small.bytes_per_token() < model.bytes_per_token() / 3);
    /// assert!(logits(&small).all_close(logits(&model), Some(0.0), Some(0.1)));
    /// # Ok::<(), nextword_model::ModelError>(())
    /// ```
    #[must_use]
    pub fn quantize(self, bits: Bits) -> Self {
        self.quantize_with(bits, Bits::Int8)
    }

    /// Quantizes like [`quantize`](Self::quantize), with `embedding_bits` for token embedding and output
    /// layer.
    ///
    /// # Panics
    /// If the model is already quantized.
    #[must_use]
    pub fn quantize_with(self, bits: Bits, embedding_bits: Bits) -> Self {
        self.quantize_for_inputs(bits, embedding_bits, &InputSquares::default())
    }

    /// Quantizes like [`quantize_with`](Self::quantize_with). With 4 bits, the search for scales and minimums minimizes the
    /// error of the products with inputs like those that `inputs` has seen.
    ///
    /// # Panics
    /// If the model is already quantized, or `inputs` are those of a model of another shape.
    #[must_use]
    pub fn quantize_for_inputs(
        mut self,
        bits: Bits,
        embedding_bits: Bits,
        inputs: &InputSquares,
    ) -> Self {
        assert!(self.bits().is_none(), "the model is already quantized");
        for (name, linear) in self.linears_mut() {
            linear.quantize(bits, inputs.mean(&name).as_deref());
        }
        let table = self.token_embedding.weight.val();
        let device = table.device();
        self.quantized_embedding = Some(QuantizedMatrix::from_table(table, embedding_bits));
        self.token_embedding.weight = empty_param(&device);
        if let Some(weight) = &mut self.head.weight {
            let matrix = QuantizedMatrix::from_weight(weight.val(), embedding_bits);
            self.head.quantized = Some(matrix);
            *weight = empty_param(&device);
        }
        self
    }

    /// Replaces the matrix with this name in the weights file by `matrix`, e.g. one that a GGUF file
    /// contains, of shape `[d_in, d_out]`; `[d_model, vocab_size]` for the token embedding. Returns whether
    /// the model has such a matrix of this shape. For inference only.
    ///
    /// # Example
    ///
    /// ```
    /// use burn::tensor::{Device, Tensor};
    /// use nextword_model::{Bits, QuantizedMatrix, presets};
    ///
    /// let device = Device::flex();
    /// let mut model = presets::shakespeare_char_cpu(65).init(&device, 1)?;
    /// let matrix = QuantizedMatrix::from_weight(Tensor::ones([128, 128], &device), Bits::Int4);
    /// assert!(model.set_quantized("blocks.0.attention.query.weight", matrix.clone()));
    /// assert!(!model.set_quantized("blocks.0.norm.weight", matrix));
    /// assert_eq!(model.bits(), Some(4));
    /// # Ok::<(), nextword_model::ModelError>(())
    /// ```
    #[must_use]
    pub fn set_quantized(&mut self, name: &str, matrix: QuantizedMatrix) -> bool {
        let (shape, device) = (matrix.shape(), self.device());
        let embedding_shape = [self.config().d_model, self.config().vocab_size];
        if name == TABLE {
            if shape == embedding_shape {
                self.quantized_embedding = Some(matrix);
                self.token_embedding.weight = empty_param(&device);
            }
            return shape == embedding_shape;
        }
        if name == HEAD {
            let is_match = self.head.weight.is_some() && shape == embedding_shape;
            if is_match {
                self.head.quantized = Some(matrix);
                self.head.weight = Some(empty_param(&device));
            }
            return is_match;
        }
        let mut linears = self.linears_mut().into_iter();
        let Some((_, linear)) = linears.find(|(other, _)| other == name) else {
            return false;
        };
        let is_match = linear.shape() == shape;
        if is_match {
            linear.set_quantized(matrix);
        }
        is_match
    }

    /// The bit width of the weights in the blocks, if they are quantized (of the first one, if they differ); otherwise
    /// that of the token embedding.
    pub fn bits(&self) -> Option<u8> {
        let mut linears = self.linears().into_iter();
        let first = linears.find_map(|(_, linear)| linear.quantized());
        first.map(QuantizedMatrix::bits).or(self.embedding_bits())
    }

    /// The bit width of token embedding and output layer, if they are quantized.
    pub fn embedding_bits(&self) -> Option<u8> {
        self.quantized_embedding.as_ref().map(QuantizedMatrix::bits)
    }

    /// Replaces all quantized weights with their values in f32.
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use nextword_model::{Bits, presets};
    ///
    /// let model = presets::shakespeare_char_cpu(65).init(&Device::flex(), 1)?;
    /// let rounded = model.clone().quantize(Bits::Int8).dequantize();
    /// assert_eq!(rounded.bits(), None);
    /// assert_eq!(rounded.bytes_per_token(), model.bytes_per_token());
    /// # Ok::<(), nextword_model::ModelError>(())
    /// ```
    #[must_use]
    pub fn dequantize(mut self) -> Self {
        let device = self.device();
        for (_, linear) in self.linears_mut() {
            if let Some(matrix) = linear.take_quantized() {
                linear.weight = dequantize(&matrix, &device, false);
            }
        }
        if let Some(table) = self.quantized_embedding.take() {
            self.token_embedding.weight = dequantize(&table, &device, true);
        }
        if let Some(head) = self.head.quantized.take() {
            self.head.weight = Some(dequantize(&head, &device, false));
        }
        self
    }

    /// Iterates over the quantized matrices, dequantized, with their names. Shapes are as in float
    /// files.
    pub fn dequantized(&self) -> impl Iterator<Item = (String, TensorData)> {
        let (matrices, device) = (self.quantized().into_iter(), self.device());
        matrices.map(move |(name, matrix)| {
            let values = dequantize(matrix, &device, name == TABLE).val();
            (name, values.into_data())
        })
    }

    /// The quantized matrices, with their names.
    pub(crate) fn quantized(&self) -> Vec<(String, &QuantizedMatrix)> {
        let linears = self.linears().into_iter();
        let linears = linears.filter_map(|(name, linear)| Some((name, linear.quantized()?)));
        let table = self.quantized_embedding.as_ref();
        let table = table.map(|table| (TABLE.to_string(), table));
        let head = self.head.quantized.as_ref();
        let head = head.map(|head| (HEAD.to_string(), head));
        table.into_iter().chain(linears).chain(head).collect()
    }
}

/// Dequantizes `matrix` into a parameter. A table is stored transposed.
pub(crate) fn dequantize(
    matrix: &QuantizedMatrix,
    device: &Device,
    is_table: bool,
) -> Param<Tensor<2>> {
    let data = TensorData::new(matrix.dequantize(), matrix.shape());
    let values = Tensor::<2>::from_data(data, device);
    Param::from_tensor(if is_table { values.transpose() } else { values })
}
