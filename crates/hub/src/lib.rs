//! Models from the Hugging Face Hub: download of the files that an import needs, into the cache folder that Python's
//! `huggingface_hub` uses.
//!
//! | for | open |
//! |---|---|
//! | what to download: `hf:OWNER/NAME[@REVISION][:FILE]` | [`HubReference`] |
//! | server, cache and token, from the environment | [`HubSettings`] |
//! | downloads | [`Hub::open`], [`Repository::settings`], [`Repository::weights`] |
//! | progress | [`HubEvent`] |
//!
//! What a server answers is untrusted. Answers, redirects and waiting times are bounded; names of files that would
//! leave the cache are not used; each content is compared with the size and the hash that its repository states, and
//! becomes part of the cache only then. The token is sent to the endpoint only. An interrupted download is continued
//! by the next one.
//!
//! # Example
//!
//! Without a connection, the files of the cache are used:
//!
//! ```
//! use nextword_hub::{Hub, HubReference, HubSettings};
//!
//! let home = tempfile::tempdir()?;
//! let commit = "0123456789abcdef0123456789abcdef01234567";
//! let repository = home.path().join("hub/models--owner--name");
//! let snapshot = repository.join("snapshots").join(commit);
//! std::fs::create_dir_all(repository.join("refs"))?;
//! std::fs::create_dir_all(&snapshot)?;
//! std::fs::write(repository.join("refs/main"), commit)?;
//! for name in ["config.json", "tokenizer.json", "model.safetensors"] {
//!     std::fs::write(snapshot.join(name), "{}")?;
//! }
//!
//! let settings = HubSettings::from_variables(|name| match name {
//!     "HF_HOME" => Some(home.path().into()),
//!     "HF_HUB_OFFLINE" => Some("1".into()),
//!     _ => None,
//! })?;
//! let hub = Hub::new(settings)?;
//! let reference: HubReference = "hf:owner/name".parse()?;
//! let model = hub.open(&reference, &mut |_| {})?;
//! assert_eq!(model.commit(), commit);
//! assert_eq!(model.settings(&mut |_| {})?.as_ref(), Some(&snapshot));
//! assert_eq!(model.weights(&mut |_| {})?, snapshot);
//! assert!(hub.open(&"hf:owner/other".parse()?, &mut |_| {}).is_err()); // not in the cache
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod blob;
mod cache;
mod client;
mod download;
mod error;
mod event;
mod failure;
mod listing;
mod reference;
mod repository;
mod selection;
mod settings;
mod url;

#[cfg(test)]
mod test_server;
#[cfg(test)]
mod tests;

pub use error::HubError;
pub use event::HubEvent;
pub use reference::HubReference;
pub use repository::{Hub, Repository};
pub use settings::{HubSettings, Token};
