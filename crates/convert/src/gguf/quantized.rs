//! Quantized matrices, which are written as they are.

use nextword_model::BlockFormat;
use nextword_model::weights::WeightSource;

use super::{GgufType, blocks};
use crate::ConvertError;
use crate::mapping::TensorMapping;

/// Returns the type of a tensor whose matrices `weights` contains in a block format of GGUF.
pub(crate) fn block_type(mapping: &TensorMapping, weights: &dyn WeightSource) -> Option<GgufType> {
    let fits = mapping.has_rows() && mapping.shape[1].is_multiple_of(blocks::BLOCK_LEN);
    let mut formats = mapping
        .ours
        .iter()
        .map(|(name, _)| weights.matrix_format(name));
    let format = formats.next().flatten().filter(|_| fits)?;
    if formats.any(|other| other != Some(format)) {
        return None;
    }
    match format {
        BlockFormat::Q8_0 => Some(GgufType::Q8_0),
        BlockFormat::Q4_0 => Some(GgufType::Q4_0),
        BlockFormat::Q4_1 => Some(GgufType::Q4_1),
        BlockFormat::Symmetric8 | BlockFormat::Symmetric4 => None,
    }
}

/// Returns the blocks of a tensor for which there is a [`block_type`].
///
/// # Errors
/// Errors from reading the weights.
pub(crate) fn read_blocks(
    mapping: &TensorMapping,
    weights: &dyn WeightSource,
) -> Result<Vec<u8>, ConvertError> {
    let d_in = mapping.shape[1];
    let mut ours = Vec::new();
    for (name, shape) in &mapping.ours {
        let d_out = shape.iter().product::<usize>() / d_in.max(1);
        let matrix = weights.quantized_matrix(name, [d_in, d_out])?;
        let bytes = matrix.and_then(|matrix| matrix.to_gguf());
        ours.push(bytes.unwrap_or_default()); // `block_type` has found all of them.
    }
    Ok(mapping.assemble_rows(ours))
}
