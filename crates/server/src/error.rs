//! What can go wrong before and while a server runs, as sentences with the facts in them.

use std::io;
use std::path::PathBuf;

use nextword_generate::GenerateError;

/// Every error of the server crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// A server that others can reach needs a key.
    #[error(
        "`{host}` lets other machines in, which needs an API key; hint: give --api-key or set NEXTWORD_API_KEY, or \
         leave out --host"
    )]
    KeyNeeded {
        /// The address that was asked for.
        host: String,
    },

    /// The address cannot be used.
    #[error("cannot listen on {address}: {source}; hint: choose another --port")]
    Listen {
        /// Host and port.
        address: String,
        /// The operating system's reason.
        source: io::Error,
    },

    /// Two records of one name.
    #[error("two records are named {name:?}; hint: give one of them another name, as NAME=RECORD")]
    SameName {
        /// The name.
        name: String,
    },

    /// A chat template that is none.
    #[error("`{}`: {problem}; hint: mend the template or remove the file", path.display())]
    Template {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },

    /// A conversation that the template refuses.
    #[error("the model's chat template refuses this conversation: {problem}")]
    Chat {
        /// The template's own words.
        problem: String,
    },

    /// The cache's budget is too small for one sequence.
    #[error(
        "one sequence of `{name}` needs {needed} MiB of cache, more than the {budget} MiB allowed; hint: raise --cache-mib"
    )]
    Budget {
        /// The record's name.
        name: String,
        /// MiB that a slot takes.
        needed: u64,
        /// MiB allowed.
        budget: u64,
    },

    /// The system gives no threads or signals.
    #[error("the server cannot start: {0}")]
    Io(#[from] io::Error),

    /// From the generate crate.
    #[error(transparent)]
    Generate(#[from] GenerateError),
}
