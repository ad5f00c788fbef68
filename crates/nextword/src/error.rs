//! The error of this crate.

use crate::{convert, data, eval, generate, model, train};

/// Any error of training, generating or inspecting. Each crate has an error type of its own, which
/// converts to this one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Text, tokenizers, token files.
    #[error(transparent)]
    Data(#[from] data::DataError),
    /// Model configurations, model folders, devices.
    #[error(transparent)]
    Model(#[from] model::ModelError),
    /// Files of other formats.
    #[error(transparent)]
    Convert(#[from] convert::ConvertError),
    /// Training.
    #[error(transparent)]
    Train(#[from] train::TrainError),
    /// Text generation.
    #[error(transparent)]
    Generate(#[from] generate::GenerateError),
    /// Evaluation.
    #[error(transparent)]
    Eval(#[from] eval::EvalError),
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
