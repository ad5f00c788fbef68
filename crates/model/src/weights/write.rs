//! Writing safetensors files, one tensor at a time.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{BufWriter, Write};
use std::path::Path;

use burn::tensor::TensorData;
use nextword_base::atomic::AtomicFile;
use nextword_base::hash::{FileHash, HashingWriter};
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::{NamedTensors, param_readers, to_f32_vec};
use crate::{ModelError, Transformer, quantize};

/// Number of values that are encoded at a time.
const ENCODED_VALUES: usize = 1 << 16;

/// Capacity of the write buffer in bytes.
const WRITE_BUFFER: usize = 1 << 20;

/// Writes `model` to `path` atomically, in f32 or, if it is quantized, in its bit width. The same
/// weights give the same bytes. Returns the file's hash. Tensors are read from the device one at a time. Of a
/// model with an adapter, the base model is written.
///
/// # Errors
/// [`ModelError::Io`] if the file cannot be written; an earlier file is then unchanged.
pub fn save(model: &Transformer, path: &Path) -> Result<FileHash, ModelError> {
    if model.has_adapter() {
        return save(&model.clone().without_adapter(), path);
    }
    if model.bits().is_some() {
        return quantize::save(model, path);
    }
    let params = param_readers(model);
    let specs = params
        .iter()
        .map(|(name, param)| TensorSpec::new(name, Dtype::F32, param.shape.clone()));
    write_file(path, specs.collect(), |name| {
        Ok(Values::from(params[name].read()))
    })
}

/// Writes named f32 tensors (shape and values) to `path` atomically.
///
/// # Errors
/// [`ModelError::Io`] if the file cannot be written; an earlier file is then unchanged.
pub fn save_tensors(tensors: &NamedTensors, path: &Path) -> Result<(), ModelError> {
    save_tensors_with(tensors, FORMAT, path)
}

/// Writes tensors as [`save_tensors`] does, with the entry `metadata` (key and value) instead of the one that
/// model files have. It stands at the beginning of the file and can tell where the file is from.
///
/// # Errors
/// As [`save_tensors`].
///
/// ```
/// use nextword_model::weights;
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("x.safetensors");
/// let tensors = [("x".to_string(), (vec![2], vec![1.0, 2.0]))].into();
/// weights::save_tensors_with(&tensors, ("writer", "me"), &path)?;
/// let bytes = std::fs::read(&path)?;
/// assert!(bytes[8..].starts_with(br#"{"__metadata__":{"writer":"me"}"#));
/// assert_eq!(weights::load_tensors(&path)?, tensors);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn save_tensors_with(
    tensors: &NamedTensors,
    metadata: (&str, &str),
    path: &Path,
) -> Result<(), ModelError> {
    let specs = tensors
        .iter()
        .map(|(name, (shape, _))| TensorSpec::new(name, Dtype::F32, shape.clone()));
    write_file_with(path, metadata, specs.collect(), |name| {
        Ok(Values::Floats(Cow::Borrowed(&tensors[name].1)))
    })
    .map(drop)
}

/// The metadata that other programs expect of a model.
const FORMAT: (&str, &str) = ("format", "pt");

/// The float type of the tensors in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatType {
    /// 4 bytes.
    F32,
    /// 2 bytes with 11 significant bits; values above 65504 become infinite.
    F16,
    /// 2 bytes with 8 significant bits and the range of f32.
    Bf16,
}

impl FloatType {
    /// Bytes per value.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Encodes `values` as little-endian bytes, rounded to nearest even.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        let mut bytes = vec![0; values.len() * self.size()];
        match self {
            Self::F32 => {
                for (out, value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
                    *out = value.to_le_bytes();
                }
            }
            Self::F16 => {
                for (out, value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
                    *out = burn::tensor::f16::from_f32(*value).to_le_bytes();
                }
            }
            Self::Bf16 => {
                for (out, value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
                    *out = burn::tensor::bf16::from_f32(*value).to_le_bytes();
                }
            }
        }
        bytes
    }

    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
        }
    }
}

/// Writes tensors with these names and shapes to `path` atomically. Calls `values` for one tensor at a
/// time, so that only one is in memory. Returns the file's hash.
///
/// # Errors
/// The first error of `values`; [`ModelError::Format`] if it returns a wrong number of values;
/// [`ModelError::Io`] if the file cannot be written. An earlier file is then unchanged.
pub fn write_tensors<E: From<ModelError>>(
    path: &Path,
    float: FloatType,
    tensors: &[(String, Vec<usize>)],
    values: impl Fn(&str) -> Result<Vec<f32>, E>,
) -> Result<FileHash, E> {
    let specs = tensors
        .iter()
        .map(|(name, shape)| TensorSpec::new(name, float.dtype(), shape.clone()));
    write_file(path, specs.collect(), |name| {
        Ok(Values::Floats(Cow::Owned(values(name)?)))
    })
}

/// Name, type and shape of a tensor to be written.
#[derive(Clone, Debug)]
pub(crate) struct TensorSpec {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
}

/// The values of a tensor.
pub(crate) enum Values<'a> {
    /// Values to be encoded in the tensor's float type.
    Floats(Cow<'a, [f32]>),
    /// Values in the file's representation.
    Bytes(Vec<u8>),
}

impl From<TensorData> for Values<'_> {
    fn from(data: TensorData) -> Self {
        Self::Floats(Cow::Owned(to_f32_vec(data)))
    }
}

impl TensorSpec {
    pub(crate) fn new(name: impl Into<String>, dtype: Dtype, shape: Vec<usize>) -> Self {
        Self {
            name: name.into(),
            dtype,
            shape,
        }
    }

    /// Number of values.
    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Size in bytes.
    fn bytes(&self) -> usize {
        self.len() * self.dtype.bitsize() / 8
    }

    /// Returns the problem if `values` do not have the right length.
    fn check(&self, values: &Values) -> Option<String> {
        let (found, expected, what) = match values {
            Values::Floats(values) => (values.len(), self.len(), "values"),
            Values::Bytes(bytes) => (bytes.len(), self.bytes(), "bytes"),
        };
        (found != expected)
            .then(|| format!("`{}` has {found} {what} instead of {expected}", self.name))
    }

    fn write(&self, values: &Values, out: &mut impl Write) -> std::io::Result<()> {
        let float = match self.dtype {
            Dtype::F16 => FloatType::F16,
            Dtype::BF16 => FloatType::Bf16,
            _ => FloatType::F32,
        };
        match values {
            Values::Floats(values) => values
                .chunks(ENCODED_VALUES)
                .try_for_each(|chunk| out.write_all(&float.encode(chunk))),
            Values::Bytes(bytes) => out.write_all(bytes),
        }
    }
}

/// Writes `tensors` to `path` atomically: the header, then the values of one tensor at a time, which are
/// hashed on their way to the file.
///
/// # Errors
/// As [`write_tensors`].
pub(crate) fn write_file<'a, E: From<ModelError>>(
    path: &Path,
    tensors: Vec<TensorSpec>,
    values: impl FnMut(&str) -> Result<Values<'a>, E>,
) -> Result<FileHash, E> {
    write_file_with(path, FORMAT, tensors, values)
}

/// As [`write_file`], with other metadata.
fn write_file_with<'a, E: From<ModelError>>(
    path: &Path,
    metadata: (&str, &str),
    mut tensors: Vec<TensorSpec>,
    mut values: impl FnMut(&str) -> Result<Values<'a>, E>,
) -> Result<FileHash, E> {
    let io = |source| ModelError::Io {
        path: path.to_path_buf(),
        action: "write",
        source,
    };
    let format = |problem: String| ModelError::Format {
        path: path.to_path_buf(),
        problem,
    };
    // The order of the safetensors library: types with the largest alignment first, then names.
    tensors.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
    let header = header(&tensors, metadata).map_err(|e| format(e.to_string()))?;
    let file = AtomicFile::create(path).map_err(io)?;
    let mut out = BufWriter::with_capacity(WRITE_BUFFER, HashingWriter::new(file));
    out.write_all(&header).map_err(io)?;
    for tensor in &tensors {
        let values = values(&tensor.name)?;
        tensor
            .check(&values)
            .map_or(Ok(()), |problem| Err(format(problem)))?;
        tensor.write(&values, &mut out).map_err(io)?;
    }
    let out = out.into_inner().map_err(|e| io(e.into_error()))?;
    let (file, hash) = out.finish();
    file.commit().map_err(io)?;
    Ok(hash)
}

/// The length of the header and the header, padded to a multiple of 8 bytes in all; to one of 64 if there are tensors of
/// the type U64, which come first: the lines of quantized matrices, which are used from a mapped file where they are
/// aligned. Its metadata has a single entry, because the order of a hash map is not deterministic.
fn header(tensors: &[TensorSpec], (key, value): (&str, &str)) -> Result<Vec<u8>, SafeTensorError> {
    let mut end = 0;
    let infos = tensors.iter().map(|tensor| {
        let start = end;
        end += tensor.bytes();
        let info = TensorInfo {
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            data_offsets: (start, end),
        };
        (tensor.name.clone(), info)
    });
    let metadata = HashMap::from([(key.to_string(), value.to_string())]);
    let metadata = Metadata::new(Some(metadata), infos.collect())?;
    let mut json = serde_json::to_vec(&metadata)?;
    let has_lines = tensors.iter().any(|tensor| tensor.dtype == Dtype::U64);
    let alignment = if has_lines { 64 } else { 8 };
    json.resize((8 + json.len()).next_multiple_of(alignment) - 8, b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    Ok(header)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use safetensors::tensor::TensorView;

    use super::*;
    use crate::weights::load_tensors;

    #[test]
    fn a_failed_write_keeps_the_earlier_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let tensors = [("a".to_string(), vec![2]), ("b".to_string(), vec![1])];
        let write = |b: Option<Vec<f32>>| {
            write_tensors(&path, FloatType::F32, &tensors, |name| match name {
                "a" => Ok(vec![1.0, 2.0]),
                _ => b.clone().ok_or_else(|| ModelError::Format {
                    path: path.clone(),
                    problem: "no values".to_string(),
                }),
            })
        };
        write(Some(vec![3.0])).unwrap();
        let earlier = fs::read(&path).unwrap();
        for b in [None, Some(vec![1.0, 2.0])] {
            write(b).unwrap_err();
            assert!(fs::read(&path).is_ok_and(|bytes| bytes == earlier));
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn files_equal_those_of_the_safetensors_library() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        // Types out of order, an empty tensor, a scalar, and more values than are encoded at once.
        let shapes = [
            ("z.int8", Dtype::I8, vec![3, 5]),
            ("a.weight", Dtype::F32, vec![7, 20_000]),
            ("b.weight", Dtype::F32, vec![]),
            ("a.scale", Dtype::BF16, vec![4]),
            ("c.half", Dtype::F16, vec![0, 2]),
        ];
        let specs = || {
            shapes
                .iter()
                .map(|(n, d, s)| TensorSpec::new(*n, *d, s.clone()))
        };
        let bytes: BTreeMap<String, Vec<u8>> = specs()
            .map(|spec| {
                let bytes = (0..spec.bytes()).map(|i| (i % 241) as u8);
                (spec.name.clone(), bytes.collect())
            })
            .collect();
        let views = specs().map(|spec| {
            let view = TensorView::new(spec.dtype, spec.shape, &bytes[&spec.name]);
            (spec.name, view.unwrap())
        });
        let format = HashMap::from([("format".to_string(), "pt".to_string())]);
        let expected = safetensors::serialize(views, Some(format)).unwrap();
        let hash = write_file::<ModelError>(&path, specs().collect(), |name| {
            Ok(Values::Bytes(bytes[name].clone()))
        });
        assert_eq!(fs::read(&path).unwrap(), expected);
        let hash = hash.unwrap();
        assert_eq!(hash.bytes, expected.len() as u64);
        assert_eq!(hash.hex(), nextword_base::hash::sha256_hex(&expected));
    }

    #[test]
    fn floats_are_encoded_in_the_type_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let values: Vec<f32> = (0..ENCODED_VALUES + 3).map(|i| i as f32 * 0.25).collect();
        let tensors = [("a".to_string(), vec![values.len()])];
        for (float, narrow) in [
            (FloatType::F32, (|v| v) as fn(f32) -> f32),
            (FloatType::F16, |v| burn::tensor::f16::from_f32(v).to_f32()),
            (FloatType::Bf16, |v| {
                burn::tensor::bf16::from_f32(v).to_f32()
            }),
        ] {
            let written = write_tensors(&path, float, &tensors, |_| {
                Ok::<_, ModelError>(values.clone())
            });
            written.unwrap();
            let expected: Vec<f32> = values.iter().map(|v| narrow(*v)).collect();
            let read = load_tensors(&path).unwrap();
            assert_eq!(read["a"], (vec![values.len()], expected), "{float:?}");
        }
    }
}
