//! Reading a safetensors file, one tensor at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use nextword_base::git_lfs;
use safetensors::tensor::{Dtype, SafeTensors};

use crate::ModelError;

/// Maximum header size in bytes. The header of GPT-2 XL takes 60 kB.
const MAX_HEADER_BYTES: u64 = 16 << 20;

/// How to mend a file that is not a valid safetensors file.
const COPY_AGAIN: &str =
    "the file may be cut off or damaged: download, copy or save the model again";

/// Number of bytes of a tensor mapped at once; parts already read can be paged out.
const MAP_CHUNK: usize = 8 << 20;

/// Shape and values of tensors by name.
pub type NamedTensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A safetensors file with a valid header. Values are memory-mapped and copied on demand, so that
/// only one tensor at a time is in memory. A file from [`open_mapped`](Self::open_mapped) stays mapped, and tensors that
/// are stored as they are used are not copied.
///
/// # Example
///
/// ```
/// use nextword_model::weights::TensorFile;
///
/// let file = TensorFile::open("../../docs/models/statquest/model.safetensors".as_ref())?;
/// assert_eq!(file.shape("head.weight"), Some([2, 5].as_slice()));
/// assert_eq!(file.values("head.bias")?.len(), 5);
/// # Ok::<(), nextword_model::ModelError>(())
/// ```
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    tensors: BTreeMap<String, Entry>,
    /// The whole file, if it stays mapped.
    mapped: Option<Bytes>,
}

#[derive(Debug)]
struct Entry {
    shape: Vec<usize>,
    dtype: Dtype,
    /// Byte range in the file.
    byte_range: Range<usize>,
}

impl TensorFile {
    /// Reads the header of the file at `path`.
    ///
    /// # Errors
    /// [`ModelError::Io`] or [`ModelError::Format`] if it cannot be read or is invalid.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let file = File::open(path).map_err(|e| io(path, e))?;
        let len = file.metadata().map_err(|e| io(path, e))?.len();
        if len < 8 {
            let problem = format!("not a safetensors file: only {len} bytes; hint: {COPY_AGAIN}");
            return Err(format(path, problem));
        }
        let map =
            map(&file, 0..usize::try_from(len).unwrap_or(usize::MAX)).map_err(|e| io(path, e))?;
        if git_lfs::is_pointer(&map) {
            return Err(format(path, git_lfs::POINTER_PROBLEM.to_string()));
        }
        let header = map
            .iter()
            .take(8)
            .rev()
            .fold(0_u64, |n, b| n << 8 | u64::from(*b));
        if header > MAX_HEADER_BYTES {
            let problem = format!(
                "not a safetensors file: its first 8 bytes give a header of {header} bytes (limit: \
                 {MAX_HEADER_BYTES})"
            );
            return Err(format(path, problem));
        }
        let (header, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|e| format(path, format!("{e}; hint: {COPY_AGAIN}")))?;
        let entry = |info: &safetensors::tensor::TensorInfo| {
            let (start, end) = info.data_offsets;
            Entry {
                shape: info.shape.clone(),
                dtype: info.dtype,
                byte_range: start + 8 + header..end + 8 + header,
            }
        };
        let tensors = metadata.tensors().into_iter();
        Ok(Self {
            path: path.to_path_buf(),
            file,
            tensors: tensors.map(|(name, info)| (name, entry(info))).collect(),
            mapped: None,
        })
    }

    /// Opens the file as [`open`](Self::open) and maps it into memory, as long as this or a tensor of it exists.
    ///
    /// Pages are read ahead where the system follows that advice (`madvise`), and otherwise when they are first used. They
    /// are shared with other processes that map the file, and can be dropped by
    /// the system without being written anywhere. The file must not change meanwhile: values would change with it, and
    /// if it becomes shorter, the system ends the process (SIGBUS). To replace it by renaming another one is safe.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_mapped(path: &Path) -> Result<Self, ModelError> {
        let mut file = Self::open(path)?;
        let end = file.tensors.values().map(|entry| entry.byte_range.end);
        let end = end.max().unwrap_or_default();
        let len = file.file.metadata().map_err(|e| io(path, e))?.len();
        if end > 0 && end as u64 <= len {
            let map = map(&file.file, 0..end).map_err(|e| io(path, e))?;
            #[cfg(unix)]
            drop(map.advise(memmap2::Advice::WillNeed)); // Only a hint: reading ahead.
            file.mapped = Some(Bytes::from_owner(map));
        }
        Ok(file)
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of the tensor `name`, if the file has it.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.tensors.get(name)?.shape)
    }

    /// The element type of the tensor `name`, if the file has it.
    pub(crate) fn dtype(&self, name: &str) -> Option<Dtype> {
        Some(self.tensors.get(name)?.dtype)
    }

    /// Calls `read` with the bytes of the tensor `name`, of any type.
    ///
    /// # Errors
    /// [`ModelError::Format`] if the file does not have it; [`ModelError::Io`].
    pub(crate) fn with_bytes<T>(
        &self,
        name: &str,
        read: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, ModelError> {
        let entry = self.tensors.get(name);
        let entry =
            entry.ok_or_else(|| format(&self.path, format!("tensor `{name}` is missing")))?;
        if entry.byte_range.is_empty() {
            return Ok(read(&[]));
        }
        let range = entry.byte_range.clone();
        with_mapped(&self.file, range, read).map_err(|e| io(&self.path, e))
    }

    /// The bytes of the tensor `name` without copying them, if the file stays mapped and has it.
    pub(crate) fn shared_bytes(&self, name: &str) -> Option<Bytes> {
        let range = &self.tensors.get(name)?.byte_range;
        Some(self.mapped.as_ref()?.slice(range.clone()))
    }

    /// The values of the tensor `name` without copying them, if the file stays mapped and has them as they are in
    /// memory: as f32 at a multiple of four bytes.
    pub(crate) fn shared_values(&self, name: &str) -> Option<Bytes> {
        let is_f32 = self.dtype(name)? == Dtype::F32 && cfg!(target_endian = "little");
        let bytes = self.shared_bytes(name).filter(|_| is_f32)?;
        let is_aligned = bytes.as_ptr().addr().is_multiple_of(align_of::<f32>());
        is_aligned.then_some(bytes)
    }

    /// Checks that the tensor `name` is f64, f32, f16 or bf16. Returns the problem if it is not.
    pub fn check_float(&self, name: &str) -> Option<String> {
        let dtype = self.tensors.get(name)?.dtype;
        (!is_float(dtype))
            .then(|| format!("  `{name}` has type {dtype:?}, which is not a float type"))
    }

    /// The values of the tensor `name` as f32.
    ///
    /// # Errors
    /// [`ModelError::Format`] if the file does not have it or its type is not a float type;
    /// [`ModelError::Io`].
    pub fn values(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let entry = self.tensors.get(name).filter(|entry| is_float(entry.dtype));
        let Some(entry) = entry else {
            return Err(format(
                &self.path,
                format!("tensor `{name}` is missing or does not have a float type"),
            ));
        };
        let mut values = Vec::with_capacity(entry.shape.iter().product());
        let mut start = entry.byte_range.start;
        while start < entry.byte_range.end {
            let end = entry.byte_range.end.min(start + MAP_CHUNK);
            let bytes = map(&self.file, start..end).map_err(|e| io(&self.path, e))?;
            decode(entry.dtype, &bytes, &mut values);
            start = end;
        }
        Ok(values)
    }
}

/// Reads all tensors of a safetensors file as f32.
///
/// # Errors
/// [`ModelError::Io`] or [`ModelError::Format`] if the file cannot be read or is invalid.
pub fn load_tensors(path: &Path) -> Result<NamedTensors, ModelError> {
    let file = TensorFile::open(path)?;
    let read = |(name, entry): (&String, &Entry)| {
        Ok((name.clone(), (entry.shape.clone(), file.values(name)?)))
    };
    file.tensors.iter().map(read).collect()
}

/// Calls `read` with the bytes `byte_range` of `file`, mapped into memory: unlike a copy, they take no memory that
/// other processes could need.
///
/// ```
/// use std::fs::File;
/// use nextword_model::weights::with_mapped;
///
/// let file = File::open("Cargo.toml")?;
/// let is_start = with_mapped(&file, 0..9, |bytes| bytes == b"[package]")?;
/// assert!(is_start);
/// assert!(with_mapped(&file, 0..1 << 30, <[u8]>::len).is_err());
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// If the file cannot be mapped, or ends before the end of `byte_range`.
pub fn with_mapped<T>(
    file: &File,
    byte_range: Range<usize>,
    read: impl FnOnce(&[u8]) -> T,
) -> std::io::Result<T> {
    if byte_range.end as u64 > file.metadata()?.len() {
        return Err(std::io::ErrorKind::UnexpectedEof.into()); // Reading such a map would end the process.
    }
    Ok(read(&map(file, byte_range)?))
}

#[allow(unsafe_code)]
fn map(file: &File, byte_range: Range<usize>) -> std::io::Result<memmap2::Mmap> {
    // SAFETY: every access is bounds-checked, and any bytes are valid values. If another process
    // truncates the file meanwhile, SIGBUS ends this process; memory is not corrupted.
    unsafe {
        memmap2::MmapOptions::new()
            .offset(byte_range.start as u64)
            .len(byte_range.len())
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

/// Appends the values in `bytes` as f32.
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
