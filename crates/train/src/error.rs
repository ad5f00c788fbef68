//! The errors of this crate.

use std::path::PathBuf;

use nextword_base::PathError;
use nextword_chat::ChatError;
use nextword_convert::ConvertError;
use nextword_data::DataError;
use nextword_eval::EvalError;
use nextword_model::{ByteSize, ModelError};
use nextword_parallel::ParallelError;

/// Separates what is wrong from how to fix it.
const HINT: &str = "; hint: ";

/// How to make room for a save, unless `error` says it.
fn hint_unless_given(error: &TrainError) -> &'static str {
    if error.to_string().contains(HINT) {
        ""
    } else {
        "; hint: free disk space"
    }
}

fn earlier_norms(history: &str) -> String {
    match history {
        "" => String::new(),
        norms => format!(", gradient norms of the last steps: {norms}"),
    }
}

fn intact_checkpoint(step: Option<u64>) -> String {
    step.map_or_else(String::new, |step| {
        format!("; the checkpoint of step {step} is intact")
    })
}

/// Every error of the train crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// An invalid value in a run's configuration.
    #[error("{key}: {problem}; hint: {hint}")]
    Config {
        /// The key, as in the file.
        key: String,
        /// What is wrong.
        problem: String,
        /// How to fix it.
        hint: String,
    },

    /// A configuration file that cannot be parsed.
    #[error("{path}{}: {problem}", .line.map_or_else(String::new, |line| format!(":{line}")))]
    ConfigFile {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: Option<usize>,
        /// What is wrong, and how to fix it.
        problem: String,
    },

    /// Files of a run that are damaged or missing.
    #[error("{path}: {problem}")]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// What is wrong, and how to fix it.
        problem: String,
    },

    /// Saving failed repeatedly.
    #[error(
        "{source}{}, then continue with `nextword resume {}`",
        hint_unless_given(.source), .folder.display()
    )]
    NotSaved {
        /// The run's folder.
        folder: PathBuf,
        /// The last error.
        source: Box<TrainError>,
    },

    /// A file or folder of a run that cannot be used.
    #[error("{path}: {problem}")]
    Run {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, and how to fix it.
        problem: String,
    },

    /// A file that cannot be read or written.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was attempted: `read`, `write` or the like.
        action: &'static str,
        /// The operating system's reason.
        source: std::io::Error,
    },

    /// A stop was requested while the run was validating or generating text. [`Hooks`](crate::Hooks) return it to say
    /// so; the run saves, and what was left out is done when it is resumed.
    #[error("a stop was requested")]
    Interrupted,

    /// Another process holds the lock of the run's folder.
    #[error(
        "{folder}: another process is training in this folder; hint: wait for it to finish, or stop it"
    )]
    FolderInUse {
        /// The folder.
        folder: PathBuf,
    },

    /// The run's folder was removed or moved while the run was training.
    #[error(
        "{folder}: the run's folder was removed or moved while it was training, so nothing can be saved; hint: if it \
         was moved, continue there with `nextword resume`, else start the run again"
    )]
    FolderRemoved {
        /// The folder.
        folder: PathBuf,
    },

    /// There is not enough free disk space to save.
    #[error(
        "{path}: saving needs {}, but only {} are free; hint: free disk space, or lower checkpoint.keep_last",
        ByteSize(*.needed), ByteSize(*.free)
    )]
    DiskFull {
        /// The run's folder.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },

    /// The loss or a gradient is NaN or infinite.
    #[error(
        "training diverged at step {step}: {first}; learning rate {learning_rate:.3e}, loss {loss}{}; hint: lower \
         schedule.learning_rate, lengthen schedule.warmup_steps or set optimizer.clip_norm{}",
        earlier_norms(.history),
        intact_checkpoint(*.checkpoint)
    )]
    Diverged {
        /// The failed update, counted from 1.
        step: u64,
        /// The learning rate of that update.
        learning_rate: f64,
        /// The loss at that update.
        loss: f64,
        /// Gradient norms of the preceding updates of this process, oldest first; may be empty.
        history: String,
        /// A description of the first tensor that is not finite.
        first: String,
        /// The step of the last checkpoint, if there is one.
        checkpoint: Option<u64>,
    },

    /// The loss of the first step is NaN or infinite, found while planning a run.
    #[error("the loss of the first step is {loss}; hint: check model.init and the model's sizes")]
    FirstLoss {
        /// The loss.
        loss: f64,
    },

    /// An error of a hook, such as one of text generation.
    #[error(transparent)]
    Hook(Box<dyn std::error::Error + Send + Sync>),

    /// A conversation that cannot be formatted or encoded.
    #[error("{place}{}: {source}", template.as_ref().map_or_else(String::new, |name| format!(" ({name})")))]
    Conversation {
        /// The file and the line.
        place: String,
        /// The chat template that formats it, if there is one.
        template: Option<String>,
        /// What is wrong.
        source: ChatError,
    },

    /// An error of the chat crate: of the files of conversations, or of the chat template.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// An error of the model crate.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An error of the data crate.
    #[error(transparent)]
    Data(#[from] DataError),
    /// An error of the ranks that train together.
    #[error(transparent)]
    Parallel(#[from] ParallelError),
    /// An error of the eval crate.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// An error of the convert crate.
    #[error(transparent)]
    Convert(#[from] ConvertError),
}

impl From<PathError> for TrainError {
    fn from(error: PathError) -> Self {
        Self::Io {
            path: error.path,
            action: error.action,
            source: error.source,
        }
    }
}

impl TrainError {
    /// Creates a [`TrainError::Config`] about `key`.
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

    /// Creates a [`TrainError::Run`] about `path`.
    pub fn run(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::Run {
            path: path.into(),
            problem: problem.into(),
        }
    }

    /// Creates a [`TrainError::Conversation`]. For records that compare or rate completions, the hint is how to train on
    /// them.
    pub(crate) fn conversation(place: &str, template: Option<&str>, source: ChatError) -> Self {
        if let ChatError::Comparison = source {
            return Self::config(
                "preferences",
                format!(
                    "{place}: the record compares or rates completions, but the run is supervised"
                ),
                "add the table [preferences] (with loss = \"kto\" for rated completions), or keep `messages` only",
            );
        }
        Self::Conversation {
            place: place.to_string(),
            template: template.map(str::to_string),
            source,
        }
    }

    /// Creates a [`TrainError::Hook`].
    pub fn hook(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Hook(error.into())
    }

    /// Returns a function that creates a [`TrainError::Io`] about `path`.
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

    /// The message without its hint.
    pub(crate) fn fact(&self) -> String {
        let message = self.to_string();
        let fact = message.split_once(HINT).map(|(fact, _)| fact.to_string());
        fact.unwrap_or(message)
    }

    /// Whether this is a failed write, such as a full disk, that may succeed later.
    pub fn is_write_failure(&self) -> bool {
        match self {
            Self::DiskFull { .. } => true,
            Self::Io { action, .. } | Self::Model(ModelError::Io { action, .. }) => {
                *action != "read"
            }
            _ => false,
        }
    }
}
