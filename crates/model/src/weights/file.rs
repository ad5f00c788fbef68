//! Tensors out of a safetensors file, one at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors};

use crate::ModelError;

/// Headers above this are refused: that of GPT-2 XL takes 60 kB.
const HEADER_LIMIT: u64 = 16 << 20;

/// So many bytes of a tensor are mapped at once: what was read need not stay in memory.
const PIECE: usize = 8 << 20;

/// Shape and values of tensors by name.
pub type NamedTensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A safetensors file whose header was checked. Values are mapped into memory and copied when they
/// are asked for, so that reading holds one tensor beside what is made of it.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    shape: Vec<usize>,
    dtype: Dtype,
    /// Bytes within the file.
    place: Range<usize>,
}

impl TensorFile {
    /// Reads the header of the file at `path`.
    ///
    /// # Errors
    /// [`ModelError::Io`] or [`ModelError::Format`] if it cannot be read or understood.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let file = File::open(path).map_err(|e| io(path, e))?;
        let len = file.metadata().map_err(|e| io(path, e))?.len();
        if len < 8 {
            return Err(format(path, format!("{len} bytes are no safetensors file")));
        }
        let map =
            map(&file, 0..usize::try_from(len).unwrap_or(usize::MAX)).map_err(|e| io(path, e))?;
        let header = map
            .iter()
            .take(8)
            .rev()
            .fold(0_u64, |n, b| n << 8 | u64::from(*b));
        if header > HEADER_LIMIT {
            let problem = format!(
                "a header of {header} bytes is above the limit of {HEADER_LIMIT}; \
                 this is no safetensors file"
            );
            return Err(format(path, problem));
        }
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|e| format(path, e.to_string()))?;
        let entry = |info: &safetensors::tensor::TensorInfo| {
            let (begin, end) = info.data_offsets;
            Entry {
                shape: info.shape.clone(),
                dtype: info.dtype,
                place: begin + 8 + header..end + 8 + header,
            }
        };
        let tensors = metadata.tensors().into_iter();
        Ok(Self {
            path: path.to_path_buf(),
            file,
            tensors: tensors.map(|(name, info)| (name, entry(info))).collect(),
        })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of the tensor called `name`, if there is one.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.tensors.get(name)?.shape)
    }

    /// The type of `name`'s numbers, if there is such a tensor.
    pub(crate) fn dtype(&self, name: &str) -> Option<Dtype> {
        Some(self.tensors.get(name)?.dtype)
    }

    /// The bytes of the tensor called `name`, of whatever type.
    ///
    /// # Errors
    /// [`ModelError::Format`] if there is none; [`ModelError::Io`].
    pub(crate) fn bytes(&self, name: &str) -> Result<Vec<u8>, ModelError> {
        let entry = self.tensors.get(name);
        let entry = entry.ok_or_else(|| format(&self.path, format!("holds no `{name}`")))?;
        if entry.place.is_empty() {
            return Ok(Vec::new());
        }
        let map = map(&self.file, entry.place.clone()).map_err(|e| io(&self.path, e))?;
        Ok(map.to_vec())
    }

    /// What is wrong with the type of `name`'s numbers: `None` for f64, f32, f16 and bf16.
    pub fn not_floats(&self, name: &str) -> Option<String> {
        let dtype = self.tensors.get(name)?.dtype;
        (!is_float(dtype)).then(|| format!("  `{name}` holds {dtype:?}, not floats"))
    }

    /// The values of the tensor called `name` as f32.
    ///
    /// # Errors
    /// [`ModelError::Format`] if there is none or it holds no floats; [`ModelError::Io`].
    pub fn values(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let entry = self.tensors.get(name).filter(|entry| is_float(entry.dtype));
        let Some(entry) = entry else {
            return Err(format(
                &self.path,
                format!("holds no floats called `{name}`"),
            ));
        };
        let mut values = Vec::with_capacity(entry.shape.iter().product());
        let mut begin = entry.place.start;
        while begin < entry.place.end {
            let end = entry.place.end.min(begin + PIECE);
            let bytes = map(&self.file, begin..end).map_err(|e| io(&self.path, e))?;
            decode(entry.dtype, &bytes, &mut values);
            begin = end;
        }
        Ok(values)
    }
}

/// Reads every tensor of a safetensors file as f32: shape and values by name.
///
/// # Errors
/// [`ModelError::Io`] or [`ModelError::Format`] if the file cannot be read or understood.
pub fn load_tensors(path: &Path) -> Result<NamedTensors, ModelError> {
    let file = TensorFile::open(path)?;
    let read = |(name, entry): (&String, &Entry)| {
        Ok((name.clone(), (entry.shape.clone(), file.values(name)?)))
    };
    file.tensors.iter().map(read).collect()
}

#[allow(unsafe_code)]
fn map(file: &File, place: Range<usize>) -> std::io::Result<memmap2::Mmap> {
    // SAFETY: every value is checked for its bounds and copied before it is used. A file that
    // another process shortens meanwhile can end this one by a signal; it cannot corrupt it.
    unsafe {
        memmap2::MmapOptions::new()
            .offset(place.start as u64)
            .len(place.len())
            .map(file)
    }
}

fn io(path: &Path, source: std::io::Error) -> ModelError {
    ModelError::Io {
        path: path.to_path_buf(),
        action: "read",
        source,
    }
}

fn format(path: &Path, problem: String) -> ModelError {
    ModelError::Format {
        path: path.to_path_buf(),
        problem,
    }
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// Appends the numbers in `bytes` as f32.
fn decode(dtype: Dtype, bytes: &[u8], into: &mut Vec<f32>) {
    match dtype {
        Dtype::F64 => into.extend(
            bytes
                .as_chunks()
                .0
                .iter()
                .map(|b| f64::from_le_bytes(*b) as f32),
        ),
        Dtype::BF16 => {
            let widen = |b: &[u8; 2]| burn::tensor::bf16::from_le_bytes(*b).to_f32();
            into.extend(bytes.as_chunks().0.iter().map(widen));
        }
        Dtype::F16 => {
            let widen = |b: &[u8; 2]| burn::tensor::f16::from_le_bytes(*b).to_f32();
            into.extend(bytes.as_chunks().0.iter().map(widen));
        }
        _ => into.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
    }
}
