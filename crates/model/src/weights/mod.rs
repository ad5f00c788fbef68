//! Reading and writing weights as safetensors.
//!
//! The tensor names are the paths of the parameters: `blocks.0.attention.query.weight`. Matrices are
//! stored as `[d_in, d_out]`: `y = x W + b`. A file is checked against the configuration, name by
//! name, before anything is allocated.

mod file;
mod parameters;
mod source;
mod write;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{AllocationProperty, Bytes, DType, Device, Tensor, TensorData};
use nextword_base::hash::{FileHash, sha256, sha256_hex};
use safetensors::tensor::Dtype;

pub use crate::tensor_data::to_f32_vec;
pub use file::{NamedTensors, TensorFile, load_tensors, with_mapped};
pub use parameters::{is_in_block, layout};
pub use source::WeightSource;
pub use write::{FloatType, save, save_tensors, save_tensors_with, write_tensors};
pub(crate) use write::{TensorSpec, Values, write_file};

use crate::{ModelConfig, ModelError, Transformer, quantize};

/// Calls `visit` with the name and values of every parameter, in module order, also those of an adapter.
pub fn for_each(model: &Transformer, visit: impl FnMut(&str, TensorData)) {
    model.visit(&mut ParamVisitor {
        path: Vec::new(),
        visit,
    });
}

/// SHA-256 of all weights, also the quantized ones, as hexadecimal digits.
///
/// ```
/// use burn::tensor::Device;
/// use nextword_model::{Bits, presets, weights};
///
/// let model = presets::statquest(5).init(&Device::flex(), 7)?;
/// let other = presets::statquest(5).init(&Device::flex(), 8)?;
/// assert_eq!(weights::hash(&model), weights::hash(&model.clone()));
/// assert_ne!(weights::hash(&model), weights::hash(&other));
/// assert_ne!(weights::hash(&model.quantize(Bits::Int8)), weights::hash(&other.quantize(Bits::Int8)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn hash(model: &Transformer) -> String {
    let mut hashes = Vec::new();
    for_each(model, |_, data| hashes.extend(sha256(data.as_bytes())));
    for (_, matrix) in model.quantized() {
        hashes.extend(sha256(matrix.format().name().as_bytes()));
        if let Some(blocks) = matrix.to_gguf() {
            hashes.extend(sha256(&blocks));
            continue;
        }
        for part in [
            matrix.stored_integers(),
            matrix.stored_scales(),
            matrix.stored_minimums(),
        ] {
            hashes.extend(sha256(&part));
        }
    }
    sha256_hex(&hashes)
}

struct ParamVisitor<F> {
    path: Vec<String>,
    visit: F,
}

impl<F: FnMut(&str, TensorData)> ModuleVisitor for ParamVisitor<F> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        (self.visit)(&self.path.join("."), param.val().into_data());
    }
}

/// A parameter whose values are copied from its device on demand.
pub(crate) struct ParamReader {
    pub(crate) shape: Vec<usize>,
    read: Box<dyn Fn() -> TensorData>,
}

impl ParamReader {
    /// Copies the values from the device.
    pub(crate) fn read(&self) -> TensorData {
        (self.read)()
    }
}

/// Every parameter of `model` by name, without its adapter's low-rank updates. A file stores them in the order of their names, which is not that
/// of the modules.
pub(crate) fn param_readers(model: &Transformer) -> BTreeMap<String, ParamReader> {
    let mut collector = ParamCollector::default();
    model.visit(&mut collector);
    collector.params
}

#[derive(Default)]
struct ParamCollector {
    path: Vec<String>,
    params: BTreeMap<String, ParamReader>,
}

impl ModuleVisitor for ParamCollector {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.path.iter().any(|part| part == "lora") {
            return;
        }
        let tensor = param.val(); // A handle, not a copy.
        let reader = ParamReader {
            shape: tensor.dims().to_vec(),
            read: Box::new(move || tensor.to_data()),
        };
        self.params.insert(self.path.join("."), reader);
    }
}

/// Loads the model of `config` on `device` with the weights in `path`: f64, f32, f16, bf16 or
/// quantized.
///
/// # Errors
/// [`ModelError::Mismatch`] with every tensor that is missing, unexpected or of the wrong shape;
/// [`ModelError::Format`] if the file is not a safetensors file.
pub fn load(config: &ModelConfig, path: &Path, device: &Device) -> Result<Transformer, ModelError> {
    load_file(config, &TensorFile::open(path)?, device)
}

/// Loads the model of `config` as [`load`], but with weights that stay in the file, which is mapped into memory, where
/// they are stored as they are used: f32, and quantized matrices in the layout of memory, on the CPU backend flex. See
/// [`TensorFile::open_mapped`] for what follows from that. The model computes the same bits, and a weight that is changed is
/// copied first.
///
/// # Errors
/// As [`load`].
pub fn load_mapped(
    config: &ModelConfig,
    path: &Path,
    device: &Device,
) -> Result<Transformer, ModelError> {
    let file = if nextword_kernels::is_flex(device) {
        TensorFile::open_mapped(path)?
    } else {
        TensorFile::open(path)? // Other devices have their own copy.
    };
    load_file(config, &file, device)
}

fn load_file(
    config: &ModelConfig,
    file: &TensorFile,
    device: &Device,
) -> Result<Transformer, ModelError> {
    config.validate()?;
    compare(config, file.path(), file)?;
    quantize::load(config, file, device)
}

/// Loads the model of `config` on `device` with the weights of `source`. `path` names it in errors.
///
/// # Errors
/// [`ModelError::Mismatch`] with every tensor that is missing or of the wrong shape; errors from reading it.
pub fn load_from(
    config: &ModelConfig,
    path: &Path,
    source: &dyn WeightSource,
    device: &Device,
) -> Result<Transformer, ModelError> {
    config.validate()?;
    let expected = layout(config).into_iter();
    let problems: Vec<String> = expected
        .filter(|(name, shape)| source.shape(name) != Some(shape))
        .map(|(name, shape)| format!("  missing, or not of the shape {shape:?}: `{name}`"))
        .collect();
    if !problems.is_empty() {
        return Err(ModelError::Mismatch {
            path: path.to_path_buf(),
            problems,
        });
    }
    quantize::load(config, source, device)
}

/// Writes the weights of `source` for `config` to `path` atomically, one tensor at a time: quantized matrices
/// as they are, all others in f32. Returns the file's hash.
///
/// # Errors
/// Errors from reading `source`; [`ModelError::Io`] if the file cannot be written. An earlier file is then
/// unchanged.
pub fn write_source(
    path: &Path,
    config: &ModelConfig,
    source: &dyn WeightSource,
) -> Result<FileHash, ModelError> {
    quantize::write(path, config, source)
}

/// Returns the bit width of the blocks' weights in `path`, if they are quantized.
///
/// # Errors
/// [`ModelError::Io`] or [`ModelError::Format`] if the file cannot be read or is invalid.
pub fn bits(path: &Path) -> Result<Option<u8>, ModelError> {
    Ok(quantize::detect_bits(&TensorFile::open(path)?))
}

/// Returns the bit width of the token embedding in `path`, which is also that of the output layer, if
/// they are quantized.
///
/// # Errors
/// As [`bits`].
pub fn embedding_bits(path: &Path) -> Result<Option<u8>, ModelError> {
    Ok(quantize::embedding_bits(&TensorFile::open(path)?))
}

/// Sets the parameters of `model` from `source`, without those `loaded` already.
pub(crate) fn fill(
    model: Transformer,
    source: &dyn WeightSource,
    loaded: &HashSet<String>,
) -> Result<Transformer, ModelError> {
    let mut loader = ParamLoader {
        source,
        loaded,
        path: Vec::new(),
        failed: None,
    };
    let model = model.map(&mut loader);
    loader.failed.map_or(Ok(model), Err)
}

/// Returns the values of the matrix `name` as in a float file, of the same `shape`, if `source` has it
/// quantized.
///
/// # Errors
/// As [`WeightSource::quantized_matrix`].
pub fn dequantized_values(
    source: &dyn WeightSource,
    name: &str,
    shape: &[usize],
) -> Result<Option<Vec<f32>>, ModelError> {
    quantize::dequantized_values(source, name, shape)
}

/// Checks the names, shapes and types in `file` against `config`. Matrices may be quantized.
///
/// # Errors
/// [`ModelError::Mismatch`] with every difference and `path`.
pub fn compare(config: &ModelConfig, path: &Path, file: &TensorFile) -> Result<(), ModelError> {
    let expected = if quantize::detect_bits(file).is_some() {
        quantize::expected(config, file)
    } else {
        let floats = layout(config).into_iter();
        floats.map(|(name, shape)| (name, shape, None)).collect()
    };
    compare_with(&expected, path, file)
}

/// Checks the names, shapes and types in `file` against `expected`. Without a type, any float type
/// is valid.
pub(crate) fn compare_with(
    expected: &[(String, Vec<usize>, Option<Dtype>)],
    path: &Path,
    file: &TensorFile,
) -> Result<(), ModelError> {
    let mut problems = Vec::new();
    for (name, shape, dtype) in expected {
        match file.shape(name) {
            None => problems.push(format!("  missing: `{name}` {shape:?}")),
            Some(found) if found != shape => problems.push(format!(
                "  `{name}` has shape {found:?}, the config says {shape:?}"
            )),
            Some(_) if dtype.is_none() => problems.extend(file.check_float(name)),
            Some(_) if file.dtype(name) != *dtype => {
                let [found, expected] = [file.dtype(name), *dtype]
                    .map(|dtype| dtype.map_or_else(String::new, |dtype| format!("{dtype:?}")));
                problems.push(format!("  `{name}` has type {found} instead of {expected}"));
            }
            Some(_) => {}
        }
    }
    let known: HashSet<&str> = expected.iter().map(|(name, ..)| name.as_str()).collect();
    let unexpected = file.names().filter(|name| !known.contains(name));
    problems.extend(unexpected.map(|name| format!("  unexpected: `{name}`")));
    if problems.is_empty() {
        return Ok(());
    }
    Err(ModelError::Mismatch {
        path: path.to_path_buf(),
        problems,
    })
}

struct ParamLoader<'a> {
    source: &'a dyn WeightSource,
    loaded: &'a HashSet<String>,
    path: Vec<String>,
    failed: Option<ModelError>,
}

impl ModuleMapper for ParamLoader<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.path.join(".");
        if self.loaded.contains(&name) {
            return param;
        }
        let shape = param.val().dims();
        let data = match self.source.shared_values(&name) {
            Some(bytes) => {
                let bytes = Bytes::from_shared(bytes, AllocationProperty::File);
                TensorData::from_bytes(bytes, shape, DType::F32)
            }
            None => match self.source.values(&name) {
                Ok(values) => TensorData::new(values, shape),
                Err(error) => {
                    self.failed.get_or_insert(error);
                    return param;
                }
            },
        };
        param.map(|tensor| {
            let device = tensor.device();
            let requires_grad = tensor.is_require_grad();
            drop(tensor); // Frees the zeros before the values are allocated.
            Tensor::from_data(data, &device).set_require_grad(requires_grad)
        })
    }
}
