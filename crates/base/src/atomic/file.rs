//! Atomic replacement of one file.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::TempPath;

use super::{parent_folder, sync_folder};

const PREFIX: &str = ".writing-";
const SUFFIX: &str = ".tmp";

/// Maximum number of symbolic links in a row, as on Linux. Links may form a circle.
const MAX_LINKS: usize = 40;

/// Whether `name` is the temporary name of an [`AtomicFile`], left over from a killed process.
pub fn is_temporary(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(PREFIX.as_bytes()) && name.ends_with(SUFFIX.as_bytes())
}

/// Writes `bytes` to the file `path` atomically. See [`AtomicFile`].
///
/// # Errors
/// If the file cannot be written; an earlier file is then unchanged.
///
/// ```
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("greeting.txt");
/// nextword_base::atomic::write(&path, b"hello")?;
/// assert_eq!(std::fs::read(&path)?, b"hello");
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes)?;
    file.commit()
}

/// A file that is being written under a temporary name. It is deleted on drop unless committed.
///
/// The target of a symbolic link is replaced or created, not the link. A replaced file's permissions are
/// kept. A pipe or a device is written to directly.
#[derive(Debug)]
pub struct AtomicFile {
    file: File,
    /// `None` for a pipe or a device.
    temporary: Option<TempPath>,
    path: PathBuf,
}

impl AtomicFile {
    /// Creates a temporary file next to `path`.
    ///
    /// # Errors
    /// If the folder does not exist or is not writable, or symbolic links form a circle.
    pub fn create(path: &Path) -> io::Result<Self> {
        if fs::metadata(path).is_ok_and(|existing| !existing.is_file() && !existing.is_dir()) {
            return Ok(Self {
                file: File::options().write(true).open(path)?,
                temporary: None,
                path: path.to_path_buf(),
            });
        }
        let path = match fs::canonicalize(path) {
            Ok(existing) => existing,
            Err(error) => follow_links(path).ok_or(error)?,
        };
        let mut builder = tempfile::Builder::new();
        builder.prefix(PREFIX).suffix(SUFFIX);
        let file = builder.make_in(parent_folder(&path), |temporary| {
            // The crate's own files are private; this one becomes a regular user file.
            let mut options = File::options();
            options.read(true).write(true).create_new(true);
            options.open(temporary)
        })?;
        let (file, temporary) = file.into_parts();
        Ok(Self {
            file,
            temporary: Some(temporary),
            path,
        })
    }

    /// The file under its temporary name.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Syncs the file, so that only the rename to its final name remains.
    ///
    /// # Errors
    /// If the file cannot be synced.
    pub fn finish(self) -> io::Result<PendingFile> {
        if self.temporary.is_some() {
            #[cfg(unix)]
            if let Ok(earlier) = fs::symlink_metadata(&self.path)
                && earlier.is_file()
            {
                self.file.set_permissions(earlier.permissions())?;
            }
            self.file.sync_all()?;
        }
        Ok(PendingFile {
            temporary: self.temporary,
            path: self.path,
        })
    }

    /// Syncs the file and renames it to its final name.
    ///
    /// # Errors
    /// If the file cannot be synced or renamed; an earlier file is then unchanged.
    pub fn commit(self) -> io::Result<()> {
        self.finish()?.commit()
    }
}

impl Read for AtomicFile {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.file.read(bytes)
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}

/// Returns the file that `path` names after symbolic links, where there is none yet; `None` after too many
/// links.
fn follow_links(path: &Path) -> Option<PathBuf> {
    let mut target = path.to_path_buf();
    for _ in 0..=MAX_LINKS {
        let Ok(next) = fs::read_link(&target) else {
            return Some(target);
        };
        target = parent_folder(&target).join(next);
    }
    None
}

/// A complete and synced file under its temporary name. It is deleted on drop unless committed.
#[derive(Debug)]
pub struct PendingFile {
    temporary: Option<TempPath>,
    path: PathBuf,
}

impl PendingFile {
    /// The final path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Renames the file to its final name, replacing an earlier file, and syncs the folder.
    ///
    /// # Errors
    /// If the file cannot be renamed; an earlier file is then unchanged.
    pub fn commit(self) -> io::Result<()> {
        let Some(temporary) = self.temporary else {
            return Ok(());
        };
        temporary.persist(&self.path).map_err(|error| error.error)?;
        sync_folder(parent_folder(&self.path))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn an_earlier_file_stays_until_the_commit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write(&path, b"earlier").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"later").unwrap();
        assert_eq!(names(folder.path()).len(), 2);
        let pending = file.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"earlier");
        pending.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"later");
        assert_eq!(names(folder.path()), ["file"]);
    }

    #[test]
    fn dropped_files_are_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        let found = names(folder.path());
        assert!(is_temporary(OsStr::new(&found[0])), "{found:?}");
        drop(file);
        drop(AtomicFile::create(&path).unwrap().finish().unwrap());
        assert_eq!(names(folder.path()), [""; 0]);
    }

    #[test]
    fn a_missing_folder_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = write(&folder.path().join("missing/file"), b"").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_folder_is_not_replaced_by_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("folder");
        fs::create_dir(&path).unwrap();
        assert!(write(&path, b"x").is_err());
        assert_eq!(names(folder.path()), ["folder"]);
    }

    #[test]
    #[cfg(unix)]
    fn the_target_of_a_link_is_replaced_and_keeps_its_permissions() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let [target, link] = ["target", "link"].map(|name| folder.path().join(name));
        fs::write(&target, b"earlier").unwrap();
        fs::set_permissions(&target, PermissionsExt::from_mode(0o640)).unwrap();
        symlink(&target, &link).unwrap();
        write(&link, b"later").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&target).unwrap(), b"later");
        let mode = fs::metadata(&target).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
    }

    #[test]
    #[cfg(unix)]
    fn the_missing_target_of_a_link_is_created() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let [first, second, target] =
            ["first", "second", "inner/target"].map(|name| folder.path().join(name));
        fs::create_dir(folder.path().join("inner")).unwrap();
        symlink("second", &first).unwrap();
        symlink("inner/target", &second).unwrap();
        write(&first, b"new").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        for link in [first, second] {
            assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        }
        let circle = folder.path().join("circle");
        symlink("circle", &circle).unwrap();
        assert!(write(&circle, b"").is_err());
        assert!(fs::symlink_metadata(&circle).unwrap().is_symlink());
    }

    #[test]
    #[cfg(unix)]
    fn new_files_are_not_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let [plain, atomic] = ["plain", "atomic"].map(|name| folder.path().join(name));
        fs::write(&plain, b"").unwrap();
        write(&atomic, b"").unwrap();
        let [plain, atomic] =
            [plain, atomic].map(|path| fs::metadata(path).unwrap().permissions().mode());
        assert_eq!(plain, atomic);
    }

    #[test]
    #[cfg(unix)]
    fn devices_are_written_to_directly() {
        write(Path::new("/dev/null"), b"x").unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }
}
