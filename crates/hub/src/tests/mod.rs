//! Downloads from a server on this machine.

#![allow(clippy::unwrap_used)]

mod downloads;
mod interruptions;
mod untrusted;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nextword_base::CounterRng;

use crate::blob::BlobId;
use crate::test_server::{COMMIT, TestFile, TestHub, TestRequest, TestResponse};
use crate::{Hub, HubError, HubEvent, HubReference, HubSettings, Token};

/// Reproducible bytes.
fn bytes(count: usize) -> Vec<u8> {
    let rng = CounterRng::new(count as u64);
    (0..count as u64).map(|i| rng.at(i) as u8).collect()
}

fn small(content: &[u8]) -> TestFile {
    let git = BlobId::from_etag(&"0".repeat(40)).unwrap();
    let mut hasher = git.hasher(content.len() as u64);
    hasher.update(content).unwrap();
    TestFile {
        content: content.to_vec(),
        etag: hasher.finish(),
        is_large: false,
    }
}

type Files = BTreeMap<String, TestFile>;

fn files(list: &[(&str, TestFile)]) -> Files {
    list.iter()
        .map(|(name, file)| ((*name).to_string(), file.clone()))
        .collect()
}

/// A model with a weights file of `size` bytes.
fn model(size: usize) -> Files {
    files(&[
        ("README.md", small(b"read me")),
        ("config.json", small(br#"{"model_type": "llama"}"#)),
        ("tokenizer.json", TestFile::large(b"{}")),
        ("model.safetensors", TestFile::large(&bytes(size))),
        ("pytorch_model.bin", TestFile::large(b"pickle")),
    ])
}

fn as_it_is(_: bool, _: &TestRequest, response: TestResponse) -> TestResponse {
    response
}

/// A client of a [`TestHub`], with a cache of its own.
struct TestClient {
    folder: tempfile::TempDir,
    settings: HubSettings,
}

impl TestClient {
    fn new(endpoint: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = HubSettings {
            endpoint: endpoint.to_string(),
            cache: folder.path().join("hub"),
            token: Token::new("hf_secret").unwrap(),
            offline: false,
            certificates: None,
            use_proxy: false,
            stall_timeout: Duration::from_secs(5),
            retry_delay: Duration::ZERO,
        };
        Self { folder, settings }
    }

    fn repository(&self) -> PathBuf {
        self.settings.cache.join("models--owner--name")
    }

    fn incomplete(&self, file: &TestFile) -> PathBuf {
        let name = format!("{}.incomplete", file.etag);
        self.repository().join("blobs").join(name)
    }

    /// Downloads everything. Returns the path to import and the events.
    fn download(&self, reference: &str) -> Result<(PathBuf, Vec<String>), HubError> {
        let mut events = Vec::new();
        let mut on_event = |event: &HubEvent<'_>| match event {
            HubEvent::Progress { .. } => {}
            event => events.push(format!("{event:?}")),
        };
        let hub = Hub::new(self.settings.clone())?;
        let reference: HubReference = reference.parse()?;
        let repository = hub.open(&reference, &mut on_event)?;
        repository.settings(&mut on_event)?;
        let path = repository.weights(&mut on_event)?;
        Ok((path, events))
    }

    fn error(&self, reference: &str) -> HubError {
        let error = self.download(reference).unwrap_err();
        let text = error.to_string();
        assert!(
            !text.contains("hf_secret") && !text.contains('\n'),
            "{text}"
        );
        error
    }

    /// The cache has these files of the commit, with their content, and nothing else but `README.md` and the like.
    fn assert_has(&self, files: &Files, names: &[&str]) {
        let snapshot = self.repository().join("snapshots").join(COMMIT);
        assert_eq!(paths(&snapshot), names);
        for name in names {
            assert_eq!(
                fs::read(snapshot.join(name)).unwrap(),
                files[*name].content,
                "{name}"
            );
        }
        for blob in paths(&self.repository().join("blobs")) {
            assert!(files.values().any(|file| file.etag == blob), "{blob}");
        }
    }
}

/// The files below `folder`, in order, with `/`.
fn paths(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        if path.is_dir() {
            found.extend(
                paths(&path)
                    .into_iter()
                    .map(|path| format!("{name}/{path}")),
            );
        } else {
            found.push(name);
        }
    }
    found.sort();
    found
}
