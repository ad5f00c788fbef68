//! GGUF files as models: opened as they are, or converted to a model folder.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use nextword_data::parse_tokenizer;
use nextword_model::weights::{FloatType, WeightSource, layout, write_source, write_tensors};
use nextword_model::{BlockFormat, ModelCard, ModelConfig, ModelDir, ModelError, QuantizedMatrix};

use super::names::Architecture;
use super::read_tokenizer::Vocabulary;
use super::reader::GgufFile;
use super::{config, read_special};
use crate::ConvertError;
use crate::error::join_lines;
use crate::folder::check_destination;
use crate::imported::{ImportOptions, Imported};
use crate::mapping::{TensorMapping, tensor_mappings};

/// The tensor of the output layer, and that of the frequency factors, which is part of the configuration.
const HEAD: &str = "output.weight";
const FREQUENCY_FACTORS: &str = "rope_freqs.weight";

/// Opens the GGUF file `path` as a model. Its tensors stay in the file until they are loaded, one at a time: matrices
/// of block types as they are, all others as f32.
///
/// # Errors
/// [`ConvertError::Source`] if the file is damaged, or has an architecture, a tokenizer, a type or a setting that is not
/// supported; the message names it.
///
/// ```
/// use nextword_convert::{GgufType, export_gguf, open_gguf};
/// use nextword_model::{DeviceName, ModelDir};
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("letters.gguf");
/// let model = ModelDir::open("../../docs/models/letters".as_ref())?;
/// export_gguf(&model, GgufType::F32, &path)?;
///
/// let opened = open_gguf(&path)?;
/// assert_eq!(opened.config.n_layers, model.config.n_layers);
/// let weight = |model: &ModelDir| model.open_weights()?.values("token_embedding.weight");
/// assert_eq!(weight(&opened)?, weight(&model)?);
/// opened.load(&DeviceName::Flex.open()?)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn open(path: &Path) -> Result<ModelDir, ConvertError> {
    Ok(read(path)?.1)
}

/// Converts the GGUF file `from` to the model folder `to`, atomically: matrices of block types as they are, all other
/// tensors in f32.
pub(crate) fn import(
    from: &Path,
    to: &Path,
    options: &ImportOptions,
) -> Result<Imported, ConvertError> {
    check_destination(to, from)?;
    let (model_type, mut model) = read(from)?;
    if let Some(origin) = &options.origin {
        model.card.name = origin.name().to_string();
        model.card.trained_on = format!("imported from {origin} ({model_type})");
        model.card.origin = Some(origin.clone());
    }
    let weights = model.open_weights()?;
    let tokenizer = model.tokenizer_json().unwrap_or_default();
    parse_tokenizer(tokenizer, &from.display().to_string())?; // Is it valid?
    ModelDir::replace(to, |new| {
        ModelDir::write_small_files(new, &model.config, tokenizer, &model.card)?;
        let file = new.join("model.safetensors");
        if options.dequantize {
            let layout = layout(&model.config);
            write_tensors(&file, FloatType::F32, &layout, |name| weights.values(name)).map(drop)
        } else {
            write_source(&file, &model.config, &*weights).map(drop)
        }
    })?;
    Ok(Imported {
        model_type,
        has_chat_template: !model.card.chat_templates.is_empty(),
        config: model.config.clone(),
        card: model.card.clone(),
        guessed_eos: None,
        eos_outside_vocabulary: Vec::new(),
    })
}

/// Opens `path`. Returns the name of its architecture, too.
fn read(path: &Path) -> Result<(&'static str, ModelDir), ConvertError> {
    let mut file = GgufFile::open(path)?;
    let (architecture, config) = config::read(&file)?;
    let tensors = tensors(&file, &architecture, &config)?;
    let vocabulary = Vocabulary::read(&file, config.vocab_size)?;
    let tokenizer_json = vocabulary.to_json()?;
    let unused_ids = config.vocab_size.saturating_sub(vocabulary.size());
    let special = read_special::tokens(&vocabulary)?;
    let chat_templates = read_special::chat_templates(&file)?;
    file.drop_metadata();
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let card = ModelCard {
        name: name.to_string(),
        version: env!("CARGO_PKG_VERSION").to_string(),
        trained_on: format!(
            "imported from the GGUF file `{name}` ({})",
            architecture.name
        ),
        parameters: config.parameter_counts().total() as u64,
        special,
        chat_templates,
        unused_ids,
        ..ModelCard::default()
    };
    let model_type = architecture.name;
    let weights = GgufWeights {
        head_dim: config.head_dim(),
        norm_offset: config.norm_unit_offset,
        has_interleaved_rope: architecture.has_interleaved_rope(),
        file,
        tensors,
    };
    let model = ModelDir::from_file(path, config, card, tokenizer_json, Box::new(weights));
    Ok((model_type, model))
}

/// The tensors of a GGUF file by our names.
#[derive(Debug)]
struct GgufWeights {
    file: GgufFile,
    /// The tensor that contains each of ours, and the shape of ours.
    tensors: BTreeMap<String, (TensorMapping, Vec<usize>)>,
    head_dim: usize,
    norm_offset: bool,
    has_interleaved_rope: bool,
}

impl WeightSource for GgufWeights {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|(_, shape)| shape.as_slice())
    }

    fn values(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let Some((mapping, _)) = self.tensors.get(name) else {
            return Err(ModelError::Format {
                path: self.file.path().to_path_buf(),
                problem: format!("does not contain `{name}`"),
            });
        };
        let mut values = self.file.values(&mapping.name)?;
        if self.norm_offset && mapping.name.contains("norm") {
            for value in &mut values {
                *value -= 1.0; // GGUF norms do not add the unit offset.
            }
        }
        if self.has_interleaved_rope && mapping.is_query_or_key() {
            values = separate_halves(&values, mapping.shape[0], self.head_dim);
        }
        Ok(mapping.extract(name, values))
    }

    fn matrix_format(&self, name: &str) -> Option<BlockFormat> {
        let (mapping, _) = self.tensors.get(name)?;
        let tensor = self.file.tensor(&mapping.name)?;
        tensor.dtype.format().filter(|_| mapping.has_rows())
    }

    fn quantized_matrix(
        &self,
        name: &str,
        shape: [usize; 2],
    ) -> Result<Option<QuantizedMatrix>, ModelError> {
        let (Some(format), Some((mapping, _))) = (self.matrix_format(name), self.tensors.get(name))
        else {
            return Ok(None);
        };
        let matrix = self.file.with_bytes(&mapping.name, |bytes| {
            let mut rows = Cow::Borrowed(bytes);
            if self.has_interleaved_rope && mapping.is_query_or_key() {
                rows = Cow::Owned(separate_halves(bytes, mapping.shape[0], self.head_dim));
            }
            QuantizedMatrix::from_gguf(shape, format, &mapping.extract_rows(name, &rows))
        })?;
        let Some(matrix) = matrix else {
            return Err(ModelError::Format {
                path: self.file.path().to_path_buf(),
                problem: format!(
                    "tensor `{}` does not contain a matrix {shape:?}",
                    mapping.name
                ),
            });
        };
        Ok(Some(matrix))
    }
}

/// The tensor for each of ours. Compares every name and shape first.
fn tensors(
    file: &GgufFile,
    architecture: &Architecture,
    config: &ModelConfig,
) -> Result<BTreeMap<String, (TensorMapping, Vec<usize>)>, ConvertError> {
    let mut problems = Vec::new();
    let mut used = BTreeSet::from([FREQUENCY_FACTORS.to_string()]);
    if config.tied_head {
        used.insert(HEAD.to_string()); // It equals the embedding.
    }
    let mut tensors = BTreeMap::new();
    for mapping in tensor_mappings(architecture, config) {
        let (name, expected) = (&mapping.name, &mapping.shape);
        match file.tensor(name) {
            None => problems.push(format!("  missing: `{name}` {expected:?}")),
            Some(found) if found.shape != without_ones(expected) => problems.push(format!(
                "  `{name}` has shape {:?}, but the metadata require {expected:?}",
                found.shape
            )),
            Some(_) => {}
        }
        used.insert(name.clone());
        for (ours, shape) in mapping.ours.clone() {
            tensors.insert(ours, (mapping.clone(), shape));
        }
    }
    let unused = file.names().filter(|name| !used.contains(*name));
    problems.extend(unused.map(|name| format!("  unused: `{name}`")));
    if problems.is_empty() {
        return Ok(tensors);
    }
    Err(ConvertError::source(
        file.path(),
        format!(
            "the tensors do not match the architecture `{}`:\n{}",
            architecture.name,
            join_lines(&problems)
        ),
    ))
}

/// A shape without axes of one before others, as the file's are read.
fn without_ones(shape: &[usize]) -> &[usize] {
    let ones = shape.iter().take_while(|size| **size == 1).count();
    &shape[ones.min(shape.len().saturating_sub(1))..]
}

/// Undoes [`interleave_halves`](super::interleave_halves): the two rows of a pair are adjacent in `values` and half a head
/// apart in the result.
fn separate_halves<T: Copy>(values: &[T], rows: usize, head_dim: usize) -> Vec<T> {
    let width = values.len() / rows.max(1);
    let row = |row: usize| {
        let (head, offset) = (row / head_dim, row % head_dim);
        let half = head_dim / 2;
        let from = head * head_dim + offset % half * 2 + offset / half;
        values[from * width..(from + 1) * width].iter().copied()
    };
    (0..rows).flat_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_separated_as_they_were_interleaved() {
        for (heads, head_dim, width) in [(1, 2, 1), (3, 4, 5), (2, 16, 3), (5, 6, 1)] {
            let rows = heads * head_dim;
            let values: Vec<f32> = (0..rows * width).map(|i| i as f32).collect();
            let interleaved = super::super::interleave_halves(&values, rows, head_dim);
            assert_eq!(separate_halves(&interleaved, rows, head_dim), values);
            assert_eq!(interleaved == values, head_dim == 2);
        }
    }
}
