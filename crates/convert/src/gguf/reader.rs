//! GGUF files that are read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nextword_model::ModelError;
use nextword_model::weights::with_mapped;

use super::header::{Header, MAGIC, TensorEntry};
use super::metadata::Metadata;
use crate::ConvertError;

/// Values that are dequantized at a time. A multiple of all block lengths.
const CHUNK_VALUES: usize = 1 << 16;

/// A GGUF file whose metadata and tensor table are valid. Tensors are read on demand.
#[derive(Debug)]
pub(crate) struct GgufFile {
    path: PathBuf,
    file: Mutex<File>,
    pub(crate) metadata: Metadata,
    tensors: BTreeMap<String, TensorEntry>,
}

/// Whether `path` is a file that begins like a GGUF file, or is called like one.
///
/// ```
/// use nextword_convert::is_gguf;
///
/// assert!(!is_gguf("Cargo.toml".as_ref()) && !is_gguf("no/such/file.gguf".as_ref()));
/// ```
pub fn is_gguf(path: &Path) -> bool {
    if !path.is_file() {
        return false;
    }
    let is_named = path
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    let begins = || {
        let mut start = [0; 4];
        let read = File::open(path).and_then(|mut file| file.read_exact(&mut start));
        read.is_ok() && &start == MAGIC
    };
    is_named || begins()
}

impl GgufFile {
    /// Reads metadata and tensor table of the file at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, ConvertError> {
        let file = File::open(path).map_err(ConvertError::io(path, "read"))?;
        let size = file.metadata().map_err(ConvertError::io(path, "read"))?;
        let mut header = Header::new(file, size.len());
        let (metadata, tensors) = header.read().map_err(|problem| problem.into_error(path))?;
        let file = header.into_file();
        Ok(Self {
            path: path.to_path_buf(),
            file: Mutex::new(file),
            metadata,
            tensors,
        })
    }

    /// The path of the file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, sorted.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The entry of the tensor `name`.
    pub(crate) fn tensor(&self, name: &str) -> Option<&TensorEntry> {
        self.tensors.get(name)
    }

    /// The values of the tensor `name`. Its bytes are read in chunks.
    pub(crate) fn values(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let tensor = self.existing(name)?;
        let mut values = Vec::with_capacity(tensor.shape.iter().product());
        self.for_each_chunk(tensor, |bytes| tensor.dtype.dequantize(bytes, &mut values))?;
        Ok(values)
    }

    /// Whether two tensors have the same shape, type and bytes.
    pub(crate) fn are_equal(&self, a: &str, b: &str) -> Result<bool, ModelError> {
        let (Some(a), Some(b)) = (self.tensors.get(a), self.tensors.get(b)) else {
            return Ok(false);
        };
        if (&a.shape, a.dtype) != (&b.shape, b.dtype) {
            return Ok(false);
        }
        let mut first = Vec::new();
        let mut from = 0;
        let mut is_equal = true;
        // Both are read in the same chunks, one chunk of each at a time.
        let mut other = b.clone();
        self.for_each_chunk(a, |bytes| {
            first.clear();
            first.extend_from_slice(bytes);
            other.start = b.start + from;
            other.len = bytes.len() as u64;
            from += other.len;
            let same = self.read(&other);
            is_equal = is_equal && same.is_ok_and(|bytes| bytes == first);
        })?;
        Ok(is_equal)
    }

    /// Calls `read` with the bytes of the tensor `name`, as they are in the file, without copying them.
    ///
    /// # Errors
    /// As [`values`](Self::values).
    pub(crate) fn with_bytes<T>(
        &self,
        name: &str,
        read: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, ModelError> {
        let tensor = self.existing(name)?;
        if tensor.len == 0 {
            return Ok(read(&[]));
        }
        let range = tensor.start as usize..(tensor.start + tensor.len) as usize;
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        with_mapped(&file, range, read).map_err(|error| self.unreadable(error))
    }

    /// Frees the metadata, among them the vocabulary, when only tensors are still read.
    pub(crate) fn drop_metadata(&mut self) {
        self.metadata = Metadata::default();
    }

    fn existing(&self, name: &str) -> Result<&TensorEntry, ModelError> {
        self.tensors.get(name).ok_or_else(|| ModelError::Format {
            path: self.path.clone(),
            problem: format!("tensor `{name}` is missing"),
        })
    }

    /// Calls `each` with the bytes of a tensor, in chunks of whole blocks.
    fn for_each_chunk(
        &self,
        tensor: &TensorEntry,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), ModelError> {
        let dtype = tensor.dtype;
        let chunk = (CHUNK_VALUES / dtype.block_len() * dtype.block_bytes()) as u64;
        let mut part = tensor.clone();
        let end = tensor.start + tensor.len;
        while part.start < end {
            part.len = chunk.min(end - part.start);
            each(&self.read(&part)?);
            part.start += part.len;
        }
        Ok(())
    }

    /// The bytes of a tensor or of a part of it.
    fn read(&self, tensor: &TensorEntry) -> Result<Vec<u8>, ModelError> {
        let mut bytes = vec![0; tensor.len as usize];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut read = || {
            file.seek(SeekFrom::Start(tensor.start))?;
            file.read_exact(&mut bytes)
        };
        read().map_err(|error| self.unreadable(error))?;
        Ok(bytes)
    }

    fn unreadable(&self, source: std::io::Error) -> ModelError {
        ModelError::Io {
            path: self.path.clone(),
            action: "read",
            source,
        }
    }
}
