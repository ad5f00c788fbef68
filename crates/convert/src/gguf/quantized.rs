//! Quantized matrices, which are written as they are.

use std::collections::BTreeMap;

use nextword_model::weights::WeightSource;

use super::tensor_type::TensorType;
use crate::ConvertError;
use crate::mapping::TensorMapping;

/// Returns the type of a tensor whose matrices `weights` contains in a block format of GGUF.
pub(crate) fn block_type(
    mapping: &TensorMapping,
    weights: &dyn WeightSource,
) -> Option<TensorType> {
    let mut formats = mapping
        .ours
        .iter()
        .map(|(name, _)| weights.matrix_format(name));
    let format = formats.next().flatten().filter(|_| mapping.has_rows())?;
    let dtype = TensorType::of_format(format)?;
    let fits = mapping.shape[1].is_multiple_of(dtype.block_len());
    (fits && formats.all(|other| other == Some(format))).then_some(dtype)
}

/// The type that most of the values in `mappings` have, of those that are quantized.
pub(crate) fn main_type<'a>(
    mappings: impl Iterator<Item = &'a TensorMapping>,
    weights: &dyn WeightSource,
) -> Option<TensorType> {
    let mut values = BTreeMap::<TensorType, usize>::new();
    for mapping in mappings {
        if let Some(dtype) = block_type(mapping, weights) {
            *values.entry(dtype).or_default() += mapping.shape.iter().product::<usize>();
        }
    }
    let main = values.into_iter().max_by_key(|(_, count)| *count);
    main.map(|(dtype, _)| dtype)
}

/// Returns the blocks of a tensor for which there is a [`block_type`]; `None` if a matrix has none after all.
///
/// # Errors
/// Errors from reading the weights.
pub(crate) fn read_blocks(
    mapping: &TensorMapping,
    weights: &dyn WeightSource,
) -> Result<Option<Vec<u8>>, ConvertError> {
    let d_in = mapping.shape[1];
    let mut ours = Vec::new();
    for (name, shape) in &mapping.ours {
        let d_out = shape.iter().product::<usize>() / d_in.max(1);
        let matrix = weights.quantized_matrix(name, [d_in, d_out])?;
        let Some(bytes) = matrix.and_then(|matrix| matrix.to_gguf()) else {
            return Ok(None);
        };
        ours.push(bytes);
    }
    Ok(Some(mapping.assemble_rows(ours)))
}
