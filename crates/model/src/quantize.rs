//! Models with 8-bit or 4-bit matrices: quantizing, writing and reading them.
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
//! With BF16, the smallest integer, -128 or 0, is unused, so that the values are symmetric. The padding of
//! an odd row is the nibble 8. Vectors and position embeddings stay in f32. The token embedding is
//! `[vocab_size, d_model]`, as in float files. Each matrix has its own format, and may also be a float
//! matrix: that of the token embedding and of the output layer has 8 bits by default, as 4 bits raise the
//! loss further.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use nextword_base::hash::FileHash;
use nextword_kernels::{Bits, BlockFormat, QuantizedMatrix};
use safetensors::tensor::Dtype;

use crate::linear::{Linear, empty_param};
use crate::weights::{self, TensorFile, TensorSpec, Values, WeightSource};
use crate::{ModelConfig, ModelError, Transformer};

pub(crate) const TABLE: &str = "token_embedding.weight";
pub(crate) const HEAD: &str = "head.weight";
/// The source's token embedding, which stays in f32.
const UNQUANTIZED: &str = "encoder.token_embedding";

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
    /// assert_eq!(model.bits(), Some(Bits::Int4));
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

    /// The bit width of the weights in the blocks, if they are quantized; otherwise that of the token
    /// embedding.
    pub fn bits(&self) -> Option<Bits> {
        let mut linears = self.linears().into_iter();
        let first = linears.find_map(|(_, linear)| linear.quantized());
        first.map(QuantizedMatrix::bits).or(self.embedding_bits())
    }

    /// The bit width of token embedding and output layer, if they are quantized.
    pub fn embedding_bits(&self) -> Option<Bits> {
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

/// The tensors of a quantized matrix in a file.
#[derive(Clone, Copy)]
enum Part {
    Integers,
    Scales,
    Minimums,
}

impl Part {
    /// The tensors of a matrix of this format.
    fn of(format: BlockFormat) -> impl Iterator<Item = Self> {
        let minimums = format.has_minimum().then_some(Self::Minimums);
        [Self::Integers, Self::Scales].into_iter().chain(minimums)
    }

    /// The tensor of the matrix `name`.
    fn spec(self, name: &str, format: BlockFormat, [d_in, d_out]: [usize; 2]) -> TensorSpec {
        let bits = format.bits();
        let suffix = match self {
            Self::Integers => suffix(bits),
            Self::Scales => "scale",
            Self::Minimums => "minimum",
        };
        let (dtype, width) = match (self, bits) {
            (Self::Integers, Bits::Int8) => (Dtype::I8, d_in),
            (Self::Integers, Bits::Int4) => (Dtype::U8, QuantizedMatrix::stored_bytes(bits, d_in)),
            _ if format.has_f16_scales() => (Dtype::F16, QuantizedMatrix::blocks(d_in)),
            _ => (Dtype::BF16, QuantizedMatrix::blocks(d_in)),
        };
        TensorSpec::new(format!("{name}.{suffix}"), dtype, vec![d_out, width])
    }

    fn bytes(self, matrix: &QuantizedMatrix) -> Vec<u8> {
        match self {
            Self::Integers => matrix.stored_integers(),
            Self::Scales => matrix.stored_scales(),
            Self::Minimums => matrix.stored_minimums(),
        }
    }
}

/// Writes a quantized `model` to `path` atomically. Returns the file's hash.
///
/// # Errors
/// [`ModelError::Io`] if the file cannot be written.
pub(crate) fn save(model: &Transformer, path: &Path) -> Result<FileHash, ModelError> {
    let mut parts = BTreeMap::new();
    for (name, matrix) in model.quantized() {
        for part in Part::of(matrix.format()) {
            let spec = part.spec(&name, matrix.format(), matrix.shape());
            parts.insert(spec.name.clone(), (spec, part, matrix));
        }
    }
    let mut params = weights::param_readers(model);
    params.retain(|_, param| !param.shape.contains(&0)); // Quantized matrices, which are in `parts`.
    let floats = params
        .iter()
        .map(|(name, param)| TensorSpec::new(name, Dtype::F32, param.shape.clone()));
    let quantized = parts.values().map(|(spec, ..)| spec.clone());
    weights::write_file(path, floats.chain(quantized).collect(), |name| {
        Ok(match parts.get(name) {
            Some((_, part, matrix)) => Values::Bytes(part.bytes(matrix)),
            None => params[name].read().into(),
        })
    })
}

/// Returns the bit width of the first quantized matrix of the blocks in `file`, or that of the token
/// embedding or of the output layer, if one is quantized.
pub(crate) fn detect_bits(file: &TensorFile) -> Option<Bits> {
    let matrices = file.names().filter_map(|name| {
        [Bits::Int8, Bits::Int4]
            .into_iter()
            .find_map(|bits| name.strip_suffix(suffix(bits))?.strip_suffix('.'))
    });
    let in_blocks = matrices.filter(|name| weights::is_in_block(name));
    let first = in_blocks.min().and_then(|name| matrix_format(file, name));
    first
        .map(BlockFormat::bits)
        .or_else(|| embedding_bits(file))
        .or_else(|| matrix_format(file, HEAD).map(BlockFormat::bits))
}

/// Returns the bit width of the token embedding in `file`, if it is quantized.
pub(crate) fn embedding_bits(file: &TensorFile) -> Option<Bits> {
    matrix_format(file, TABLE).map(BlockFormat::bits)
}

/// Returns the format of the matrix `name` in `file`, if it is quantized.
pub(crate) fn matrix_format(file: &TensorFile, name: &str) -> Option<BlockFormat> {
    let bits = [Bits::Int8, Bits::Int4]
        .into_iter()
        .find(|bits| file.shape(&format!("{name}.{}", suffix(*bits))).is_some())?;
    let is_symmetric = file.dtype(&format!("{name}.scale")) == Some(Dtype::BF16);
    let has_minimum = file.shape(&format!("{name}.minimum")).is_some();
    Some(match bits {
        Bits::Int8 if is_symmetric => BlockFormat::Symmetric8,
        Bits::Int4 if is_symmetric => BlockFormat::Symmetric4,
        Bits::Int8 => BlockFormat::Q8_0,
        Bits::Int4 if has_minimum => BlockFormat::Q4_1,
        Bits::Int4 => BlockFormat::Q4_0,
    })
}

/// Loads the model of `config` on `device` with the weights of `source`, whose names and shapes were
/// compared with `config`. Devices other than flex get dequantized weights.
///
/// # Errors
/// See [`weights::load`].
pub(crate) fn load(
    config: &ModelConfig,
    source: &dyn WeightSource,
    device: &Device,
) -> Result<Transformer, ModelError> {
    let mut model = config.build(device)?;
    let stays_quantized = QuantizedMatrix::has_native_kernel(device);
    let embedding = [config.d_model, config.vocab_size];
    let mut loaded = HashSet::new();
    if let Some(table) = source.quantized_matrix(TABLE, embedding)? {
        if stays_quantized {
            model.quantized_embedding = Some(table);
            model.token_embedding.weight = empty_param(device);
        } else {
            model.token_embedding.weight = dequantize(&table, device, true);
        }
        loaded.insert(TABLE.to_string());
    }
    if model.head.weight.is_some()
        && let Some(head) = source.quantized_matrix(HEAD, embedding)?
    {
        if stays_quantized {
            model.head.quantized = Some(head);
            model.head.weight = Some(empty_param(device));
        } else {
            model.head.weight = Some(dequantize(&head, device, false));
        }
        loaded.insert(HEAD.to_string());
    }
    for (name, linear) in model.linears_mut() {
        if let Some(weight) = source.quantized_matrix(&name, linear.shape())? {
            if stays_quantized {
                linear.set_quantized(weight);
            } else {
                linear.weight = dequantize(&weight, device, false);
            }
            loaded.insert(name);
        }
    }
    weights::fill(model, source, &loaded)
}

/// Writes the weights of `source` to `path` atomically, quantized matrices as they are. Returns the file's
/// hash.
///
/// # Errors
/// See [`weights::write_source`].
pub(crate) fn write(
    path: &Path,
    config: &ModelConfig,
    source: &dyn WeightSource,
) -> Result<FileHash, ModelError> {
    let mut specs = Vec::new();
    let mut parts = BTreeMap::new();
    for (name, shape) in weights::layout(config) {
        let matrix = matrix_shape(&name, &shape);
        match (source.matrix_format(&name), matrix) {
            (Some(format), Some(matrix)) => {
                for part in Part::of(format) {
                    let spec = part.spec(&name, format, matrix);
                    parts.insert(spec.name.clone(), (part, name.clone(), matrix));
                    specs.push(spec);
                }
            }
            _ => specs.push(TensorSpec::new(name, Dtype::F32, shape)),
        }
    }
    weights::write_file(path, specs, |name| {
        let Some((part, name, shape)) = parts.get(name) else {
            return Ok(Values::Floats(source.values(name)?.into()));
        };
        let matrix = source.quantized_matrix(name, *shape)?;
        let bytes = matrix.map(|matrix| part.bytes(&matrix));
        Ok(Values::Bytes(bytes.unwrap_or_default()))
    })
}

/// The shape `[d_in, d_out]` of the matrix `name`, which has `shape` in float files; `None` for vectors and
/// for position embeddings, the source's own embedding and the layer before the output layer, which are never
/// quantized.
pub(crate) fn matrix_shape(name: &str, shape: &[usize]) -> Option<[usize; 2]> {
    match *shape {
        _ if name.contains("position_embedding") || name.starts_with(UNQUANTIZED) => None,
        _ if name.starts_with("head_transform") => None,
        // Tables are stored in their own layout, other matrices transposed.
        [d_out, d_in] if name == TABLE => Some([d_in, d_out]),
        [d_in, d_out] => Some([d_in, d_out]),
        _ => None,
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

/// Reads the matrix `name` of shape `[d_in, d_out]`, if it is quantized.
///
/// # Errors
/// [`ModelError::Format`] if its tensors are missing, have other types or shapes, or a symmetric format
/// contains the smallest integer, which is never written.
pub(crate) fn read_matrix(
    file: &TensorFile,
    name: &str,
    shape: [usize; 2],
) -> Result<Option<QuantizedMatrix>, ModelError> {
    let Some(format) = matrix_format(file, name) else {
        return Ok(None);
    };
    let error = |problem: String| ModelError::Format {
        path: file.path().to_path_buf(),
        problem,
    };
    for part in Part::of(format) {
        let spec = part.spec(name, format, shape);
        let is_match = file.dtype(&spec.name) == Some(spec.dtype)
            && file.shape(&spec.name) == Some(&spec.shape[..]);
        if !is_match {
            return Err(error(format!(
                "`{}` is not of type {:?} and shape {:?}",
                spec.name, spec.dtype, spec.shape
            )));
        }
    }
    let tensor = |part: Part| part.spec(name, format, shape).name;
    let copy = |part: Part| file.with_bytes(&tensor(part), <[u8]>::to_vec);
    let scales = copy(Part::Scales)?;
    let minimums = if format.has_minimum() {
        copy(Part::Minimums)?
    } else {
        Vec::new()
    };
    // The integers, most of the bytes, are not copied.
    let matrix = file.with_bytes(&tensor(Part::Integers), |integers| {
        QuantizedMatrix::from_stored(shape, format, integers, &scales, &minimums)
    })?;
    if let Some(matrix) = matrix {
        return Ok(Some(matrix));
    }
    let (suffix, unused) = match format.bits() {
        Bits::Int8 => ("int8", -128),
        Bits::Int4 => ("int4", -8),
    };
    let problem = format!("`{name}.{suffix}` contains the invalid value {unused}");
    Err(error(problem))
}

/// Returns the values of the matrix `name` as in a float file, of the same `shape`, if `source` has it
/// quantized.
pub(crate) fn dequantized_values(
    source: &dyn WeightSource,
    name: &str,
    shape: &[usize],
) -> Result<Option<Vec<f32>>, ModelError> {
    let Some([d_in, d_out]) = matrix_shape(name, shape) else {
        return Ok(None);
    };
    let Some(matrix) = source.quantized_matrix(name, [d_in, d_out])? else {
        return Ok(None);
    };
    let values = matrix.dequantize();
    Ok(Some(if name == TABLE {
        let row = |j: usize| values[j..].iter().step_by(d_out).copied();
        (0..d_out).flat_map(row).take(d_in * d_out).collect()
    } else {
        values
    }))
}

fn suffix(bits: Bits) -> &'static str {
    match bits {
        Bits::Int8 => "int8",
        Bits::Int4 => "int4",
    }
}

/// The names, shapes and types that a file with the weights of `config` has: a matrix is quantized or has
/// any float type. One that the file lacks is expected like the token embedding.
pub(crate) fn expected(
    config: &ModelConfig,
    file: &TensorFile,
) -> Vec<(String, Vec<usize>, Option<Dtype>)> {
    let mut expected = Vec::new();
    for (name, shape) in weights::layout(config) {
        let format = match matrix_format(file, &name) {
            Some(format) => Some(format),
            None if file.shape(&name).is_some() => None,
            None => Some(matrix_format(file, TABLE).unwrap_or(BlockFormat::Q8_0)),
        };
        let (Some(format), Some(shape)) = (format, matrix_shape(&name, &shape)) else {
            expected.push((name, shape, None));
            continue;
        };
        let parts = Part::of(format).map(|part| part.spec(&name, format, shape));
        expected.extend(parts.map(|spec| (spec.name, spec.shape, Some(spec.dtype))));
    }
    expected
}
