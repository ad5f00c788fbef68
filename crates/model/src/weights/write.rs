//! Writing safetensors files.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use burn_pack::AtomicFile;
use safetensors::tensor::{Dtype, TensorView, View};

use super::{NamedTensors, for_each, to_f32_vec};
use crate::{ModelError, Transformer, quantize, write_atomically};

/// Writes `model` to `path` atomically, in f32 or, if it is quantized, in its bit width. The same
/// weights give the same bytes.
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
        tensors.insert(name.to_string(), (shape, to_f32_vec(data)));
    });
    save_tensors(&tensors, path)
}

/// Writes named f32 tensors (shape and values) to `path` atomically.
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
    let file = safetensors::serialize(views, metadata()).map_err(|e| format(e.to_string()))?;
    write_atomically(path, &file)
}

/// The metadata that other programs expect. It has a single entry, because the order of a hash map is
/// not deterministic.
#[allow(clippy::unnecessary_wraps)] // The type that safetensors expects.
pub(crate) fn metadata() -> Option<HashMap<String, String>> {
    Some(HashMap::from([("format".to_string(), "pt".to_string())]))
}

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
        let values = values.iter();
        match self {
            Self::F32 => values.flat_map(|v| v.to_le_bytes()).collect(),
            Self::F16 => {
                let narrow = |v: &f32| burn::tensor::f16::from_f32(*v).to_le_bytes();
                values.flat_map(narrow).collect()
            }
            Self::Bf16 => {
                let narrow = |v: &f32| burn::tensor::bf16::from_f32(*v).to_le_bytes();
                values.flat_map(narrow).collect()
            }
        }
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
/// time, so that only one is in memory.
///
/// # Errors
/// The first error of `values`; [`ModelError::Format`] if it returns a wrong number of values;
/// [`ModelError::Io`] if the file cannot be written. An earlier file is then unchanged.
pub fn write_tensors<E: From<ModelError>>(
    path: &Path,
    float: FloatType,
    tensors: &[(String, Vec<usize>)],
    values: impl Fn(&str) -> Result<Vec<f32>, E>,
) -> Result<(), E> {
    let failed = RefCell::new(None);
    let produce = |name: &str, len: usize| {
        let placeholder = || vec![0; len * float.size()]; // The file is discarded below.
        if failed.borrow().is_some() {
            return placeholder();
        }
        let problem = match values(name) {
            Ok(values) if values.len() == len => return float.encode(&values),
            Ok(values) => E::from(ModelError::Format {
                path: path.to_path_buf(),
                problem: format!("`{name}` has {} values instead of {len}", values.len()),
            }),
            Err(error) => error,
        };
        failed.borrow_mut().get_or_insert(problem);
        placeholder()
    };
    let views = tensors.iter().map(|(name, shape)| {
        let view = LazyTensor {
            name,
            shape,
            float,
            produce: &produce,
        };
        (name.as_str(), view)
    });
    let io = |problem: String| ModelError::Io {
        path: path.to_path_buf(),
        action: "write",
        source: std::io::Error::other(problem),
    };
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    // Removes the temporary file unless it is committed.
    let (temp, file) = AtomicFile::create(&target).map_err(|e| io(e.to_string()))?;
    drop(file);
    let written = safetensors::serialize_to_file(views, metadata(), temp.path());
    if let Some(error) = failed.take() {
        return Err(error);
    }
    written.map_err(|e| io(e.to_string()))?;
    Ok(temp.commit().map_err(|e| io(e.to_string()))?)
}

/// A tensor whose values are computed when they are written.
struct LazyTensor<'a, F> {
    name: &'a str,
    shape: &'a [usize],
    float: FloatType,
    produce: &'a F,
}

impl<F: Fn(&str, usize) -> Vec<u8>> View for LazyTensor<'_, F> {
    fn dtype(&self) -> Dtype {
        self.float.dtype()
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned((self.produce)(self.name, self.shape.iter().product()))
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.float.size()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_keeps_the_earlier_file() {
        let folder = format!("nextword-failed-write-{}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("model.safetensors");
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
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
