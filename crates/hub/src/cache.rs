//! The cache folder, laid out as `huggingface_hub` does:
//!
//! ```text
//! models--OWNER--NAME/refs/REVISION            the commit that a branch or tag stood for
//! models--OWNER--NAME/snapshots/COMMIT/FILE    link to a blob, or the file itself where links are not possible
//! models--OWNER--NAME/blobs/HASH               a content; HASH.incomplete while it is downloaded
//! .locks/models--OWNER--NAME/HASH.lock         held by the process that downloads the blob
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use nextword_base::atomic;

use crate::HubError;
use crate::blob::{BlobId, is_lower_hex};

/// Maximum depth of folders in a repository that are looked at.
const MAX_DEPTH: usize = 4;
/// Maximum number of files in a repository.
pub(crate) const MAX_FILES: usize = 200_000;

/// Marks the folder for backup programs, which may skip it (Cache Directory Tagging Specification).
const CACHE_TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
                         # Models that can be downloaded again from the Hugging Face Hub.\n";

/// The part of the cache for one repository.
#[derive(Clone, Debug)]
pub(crate) struct RepositoryCache {
    root: PathBuf,
    name: String,
}

impl RepositoryCache {
    /// The cache in the folder `root` for `repository`, whose name is valid.
    pub(crate) fn new(root: &Path, repository: &str) -> Self {
        Self {
            root: root.to_path_buf(),
            name: format!("models--{}", repository.replace('/', "--")),
        }
    }

    /// The folder with all that belongs to the repository.
    pub(crate) fn folder(&self) -> PathBuf {
        self.root.join(&self.name)
    }

    /// The folder with the files of `commit`.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder().join("snapshots").join(commit)
    }

    /// The file `name` of `commit`.
    pub(crate) fn pointer(&self, commit: &str, name: &str) -> PathBuf {
        let folder = self.snapshot(commit);
        name.split('/').fold(folder, |path, part| path.join(part))
    }

    /// The content `id`.
    pub(crate) fn blob(&self, id: &BlobId) -> PathBuf {
        self.folder().join("blobs").join(id.as_str())
    }

    /// The part of the content `id` that was downloaded so far.
    pub(crate) fn incomplete(&self, id: &BlobId) -> PathBuf {
        let name = format!("{}.incomplete", id.as_str());
        self.folder().join("blobs").join(name)
    }

    /// The commit that `revision` is known to stand for.
    pub(crate) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_string());
        }
        let text = fs::read_to_string(self.reference(revision)).ok()?;
        Some(text.trim().to_string()).filter(|text| is_commit(text))
    }

    /// Notes that `revision` stands for `commit`.
    pub(crate) fn set_commit(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.reference(revision);
        create_folder(atomic::parent_folder(&path))?;
        atomic::write(&path, commit.as_bytes()).map_err(HubError::io(&path, "write"))
    }

    fn reference(&self, revision: &str) -> PathBuf {
        let folder = self.folder().join("refs");
        revision
            .split('/')
            .fold(folder, |path, part| path.join(part))
    }

    /// The files of `commit` with their sizes.
    pub(crate) fn files(&self, commit: &str) -> BTreeMap<String, Option<u64>> {
        let mut files = BTreeMap::new();
        add_files(&self.snapshot(commit), "", MAX_DEPTH, &mut files);
        files
    }

    /// Creates the folders for blobs and locks, and the mark for backup programs.
    pub(crate) fn create(&self) -> Result<(), HubError> {
        create_folder(&self.folder().join("blobs"))?;
        create_folder(&self.locks())?;
        let tag = self.root.join("CACHEDIR.TAG");
        if !tag.exists() {
            let _ = atomic::write(&tag, CACHE_TAG.as_bytes()); // Only a courtesy.
        }
        Ok(())
    }

    fn locks(&self) -> PathBuf {
        self.root.join(".locks").join(&self.name)
    }

    /// Waits until no other process downloads the content `id`; calls `on_wait` first if one does. The lock lasts
    /// until the file is dropped. `None` where the file system has no locks: then two processes may download the
    /// same content, which is slower, but both write the same bytes to the same places.
    pub(crate) fn lock(
        &self,
        id: &BlobId,
        on_wait: impl FnOnce(),
    ) -> Result<Option<File>, HubError> {
        let path = self.locks().join(format!("{}.lock", id.as_str()));
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).map_err(HubError::io(&path, "open"))?;
        #[cfg(unix)]
        {
            // Users may share a cache; the lock may be another user's.
            let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o664);
            let _ = file.set_permissions(permissions);
        }
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => {
                on_wait();
                Ok(file.lock().is_ok().then_some(file))
            }
            Err(TryLockError::Error(_)) => Ok(None),
        }
    }

    /// Makes the content `id` the file `name` of `commit`. `is_new` says that no other file has this content yet.
    pub(crate) fn link(
        &self,
        id: &BlobId,
        commit: &str,
        name: &str,
        is_new: bool,
    ) -> Result<(), HubError> {
        let (blob, pointer) = (self.blob(id), self.pointer(commit, name));
        create_folder(atomic::parent_folder(&pointer))?;
        let mut target = PathBuf::from("../..");
        target.extend(name.split('/').skip(1).map(|_| ".."));
        let target = target.join("blobs").join(id.as_str());
        if fs::read_link(&pointer).is_ok_and(|found| found == target) {
            return Ok(());
        }
        if let Err(error) = fs::remove_file(&pointer)
            && error.kind() != ErrorKind::NotFound
        {
            return Err(HubError::io(&pointer, "replace")(error));
        }
        match symlink(&target, &pointer) {
            Ok(()) => Ok(()),
            // Another process was faster.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(_) if is_new => {
                fs::rename(&blob, &pointer).map_err(HubError::io(&pointer, "create"))
            }
            Err(_) => copy(&blob, &pointer).map_err(HubError::io(&pointer, "create")),
        }
    }
}

/// Whether `text` is the hash of a commit.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_lower_hex(text)
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// Windows allows links only with a certain privilege.
#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// Copies the file `from` to `to` atomically.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut file = atomic::AtomicFile::create(to)?;
    io::copy(&mut File::open(from)?, &mut file)?;
    file.commit()
}

fn create_folder(path: &Path) -> Result<(), HubError> {
    fs::create_dir_all(path).map_err(HubError::io(path, "create"))
}

fn add_files(folder: &Path, prefix: &str, depth: usize, files: &mut BTreeMap<String, Option<u64>>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Some(name) = entry
            .file_name()
            .to_str()
            .map(|name| format!("{prefix}{name}"))
        else {
            continue;
        };
        // Follows links. A broken one is not a file.
        let Ok(metadata) = fs::metadata(&path) else {
            continue;
        };
        if metadata.is_dir() && depth > 0 {
            add_files(&path, &format!("{name}/"), depth - 1, files);
        } else if metadata.is_file() && files.len() < MAX_FILES {
            files.insert(name, Some(metadata.len()));
        }
    }
}
