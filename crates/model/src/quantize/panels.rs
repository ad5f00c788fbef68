//! Matrices that a file contains in the layout of memory ([`QuantizedMatrix::panel_shapes`]), so that they are used from
//! a mapped file as they are.

use nextword_kernels::{Bits, BlockFormat, QuantizedMatrix};
use safetensors::tensor::Dtype;

use crate::ModelError;
use crate::weights::{TensorFile, TensorSpec};

/// The tensors of such a matrix.
#[derive(Clone, Copy)]
pub(super) enum PanelPart {
    Lines,
    Scales,
    Minimums,
}

impl PanelPart {
    /// The tensors of a matrix of this format.
    pub(super) fn of(format: BlockFormat) -> impl Iterator<Item = Self> {
        let minimums = format.has_minimum().then_some(Self::Minimums);
        [Self::Lines, Self::Scales].into_iter().chain(minimums)
    }

    /// The tensor of the matrix `name`.
    pub(super) fn spec(self, name: &str, format: BlockFormat, shape: [usize; 2]) -> TensorSpec {
        // All formats in this layout have one of the two widths.
        let bits = format.separate_integers().unwrap_or(Bits::Int8);
        let [mut lines, halves] = QuantizedMatrix::panel_shapes(shape, format);
        let (suffix, dtype, shape) = match self {
            Self::Lines => {
                if let Some(bytes) = lines.last_mut() {
                    *bytes /= size_of::<u64>();
                }
                (suffix(bits), Dtype::U64, lines) // First in the file, and so aligned.
            }
            Self::Scales => ("scale_panels", Dtype::F16, halves),
            Self::Minimums => ("minimum_panels", Dtype::F16, halves),
        };
        TensorSpec::new(format!("{name}.{suffix}"), dtype, shape)
    }

    pub(super) fn bytes(self, matrix: &QuantizedMatrix) -> Vec<u8> {
        match self {
            Self::Lines => matrix.panel_lines(),
            Self::Scales => matrix.panel_scales(),
            Self::Minimums => matrix.panel_minimums(),
        }
    }
}

fn suffix(bits: Bits) -> &'static str {
    match bits {
        Bits::Int8 => "int8_panels",
        Bits::Int4 => "int4_panels",
    }
}

/// The matrix to which the tensor `name` belongs, if it contains the lines of one.
pub(super) fn matrix_of_lines(name: &str) -> Option<&str> {
    let (matrix, kind) = name.rsplit_once('.')?;
    let mut kinds = [Bits::Int8, Bits::Int4].into_iter().map(suffix);
    kinds.any(|suffix| suffix == kind).then_some(matrix)
}

/// The format of the matrix `name`, if `file` has it in this layout.
pub(super) fn format(file: &TensorFile, name: &str) -> Option<BlockFormat> {
    let has = |suffix: &str| file.shape(&format!("{name}.{suffix}")).is_some();
    let mut bits = [Bits::Int8, Bits::Int4].into_iter();
    Some(match bits.find(|bits| has(suffix(*bits)))? {
        Bits::Int8 => BlockFormat::Q8_0,
        Bits::Int4 if has("minimum_panels") => BlockFormat::Q4_1,
        Bits::Int4 => BlockFormat::Q4_0,
    })
}

/// The names, shapes and types of the tensors of the matrix `name`.
pub(super) fn expected(
    name: &str,
    format: BlockFormat,
    shape: [usize; 2],
) -> impl Iterator<Item = (String, Vec<usize>, Option<Dtype>)> {
    let specs = PanelPart::of(format).map(move |part| part.spec(name, format, shape));
    specs.map(|spec| (spec.name, spec.shape, Some(spec.dtype)))
}

/// Reads the matrix `name` of shape `[d_in, d_out]`: without copying it, if the file stays mapped.
///
/// # Errors
/// [`ModelError::Format`] if its tensors are missing, or have other types or shapes.
pub(super) fn read(
    file: &TensorFile,
    name: &str,
    format: BlockFormat,
    shape: [usize; 2],
) -> Result<QuantizedMatrix, ModelError> {
    let error = |problem: String| ModelError::Format {
        path: file.path().to_path_buf(),
        problem,
    };
    for (name, shape, dtype) in expected(name, format, shape) {
        if file.dtype(&name) != dtype || file.shape(&name) != Some(&shape[..]) {
            let problem = format!("`{name}` is not of type {dtype:?} and shape {shape:?}");
            return Err(error(problem));
        }
    }
    let [lines, scales, minimums] = [PanelPart::Lines, PanelPart::Scales, PanelPart::Minimums]
        .map(|part| part.spec(name, format, shape).name);
    let matrix = match (file.shared_bytes(&lines), file.shared_bytes(&scales)) {
        (Some(lines), Some(scales)) => {
            let minimums = file.shared_bytes(&minimums).unwrap_or_default();
            QuantizedMatrix::from_shared_panels(shape, format, [lines, scales, minimums])
        }
        _ => {
            let minimums = if format.has_minimum() {
                file.with_bytes(&minimums, <[u8]>::to_vec)?
            } else {
                Vec::new()
            };
            let scales = file.with_bytes(&scales, <[u8]>::to_vec)?;
            file.with_bytes(&lines, |lines| {
                QuantizedMatrix::from_panels(shape, format, [lines, &scales, &minimums])
            })?
        }
    };
    matrix.ok_or_else(|| {
        error(format!(
            "`{name}` of shape {shape:?} cannot be stored in panels"
        ))
    })
}
