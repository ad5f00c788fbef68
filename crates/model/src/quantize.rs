//! Models with 8-bit or 4-bit matrices: quantizing, writing and reading them.
//!
//! In a file, a matrix `NAME` consists of two tensors: the integers, `NAME.int8` (I8, `[d_out, d_in]`)
//! or `NAME.int4` (U8, `[d_out, ceil(d_in / 2)]`), and the scales, `NAME.scale` (BF16,
//! `[d_out, ceil(d_in / 32)]`), one for 32 values of a row. A value is its integer times its scale.
//! 4-bit integers are stored with 8 added, the first of two in the low nibble; 0 is unused, and 8 is
//! the padding. Vectors and position embeddings stay in f32. The token embedding is
//! `[vocab_size, d_model]`, as in float files. Each matrix has its own width: that of the token
//! embedding and of the output layer is 8 bits by default, as 4 bits raise the loss further.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use nextword_base::hash::FileHash;
use nextword_kernels::{Bits, QuantizedMatrix};
use safetensors::tensor::Dtype;

use crate::linear::{Linear, empty_param};
use crate::weights::{self, TensorFile, TensorSpec, Values};
use crate::{ModelConfig, ModelError, Transformer};

const TABLE: &str = "token_embedding.weight";
const HEAD: &str = "head.weight";

/// Lists the linear layers of `$blocks` with the names of their weights. `$ref` is `&` or `&mut`.
macro_rules! linears {
    ($blocks:expr, [$($ref:tt)+]) => {{
        let mut found = Vec::new();
        for (layer, block) in $blocks.enumerate() {
            let mut add = |name: &str, linear| {
                found.push((format!("blocks.{layer}.{name}.weight"), linear));
            };
            let attention = $($ref)+ block.attention;
            add("attention.query", $($ref)+ attention.query);
            add("attention.key", $($ref)+ attention.key);
            add("attention.value", $($ref)+ attention.value);
            if let Some(output) = $($ref)+ attention.output {
                add("attention.output", output);
            }
            if let Some(feed_forward) = $($ref)+ block.feed_forward {
                if let Some(gate) = $($ref)+ feed_forward.gate {
                    add("feed_forward.gate", gate);
                }
                add("feed_forward.up", $($ref)+ feed_forward.up);
                add("feed_forward.down", $($ref)+ feed_forward.down);
            }
        }
        found
    }};
}

impl Transformer {
    /// The linear layers of the blocks, with the names of their weights.
    pub(crate) fn linears(&self) -> Vec<(String, &Linear)> {
        linears!(self.blocks.iter(), [&])
    }

    /// The linear layers of the blocks, mutably, with the names of their weights.
    pub(crate) fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        linears!(self.blocks.iter_mut(), [&mut])
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
    pub fn quantize_with(mut self, bits: Bits, embedding_bits: Bits) -> Self {
        assert!(self.bits().is_none(), "the model is already quantized");
        for (_, linear) in self.linears_mut() {
            linear.quantize(bits);
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

    /// The bit width of the weights in the blocks, if they are quantized.
    pub fn bits(&self) -> Option<Bits> {
        let first = self.blocks.first()?.attention.query.quantized()?;
        Some(first.bits())
    }

    /// The bit width of token embedding and output layer, if they are quantized.
    pub fn embedding_bits(&self) -> Option<Bits> {
        self.quantized_embedding.as_ref().map(QuantizedMatrix::bits)
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
    fn quantized(&self) -> Vec<(String, &QuantizedMatrix)> {
        let linears = self.linears().into_iter();
        let linears = linears.filter_map(|(name, linear)| Some((name, linear.quantized()?)));
        let table = self.quantized_embedding.as_ref();
        let table = table.map(|table| (TABLE.to_string(), table));
        let head = self.head.quantized.as_ref();
        let head = head.map(|head| (HEAD.to_string(), head));
        table.into_iter().chain(linears).chain(head).collect()
    }
}

/// The two tensors of a quantized matrix in a file.
#[derive(Clone, Copy)]
enum Part {
    Integers,
    Scales,
}

impl Part {
    fn spec(self, name: String, matrix: &QuantizedMatrix) -> TensorSpec {
        let [d_in, d_out] = matrix.shape();
        let (dtype, width) = match self {
            Self::Integers => stored_type(matrix.bits(), d_in),
            Self::Scales => (Dtype::BF16, QuantizedMatrix::blocks(d_in)),
        };
        TensorSpec::new(name, dtype, vec![d_out, width])
    }

    fn bytes(self, matrix: &QuantizedMatrix) -> Vec<u8> {
        match self {
            Self::Integers => matrix.stored_integers(),
            Self::Scales => matrix.stored_scales(),
        }
    }
}

/// The type of stored integers, and how many of it a column of `d_in` integers takes.
fn stored_type(bits: Bits, d_in: usize) -> (Dtype, usize) {
    let dtype = match bits {
        Bits::Int8 => Dtype::I8,
        Bits::Int4 => Dtype::U8,
    };
    (dtype, QuantizedMatrix::stored_bytes(bits, d_in))
}

/// Writes a quantized `model` to `path` atomically. Returns the file's hash.
///
/// # Errors
/// [`ModelError::Io`] if the file cannot be written.
pub(crate) fn save(model: &Transformer, path: &Path) -> Result<FileHash, ModelError> {
    let mut parts = BTreeMap::new();
    for (name, matrix) in model.quantized() {
        let integers = format!("{name}.{}", suffix(matrix.bits()));
        parts.insert(integers, (Part::Integers, matrix));
        parts.insert(format!("{name}.scale"), (Part::Scales, matrix));
    }
    let mut params = weights::param_readers(model);
    params.retain(|_, param| !param.shape.contains(&0)); // Quantized matrices, which are in `parts`.
    let floats = params
        .iter()
        .map(|(name, param)| TensorSpec::new(name, Dtype::F32, param.shape.clone()));
    let quantized = parts
        .iter()
        .map(|(name, (part, matrix))| part.spec(name.clone(), matrix));
    weights::write_file(path, floats.chain(quantized).collect(), |name| {
        Ok(match parts.get(name) {
            Some((part, matrix)) => Values::Bytes(part.bytes(matrix)),
            None => params[name].read().into(),
        })
    })
}

/// Returns the bit width of the blocks' weights in `file`, if they are quantized.
pub(crate) fn detect_bits(file: &TensorFile) -> Option<Bits> {
    matrix_bits(file, "blocks.0.attention.query.weight").or_else(|| embedding_bits(file))
}

/// Returns the bit width of the token embedding in `file`, if it is quantized.
pub(crate) fn embedding_bits(file: &TensorFile) -> Option<Bits> {
    matrix_bits(file, TABLE)
}

/// Returns the bit width of the matrix `name` in `file`, if it is quantized.
fn matrix_bits(file: &TensorFile, name: &str) -> Option<Bits> {
    [Bits::Int8, Bits::Int4]
        .into_iter()
        .find(|bits| file.shape(&format!("{name}.{}", suffix(*bits))).is_some())
}

/// Loads the model of `config` on `device` with the quantized weights in `path`. Devices other than
/// flex get dequantized weights.
///
/// # Errors
/// See [`weights::load`].
pub(crate) fn load(
    config: &ModelConfig,
    path: &Path,
    file: &TensorFile,
    bits: Bits,
    device: &Device,
) -> Result<Transformer, ModelError> {
    compare(config, path, file, bits)?;
    let mut model = config.build(device)?;
    let stays_quantized = QuantizedMatrix::has_native_kernel(device);
    let read = |name: &str, shape: [usize; 2]| read_matrix(file, name, shape);
    let d = [config.d_model, config.vocab_size];
    let table = read(TABLE, d)?;
    if stays_quantized {
        model.quantized_embedding = Some(table);
        model.token_embedding.weight = empty_param(device);
    } else {
        model.token_embedding.weight = dequantize(&table, device, true);
    }
    if model.head.weight.is_some() {
        let head = read(HEAD, d)?;
        if stays_quantized {
            model.head.quantized = Some(head);
            model.head.weight = Some(empty_param(device));
        } else {
            model.head.weight = Some(dequantize(&head, device, false));
        }
    }
    for (name, linear) in model.linears_mut() {
        let weight = read(&name, linear.weight.val().dims())?;
        if stays_quantized {
            linear.set_quantized(weight);
        } else {
            linear.weight = dequantize(&weight, device, false);
        }
    }
    weights::fill(model, file)
}

/// Dequantizes `matrix` into a parameter. A table is stored transposed.
fn dequantize(matrix: &QuantizedMatrix, device: &Device, is_table: bool) -> Param<Tensor<2>> {
    let data = TensorData::new(matrix.dequantize(), matrix.shape());
    let values = Tensor::<2>::from_data(data, device);
    Param::from_tensor(if is_table { values.transpose() } else { values })
}

/// Reads the quantized matrix `name` of shape `[d_in, d_out]`, which [`compare`] has found. The smallest
/// integer, -128 or -8, is never written, so it is an error.
fn read_matrix(
    file: &TensorFile,
    name: &str,
    shape: [usize; 2],
) -> Result<QuantizedMatrix, ModelError> {
    let bits = matrix_bits(file, name).unwrap_or(Bits::Int8);
    let integers_name = format!("{name}.{}", suffix(bits));
    let scales = file.with_bytes(&format!("{name}.scale"), <[u8]>::to_vec)?;
    let matrix = file.with_bytes(&integers_name, |integers| {
        QuantizedMatrix::from_stored(shape, bits, integers, &scales)
    })?;
    let unused = match bits {
        Bits::Int8 => -128,
        Bits::Int4 => -8,
    };
    matrix.ok_or_else(|| ModelError::Format {
        path: file.path().to_path_buf(),
        problem: format!("`{integers_name}` contains the invalid value {unused}"),
    })
}

fn suffix(bits: Bits) -> &'static str {
    match bits {
        Bits::Int8 => "int8",
        Bits::Int4 => "int4",
    }
}

/// Checks the names, shapes and types in `file` against `config`. A matrix that the file lacks is
/// expected with `bits`.
fn compare(
    config: &ModelConfig,
    path: &Path,
    file: &TensorFile,
    bits: Bits,
) -> Result<(), ModelError> {
    let mut expected = Vec::new();
    for (name, shape) in weights::layout(config) {
        if shape.len() != 2 || name.starts_with("position_embedding") {
            expected.push((name, shape, None));
            continue;
        }
        // Tables are stored in their own layout, other matrices transposed.
        let [d_out, d_in] = if name == TABLE {
            [shape[0], shape[1]]
        } else {
            [shape[1], shape[0]]
        };
        let bits = matrix_bits(file, &name).unwrap_or(bits);
        let (dtype, width) = stored_type(bits, d_in);
        let blocks = QuantizedMatrix::blocks(d_in);
        expected.push((
            format!("{name}.{}", suffix(bits)),
            vec![d_out, width],
            Some(dtype),
        ));
        expected.push((
            format!("{name}.scale"),
            vec![d_out, blocks],
            Some(Dtype::BF16),
        ));
    }
    weights::compare_with(&expected, path, file)
}
