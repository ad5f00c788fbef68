//! The tensors of quantized matrices in a file: writing and reading them.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use burn::tensor::Device;
use nextword_base::hash::FileHash;
use nextword_kernels::{Bits, BlockFormat, QuantizedMatrix};
use safetensors::tensor::Dtype;

use super::panels::{self, PanelPart};
use super::{HEAD, TABLE, dequantize};
use crate::linear::empty_param;
use crate::weights::{self, TensorFile, TensorSpec, Values, WeightSource};
use crate::{ModelConfig, ModelError, Transformer};

/// The source's token embedding, which stays in f32.
const UNQUANTIZED: &str = "encoder.token_embedding";

/// The tensors of a quantized matrix in a file.
#[derive(Clone, Copy)]
enum Part {
    /// All of it, as in a GGUF file.
    Blocks,
    Integers,
    Scales,
    Minimums,
    /// In the layout of memory.
    Panel(PanelPart),
}

impl Part {
    /// The tensors as which a matrix of this format and shape is written.
    fn written(format: BlockFormat, shape: [usize; 2]) -> Vec<Self> {
        if QuantizedMatrix::has_panels(shape, format) {
            return PanelPart::of(format).map(Self::Panel).collect();
        }
        Self::of(format).to_vec()
    }

    /// The tensors of a matrix of this format.
    fn of(format: BlockFormat) -> &'static [Self] {
        match (format.separate_integers(), format.has_minimum()) {
            (None, _) => &[Self::Blocks],
            (Some(_), false) => &[Self::Integers, Self::Scales],
            (Some(_), true) => &[Self::Integers, Self::Scales, Self::Minimums],
        }
    }

    /// The tensor of the matrix `name`.
    fn spec(self, name: &str, format: BlockFormat, [d_in, d_out]: [usize; 2]) -> TensorSpec {
        let suffix = match self {
            Self::Panel(part) => return part.spec(name, format, [d_in, d_out]),
            Self::Blocks | Self::Integers => suffix(format),
            Self::Scales => "scale".to_string(),
            Self::Minimums => "minimum".to_string(),
        };
        let (dtype, width) = match (self, format.separate_integers()) {
            (Self::Blocks, _) => (Dtype::U8, format.gguf_bytes(d_in).unwrap_or_default()),
            (Self::Integers, Some(Bits::Int4)) => {
                (Dtype::U8, QuantizedMatrix::stored_bytes(Bits::Int4, d_in))
            }
            (Self::Integers, _) => (Dtype::I8, d_in),
            _ if format.has_f16_scales() => (Dtype::F16, QuantizedMatrix::blocks(d_in)),
            _ => (Dtype::BF16, QuantizedMatrix::blocks(d_in)),
        };
        TensorSpec::new(format!("{name}.{suffix}"), dtype, vec![d_out, width])
    }

    fn bytes(self, matrix: &QuantizedMatrix) -> Vec<u8> {
        match self {
            Self::Blocks => matrix.to_gguf().unwrap_or_default(),
            Self::Integers => matrix.stored_integers(),
            Self::Scales => matrix.stored_scales(),
            Self::Minimums => matrix.stored_minimums(),
            Self::Panel(part) => part.bytes(matrix),
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
        for part in Part::written(matrix.format(), matrix.shape()) {
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
pub(crate) fn detect_bits(file: &TensorFile) -> Option<u8> {
    let matrices = file.names().filter_map(|name| {
        let in_columns = name.rsplit_once('.').and_then(|(matrix, kind)| {
            let is_quantized = BlockFormat::ALL.into_iter().any(|f| suffix(f) == kind);
            is_quantized.then_some(matrix)
        });
        in_columns.or_else(|| panels::matrix_of_lines(name))
    });
    let in_blocks = matrices.filter(|name| weights::is_in_block(name));
    let first = in_blocks.min().and_then(|name| matrix_format(file, name));
    first
        .map(BlockFormat::bits)
        .or_else(|| embedding_bits(file))
        .or_else(|| matrix_format(file, HEAD).map(BlockFormat::bits))
}

/// Returns the bit width of the token embedding in `file`, if it is quantized.
pub(crate) fn embedding_bits(file: &TensorFile) -> Option<u8> {
    matrix_format(file, TABLE).map(BlockFormat::bits)
}

/// Returns the format of the matrix `name` in `file`, if it is quantized.
pub(crate) fn matrix_format(file: &TensorFile, name: &str) -> Option<BlockFormat> {
    if let Some(format) = panels::format(file, name) {
        return Some(format);
    }
    let mut formats = BlockFormat::ALL.into_iter();
    let found = formats.find(|format| file.shape(&format!("{name}.{}", suffix(*format))).is_some());
    let Some(bits) = found?.separate_integers() else {
        return found;
    };
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
/// compared with `config`. A matrix whose format has no kernel on `device` ([`QuantizedMatrix::has_kernel`]) is dequantized.
///
/// # Errors
/// See [`weights::load`].
pub(crate) fn load(
    config: &ModelConfig,
    source: &dyn WeightSource,
    device: &Device,
) -> Result<Transformer, ModelError> {
    let mut model = config.build(device)?;
    let stays_quantized =
        |matrix: &QuantizedMatrix| QuantizedMatrix::has_kernel(matrix.format(), device);
    let embedding = [config.d_model, config.vocab_size];
    let mut loaded = HashSet::new();
    if let Some(table) = source.quantized_matrix(TABLE, embedding)? {
        if stays_quantized(&table) {
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
        if stays_quantized(&head) {
            model.head.quantized = Some(head);
            model.head.weight = Some(empty_param(device));
        } else {
            model.head.weight = Some(dequantize(&head, device, false));
        }
        loaded.insert(HEAD.to_string());
    }
    for (name, linear) in model.linears_mut() {
        if let Some(weight) = source.quantized_matrix(&name, linear.shape())? {
            if stays_quantized(&weight) {
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
                for part in Part::written(format, matrix) {
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
    if panels::format(file, name).is_some() {
        return panels::read(file, name, format, shape).map(Some);
    }
    let error = |problem: String| ModelError::Format {
        path: file.path().to_path_buf(),
        problem,
    };
    if format.separate_integers().is_none() && format.gguf_bytes(shape[0]).is_none() {
        let (kind, block, d_in) = (format.name(), format.block_len(), shape[0]);
        let problem =
            format!("`{name}` cannot be {kind}: its rows have {d_in} values, and blocks {block}");
        return Err(error(problem));
    }
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
    if format.separate_integers().is_none() {
        let matrix = file.with_bytes(&tensor(Part::Blocks), |blocks| {
            QuantizedMatrix::from_gguf(shape, format, blocks)
        })?;
        return Ok(matrix); // Shape and format were compared.
    }
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
    let unused = if format.bits() == 8 { -128 } else { -8 };
    let integers = tensor(Part::Integers);
    Err(error(format!(
        "`{integers}` contains the invalid value {unused}"
    )))
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

/// What the name of a matrix is followed by in that of its integers or blocks.
fn suffix(format: BlockFormat) -> String {
    match format.separate_integers() {
        Some(bits) => format!("int{}", bits.number()),
        None => format.name().to_lowercase(),
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
        if panels::format(file, &name).is_some() {
            expected.extend(panels::expected(&name, format, shape));
            continue;
        }
        let parts = Part::of(format);
        let parts = parts.iter().map(|part| part.spec(&name, format, shape));
        expected.extend(parts.map(|spec| (spec.name, spec.shape, Some(spec.dtype))));
    }
    expected
}
