//! Weights in and out as safetensors, under the names that the modules have.
//!
//! The names are the paths of the parameters: `blocks.0.attention.query.weight`. Matrices are stored
//! as they multiply, `[d_in, d_out]`: `y = x W + b`. A file is compared with the configuration, name
//! by name, before anything is allocated.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, TensorData};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::{
    Bits, ModelConfig, ModelError, NormKind, Position, Transformer, quantize, write_atomically,
};

/// Headers above this are refused: that of GPT-2 XL takes 60 kB.
const HEADER_LIMIT: u64 = 16 << 20;

/// Name and shape of every parameter that `config` describes, in the order of the forward pass.
pub fn layout(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let mut layout = Layout(Vec::new());
    let d = config.d_model;
    layout.push("token_embedding.weight", &[config.vocab_size, d]);
    if config.position == Position::Learned {
        layout.push("position_embedding.weight", &[config.context_length, d]);
    }
    for layer in 0..config.n_layers {
        layout.block(config, &format!("blocks.{layer}"));
    }
    if config.has_final_norm() {
        layout.norm(config, "final_norm");
    }
    if !config.tied_head {
        layout.push("head.weight", &[d, config.vocab_size]);
    }
    if config.bias.head {
        layout.push("head.bias", &[config.vocab_size]);
    }
    layout.0
}

struct Layout(Vec<(String, Vec<usize>)>);

impl Layout {
    fn push(&mut self, name: &str, shape: &[usize]) {
        self.0.push((name.to_string(), shape.to_vec()));
    }

    fn linear(&mut self, name: &str, shape: [usize; 2], bias: bool) {
        self.push(&format!("{name}.weight"), &shape);
        if bias {
            self.push(&format!("{name}.bias"), &shape[1..]);
        }
    }

    fn norm(&mut self, config: &ModelConfig, name: &str) {
        if config.norm == NormKind::None {
            return;
        }
        self.push(&format!("{name}.weight"), &[config.d_model]);
        if config.norm == NormKind::Layer && config.bias.norm {
            self.push(&format!("{name}.bias"), &[config.d_model]);
        }
    }

    fn block(&mut self, config: &ModelConfig, block: &str) {
        let (d, d_ff, head_dim) = (config.d_model, config.d_ff(), config.head_dim());
        let (d_q, d_kv) = (config.n_heads * head_dim, config.kv_heads() * head_dim);
        let bias = config.bias;
        let attention = format!("{block}.attention");
        self.norm(config, &format!("{block}.attention_norm"));
        self.linear(&format!("{attention}.query"), [d, d_q], bias.qkv);
        self.linear(&format!("{attention}.key"), [d, d_kv], bias.qkv);
        self.linear(&format!("{attention}.value"), [d, d_kv], bias.qkv);
        if config.qk_norm {
            self.push(&format!("{attention}.query_norm.weight"), &[head_dim]);
            self.push(&format!("{attention}.key_norm.weight"), &[head_dim]);
        }
        if config.output_projection {
            let output = format!("{attention}.output");
            self.linear(&output, [d_q, d], bias.attention_output);
        }
        if d_ff == 0 {
            return;
        }
        self.norm(config, &format!("{block}.feed_forward_norm"));
        let feed_forward = format!("{block}.feed_forward");
        if config.feed_forward.is_gated() {
            self.linear(
                &format!("{feed_forward}.gate"),
                [d, d_ff],
                bias.feed_forward,
            );
        }
        self.linear(&format!("{feed_forward}.up"), [d, d_ff], bias.feed_forward);
        self.linear(
            &format!("{feed_forward}.down"),
            [d_ff, d],
            bias.feed_forward,
        );
    }
}

/// Calls `see` with the name and the values of every parameter, in the modules' order.
pub fn for_each(model: &Transformer, see: impl FnMut(&str, TensorData)) {
    model.visit(&mut Reader {
        path: Vec::new(),
        see,
    });
}

struct Reader<F> {
    path: Vec<String>,
    see: F,
}

impl<F: FnMut(&str, TensorData)> ModuleVisitor for Reader<F> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        (self.see)(&self.path.join("."), param.val().into_data());
    }
}

/// Writes `model` to `path`, whole or not at all: in f32, or quantized if it is. The same weights give the same bytes.
///
/// # Errors
/// [`ModelError::Io`] if the file cannot be written.
pub fn save(model: &Transformer, path: &Path) -> Result<(), ModelError> {
    if model.bits().is_some() {
        return quantize::save(model, path);
    }
    let mut tensors = BTreeMap::new();
    for_each(model, |name, data| {
        let shape = data.shape().to_vec();
        tensors.insert(name.to_string(), (shape, floats(data)));
    });
    save_tensors(&tensors, path)
}

/// Shape and values of tensors by name.
pub type NamedTensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Writes named f32 tensors (shape and values) to `path`, whole or not at all.
///
/// # Errors
/// [`ModelError::Io`] if the file cannot be written.
pub fn save_tensors(tensors: &NamedTensors, path: &Path) -> Result<(), ModelError> {
    let format = |problem: String| ModelError::Format {
        path: path.to_path_buf(),
        problem,
    };
    let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| {
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            (name, shape, bytes)
        })
        .collect();
    let views = bytes
        .iter()
        .map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::F32, (*shape).clone(), bytes);
            view.map(|view| (name.as_str(), view))
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| format(e.to_string()))?;
    // What other programs ask for. One entry only: a hash map has no order of its own.
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let file = safetensors::serialize(views, Some(metadata)).map_err(|e| format(e.to_string()))?;
    write_atomically(path, &file)
}

/// The values of `data` as f32, whatever float type they had.
pub fn floats(data: TensorData) -> Vec<f32> {
    data.convert::<f32>().try_into_vec().unwrap_or_default()
}

/// Builds the model of `config` on `device` with the weights in `path` (f64, f32, f16 or bf16).
///
/// # Errors
/// [`ModelError::Mismatch`] with every tensor that is missing, unused or misshapen;
/// [`ModelError::Format`] if the file is no safetensors file.
pub fn load(config: &ModelConfig, path: &Path, device: &Device) -> Result<Transformer, ModelError> {
    config.validate()?;
    if let Some(bits) = bits(path)? {
        return quantize::load(config, path, bits, device);
    }
    with_file(path, |file| {
        compare(config, path, file)?;
        Ok(fill(config.build(device)?, file))
    })
}

/// The width of the integers in `path`, if it holds quantized weights.
///
/// # Errors
/// [`ModelError::Io`] or [`ModelError::Format`] if the file cannot be read or understood.
pub fn bits(path: &Path) -> Result<Option<Bits>, ModelError> {
    with_file(path, |file| Ok(quantize::bits_of(file)))
}

/// Gives every parameter of `model` that `file` names its values there.
pub(crate) fn fill(model: Transformer, file: &SafeTensors<'_>) -> Transformer {
    let path = Vec::new();
    model.map(&mut Loader { file, path })
}

/// Reads every tensor of a safetensors file as f32: shape and values by name.
///
/// # Errors
/// [`ModelError::Io`] or [`ModelError::Format`] if the file cannot be read or understood.
pub fn load_tensors(path: &Path) -> Result<NamedTensors, ModelError> {
    with_file(path, |file| {
        let mut tensors = BTreeMap::new();
        for (name, view) in file.iter() {
            let values = decode(&view).ok_or_else(|| ModelError::Format {
                path: path.to_path_buf(),
                problem: format!("tensor `{name}` holds {:?}, not floats", view.dtype()),
            })?;
            tensors.insert(name.to_string(), (view.shape().to_vec(), values));
        }
        Ok(tensors)
    })
}

/// Maps `path` into memory, checks it, and hands it to `read`.
#[allow(unsafe_code)]
pub(crate) fn with_file<T>(
    path: &Path,
    read: impl FnOnce(&SafeTensors<'_>) -> Result<T, ModelError>,
) -> Result<T, ModelError> {
    let io = |source| ModelError::Io {
        path: path.to_path_buf(),
        action: "read",
        source,
    };
    let format = |problem: String| ModelError::Format {
        path: path.to_path_buf(),
        problem,
    };
    let file = File::open(path).map_err(io)?;
    let len = file.metadata().map_err(io)?.len();
    if len < 8 {
        return Err(format(format!("{len} bytes are no safetensors file")));
    }
    // SAFETY: every value is checked for its bounds and copied before it is used. A file that
    // another process shortens meanwhile can end this one by a signal; it cannot corrupt it.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
    let header = map
        .iter()
        .take(8)
        .rev()
        .fold(0_u64, |n, b| n << 8 | u64::from(*b));
    if header > HEADER_LIMIT {
        return Err(format(format!(
            "a header of {header} bytes is above the limit of {HEADER_LIMIT}; \
             this is no safetensors file"
        )));
    }
    let tensors = SafeTensors::deserialize(&map).map_err(|e| format(e.to_string()))?;
    read(&tensors)
}

/// Holds the file's names, shapes and types against the configuration.
fn compare(config: &ModelConfig, path: &Path, file: &SafeTensors<'_>) -> Result<(), ModelError> {
    let expected: Vec<_> = layout(config)
        .into_iter()
        .map(|(name, shape)| (name, shape, None))
        .collect();
    compare_with(&expected, path, file)
}

/// Holds names and shapes against `expected`, and types: the one that is named, or any of floats.
pub(crate) fn compare_with(
    expected: &[(String, Vec<usize>, Option<Dtype>)],
    path: &Path,
    file: &SafeTensors<'_>,
) -> Result<(), ModelError> {
    let mut problems = Vec::new();
    for (name, shape, dtype) in expected {
        match file.tensor(name) {
            Err(_) => problems.push(format!("  missing: `{name}` {shape:?}")),
            Ok(view) if view.shape() != shape => problems.push(format!(
                "  `{name}` has shape {:?}, the config says {shape:?}",
                view.shape()
            )),
            Ok(view) if dtype.is_none() && !is_float(view.dtype()) => {
                problems.push(format!("  `{name}` holds {:?}, not floats", view.dtype()));
            }
            Ok(view) if dtype.is_some_and(|dtype| dtype != view.dtype()) => {
                problems.push(format!("  `{name}` holds {:?}", view.dtype()));
            }
            Ok(_) => {}
        }
    }
    let known: std::collections::HashSet<&str> =
        expected.iter().map(|(name, ..)| name.as_str()).collect();
    let mut unused: Vec<_> = file
        .names()
        .into_iter()
        .filter(|name| !known.contains(name))
        .map(|name| format!("  unused: `{name}`"))
        .collect();
    unused.sort_unstable();
    problems.extend(unused);
    if problems.is_empty() {
        return Ok(());
    }
    Err(ModelError::Mismatch {
        path: path.to_path_buf(),
        problems,
    })
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// The values of `view` as f32; `None` if it holds no floats.
fn decode(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let bytes = view.data();
    let values = match view.dtype() {
        Dtype::F32 => bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect(),
        Dtype::F64 => bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| f64::from_le_bytes(*b) as f32)
            .collect(),
        Dtype::BF16 => bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| burn::tensor::bf16::from_le_bytes(*b).to_f32())
            .collect(),
        Dtype::F16 => bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| burn::tensor::f16::from_le_bytes(*b).to_f32())
            .collect(),
        _ => return None,
    };
    Some(values)
}

struct Loader<'a, 'f> {
    file: &'a SafeTensors<'f>,
    path: Vec<String>,
}

impl ModuleMapper for Loader<'_, '_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let values = self
            .file
            .tensor(&self.path.join("."))
            .ok()
            .and_then(|view| decode(&view));
        let Some(values) = values else {
            return param; // `compare` has seen every name and type before.
        };
        param.map(|tensor| {
            let data = TensorData::new(values, tensor.dims());
            Tensor::from_data(data, &tensor.device()).set_require_grad(tensor.is_require_grad())
        })
    }
}
