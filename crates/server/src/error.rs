//! Errors from starting and running a server.

use std::io;

use nextword_generate::GenerateError;
use nextword_model::ModelError;

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
        /// The address.
        host: String,
    },

    /// Two models have the same name.
    #[error("two models are named {name:?}; hint: rename one of them with NAME=MODEL")]
    DuplicateName {
        /// The name.
        name: String,
    },

    /// The base of an adapter is not served.
    #[error("the base of the adapter `{name}`, `{base}`, is not served; hint: serve the base too")]
    UnknownBase {
        /// The adapter's name.
        name: String,
        /// The name of its base.
        base: String,
    },

    /// The KV cache budget is too small for one sequence as long as the context.
    #[error(
        "a whole context of `{name}` needs {needed} MiB of KV cache, more than the {budget} MiB allowed; hint: raise \
         --cache-mib"
    )]
    Budget {
        /// The model's name.
        name: String,
        /// MiB needed for a whole context.
        needed: u64,
        /// MiB allowed.
        budget: u64,
    },

    /// A thread, the runtime or a signal handler could not be created, or the listener is not usable.
    #[error("cannot start the server: {0}")]
    Io(#[from] io::Error),

    /// An error of the model crate.
    #[error(transparent)]
    Model(#[from] ModelError),

    /// An error of the generate crate.
    #[error(transparent)]
    Generate(#[from] GenerateError),
}
