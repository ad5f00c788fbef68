//! GGUF, the format of `llama.cpp`.

mod blocks;
mod file;
mod names;
mod tokenizer;

use std::path::Path;

use nextword_data::load_tokenizer;
use nextword_model::weights::{FloatType, TensorFile};
use nextword_model::{Record, RotaryConfig, RotaryScaling};

use self::file::{Meta, Stored};
use self::names::Architecture;
use crate::parts::{Form, Part, parts};
use crate::{ConvertError, F16_MAX, hf, json};

/// A type for the numbers of the matrices. Vectors are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types)] // GGUF's names.
pub enum GgufType {
    /// Four bytes a number.
    F32,
    /// Two bytes with 11 significant bits.
    F16,
    /// Two bytes with 8 significant bits and the range of f32.
    Bf16,
    /// Blocks of 32 numbers: 8 bits each and a common scale.
    Q8_0,
    /// Blocks of 32 numbers: 4 bits each and a common scale.
    Q4_0,
}

/// Writes `record` as the GGUF file `to`, whole or not at all, tokenizer included. Gives the name of
/// the architecture that was chosen.
///
/// Matrices get the type `numbers`; rows that are no multiple of 32 long stay f16 where blocks were
/// asked for. `llama.cpp` computes GELU by its tanh approximation in half precision, whichever GELU
/// the model was trained with.
///
/// # Errors
/// [`ConvertError::Inexpressible`] with the fields of the config that `llama.cpp` has no
/// architecture for; [`ConvertError::Tokenizer`] if it cannot express the tokenizer; what is wrong
/// with the record's files or the place to write.
pub fn export(record: &Record, numbers: GgufType, to: &Path) -> Result<&'static str, ConvertError> {
    let hf::Expressed { kind, config, .. } = hf::express(&record.config)?;
    let architecture = Architecture::of(kind, &config)?;
    let weights = TensorFile::open(&record.weights_path())?;
    hf::export::check(record, &weights)?;
    let tokens = load_tokenizer(record.tokenizer_path())?;

    let mut meta = architecture.meta(&config, &record.card.name);
    meta.push(("general.file_type".into(), Meta::Count(numbers.file_type())));
    meta.push(("general.quantization_version".into(), Meta::Count(2)));
    meta.extend(tokenizer::meta(record, &*tokens)?);
    if let Some(template) = json::text(&record.chat_template_path())? {
        meta.push(("tokenizer.chat_template".into(), Meta::Text(template)));
    }

    let mut parts = parts(&architecture, &config);
    if config.tied_head && architecture.needs_head() {
        let table = (
            "token_embedding.weight".to_string(),
            vec![config.vocab_size, config.d_model],
        );
        parts.push(Part::new("output.weight".into(), Form::Same, vec![table]));
    }
    let mut stored: Vec<Stored> = parts
        .iter()
        .map(|part| Stored::new(&part.name, &part.shape, numbers))
        .collect();
    let factors = frequency_factors(&config.rotary, config.head_dim());
    if let Some(factors) = &factors {
        let stays = GgufType::F32;
        stored.push(Stored::new("rope_freqs.weight", &[factors.len()], stays));
    }
    file::write(to, &meta, &stored, |at| {
        let Some(part) = parts.get(at) else {
            return Ok(factors.clone().unwrap_or_default());
        };
        let mut values = part.join(|ours, shape| hf::values_or_zeros(&weights, ours, shape))?;
        if config.norm_unit_offset && part.name.contains("norm") {
            for value in &mut values {
                *value += 1.0; // Theirs multiplies by the weight alone.
            }
        }
        if architecture.turns_neighbours() && part.is_query_or_key() {
            values = neighbours(&values, part.shape[0], config.head_dim());
        }
        Ok(values)
    })?;
    Ok(architecture.name)
}

impl Part {
    fn is_query_or_key(&self) -> bool {
        let (name, _) = &self.ours[0];
        name.contains(".attention.query.") || name.contains(".attention.key.")
    }
}

/// Rows in the order of pairs that stand side by side, where ours stand half a head apart.
fn neighbours(values: &[f32], rows: usize, head_dim: usize) -> Vec<f32> {
    let width = values.len() / rows.max(1);
    let row = |row: usize| {
        let (head, place) = (row / head_dim, row % head_dim);
        let from = head * head_dim + place / 2 + place % 2 * (head_dim / 2);
        values[from * width..(from + 1) * width].iter().copied()
    };
    (0..rows).flat_map(row).collect()
}

/// What each wave is divided by, where the scaling differs from wave to wave.
fn frequency_factors(rotary: &RotaryConfig, head_dim: usize) -> Option<Vec<f32>> {
    let RotaryScaling::Llama3 { .. } = rotary.scaling else {
        return None;
    };
    let plain = RotaryConfig {
        scaling: RotaryScaling::None,
        ..*rotary
    };
    let scaled = rotary.frequencies(head_dim);
    let factors = plain.frequencies(head_dim).into_iter().zip(scaled);
    Some(
        factors
            .map(|(plain, scaled)| (plain / scaled) as f32)
            .collect(),
    )
}

impl GgufType {
    fn file_type(self) -> usize {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Bf16 => 32,
        }
    }

    /// The number of the type in the table of tensors.
    fn code(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 8,
            Self::Bf16 => 30,
        }
    }

    /// The largest number that it holds, where that is less than f32's; blocks have scales in f16.
    fn limit(self) -> Option<(f32, &'static str)> {
        match self {
            Self::F32 | Self::Bf16 => None,
            Self::F16 => Some((F16_MAX, "f16")),
            Self::Q8_0 => Some((127.0 * F16_MAX, "q8_0")),
            Self::Q4_0 => Some((8.0 * F16_MAX, "q4_0")),
        }
    }

    /// Bytes of `len` numbers.
    fn bytes(self, len: usize) -> usize {
        match self {
            Self::F32 => 4 * len,
            Self::F16 | Self::Bf16 => 2 * len,
            Self::Q8_0 => len / blocks::LEN * (2 + blocks::LEN),
            Self::Q4_0 => len / blocks::LEN * (2 + blocks::LEN / 2),
        }
    }

    fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => FloatType::F32.encode(values),
            Self::F16 => FloatType::F16.encode(values),
            Self::Bf16 => FloatType::Bf16.encode(values),
            Self::Q8_0 => blocks::q8_0(values),
            Self::Q4_0 => blocks::q4_0(values),
        }
    }
}
