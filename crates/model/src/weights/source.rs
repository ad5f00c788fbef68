//! Weights in any format.

use std::fmt::Debug;

use bytes::Bytes;

use super::TensorFile;
use crate::{BlockFormat, ModelError, QuantizedMatrix, quantize};

/// The weights of a model by our names, read one tensor at a time: a [`TensorFile`], or a file of another format.
pub trait WeightSource: Debug + Send + Sync {
    /// The shape of the tensor `name`, if there is one.
    fn shape(&self, name: &str) -> Option<&[usize]>;

    /// The values of the tensor `name` as f32, in the order of [`layout`](super::layout)'s shape.
    ///
    /// # Errors
    /// [`ModelError::Format`] if there is no such tensor; [`ModelError::Io`] if it cannot be read.
    fn values(&self, name: &str) -> Result<Vec<f32>, ModelError>;

    /// The values of the tensor `name` as f32 in the order of bytes of memory, if they can be used where they are, such
    /// as in a mapped file: aligned for f32.
    fn shared_values(&self, name: &str) -> Option<Bytes> {
        let _ = name;
        None
    }

    /// The format of the matrix `name`, if it is quantized.
    fn matrix_format(&self, name: &str) -> Option<BlockFormat> {
        let _ = name;
        None
    }

    /// The matrix `name` of shape `[d_in, d_out]`, if it is quantized.
    ///
    /// # Errors
    /// [`ModelError::Format`] if its tensors do not have that shape or contain an invalid integer;
    /// [`ModelError::Io`] if they cannot be read.
    fn quantized_matrix(
        &self,
        name: &str,
        shape: [usize; 2],
    ) -> Result<Option<QuantizedMatrix>, ModelError> {
        let _ = (name, shape);
        Ok(None)
    }
}

impl WeightSource for TensorFile {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.shape(name)
    }

    fn values(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        self.values(name)
    }

    fn shared_values(&self, name: &str) -> Option<Bytes> {
        self.shared_values(name)
    }

    fn matrix_format(&self, name: &str) -> Option<BlockFormat> {
        quantize::matrix_format(self, name)
    }

    fn quantized_matrix(
        &self,
        name: &str,
        shape: [usize; 2],
    ) -> Result<Option<QuantizedMatrix>, ModelError> {
        quantize::read_matrix(self, name, shape)
    }
}

impl<T: WeightSource + ?Sized> WeightSource for &T {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        (**self).shape(name)
    }

    fn values(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        (**self).values(name)
    }

    fn shared_values(&self, name: &str) -> Option<Bytes> {
        (**self).shared_values(name)
    }

    fn matrix_format(&self, name: &str) -> Option<BlockFormat> {
        (**self).matrix_format(name)
    }

    fn quantized_matrix(
        &self,
        name: &str,
        shape: [usize; 2],
    ) -> Result<Option<QuantizedMatrix>, ModelError> {
        (**self).quantized_matrix(name, shape)
    }
}
