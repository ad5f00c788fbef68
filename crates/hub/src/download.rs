//! Download of one file into the cache.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use nextword_base::atomic;
use ureq::Body;
use ureq::http::{HeaderMap, Method, Response, StatusCode};

use crate::blob::{BlobHasher, BlobId};
use crate::cache::RepositoryCache;
use crate::client::{Client, Failure};
use crate::url::Url;
use crate::{HubError, HubEvent};

/// Number of bytes that are read at a time.
const CHUNK: usize = 1 << 18;

/// Number of bytes after which an attempt counts as progress.
const PROGRESS: u64 = 1 << 20;

/// A file of a commit.
#[derive(Clone, Debug)]
pub(crate) struct RemoteFile {
    pub(crate) name: String,
    pub(crate) url: Url,
    pub(crate) id: BlobId,
    pub(crate) size: u64,
}

/// Asks the server for hash and size of the file `name`.
pub(crate) fn describe(client: &Client, name: &str, url: Url) -> Result<RemoteFile, Failure> {
    // The answer for a file in large file storage redirects to its content, and describes it itself.
    let is_description = |fields: &HeaderMap| {
        fields.contains_key("x-linked-etag") && fields.contains_key("x-linked-size")
    };
    let response = client.send(&Method::HEAD, &url, &[], is_description)?;
    let is_redirect = response.status().is_redirection();
    let field = |name: &str| response.headers().get(name)?.to_str().ok();
    let etag = field("x-linked-etag").or_else(|| field("etag"));
    let size = field("x-linked-size").or_else(|| field("content-length").filter(|_| !is_redirect));
    let hint = "hint: check HF_ENDPOINT";
    let id = etag.and_then(BlobId::from_etag);
    let id = id.ok_or_else(|| {
        let problem = format!("is described without a hash (`ETag`) to check it by; {hint}");
        HubError::server(&url, problem)
    })?;
    let size = size.and_then(|size| size.trim().parse().ok());
    let size = size
        .ok_or_else(|| HubError::server(&url, format!("is described without its size; {hint}")))?;
    Ok(RemoteFile {
        name: name.to_string(),
        url,
        id,
        size,
    })
}

/// Number of bytes of `file` that are not in the cache yet.
pub(crate) fn missing_bytes(cache: &RepositoryCache, file: &RemoteFile) -> u64 {
    let length = |path: PathBuf| fs::metadata(path).map_or(0, |metadata| metadata.len());
    if length(cache.blob(&file.id)) == file.size {
        return 0;
    }
    let part = length(cache.incomplete(&file.id));
    file.size.saturating_sub(part)
}

/// Where a file is among those that are downloaded, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    /// Size of the files before it.
    pub(crate) start: u64,
    /// Size of all files.
    pub(crate) total: u64,
}

/// Downloads `file` of `commit` unless its content is in the cache, and makes it a file of the snapshot.
pub(crate) fn fetch(
    client: &Client,
    cache: &RepositoryCache,
    commit: &str,
    file: &RemoteFile,
    span: Span,
    on_event: &mut dyn FnMut(&HubEvent<'_>),
) -> Result<(), Failure> {
    let lock = cache.lock(&file.id, || {
        on_event(&HubEvent::Waiting { file: &file.name });
    })?;
    let blob = cache.blob(&file.id);
    // Another process may have downloaded it in the meantime.
    let is_present = fs::metadata(&blob).is_ok_and(|found| found.len() == file.size);
    if !is_present {
        let mut part = Part::open(cache.incomplete(&file.id), file)?;
        part.download(client, span, on_event)?;
        part.commit(&blob)?;
    }
    cache.link(&file.id, commit, &file.name, !is_present)?;
    drop(lock);
    Ok(())
}

/// The beginning of a content, which grows by downloading. It stays on disk when the process ends.
struct Part<'a> {
    path: PathBuf,
    handle: File,
    remote: &'a RemoteFile,
    bytes: u64,
    hasher: BlobHasher,
    /// Whether the beginning was written by an earlier process.
    is_resumed: bool,
}

impl<'a> Part<'a> {
    fn open(path: PathBuf, remote: &'a RemoteFile) -> Result<Self, HubError> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let handle = options.open(&path).map_err(HubError::io(&path, "open"))?;
        let mut part = Self {
            hasher: remote.id.hasher(remote.size),
            path,
            handle,
            remote,
            bytes: 0,
            is_resumed: false,
        };
        part.hash_present()
            .map_err(HubError::io(&part.path, "read"))?;
        Ok(part)
    }

    /// Hashes what an earlier process downloaded.
    fn hash_present(&mut self) -> io::Result<()> {
        if self.handle.metadata()?.len() > self.remote.size {
            return self.clear();
        }
        let mut chunk = vec![0; CHUNK];
        loop {
            let count = self.handle.read(&mut chunk)?;
            if count == 0 {
                break;
            }
            self.hasher.update(&chunk[..count])?;
            self.bytes += count as u64;
        }
        self.is_resumed = self.bytes > 0;
        Ok(())
    }

    fn clear(&mut self) -> io::Result<()> {
        self.handle.set_len(0)?;
        self.handle.seek(SeekFrom::Start(0))?;
        self.hasher = self.remote.id.hasher(self.remote.size);
        self.bytes = 0;
        self.is_resumed = false;
        Ok(())
    }

    fn restart(&mut self) -> Result<(), HubError> {
        self.clear().map_err(HubError::io(&self.path, "write"))
    }

    /// Downloads what is missing, and checks the hash.
    fn download(
        &mut self,
        client: &Client,
        span: Span,
        on_event: &mut dyn FnMut(&HubEvent<'_>),
    ) -> Result<(), Failure> {
        loop {
            client.with_retries(on_event, |on_event| {
                let before = self.bytes;
                let attempt = self.attempt(client, span, on_event);
                attempt.map_err(|failure| (failure, self.bytes.saturating_sub(before) >= PROGRESS))
            })?;
            let empty = self.remote.id.hasher(self.remote.size);
            let found = std::mem::replace(&mut self.hasher, empty).finish();
            if found == self.remote.id.as_str() {
                return Ok(());
            }
            // What an earlier process left may be damaged: once more, from the beginning.
            let is_resumed = self.is_resumed;
            self.restart()?;
            if !is_resumed {
                return Err(self.reject());
            }
        }
    }

    /// Removes the content, which is not the right one.
    fn reject(&self) -> Failure {
        let _ = fs::remove_file(&self.path); // The other error is the one to report.
        Failure::WrongContent {
            file: self.remote.name.clone(),
            what: self.remote.id.kind(),
        }
    }

    /// Downloads what is missing with one request.
    fn attempt(
        &mut self,
        client: &Client,
        span: Span,
        on_event: &mut dyn FnMut(&HubEvent<'_>),
    ) -> Result<(), Failure> {
        let remote = self.remote;
        let mut report = |bytes: u64| {
            on_event(&HubEvent::Progress {
                file: &remote.name,
                bytes: span.start.saturating_add(bytes),
                total: span.total,
            });
        };
        report(self.bytes);
        if self.bytes == self.remote.size {
            return Ok(());
        }
        // `If-Range` is not sent: contents are named by their hash, so they cannot change, and servers that
        // redirects lead to have other `ETag`s.
        let range = (self.bytes > 0).then(|| ("range", format!("bytes={}-", self.bytes)));
        let fields: Vec<_> = range.into_iter().collect();
        let response = match client.send(&Method::GET, &self.remote.url, &fields, |_| false) {
            Err(Failure::Status(failed)) if failed.status == 416 && self.bytes > 0 => {
                self.restart()?;
                return Err(Failure::Interrupted(
                    "the server does not have the requested range".to_string(),
                ));
            }
            other => other?,
        };
        self.check_fields(&response)?;
        let mut body = response.into_body().into_reader();
        let mut chunk = vec![0; CHUNK];
        while self.bytes < self.remote.size {
            let missing = self.remote.size - self.bytes;
            let limit = missing.min(CHUNK as u64) as usize;
            let count = body
                .read(&mut chunk[..limit])
                .map_err(|error| Failure::Interrupted(error.to_string()))?;
            if count == 0 {
                return Err(Failure::Interrupted(format!(
                    "the connection ended {missing} bytes too early"
                )));
            }
            self.append(&chunk[..count])?;
            report(self.bytes);
        }
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        let written = self.handle.write_all(bytes);
        let written = written.and_then(|()| self.hasher.update(bytes));
        written.map_err(|error| self.write_error(error))?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn write_error(&self, error: io::Error) -> HubError {
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => HubError::DiskFull {
                path: atomic::parent_folder(&self.path).to_path_buf(),
                needed: self.remote.size - self.bytes,
                free: nextword_base::free_disk_space(&self.path).unwrap_or(0),
            },
            _ => HubError::io(&self.path, "write")(error),
        }
    }

    /// Checks that the answer continues where this part ends. Starts over if it is the whole content instead.
    fn check_fields(&mut self, response: &Response<Body>) -> Result<(), Failure> {
        let field = |name: &str| response.headers().get(name)?.to_str().ok();
        let url = &self.remote.url;
        match response.status() {
            StatusCode::OK if self.bytes > 0 => self.restart()?,
            StatusCode::OK => {}
            StatusCode::PARTIAL_CONTENT => {
                let expected = format!("bytes {}-", self.bytes);
                if !field("content-range").is_some_and(|range| range.starts_with(&expected)) {
                    let problem =
                        "answers with another range than requested; hint: try again later";
                    return Err(HubError::server(url, problem).into());
                }
            }
            status => {
                let problem = format!(
                    "answers with status {}; hint: try again later",
                    status.as_u16()
                );
                return Err(HubError::server(url, problem).into());
            }
        }
        if field("content-encoding").is_some_and(|encoding| encoding != "identity") {
            let problem =
                "is compressed, which was not requested; hint: check HF_ENDPOINT and the proxy";
            return Err(HubError::server(url, problem).into());
        }
        let length = field("content-length").and_then(|length| length.parse::<u64>().ok());
        let missing = self.remote.size - self.bytes;
        if let Some(length) = length
            && length != missing
        {
            let problem = format!(
                "has {length} bytes instead of the announced {missing}; hint: try again, or check HF_ENDPOINT"
            );
            return Err(HubError::server(url, problem).into());
        }
        Ok(())
    }

    /// Makes the complete content the blob of the cache.
    fn commit(self, blob: &Path) -> Result<(), HubError> {
        self.handle
            .sync_all()
            .map_err(HubError::io(&self.path, "write"))?;
        drop(self.handle);
        fs::rename(&self.path, blob).map_err(HubError::io(blob, "create"))?;
        let folder = atomic::parent_folder(blob);
        atomic::sync_folder(folder).map_err(HubError::io(folder, "write"))
    }
}
