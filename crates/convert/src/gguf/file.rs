//! Writer for GGUF files: metadata, tensor table and tensor data.

use std::io::{BufWriter, Write};
use std::path::Path;

use nextword_base::atomic::AtomicFile;

use super::tensor_type::TensorType;
use super::{GgufType, blocks};
use crate::ConvertError;

/// Alignment of tensors in bytes.
const ALIGNMENT: usize = 32;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum MetadataValue {
    U32(usize),
    F32(f64),
    Bool(bool),
    String(String),
    StringArray(Vec<String>),
    F32Array(Vec<f32>),
    I32Array(Vec<i32>),
    BoolArray(Vec<bool>),
}

/// An entry of the tensor table.
pub(crate) struct TensorInfo {
    name: String,
    shape: Vec<usize>,
    content: Content,
}

/// The type of a tensor, and whether its values are encoded or given as blocks.
#[derive(Clone, Copy)]
enum Content {
    Encoded(GgufType),
    Blocks(TensorType),
}

impl TensorInfo {
    /// Matrices get the type `matrix_type`. Vectors and position embeddings stay f32.
    pub(crate) fn new(name: &str, shape: &[usize], matrix_type: GgufType) -> Self {
        let is_matrix = shape.len() == 2 && name != "position_embd.weight";
        let fits = shape
            .last()
            .is_some_and(|row| row.is_multiple_of(blocks::BLOCK_LEN));
        let dtype = match matrix_type {
            _ if !is_matrix => GgufType::F32,
            GgufType::Q8_0 | GgufType::Q4_0 | GgufType::Q4_1 if !fits => GgufType::F16,
            matrix_type => matrix_type,
        };
        Self {
            name: name.to_string(),
            shape: shape.to_vec(),
            content: Content::Encoded(dtype),
        }
    }

    /// A matrix that is given as blocks of the type `dtype`.
    pub(crate) fn blocks(name: &str, shape: &[usize], dtype: TensorType) -> Self {
        Self {
            name: name.to_string(),
            shape: shape.to_vec(),
            content: Content::Blocks(dtype),
        }
    }

    fn dtype(&self) -> TensorType {
        match self.content {
            Content::Encoded(dtype) => dtype.tensor_type(),
            Content::Blocks(dtype) => dtype,
        }
    }

    fn bytes(&self) -> usize {
        let (dtype, len) = (self.dtype(), self.shape.iter().product::<usize>());
        len / dtype.block_len() * dtype.block_bytes()
    }
}

/// The values of a tensor.
pub(crate) enum TensorValues {
    /// Values to be encoded in the tensor's type.
    Floats(Vec<f32>),
    /// Blocks of the tensor's type.
    Blocks(Vec<u8>),
}

/// Writes the file `to` atomically. `values` returns one tensor at a time.
pub(crate) fn write(
    to: &Path,
    meta: &[(String, MetadataValue)],
    tensors: &[TensorInfo],
    values: impl Fn(usize) -> Result<TensorValues, ConvertError>,
) -> Result<(), ConvertError> {
    let io = |error| ConvertError::io(to, "write")(error);
    let mut file = BufWriter::new(AtomicFile::create(to).map_err(io)?);
    let header = header(meta, tensors);
    file.write_all(&header).map_err(io)?;
    for (index, tensor) in tensors.iter().enumerate() {
        let mut bytes = match (values(index)?, tensor.content) {
            (TensorValues::Floats(values), Content::Encoded(dtype)) => {
                if let Some((limit, dtype)) = dtype.limit() {
                    crate::check_range(&tensor.name, &values, limit, dtype)?;
                }
                dtype.encode(&values)
            }
            (TensorValues::Blocks(bytes), Content::Blocks(_)) => bytes,
            (TensorValues::Floats(_), Content::Blocks(_))
            | (TensorValues::Blocks(_), Content::Encoded(_)) => Vec::new(), // Refused below.
        };
        if bytes.len() != tensor.bytes() {
            let (name, found, expected) = (&tensor.name, bytes.len(), tensor.bytes());
            let problem = format!(
                "cannot write `{name}`: its values have {found} bytes, but its type and shape {expected}"
            );
            return Err(ConvertError::source(to, problem));
        }
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        file.write_all(&bytes).map_err(io)?;
    }
    let file = file.into_inner().map_err(|error| io(error.into_error()))?;
    file.commit().map_err(io)
}

/// Everything before the tensor data.
fn header(meta: &[(String, MetadataValue)], tensors: &[TensorInfo]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3_u32.to_le_bytes()); // The version.
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((meta.len() as u64).to_le_bytes());
    for (key, value) in meta {
        write_string(&mut out, key);
        value.write(&mut out);
    }
    let mut offset = 0;
    for tensor in tensors {
        write_string(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        for size in tensor.shape.iter().rev() {
            out.extend((*size as u64).to_le_bytes()); // The fastest axis first.
        }
        out.extend(tensor.dtype().code().to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset += tensor.bytes().next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out
}

fn write_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl MetadataValue {
    fn write(&self, out: &mut Vec<u8>) {
        const UINT32: u32 = 4;
        const INT32: u32 = 5;
        const FLOAT32: u32 = 6;
        const BOOL: u32 = 7;
        const STRING: u32 = 8;
        const ARRAY: u32 = 9;
        let mut write_type = |kind: u32, array: Option<usize>| {
            if let Some(len) = array {
                out.extend(ARRAY.to_le_bytes());
                out.extend(kind.to_le_bytes());
                out.extend((len as u64).to_le_bytes());
            } else {
                out.extend(kind.to_le_bytes());
            }
        };
        match self {
            Self::U32(n) => {
                write_type(UINT32, None);
                out.extend((*n as u32).to_le_bytes());
            }
            Self::F32(n) => {
                write_type(FLOAT32, None);
                out.extend((*n as f32).to_le_bytes());
            }
            Self::Bool(is_on) => {
                write_type(BOOL, None);
                out.push(u8::from(*is_on));
            }
            Self::String(value) => {
                write_type(STRING, None);
                write_string(out, value);
            }
            Self::StringArray(list) => {
                write_type(STRING, Some(list.len()));
                for value in list {
                    write_string(out, value);
                }
            }
            Self::F32Array(list) => {
                write_type(FLOAT32, Some(list.len()));
                out.extend(list.iter().flat_map(|n| n.to_le_bytes()));
            }
            Self::I32Array(list) => {
                write_type(INT32, Some(list.len()));
                out.extend(list.iter().flat_map(|n| n.to_le_bytes()));
            }
            Self::BoolArray(list) => {
                write_type(BOOL, Some(list.len()));
                out.extend(list.iter().map(|is_on| u8::from(*is_on)));
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn tensors_of_another_length_are_errors_and_no_file_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("model.gguf");
        let write = |info: TensorInfo, values: fn() -> TensorValues| {
            let result = write(&to, &[], &[info], |_| Ok(values()));
            result.map_err(|error| error.to_string())
        };
        let blocks = || TensorInfo::blocks("a", &[2, 32], TensorType::Q8_0);
        let floats = || TensorInfo::new("a", &[2, 32], GgufType::Q8_0);
        for result in [
            write(blocks(), || TensorValues::Blocks(vec![0; 67])),
            write(blocks(), || TensorValues::Floats(vec![0.0; 64])),
            write(floats(), || TensorValues::Blocks(vec![0; 68])),
            write(floats(), || TensorValues::Floats(vec![0.0; 32])),
        ] {
            let error = result.map(drop).unwrap_err();
            assert!(error.contains("`a`") && error.contains("68"), "{error}");
            assert!(!to.exists());
        }
        write(blocks(), || TensorValues::Blocks(vec![0; 68])).unwrap();
        assert!(to.exists());
    }
}
