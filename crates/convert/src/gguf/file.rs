//! The bytes of a GGUF file: metadata, the table of tensors, and their numbers.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use super::{GgufType, blocks};
use crate::ConvertError;

/// Where tensors begin, in bytes.
const ALIGNMENT: usize = 32;

/// One value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Meta {
    Count(usize),
    Number(f64),
    Flag(bool),
    Text(String),
    Texts(Vec<String>),
    Numbers(Vec<f32>),
    Codes(Vec<i32>),
    Flags(Vec<bool>),
}

/// A tensor as it stands in the table.
pub(crate) struct Stored {
    name: String,
    shape: Vec<usize>,
    numbers: GgufType,
}

impl Stored {
    /// Matrices in `wanted`, but for places' embeddings, which are added; vectors in f32.
    pub(crate) fn new(name: &str, shape: &[usize], wanted: GgufType) -> Self {
        let is_matrix = shape.len() == 2 && name != "position_embd.weight";
        let fits = shape
            .last()
            .is_some_and(|row| row.is_multiple_of(blocks::LEN));
        let numbers = match wanted {
            _ if !is_matrix => GgufType::F32,
            GgufType::Q8_0 | GgufType::Q4_0 if !fits => GgufType::F16,
            wanted => wanted,
        };
        Self {
            name: name.to_string(),
            shape: shape.to_vec(),
            numbers,
        }
    }

    fn bytes(&self) -> usize {
        self.numbers.bytes(self.shape.iter().product())
    }
}

/// Writes the file `to`, whole or not at all, asking `values` for one tensor at a time.
pub(crate) fn write(
    to: &Path,
    meta: &[(String, Meta)],
    tensors: &[Stored],
    values: impl Fn(usize) -> Result<Vec<f32>, ConvertError>,
) -> Result<(), ConvertError> {
    let name = to
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or("model.gguf");
    let beside = to.with_file_name(format!(".{name}.new"));
    let written = fill(&beside, meta, tensors, values);
    let done =
        written.and_then(|()| fs::rename(&beside, to).map_err(ConvertError::io(to, "write")));
    if done.is_err() {
        let _ = fs::remove_file(&beside); // The error to tell is the first one.
    }
    done
}

fn fill(
    path: &Path,
    meta: &[(String, Meta)],
    tensors: &[Stored],
    values: impl Fn(usize) -> Result<Vec<f32>, ConvertError>,
) -> Result<(), ConvertError> {
    let io = |error| ConvertError::io(path, "write")(error);
    let mut file = BufWriter::new(File::create(path).map_err(io)?);
    let head = head(meta, tensors);
    file.write_all(&head).map_err(io)?;
    for (at, tensor) in tensors.iter().enumerate() {
        let values = values(at)?;
        if let Some((limit, dtype)) = tensor.numbers.limit() {
            crate::check_size(&tensor.name, &values, limit, dtype)?;
        }
        let mut bytes = tensor.numbers.encode(&values);
        debug_assert_eq!(bytes.len(), tensor.bytes());
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        file.write_all(&bytes).map_err(io)?;
    }
    let file = file.into_inner().map_err(|error| io(error.into_error()))?;
    file.sync_all().map_err(io)
}

/// All before the numbers.
fn head(meta: &[(String, Meta)], tensors: &[Stored]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3_u32.to_le_bytes()); // The version.
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((meta.len() as u64).to_le_bytes());
    for (key, value) in meta {
        text(&mut out, key);
        value.write(&mut out);
    }
    let mut place = 0;
    for tensor in tensors {
        text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        for size in tensor.shape.iter().rev() {
            out.extend((*size as u64).to_le_bytes()); // The fastest axis first.
        }
        out.extend(tensor.numbers.code().to_le_bytes());
        out.extend((place as u64).to_le_bytes());
        place += tensor.bytes().next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Meta {
    fn write(&self, out: &mut Vec<u8>) {
        const COUNT: u32 = 4;
        const CODE: u32 = 5;
        const NUMBER: u32 = 6;
        const FLAG: u32 = 7;
        const TEXT: u32 = 8;
        const ARRAY: u32 = 9;
        let mut begin = |kind: u32, array: Option<usize>| {
            if let Some(len) = array {
                out.extend(ARRAY.to_le_bytes());
                out.extend(kind.to_le_bytes());
                out.extend((len as u64).to_le_bytes());
            } else {
                out.extend(kind.to_le_bytes());
            }
        };
        match self {
            Self::Count(n) => {
                begin(COUNT, None);
                out.extend((*n as u32).to_le_bytes());
            }
            Self::Number(n) => {
                begin(NUMBER, None);
                out.extend((*n as f32).to_le_bytes());
            }
            Self::Flag(is_on) => {
                begin(FLAG, None);
                out.push(u8::from(*is_on));
            }
            Self::Text(value) => {
                begin(TEXT, None);
                text(out, value);
            }
            Self::Texts(list) => {
                begin(TEXT, Some(list.len()));
                for value in list {
                    text(out, value);
                }
            }
            Self::Numbers(list) => {
                begin(NUMBER, Some(list.len()));
                out.extend(list.iter().flat_map(|n| n.to_le_bytes()));
            }
            Self::Codes(list) => {
                begin(CODE, Some(list.len()));
                out.extend(list.iter().flat_map(|n| n.to_le_bytes()));
            }
            Self::Flags(list) => {
                begin(FLAG, Some(list.len()));
                out.extend(list.iter().map(|is_on| u8::from(*is_on)));
            }
        }
    }
}
