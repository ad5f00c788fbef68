//! The errors of this crate.

use std::path::{Path, PathBuf};

use nextword_base::PathError;
use nextword_eval::EvalError;
use nextword_train::TrainError;
use nextword_train::plan::MemoryShortage;

/// Every error of the experiments crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExperimentError {
    /// An option of an experiment that cannot be used.
    #[error("{option}: {problem}; hint: {hint}")]
    Option {
        /// The option, as on the command line.
        option: String,
        /// What is wrong.
        problem: String,
        /// How to fix it.
        hint: String,
    },

    /// A file or folder of a sweep that cannot be used.
    #[error("{path}: {problem}")]
    Sweep {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, and how to fix it.
        problem: String,
    },

    /// An arm of a sweep that cannot be trained.
    #[error("{arm}: {source}")]
    Arm {
        /// The arm's name.
        arm: String,
        /// What is wrong.
        source: Box<TrainError>,
    },

    /// A process that trains a run ended without a result.
    #[error("{run}: {problem}")]
    Process {
        /// The run.
        run: String,
        /// How it ended.
        problem: String,
    },

    /// A run that does not fit into memory.
    #[error(transparent)]
    Memory(#[from] MemoryShortage),

    /// A file that cannot be read or written.
    #[error(transparent)]
    Path(#[from] PathError),
    /// An error of the train crate.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// An error of the eval crate.
    #[error(transparent)]
    Eval(#[from] EvalError),
}

impl ExperimentError {
    /// Creates an [`ExperimentError::Option`].
    pub(crate) fn option(
        option: impl Into<String>,
        problem: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::Option {
            option: option.into(),
            problem: problem.into(),
            hint: hint.into(),
        }
    }

    /// Creates an [`ExperimentError::Sweep`].
    pub(crate) fn sweep(path: &Path, problem: impl Into<String>) -> Self {
        Self::Sweep {
            path: path.to_path_buf(),
            problem: problem.into(),
        }
    }

    /// Returns a function that creates an [`ExperimentError::Path`] about `path`.
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| {
            Self::Path(PathError {
                path,
                action,
                source,
            })
        }
    }
}
