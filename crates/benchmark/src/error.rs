//! The errors of this crate.

use nextword_generate::GenerateError;
use nextword_model::ModelError;

/// Every error of the benchmark crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchmarkError {
    /// An error of the model crate, such as a device that does not work.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An error of the generate crate.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// A program that cannot be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// The program.
        program: String,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A program that reported a failure.
    #[error("{command} failed, see the error above")]
    Failed {
        /// The program and its first argument.
        command: String,
    },
    /// A program that did not print a line of JSON.
    #[error("{command} did not print JSON: {source}")]
    Output {
        /// The program and its first argument.
        command: String,
        /// The parser's reason.
        source: serde_json::Error,
    },
}
