//! The part of a GGUF file before its tensors. Files are untrusted, so every count and every length is compared with the
//! size of the file before anything is allocated.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use nextword_base::git_lfs;

use super::metadata::{Metadata, MetadataError, ReadValue, Scalar};
use super::tensor_type::TensorType;
use crate::ConvertError;

/// The first bytes of a file.
pub(super) const MAGIC: &[u8; 4] = b"GGUF";

/// Maximum size in bytes of everything before the tensors. The vocabularies of large models take about 15 MB.
const MAX_HEADER_BYTES: u64 = 64 << 20;

/// Maximum length in bytes of a key or of the name of a tensor.
const MAX_NAME_BYTES: u64 = 1 << 16;

/// Alignment of the tensors in bytes, unless the metadata has another one.
const DEFAULT_ALIGNMENT: u64 = 32;

/// Maximum alignment in bytes.
const MAX_ALIGNMENT: u64 = 1 << 20;

/// Maximum number of axes of a tensor.
const MAX_AXES: u32 = 4;

/// How to mend a damaged file.
const DOWNLOAD_AGAIN: &str = "hint: the file may be cut off or damaged: download or copy it again";

/// An entry of the tensor table.
#[derive(Clone, Debug)]
pub(crate) struct TensorEntry {
    /// The slowest axis first, as in our files.
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: TensorType,
    /// Position in the file.
    pub(super) start: u64,
    /// Size in bytes.
    pub(super) len: u64,
}

/// Why a file cannot be read.
pub(super) enum Problem {
    Io(std::io::Error),
    Invalid(String),
}

impl Problem {
    pub(super) fn into_error(self, path: &Path) -> ConvertError {
        match self {
            Self::Io(error) => ConvertError::io(path, "read")(error),
            Self::Invalid(problem) => ConvertError::source(path, problem),
        }
    }
}

impl From<MetadataError> for Problem {
    fn from(MetadataError(problem): MetadataError) -> Self {
        Self::Invalid(problem)
    }
}

/// A damaged file: `what` is wrong.
fn damaged<T>(what: impl std::fmt::Display) -> Result<T, Problem> {
    Err(Problem::Invalid(format!(
        "is not a valid GGUF file: {what}; {DOWNLOAD_AGAIN}"
    )))
}

/// The part of the file before the tensors.
pub(super) struct Header {
    input: BufReader<std::io::Take<File>>,
    /// Bytes read.
    position: u64,
    /// Size of the file.
    size: u64,
}

impl Header {
    /// Of a `file` of `size` bytes.
    pub(super) fn new(file: File, size: u64) -> Self {
        Self {
            input: BufReader::new(file.take(MAX_HEADER_BYTES)),
            position: 0,
            size,
        }
    }

    /// The file, to read the tensors.
    pub(super) fn into_file(self) -> File {
        self.input.into_inner().into_inner()
    }

    /// Reads metadata and tensor table.
    pub(super) fn read(&mut self) -> Result<(Metadata, BTreeMap<String, TensorEntry>), Problem> {
        if self.size < 24 {
            return damaged(format!("it has only {} bytes", self.size));
        }
        let start: [u8; 8] = self.array()?;
        if &start == b"version " {
            return Err(Problem::Invalid(git_lfs::POINTER_PROBLEM.to_string()));
        }
        if !start.starts_with(MAGIC) {
            return Err(Problem::Invalid(
                "is not a GGUF file, which would begin with `GGUF`; hint: pass a .gguf file, or a folder with \
                 config.json, model.safetensors and tokenizer.json"
                    .to_string(),
            ));
        }
        let version = [start[4], start[5], start[6], start[7]];
        let version = match (u32::from_le_bytes(version), u32::from_be_bytes(version)) {
            (version @ (2 | 3), _) => version,
            (_, 1..=3) => {
                return Err(Problem::Invalid(
                    "is a big-endian GGUF file; hint: convert the model again for little-endian machines".to_string(),
                ));
            }
            (version, _) => {
                return Err(Problem::Invalid(format!(
                    "has version {version} of GGUF; supported are 2 and 3; hint: convert the model again with a current \
                     version of llama.cpp"
                )));
            }
        };
        debug_assert!(version >= 2);
        let tensor_count = u64::from_le_bytes(self.array()?);
        let entry_count = u64::from_le_bytes(self.array()?);
        // The shortest entry: an empty key, a type and a byte.
        self.check_count(entry_count, 13, "metadata entries")?;
        let mut metadata = Metadata::default();
        for _ in 0..entry_count {
            let key = self.text(MAX_NAME_BYTES, "a metadata key")?;
            let kind = u32::from_le_bytes(self.array()?);
            let value = self.value(&key, kind)?;
            metadata.insert(key, value)?;
        }
        // The shortest entry: an empty name, one axis, a type and an offset.
        self.check_count(tensor_count, 32, "tensors")?;
        let mut table = Vec::new();
        for _ in 0..tensor_count {
            table.push(self.tensor_info()?);
        }
        let alignment = match metadata.count("general.alignment")? {
            None => DEFAULT_ALIGNMENT,
            Some(alignment) => alignment as u64,
        };
        if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
            return damaged(format!(
                "`general.alignment` is {alignment}, which is not a power of two up to {MAX_ALIGNMENT}"
            ));
        }
        let tensors = self.check_table(table, alignment)?;
        Ok((metadata, tensors))
    }

    /// Bytes that the rest of the header can have.
    fn remaining(&self) -> u64 {
        self.size
            .min(MAX_HEADER_BYTES)
            .saturating_sub(self.position)
    }

    /// Checks that `count` items of at least `item` bytes fit.
    fn check_count(&self, count: u64, item: u64, what: &str) -> Result<(), Problem> {
        if count <= self.remaining() / item {
            return Ok(());
        }
        damaged(format!(
            "it claims {count} {what}, which do not fit into its {} bytes",
            self.size
        ))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), Problem> {
        if bytes.len() as u64 > self.remaining() {
            return damaged(if self.size > MAX_HEADER_BYTES {
                format!("everything before the tensors has more than {MAX_HEADER_BYTES} bytes")
            } else {
                format!("it ends within its header, after {} bytes", self.size)
            });
        }
        self.input.read_exact(bytes).map_err(Problem::Io)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn bytes(&mut self, len: u64, what: &str) -> Result<Vec<u8>, Problem> {
        self.check_count(len, 1, &format!("bytes for {what}"))?;
        let mut bytes = vec![0; len as usize];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn text(&mut self, limit: u64, what: &str) -> Result<String, Problem> {
        let len = u64::from_le_bytes(self.array()?);
        if len > limit {
            return damaged(format!("{what} has {len} bytes; the maximum is {limit}"));
        }
        let bytes = self.bytes(len, what)?;
        String::from_utf8(bytes).or_else(|_| damaged(format!("{what} is not UTF-8 text")))
    }

    fn value(&mut self, key: &str, kind: u32) -> Result<ReadValue, Problem> {
        const BOOL: u32 = 7;
        const STRING: u32 = 8;
        const ARRAY: u32 = 9;
        let name = format!("`{key}`");
        match kind {
            BOOL => match self.array()? {
                [0] => Ok(ReadValue::Bool(false)),
                [1] => Ok(ReadValue::Bool(true)),
                [other] => damaged(format!("{name} is neither true nor false, but {other}")),
            },
            STRING => Ok(ReadValue::Text(self.text(MAX_HEADER_BYTES, &name)?)),
            ARRAY => {
                let kind = u32::from_le_bytes(self.array()?);
                let count = u64::from_le_bytes(self.array()?);
                match kind {
                    STRING => {
                        self.check_count(count, 8, &format!("strings in {name}"))?;
                        let text = |_| self.text(MAX_HEADER_BYTES, &name);
                        let texts: Result<Vec<String>, Problem> = (0..count).map(text).collect();
                        Ok(ReadValue::Texts(texts?))
                    }
                    BOOL => Ok(ReadValue::Bools(self.bytes(count, &name)?)),
                    ARRAY => damaged(format!(
                        "{name} is a list of lists, which no known model has"
                    )),
                    _ => {
                        let Some(scalar) = Scalar::from_code(kind) else {
                            return damaged(format!("{name} is a list of the unknown type {kind}"));
                        };
                        let size = scalar.size() as u64;
                        self.check_count(count, size, &format!("numbers in {name}"))?;
                        let bytes = self.bytes(count * size, &name)?;
                        Ok(ReadValue::Numbers(scalar, bytes))
                    }
                }
            }
            _ => {
                let Some(scalar) = Scalar::from_code(kind) else {
                    return damaged(format!("{name} has the unknown type {kind}"));
                };
                let bytes = self.bytes(scalar.size() as u64, &name)?;
                Ok(ReadValue::Number(scalar.read(&bytes)))
            }
        }
    }

    fn tensor_info(&mut self) -> Result<(String, TensorEntry), Problem> {
        let name = self.text(MAX_NAME_BYTES, "the name of a tensor")?;
        let axes = u32::from_le_bytes(self.array()?);
        if axes == 0 || axes > MAX_AXES {
            return damaged(format!(
                "tensor `{name}` has {axes} axes; the maximum is {MAX_AXES}"
            ));
        }
        let mut shape = Vec::new();
        let mut values = 1_u64;
        for _ in 0..axes {
            let size = u64::from_le_bytes(self.array()?);
            let product = values.checked_mul(size).filter(|n| *n > 0 && *n < 1 << 48);
            let (Some(product), Ok(size)) = (product, usize::try_from(size)) else {
                return damaged(format!(
                    "tensor `{name}` has an axis of {size}, or too many values"
                ));
            };
            values = product;
            shape.push(size);
        }
        let code = u32::from_le_bytes(self.array()?);
        let dtype = TensorType::from_code(code).map_err(|kind| {
            let names = TensorType::ALL.map(TensorType::name).join(", ");
            Problem::Invalid(format!(
                "tensor `{name}` has {kind}; supported are {names}; hint: download the model in one of these types"
            ))
        })?;
        let block = dtype.block_len();
        if !shape[0].is_multiple_of(block) {
            return damaged(format!(
                "tensor `{name}` has rows of {} values, but {} has blocks of {block}",
                shape[0],
                dtype.name()
            ));
        }
        while shape.len() > 1 && shape.last() == Some(&1) {
            shape.pop(); // Axes that only fill up.
        }
        shape.reverse();
        let entry = TensorEntry {
            shape,
            dtype,
            start: u64::from_le_bytes(self.array()?),
            len: values / block as u64 * dtype.block_bytes() as u64,
        };
        Ok((name, entry))
    }

    /// Checks that all tensors are within the file, aligned and distinct, and makes their positions absolute.
    fn check_table(
        &self,
        table: Vec<(String, TensorEntry)>,
        alignment: u64,
    ) -> Result<BTreeMap<String, TensorEntry>, Problem> {
        let first = self.position.next_multiple_of(alignment);
        let mut ranges = Vec::new();
        let mut tensors = BTreeMap::new();
        for (name, mut tensor) in table {
            if !tensor.start.is_multiple_of(alignment) {
                return damaged(format!(
                    "tensor `{name}` begins at {}, which is not a multiple of {alignment}",
                    tensor.start
                ));
            }
            let start = tensor.start.checked_add(first);
            let end = start.and_then(|start| start.checked_add(tensor.len));
            let (Some(start), Some(end)) = (start, end.filter(|end| *end <= self.size)) else {
                return damaged(format!(
                    "tensor `{name}` ends after the file's {} bytes",
                    self.size
                ));
            };
            tensor.start = start;
            ranges.push((start, end, name.clone()));
            if tensors.insert(name.clone(), tensor).is_some() {
                return damaged(format!("it has two tensors `{name}`"));
            }
        }
        ranges.sort();
        for pair in ranges.windows(2) {
            if pair[0].1 > pair[1].0 {
                return damaged(format!(
                    "tensors `{}` and `{}` overlap",
                    pair[0].2, pair[1].2
                ));
            }
        }
        Ok(tensors)
    }
}
