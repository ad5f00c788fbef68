//! A revision of a repository, whose files are downloaded on request.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::RepositoryCache;
use crate::client::{Client, Failure};
use crate::download::{self, RemoteFile, Span};
use crate::failure::{Subject, describe};
use crate::listing::{self, Listing};
use crate::selection::{self, INDEX, Weights};
use crate::settings::HubSettings;
use crate::url::{Url, encode};
use crate::{HubError, HubEvent, HubReference};

/// Maximum size in bytes of a file that does not contain weights. The largest tokenizers have about 40 MB.
const MAX_SETTINGS_BYTES: u64 = 256 << 20;

/// Space that remains free on the disk.
const DISK_MARGIN: u64 = 16 << 20;

/// Hugging Face Hub with a local cache.
#[derive(Debug)]
pub struct Hub {
    settings: HubSettings,
    client: Client,
}

impl Hub {
    /// Prepares downloads with `settings`. Nothing is requested yet.
    ///
    /// # Errors
    /// [`HubError::Setting`] or [`HubError::Io`] if the root certificates cannot be read, and
    /// [`HubError::Server`] if the endpoint is not an address.
    pub fn new(settings: HubSettings) -> Result<Self, HubError> {
        let client = Client::new(&settings)?;
        Ok(Self { settings, client })
    }

    /// Finds the commit that `reference` stands for, and its files. Without a connection these are those of the
    /// cache, which an event reports.
    ///
    /// # Errors
    /// [`HubError::NotFound`] and [`HubError::Denied`] if the repository or the revision does not exist or is not
    /// accessible, [`HubError::Network`] if the server cannot be reached and the cache does not have it either, and
    /// [`HubError::Server`] if the answer is invalid.
    pub fn open(
        &self,
        reference: &HubReference,
        on_event: &mut dyn FnMut(&HubEvent<'_>),
    ) -> Result<Repository<'_>, HubError> {
        let cache = RepositoryCache::new(&self.settings.cache, &reference.repository);
        let mut repository = Repository {
            hub: self,
            reference: reference.clone(),
            cache,
            commit: String::new(),
            files: BTreeMap::new(),
            is_cached: self.settings.offline,
        };
        if self.settings.offline {
            let problem = "the offline mode is on (HF_HUB_OFFLINE)";
            repository.use_cache(problem)?;
            return Ok(repository);
        }
        match repository.list(on_event) {
            Ok(listing) => {
                repository.commit = listing.commit;
                repository.files = listing.files;
            }
            Err(Failure::Unreachable(problem) | Failure::Interrupted(problem)) => {
                repository.use_cache(&problem)?;
                on_event(&HubEvent::UsingCache {
                    problem: &problem,
                    commit: &repository.commit,
                });
            }
            Err(failure) => return Err(repository.error(failure, None)),
        }
        Ok(repository)
    }
}

/// A commit of a repository. Its files are downloaded by [`settings`](Self::settings) and
/// [`weights`](Self::weights), which leave alone what the cache already has.
#[derive(Debug)]
pub struct Repository<'a> {
    hub: &'a Hub,
    reference: HubReference,
    cache: RepositoryCache,
    commit: String,
    /// Paths, and sizes where they are known.
    files: BTreeMap<String, Option<u64>>,
    /// Whether the server is not asked.
    is_cached: bool,
}

impl Repository<'_> {
    /// The commit, as 40 hexadecimal digits.
    pub fn commit(&self) -> &str {
        &self.commit
    }

    /// Downloads configuration, tokenizer and chat templates, and returns the folder with them. A repository of
    /// which one GGUF file is to be imported needs none of them: then this is `None`.
    ///
    /// # Errors
    /// [`HubError::NotFound`] if the repository does not contain a model, and the errors of
    /// [`weights`](Self::weights).
    pub fn settings(
        &self,
        on_event: &mut dyn FnMut(&HubEvent<'_>),
    ) -> Result<Option<PathBuf>, HubError> {
        if self.reference.file.is_some() {
            return Ok(None);
        }
        let names = selection::settings(&self.files, &self.reference.repository);
        let names = names.map_err(|problem| self.not_found(&problem))?;
        // A repository without weights is rejected before anything is downloaded.
        self.weights_kind()?;
        self.fetch(&names, Some(MAX_SETTINGS_BYTES), on_event)?;
        Ok(Some(self.cache.snapshot(&self.commit)))
    }

    /// Downloads the weights: all safetensors files, or the GGUF file that the reference names. Returns the path to
    /// import: the folder that [`settings`](Self::settings) returned, or the GGUF file.
    ///
    /// # Errors
    /// [`HubError::NotFound`] if there are no such files, [`HubError::DiskFull`] before anything is written,
    /// [`HubError::WrongContent`] if a file is not what the repository states, and others if the connection fails
    /// or the cache cannot be written. What was downloaded is kept and continued by the next call.
    pub fn weights(&self, on_event: &mut dyn FnMut(&HubEvent<'_>)) -> Result<PathBuf, HubError> {
        if let Some(file) = &self.reference.file {
            if !self.files.contains_key(file) {
                let hint = selection::gguf_hint(&self.files, &self.reference.repository);
                let hint = hint.unwrap_or_else(|| {
                    "hint: it has no GGUF files; without a file name, the safetensors are taken"
                        .to_string()
                });
                return Err(self.not_found(&format!("contains no `{file}`; {hint}")));
            }
            self.fetch(std::slice::from_ref(file), None, on_event)?;
            return Ok(self.cache.pointer(&self.commit, file));
        }
        match self.weights_kind()? {
            Weights::Single(name) => self.fetch(&[name.to_string()], None, on_event)?,
            Weights::Sharded => {
                self.fetch(&[INDEX.to_string()], Some(MAX_SETTINGS_BYTES), on_event)?;
                let path = self.cache.pointer(&self.commit, INDEX);
                let index = fs::read(&path).map_err(HubError::io(&path, "read"))?;
                let shards = selection::shards(&index, &self.files);
                let shards = shards.map_err(|problem| self.not_found(&problem))?;
                self.fetch(&shards, None, on_event)?;
            }
        }
        Ok(self.cache.snapshot(&self.commit))
    }

    fn weights_kind(&self) -> Result<Weights, HubError> {
        let kind = selection::weights(&self.files, &self.reference.repository);
        kind.map_err(|problem| self.not_found(&problem))
    }

    /// Takes the files from the cache, because of `problem`.
    fn use_cache(&mut self, problem: &str) -> Result<(), HubError> {
        let commit = self.cache.commit(&self.reference.revision);
        let commit = commit.filter(|commit| self.cache.snapshot(commit).is_dir());
        let Some(commit) = commit else {
            let HubReference {
                repository,
                revision,
                ..
            } = &self.reference;
            return Err(HubError::Network {
                problem: format!(
                    "`{repository}` at `{revision}` is not in the cache ({}), and {problem}; hint: connect to the \
                     network, or copy the model's folder to this machine and pass its path",
                    self.hub.settings.cache.display()
                ),
            });
        };
        self.files = self.cache.files(&commit);
        self.commit = commit;
        self.is_cached = true;
        Ok(())
    }

    /// Asks the server for commit and files.
    fn list(&self, on_event: &mut dyn FnMut(&HubEvent<'_>)) -> Result<Listing, Failure> {
        let HubReference {
            repository,
            revision,
            ..
        } = &self.reference;
        let revision = encode(revision, false);
        let url = self.url(&format!(
            "api/models/{repository}/revision/{revision}?blobs=true"
        ))?;
        let client = &self.hub.client;
        let bytes = client.with_retries(on_event, |_| {
            let answer = client.read(&url, listing::MAX_BYTES);
            answer.map_err(|failure| (failure, false))
        })?;
        let listing = Listing::parse(&bytes);
        Ok(listing.map_err(|problem| HubError::server(&url, problem))?)
    }

    /// Downloads the files `names` that the cache does not have. A file of more than `limit` bytes is an error.
    fn fetch(
        &self,
        names: &[String],
        limit: Option<u64>,
        on_event: &mut dyn FnMut(&HubEvent<'_>),
    ) -> Result<(), HubError> {
        let missing: Vec<&String> = names.iter().filter(|name| !self.has(name)).collect();
        if self.is_cached {
            let Some(name) = missing.first() else {
                return Ok(());
            };
            let problem = format!("lacks `{name}`");
            return Err(self.not_found(&problem));
        }
        let remotes = missing.into_iter();
        let remotes = remotes.map(|name| self.describe(name, limit, on_event));
        let remotes: Vec<RemoteFile> = remotes.collect::<Result<_, _>>()?;
        if !remotes.is_empty() {
            self.check_disk(&remotes)?;
            self.cache.create()?;
        }
        let sizes = remotes.iter().map(|file| file.size);
        let total = sizes.fold(0, u64::saturating_add);
        let mut start = 0_u64;
        for file in &remotes {
            let (client, span) = (&self.hub.client, Span { start, total });
            let fetched = download::fetch(client, &self.cache, &self.commit, file, span, on_event);
            fetched.map_err(|failure| self.error(failure, Some(&file.name)))?;
            start = start.saturating_add(file.size);
        }
        let noted = self
            .cache
            .set_commit(&self.reference.revision, &self.commit);
        // A complete cache may be read-only.
        if remotes.is_empty() { Ok(()) } else { noted }
    }

    /// Whether the cache has the file `name`, with the size that the list states.
    fn has(&self, name: &str) -> bool {
        let size = self.files.get(name).copied().flatten();
        let found = fs::metadata(self.cache.pointer(&self.commit, name));
        found.is_ok_and(|found| found.is_file() && size.is_none_or(|size| found.len() == size))
    }

    fn describe(
        &self,
        name: &str,
        limit: Option<u64>,
        on_event: &mut dyn FnMut(&HubEvent<'_>),
    ) -> Result<RemoteFile, HubError> {
        let HubReference { repository, .. } = &self.reference;
        let path = format!(
            "{repository}/resolve/{}/{}",
            self.commit,
            encode(name, true)
        );
        let url = self.url(&path)?;
        let client = &self.hub.client;
        let remote = client.with_retries(on_event, |_| {
            let answer = download::describe(client, name, url.clone());
            answer.map_err(|failure| (failure, false))
        });
        let remote = remote.map_err(|failure| self.error(failure, Some(name)))?;
        match limit {
            Some(limit) if remote.size > limit => {
                let problem = format!(
                    "has {} bytes, and the maximum for this file is {limit}; hint: report it to the owner",
                    remote.size
                );
                Err(HubError::server(&url, problem))
            }
            _ => Ok(remote),
        }
    }

    fn check_disk(&self, files: &[RemoteFile]) -> Result<(), HubError> {
        let missing = files
            .iter()
            .map(|file| download::missing_bytes(&self.cache, file));
        let needed = missing.fold(0_u64, u64::saturating_add);
        let folder: &Path = &self.hub.settings.cache;
        match nextword_base::free_disk_space(&self.cache.folder()) {
            Some(free) if needed > 0 && needed.saturating_add(DISK_MARGIN) > free => {
                Err(HubError::DiskFull {
                    path: folder.to_path_buf(),
                    needed,
                    free,
                })
            }
            _ => Ok(()),
        }
    }

    fn url(&self, path: &str) -> Result<Url, HubError> {
        let text = format!("{}/{path}", self.hub.settings.endpoint);
        Url::parse(&text).map_err(|problem| HubError::server(&text, problem))
    }

    fn not_found(&self, problem: &str) -> HubError {
        let HubReference {
            repository,
            revision,
            ..
        } = &self.reference;
        let problem = if self.is_cached {
            let fact = problem.split("; hint: ").next().unwrap_or_default();
            let cache = self.hub.settings.cache.display();
            format!(
                "in the cache ({cache}) {fact}; hint: connect to the network, without HF_HUB_OFFLINE, to download what \
                 is missing"
            )
        } else {
            problem.to_string()
        };
        HubError::NotFound {
            problem: format!("`{repository}` at `{revision}` {problem}"),
        }
    }

    fn error(&self, failure: Failure, file: Option<&str>) -> HubError {
        let subject = Subject {
            endpoint: &self.hub.settings.endpoint,
            repository: &self.reference.repository,
            revision: &self.reference.revision,
            file,
            has_token: self.hub.client.has_token(),
        };
        describe(failure, &subject)
    }
}
