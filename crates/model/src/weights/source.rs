//! Weights in any format.

use std::fmt::Debug;

use super::TensorFile;
use crate::ModelError;

/// The weights of a model by our names, read one tensor at a time: a [`TensorFile`], or a file of another format.
pub trait WeightSource: Debug + Send + Sync {
    /// The shape of the tensor `name`, if there is one.
    fn shape(&self, name: &str) -> Option<&[usize]>;

    /// The values of the tensor `name` as f32, in the order of [`layout`](super::layout)'s shape.
    ///
    /// # Errors
    /// [`ModelError::Format`] if there is no such tensor; [`ModelError::Io`] if it cannot be read.
    fn values(&self, name: &str) -> Result<Vec<f32>, ModelError>;

    /// The matrix `name` in the blocks in which the file has it, if it has it quantized: what [`values`](Self::values)
    /// dequantizes.
    ///
    /// # Errors
    /// As [`values`](Self::values).
    fn blocks(&self, name: &str) -> Result<Option<MatrixBlocks>, ModelError> {
        let _ = name;
        Ok(None)
    }
}

/// A quantized matrix of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatrixBlocks {
    /// GGUF's name of the type, such as `Q4_0`.
    pub format: &'static str,
    /// `[rows, values in a row]`: of an embedding `[vocab_size, d_model]`, of other matrices `[d_out, d_in]`.
    pub shape: [usize; 2],
    /// The blocks of the first row, then those of the next.
    pub bytes: Vec<u8>,
}

impl WeightSource for TensorFile {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.shape(name)
    }

    fn values(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        self.values(name)
    }
}

impl<T: WeightSource + ?Sized> WeightSource for &T {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        (**self).shape(name)
    }

    fn values(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        (**self).values(name)
    }

    fn blocks(&self, name: &str) -> Result<Option<MatrixBlocks>, ModelError> {
        (**self).blocks(name)
    }
}
