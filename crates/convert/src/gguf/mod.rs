//! GGUF, the format of `llama.cpp`.

mod blocks;
mod config;
mod file;
mod header;
pub(crate) mod import;
mod keys;
pub(crate) mod lora;
mod merges;
mod metadata;
mod names;
mod pre_tokenizers;
mod quantized;
mod read_special;
mod read_tokenizer;
pub(crate) mod reader;
mod rope_factors;
mod rules;
mod special;
mod tensor_type;
mod tokenizer;

use std::path::Path;

use nextword_model::weights::FloatType;
use nextword_model::{DEFAULT_TEMPLATE, ModelDir, RotaryConfig, RotaryScaling};

use self::file::{MetadataValue, TensorInfo, TensorValues};
use self::names::Architecture;
pub use self::names::WRITER_KEY;
use self::tensor_type::TensorType;
use crate::mapping::{Layout, TensorMapping, tensor_mappings};
use crate::{ConvertError, F16_MAX, hf, tokenizer_files};

/// nextword's own key for the activation of an architecture for which `llama.cpp` has only one.
const ACTIVATION_KEY: &str = "nextword.feed_forward";

/// nextword's own key for the ids of all tokens that end a completion, of which `llama.cpp` knows some by name.
const EOS_IDS_KEY: &str = "nextword.eos_token_ids";

/// nextword's own key for the BOS token, an empty list without one. Only where `tokenizer.ggml.bos_token_id` is another, since
/// `llama.cpp` takes a regular token for the BOS token of a file without that.
const BOS_IDS_KEY: &str = "nextword.bos_token_ids";

/// The type of matrices in a GGUF file. Vectors are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types)] // GGUF's names.
pub enum GgufType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats with 11 significant bits.
    F16,
    /// 16-bit floats with 8 significant bits and the range of f32.
    Bf16,
    /// Blocks of 32 values: 8 bits each and a common scale.
    Q8_0,
    /// Blocks of 32 values: 4 bits each and a common scale.
    Q4_0,
    /// Blocks of 32 values: 4 bits each, a common scale and a minimum.
    Q4_1,
}

/// Exports the model folder `model_dir` as the GGUF file `to`, atomically, with its tokenizer. Returns
/// the name of the chosen architecture.
///
/// Matrices get the type `dtype`, except that `Q4_0` and `Q4_1` leave token embedding and output layer at
/// `Q8_0` (see [`export_with_embedding`]), and that quantized matrices keep their blocks if GGUF has their
/// format. With a block type, matrices whose row length is not a multiple of 32
/// are stored as f16. `llama.cpp` always computes GELU by the tanh approximation in half
/// precision, even if the model was trained with exact GELU.
///
/// # Errors
/// [`ConvertError::Inexpressible`] with the config fields that no architecture of `llama.cpp`
/// supports; [`ConvertError::Tokenizer`] for an unsupported tokenizer; errors from reading the model
/// folder or writing the file.
///
/// # Example
///
/// ```
/// use nextword_convert::{GgufType, export_gguf};
/// use nextword_model::ModelDir;
///
/// let folder = tempfile::tempdir()?;
/// let model = ModelDir::open("../../docs/models/letters".as_ref())?;
/// let size = |dtype, name: &str| -> Result<u64, Box<dyn std::error::Error>> {
///     let path = folder.path().join(name);
///     assert_eq!(export_gguf(&model, dtype, &path)?, "gpt2"); // llama.cpp's architecture
///     assert!(std::fs::read(&path)?.starts_with(b"GGUF"));
///     Ok(std::fs::metadata(path)?.len())
/// };
/// assert!(size(GgufType::Q8_0, "q8.gguf")? < size(GgufType::F32, "f32.gguf")?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn export(
    model_dir: &ModelDir,
    dtype: GgufType,
    to: &Path,
) -> Result<&'static str, ConvertError> {
    let embedding = match dtype {
        GgufType::Q4_0 | GgufType::Q4_1 => GgufType::Q8_0,
        other => other,
    };
    export_with_embedding(model_dir, dtype, embedding, to)
}

/// Exports like [`export`], with the type `embedding` for token embedding and output layer.
///
/// # Errors
/// As [`export`].
pub fn export_with_embedding(
    model_dir: &ModelDir,
    dtype: GgufType,
    embedding: GgufType,
    to: &Path,
) -> Result<&'static str, ConvertError> {
    // Before the closest model type of others is named.
    let decoder = [nextword_model::Architecture::Decoder];
    model_dir.config.require(&decoder, "export to GGUF")?;
    let hf::HfModel { kind, config, .. } = hf::to_hf(&model_dir.config)?;
    let architecture = Architecture::new(kind, &config)?;
    hf::export::check_weights(model_dir)?;
    let weights = model_dir.open_weights()?;
    let tokens = tokenizer_files::open(model_dir)?;

    let mut mappings = tensor_mappings(&architecture, &config);
    if config.tied_head && architecture.needs_head() {
        let table = (
            "token_embedding.weight".to_string(),
            vec![config.vocab_size, config.d_model],
        );
        mappings.push(TensorMapping::new(
            "output.weight".into(),
            Layout::Same,
            vec![table],
        ));
    }
    let is_embedding = |mapping: &TensorMapping| {
        ["token_embd.weight", "output.weight"].contains(&mapping.name.as_str())
    };
    let in_blocks = mappings.iter().filter(|mapping| !is_embedding(mapping));
    let main_type = quantized::main_type(in_blocks, &*weights);
    let main_type = main_type.unwrap_or(dtype.tensor_type());

    let mut meta = architecture.metadata(&config, &model_dir.card.name);
    meta.push((
        "general.file_type".into(),
        MetadataValue::U32(main_type.file_type()),
    ));
    meta.push(("general.quantization_version".into(), MetadataValue::U32(2)));
    meta.extend(tokenizer::metadata(model_dir, &*tokens)?.entries);
    model_dir.card.check_templates()?;
    let templates = &model_dir.card.chat_templates;
    let named = templates.keys().filter(|name| *name != DEFAULT_TEMPLATE);
    let named: Vec<String> = named.cloned().collect();
    if !named.is_empty() {
        let key = "tokenizer.chat_templates".to_string();
        meta.push((key, MetadataValue::StringArray(named)));
    }
    for (name, template) in templates {
        let key = match name.as_str() {
            DEFAULT_TEMPLATE => "tokenizer.chat_template".to_string(),
            name => format!("tokenizer.chat_template.{name}"),
        };
        meta.push((key, MetadataValue::String(template.clone())));
    }

    let info = |mapping: &TensorMapping| {
        let dtype = if is_embedding(mapping) {
            embedding
        } else {
            dtype
        };
        match quantized::block_type(mapping, &*weights) {
            Some(dtype) => TensorInfo::blocks(&mapping.name, &mapping.shape, dtype),
            None => TensorInfo::new(&mapping.name, &mapping.shape, dtype),
        }
    };
    let mut tensors: Vec<TensorInfo> = mappings.iter().map(info).collect();
    let factors = frequency_factors(&config.rotary, config.head_dim());
    if let Some(factors) = &factors {
        tensors.push(TensorInfo::new(
            "rope_freqs.weight",
            &[factors.len()],
            GgufType::F32,
        ));
    }
    file::write(to, &meta, &tensors, |index| {
        let Some(mapping) = mappings.get(index) else {
            return Ok(TensorValues::Floats(factors.clone().unwrap_or_default()));
        };
        let interleaves = architecture.has_interleaved_rope() && mapping.is_query_or_key();
        let (rows, head_dim) = (mapping.shape[0], config.head_dim());
        if quantized::block_type(mapping, &*weights).is_some() {
            let blocks = quantized::read_blocks(mapping, &*weights)?;
            return Ok(TensorValues::Blocks(match blocks {
                Some(blocks) if interleaves => interleave_halves(&blocks, rows, head_dim),
                Some(blocks) => blocks,
                None => Vec::new(), // Of another length than the tensor, which is an error.
            }));
        }
        let mut values =
            mapping.assemble(|ours, shape| hf::values_or_zeros(&*weights, ours, shape))?;
        if config.norm_unit_offset && mapping.name.contains("norm") {
            for value in &mut values {
                *value += 1.0; // GGUF norms do not add the unit offset.
            }
        }
        if interleaves {
            values = interleave_halves(&values, rows, head_dim);
        }
        Ok(TensorValues::Floats(values))
    })?;
    Ok(architecture.name)
}

/// Lists what `llama.cpp` does differently with the tokenizer of `model_dir`, one sentence each.
///
/// # Errors
/// [`ConvertError::Tokenizer`] for an unsupported tokenizer; errors from reading it.
///
/// ```
/// use nextword_convert::gguf_differences;
/// use nextword_model::ModelDir;
///
/// let model = ModelDir::open("../../docs/models/letters".as_ref())?;
/// assert!(gguf_differences(&model)?.len() < 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn differences(model_dir: &ModelDir) -> Result<Vec<String>, ConvertError> {
    let tokens = tokenizer_files::open(model_dir)?;
    Ok(tokenizer::metadata(model_dir, &*tokens)?.notes)
}

impl TensorMapping {
    fn is_query_or_key(&self) -> bool {
        let (name, _) = &self.ours[0];
        name.contains(".attention.query.") || name.contains(".attention.key.")
    }
}

/// Reorders rows for interleaved RoPE: the two rows of a pair are half a head apart in our layout and
/// adjacent in the result.
fn interleave_halves<T: Copy>(values: &[T], rows: usize, head_dim: usize) -> Vec<T> {
    let width = values.len() / rows.max(1);
    let row = |row: usize| {
        let (head, offset) = (row / head_dim, row % head_dim);
        let from = head * head_dim + offset / 2 + offset % 2 * (head_dim / 2);
        values[from * width..(from + 1) * width].iter().copied()
    };
    (0..rows).flat_map(row).collect()
}

/// The divisor of each RoPE frequency, for scaling that depends on the frequency.
fn frequency_factors(rotary: &RotaryConfig, head_dim: usize) -> Option<Vec<f32>> {
    let RotaryScaling::Llama3 { .. } = rotary.scaling else {
        return None;
    };
    let unscaled = RotaryConfig {
        scaling: RotaryScaling::None,
        ..*rotary
    };
    let scaled = rotary.frequencies(head_dim);
    let factors = unscaled.frequencies(head_dim).into_iter().zip(scaled);
    Some(
        factors
            .map(|(unscaled, scaled)| (unscaled / scaled) as f32)
            .collect(),
    )
}

impl GgufType {
    fn tensor_type(self) -> TensorType {
        match self {
            Self::F32 => TensorType::F32,
            Self::F16 => TensorType::F16,
            Self::Q4_0 => TensorType::Q4_0,
            Self::Q4_1 => TensorType::Q4_1,
            Self::Q8_0 => TensorType::Q8_0,
            Self::Bf16 => TensorType::Bf16,
        }
    }

    /// The largest value of the type, if it is less than that of f32. Block scales are f16.
    fn limit(self) -> Option<(f32, &'static str)> {
        match self {
            Self::F32 | Self::Bf16 => None,
            Self::F16 => Some((F16_MAX, "f16")),
            Self::Q8_0 => Some((127.0 * F16_MAX, "q8_0")),
            Self::Q4_0 => Some((8.0 * F16_MAX, "q4_0")),
            Self::Q4_1 => Some((F16_MAX, "q4_1")), // The minimum.
        }
    }

    fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => FloatType::F32.encode(values),
            Self::F16 => FloatType::F16.encode(values),
            Self::Bf16 => FloatType::Bf16.encode(values),
            Self::Q8_0 => blocks::q8_0(values),
            Self::Q4_0 => blocks::q4_0(values),
            Self::Q4_1 => blocks::q4_1(values),
        }
    }
}
