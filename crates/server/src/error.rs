//! Errors from starting and running a server.

use std::io;
use std::path::PathBuf;

use nextword_generate::GenerateError;

/// All errors of the server crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// A server that other machines can reach needs an API key.
    #[error(
        "listening on `{host}` exposes the server to other machines, which requires an API key; hint: pass --api-key \
         or set NEXTWORD_API_KEY, or omit --host"
    )]
    ApiKeyRequired {
        /// The requested address.
        host: String,
    },

    /// The address cannot be bound.
    #[error("cannot listen on {address}: {source}; hint: choose another --host or --port")]
    Listen {
        /// Host and port.
        address: String,
        /// The error reported by the operating system.
        source: io::Error,
    },

    /// Two models have the same name.
    #[error("two models are named {name:?}; hint: rename one of them with NAME=MODEL")]
    DuplicateName {
        /// The name.
        name: String,
    },

    /// A chat template cannot be read or parsed.
    #[error("`{}`: {problem}; hint: fix the template or remove the file", path.display())]
    Template {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },

    /// The chat template rejected a conversation.
    #[error("the model's chat template rejected this conversation: {problem}")]
    Chat {
        /// The error raised by the template.
        problem: String,
    },

    /// The KV cache budget is too small for one sequence.
    #[error(
        "one sequence of `{name}` needs {needed} MiB of KV cache, more than the {budget} MiB allowed; hint: raise \
         --cache-mib"
    )]
    Budget {
        /// The model's name.
        name: String,
        /// MiB needed for one slot.
        needed: u64,
        /// MiB allowed.
        budget: u64,
    },

    /// A thread, the runtime or a signal handler could not be created.
    #[error("cannot start the server: {0}")]
    Io(#[from] io::Error),

    /// An error of the generate crate.
    #[error(transparent)]
    Generate(#[from] GenerateError),
}
