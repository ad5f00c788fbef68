//! What can go wrong in training, as sentences with the facts in them.

use std::path::PathBuf;

use nextword_data::DataError;
use nextword_eval::EvalError;
use nextword_model::ModelError;

/// Every error of the train crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A run's configuration with a key that cannot be as it is.
    #[error("{key}: {problem}; hint: {hint}")]
    Config {
        /// The key, as written in the file.
        key: String,
        /// What is wrong.
        problem: String,
        /// What would mend it.
        hint: String,
    },

    /// A configuration file that does not parse, with the place.
    #[error("{path}{}: {problem}", .line.map_or_else(String::new, |line| format!(":{line}")))]
    ConfigFile {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: Option<usize>,
        /// What is wrong there and what would mend it.
        problem: String,
    },

    /// A run's files that are damaged or gone.
    #[error("{path}: {problem}")]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// What is wrong and what would mend it.
        problem: String,
    },

    /// Writing failed again and again.
    #[error(
        "{source}; hint: free some space, then go on with `nextword resume {}`",
        .folder.display()
    )]
    NotSaved {
        /// The run's folder.
        folder: PathBuf,
        /// The last failure.
        source: Box<TrainError>,
    },

    /// A file or folder of a run that cannot be used.
    #[error("{path}: {problem}")]
    Run {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and what would mend it.
        problem: String,
    },

    /// A file that cannot be read or written.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// `read`, `write` or the like.
        action: &'static str,
        /// The operating system's reason.
        source: std::io::Error,
    },

    /// The loss or a gradient is no longer a finite number.
    #[error(
        "training diverged at step {step}: {first}; learning rate {learning_rate:.3e}, loss {loss}, \
         gradient norms of the last steps: {history}; hint: lower schedule.learning_rate, lengthen \
         schedule.warmup_steps or set optimizer.clip_norm; the last checkpoint is unharmed"
    )]
    Diverged {
        /// The update that could not be made, counted from 1.
        step: u64,
        /// The learning rate there.
        learning_rate: f64,
        /// The loss there.
        loss: f64,
        /// Gradient norms before, oldest first.
        history: String,
        /// The first intermediate value or parameter that is not finite.
        first: String,
    },

    /// The network.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Measuring the loss.
    #[error(transparent)]
    Eval(#[from] EvalError),
}

impl TrainError {
    /// A [`TrainError::Config`] about `key`.
    pub fn config(
        key: impl Into<String>,
        problem: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::Config {
            key: key.into(),
            problem: problem.into(),
            hint: hint.into(),
        }
    }

    /// A [`TrainError::Run`] about `path`.
    pub fn run(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::Run {
            path: path.into(),
            problem: problem.into(),
        }
    }

    /// A function that makes a [`TrainError::Io`] about `path`.
    pub(crate) fn io(
        path: impl Into<PathBuf>,
        action: &'static str,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            path,
            action,
            source,
        }
    }

    /// Whether writing failed for want of space or the like, so that trying again later may do.
    pub fn is_write_failure(&self) -> bool {
        matches!(
            self,
            Self::Io { action, .. } | Self::Model(ModelError::Io { action, .. })
                if *action != "read"
        )
    }
}
