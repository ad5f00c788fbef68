//! Types of tensors in GGUF files: sizes of blocks, and their values.

use nextword_model::BlockFormat;

use super::dequantize as values;

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
    Iq4Nl,
    Iq4Xs,
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
        Self::Iq4Nl,
        Self::Iq4Xs,
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
            Self::Iq4Nl => 20,
            Self::Iq4Xs => 23,
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
            Self::Iq4Nl => "IQ4_NL",
            Self::Iq4Xs => "IQ4_XS",
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
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Iq4Nl => 32,
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K | Self::Iq4Xs => 256,
        }
    }

    /// Bytes per block.
    pub(crate) fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 | Self::Iq4Nl => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
            Self::Iq4Xs => 136,
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
            Self::Iq4Nl => 25,
            Self::Iq4Xs => 30,
            Self::Bf16 => 32,
        }
    }

    /// Appends the values of whole blocks to `out`, with the bits that the Python package `gguf` gives. Bytes of an
    /// incomplete last block are ignored.
    pub(crate) fn dequantize(self, bytes: &[u8], out: &mut Vec<f32>) {
        match self {
            Self::F32 => out.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
            Self::F16 => out.extend(bytes.as_chunks().0.iter().map(|b| values::f16(*b))),
            Self::Bf16 => out.extend(bytes.as_chunks().0.iter().map(|b| values::bf16(*b))),
            Self::Q4_0 => values::blocks(bytes, out, values::q4_0),
            Self::Q4_1 => values::blocks(bytes, out, values::q4_1),
            Self::Q5_0 => values::blocks(bytes, out, values::q5_0),
            Self::Q5_1 => values::blocks(bytes, out, values::q5_1),
            Self::Q8_0 => values::blocks(bytes, out, values::q8_0),
            Self::Q2_K => values::blocks(bytes, out, values::q2_k),
            Self::Q3_K => values::blocks(bytes, out, values::q3_k),
            Self::Q4_K => values::blocks(bytes, out, values::q4_k),
            Self::Q5_K => values::blocks(bytes, out, values::q5_k),
            Self::Q6_K => values::blocks(bytes, out, values::q6_k),
            Self::Iq4Nl => values::blocks(bytes, out, values::iq4_nl),
            Self::Iq4Xs => values::blocks(bytes, out, values::iq4_xs),
        }
    }
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
