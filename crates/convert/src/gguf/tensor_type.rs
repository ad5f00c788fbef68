//! Types of tensors in GGUF files: sizes of blocks, and their values.

use nextword_model::{BlockFormat, QuantizedMatrix};

/// The type of a tensor in a file. The values of a block type are in blocks of [`TensorType::block_len`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(non_camel_case_types)] // GGUF's names.
pub(crate) enum TensorType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
}

/// Codes and names of the types that are not supported.
const UNSUPPORTED: [(u32, &str); 21] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

impl TensorType {
    pub(crate) const ALL: [Self; 15] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::IQ4_NL,
        Self::IQ4_XS,
    ];

    /// The code in the tensor table.
    pub(crate) fn code(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2_K => 10,
            Self::Q3_K => 11,
            Self::Q4_K => 12,
            Self::Q5_K => 13,
            Self::Q6_K => 14,
            Self::IQ4_NL => 20,
            Self::IQ4_XS => 23,
            Self::Bf16 => 30,
        }
    }

    /// The name in GGUF's documentation.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2_K => "Q2_K",
            Self::Q3_K => "Q3_K",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
            Self::IQ4_NL => "IQ4_NL",
            Self::IQ4_XS => "IQ4_XS",
        }
    }

    /// The type with this code, or a description of a type that is not supported.
    pub(crate) fn from_code(code: u32) -> Result<Self, String> {
        if let Some(found) = Self::ALL.into_iter().find(|dtype| dtype.code() == code) {
            return Ok(found);
        }
        let name = UNSUPPORTED.iter().find(|(other, _)| *other == code);
        Err(name.map_or_else(
            || format!("the unknown type {code}"),
            |(_, name)| format!("the type {name}"),
        ))
    }

    /// Values per block.
    pub(crate) fn block_len(self) -> usize {
        self.format().map_or(1, BlockFormat::block_len)
    }

    /// Bytes per block.
    pub(crate) fn block_bytes(self) -> usize {
        match self.format() {
            None if self == Self::F32 => 4,
            None => 2,
            Some(format) => format.gguf_bytes(format.block_len()).unwrap_or_default(),
        }
    }

    /// The format of matrices of this type that stay quantized.
    pub(crate) fn format(self) -> Option<BlockFormat> {
        let mut formats = BlockFormat::ALL.into_iter();
        formats.find(|format| Self::of_format(*format) == Some(self))
    }

    /// The type of matrices of this format, if GGUF has it.
    pub(crate) fn of_format(format: BlockFormat) -> Option<Self> {
        let mut types = Self::ALL.into_iter();
        types.find(|dtype| dtype.name() == format.name())
    }

    /// The number in `general.file_type` of files whose matrices are mostly of this type.
    pub(crate) fn file_type(self) -> usize {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 7,
            Self::Q5_0 => 8,
            Self::Q5_1 => 9,
            Self::Q2_K => 10,
            Self::Q3_K => 12, // The variants "M", of which some matrices have more bits.
            Self::Q4_K => 15,
            Self::Q5_K => 17,
            Self::Q6_K => 18,
            Self::IQ4_NL => 25,
            Self::IQ4_XS => 30,
            Self::Bf16 => 32,
        }
    }

    /// Appends the values of whole blocks to `out`, with the bits that the Python package `gguf` gives. Bytes of an
    /// incomplete last block are ignored.
    pub(crate) fn dequantize(self, bytes: &[u8], out: &mut Vec<f32>) {
        match self {
            Self::F32 => out.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
            Self::F16 => out.extend(bytes.as_chunks().0.iter().map(|b| f16(*b))),
            Self::Bf16 => out.extend(bytes.as_chunks().0.iter().map(|b| bf16(*b))),
            _ => out.extend(self.block_values(bytes)),
        }
    }

    /// The values of whole blocks: a matrix of which each column is one block.
    fn block_values(self, bytes: &[u8]) -> Vec<f32> {
        let count = bytes.len() / self.block_bytes().max(1);
        let whole = &bytes[..count * self.block_bytes()];
        let matrix = self.format().and_then(|format| {
            QuantizedMatrix::from_gguf([self.block_len(), count], format, whole)
        });
        matrix.map_or_else(Vec::new, |matrix| matrix.dequantize_columns())
    }
}

/// The smallest positive number of half precision, 2^-24.
const SUBNORMAL: f32 = 1.0 / (1 << 24) as f32;

/// Widens half precision.
fn f16(bytes: [u8; 2]) -> f32 {
    let bits = u32::from(u16::from_le_bytes(bytes));
    let (sign, exponent, mantissa) = (bits >> 15 << 31, bits >> 10 & 31, bits & 1023);
    let magnitude = match exponent {
        0 => return f32::from_bits(sign | (mantissa as f32 * SUBNORMAL).to_bits()),
        31 => 255 << 23,
        _ => (exponent + 112) << 23,
    };
    f32::from_bits(sign | magnitude | mantissa << 13)
}

/// Widens bf16.
fn bf16(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The fixture is written by `scripts/make_gguf_fixtures.py`.
    #[test]
    fn values_have_the_bits_of_the_python_package() {
        let file = include_bytes!("../../../../tests/fixtures/gguf_blocks.bin");
        let mut rest = &file[..];
        let mut take = |len: usize| {
            let (first, others) = rest.split_at(len);
            rest = others;
            first
        };
        for dtype in TensorType::ALL {
            let name = str::from_utf8(take(8)).unwrap().trim_end_matches('\0');
            assert_eq!(name, dtype.name());
            let blocks = u32::from_le_bytes(take(4).try_into().unwrap()) as usize;
            let bytes = take(blocks * dtype.block_bytes());
            let expected = take(4 * blocks * dtype.block_len());
            let mut found = Vec::new();
            dtype.dequantize(bytes, &mut found);
            assert_eq!(found.len(), blocks * dtype.block_len(), "{name}");
            for (i, (found, expected)) in found.iter().zip(expected.as_chunks().0).enumerate() {
                let expected = f32::from_le_bytes(*expected);
                assert_eq!(
                    found.to_bits(),
                    expected.to_bits(),
                    "{name} {i}: {found} {expected}"
                );
            }
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn codes_and_names_are_distinct() {
        for (i, dtype) in TensorType::ALL.into_iter().enumerate() {
            assert_eq!(TensorType::from_code(dtype.code()), Ok(dtype));
            let others = &TensorType::ALL[i + 1..];
            assert!(others.iter().all(|other| other.name() != dtype.name()));
        }
        assert_eq!(TensorType::from_code(16).unwrap_err(), "the type IQ2_XXS");
        assert_eq!(
            TensorType::from_code(99).unwrap_err(),
            "the unknown type 99"
        );
    }
}
