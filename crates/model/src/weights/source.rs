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
}
