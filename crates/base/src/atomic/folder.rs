//! Atomic replacement of a whole folder.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::{parent_folder, sync_folder};
use crate::PathError;

/// A folder that is being filled under a temporary name. It is removed on drop unless committed.
///
/// ```
/// use nextword_base::atomic::AtomicFolder;
///
/// let parent = tempfile::tempdir()?;
/// let path = parent.path().join("model");
/// let folder = AtomicFolder::create(&path)?;
/// std::fs::write(folder.path().join("a.txt"), "a")?;
/// assert!(!path.exists());
/// folder.commit()?;
/// assert!(path.join("a.txt").exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct AtomicFolder(Paths);

#[derive(Debug)]
struct Paths {
    target: PathBuf,
    temporary: PathBuf,
    /// The name of an earlier folder between the two renames.
    old: PathBuf,
}

impl AtomicFolder {
    /// Creates an empty folder that is to replace the folder `path`, after [`recover`](Self::recover).
    /// Its temporary name is `.NAME.new`, in the same parent.
    ///
    /// # Errors
    /// If the folder cannot be created, or what a killed process left cannot be removed.
    pub fn create(path: &Path) -> Result<Self, PathError> {
        Self::create_empty(Paths::beside(path))
    }

    /// Creates an empty folder that is to replace the folder `path`, under another temporary name in the
    /// same parent. Between the two renames, an earlier folder is called `TEMPORARY.old`.
    ///
    /// # Errors
    /// If the folder cannot be created, or an earlier `temporary` cannot be removed.
    pub fn create_as(path: &Path, temporary: &Path) -> Result<Self, PathError> {
        let mut old = temporary.as_os_str().to_os_string();
        old.push(".old");
        Self::create_empty(Paths {
            target: path.to_path_buf(),
            temporary: temporary.to_path_buf(),
            old: old.into(),
        })
    }

    /// Restores a consistent state after a process was killed while it replaced the folder `path`, which
    /// it had passed to [`create`](Self::create).
    ///
    /// # Errors
    /// If a folder cannot be renamed or removed.
    pub fn recover(path: &Path) -> Result<(), PathError> {
        Paths::beside(path).restore()
    }

    /// The folder under its temporary name.
    pub fn path(&self) -> &Path {
        &self.0.temporary
    }

    /// Syncs the folder's entries and renames it. An earlier folder is renamed first and removed last. The
    /// files must be synced already.
    ///
    /// # Errors
    /// If the folder cannot be synced or renamed; an earlier folder is then unchanged. Also if afterwards
    /// the parent cannot be synced or the earlier folder cannot be removed: then the new folder is in place,
    /// and the earlier one stays beside it, as `.NAME.old` or `TEMPORARY.old`, until the next
    /// [`create`](Self::create) or [`recover`](Self::recover).
    pub fn commit(self) -> Result<(), PathError> {
        let Paths {
            target,
            temporary,
            old,
        } = &self.0;
        sync(temporary)?;
        let replaces = target.exists();
        if replaces {
            fs::rename(target, old).map_err(PathError::new(target, "rename"))?;
        }
        if let Err(error) = fs::rename(temporary, target) {
            if replaces {
                let _ = fs::rename(old, target); // The first error is the one to report.
            }
            return Err(PathError::new(target, "rename into")(error));
        }
        sync(parent_folder(target))?;
        remove(old)
    }

    fn create_empty(paths: Paths) -> Result<Self, PathError> {
        paths.restore()?;
        let folder = Self(paths);
        // The temporary name means nothing to a user.
        let target = &folder.0.target;
        fs::create_dir_all(folder.path()).map_err(PathError::new(target, "create"))?;
        Ok(folder)
    }
}

impl Drop for AtomicFolder {
    fn drop(&mut self) {
        // After a commit there is nothing under this name; otherwise another error is reported already.
        let _ = fs::remove_dir_all(self.path());
    }
}

impl Paths {
    /// Hidden names in the same parent.
    fn beside(path: &Path) -> Self {
        let sibling = |suffix: &str| {
            let mut name = OsString::from(".");
            name.push(path.file_name().unwrap_or("folder".as_ref()));
            name.push(suffix);
            path.with_file_name(name)
        };
        Self {
            target: path.to_path_buf(),
            temporary: sibling(".new"),
            old: sibling(".old"),
        }
    }

    /// Undoes an interrupted replacement.
    fn restore(&self) -> Result<(), PathError> {
        if self.old.exists() && !self.target.exists() {
            let renamed = fs::rename(&self.old, &self.target);
            renamed.map_err(PathError::new(&self.target, "rename into"))?;
        }
        remove(&self.old)?;
        remove(&self.temporary)
    }
}

fn sync(folder: &Path) -> Result<(), PathError> {
    sync_folder(folder).map_err(PathError::new(folder, "sync"))
}

fn remove(folder: &Path) -> Result<(), PathError> {
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(PathError::new(folder, "remove"))?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The folders in `parent`, each with the names of its files.
    fn contents(parent: &Path) -> Vec<(String, Vec<String>)> {
        let names = |path: &Path| {
            let entries = fs::read_dir(path).unwrap();
            let mut names: Vec<_> = entries
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        let folders = names(parent).into_iter();
        folders
            .map(|name| (name.clone(), names(&parent.join(name))))
            .collect()
    }

    fn folder(name: &str, file: &str) -> (String, Vec<String>) {
        (name.to_string(), vec![file.to_string()])
    }

    fn fill(path: &Path, file: &str) {
        fs::create_dir_all(path).unwrap();
        fs::write(path.join(file), "").unwrap();
    }

    #[test]
    fn a_commit_replaces_the_whole_folder() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("model");
        for (number, file) in ["a", "b"].into_iter().enumerate() {
            let new = AtomicFolder::create(&path).unwrap();
            assert_eq!(path.exists(), number > 0);
            fill(new.path(), file);
            new.commit().unwrap();
            assert_eq!(contents(parent.path()), [folder("model", file)]);
        }
    }

    #[test]
    fn without_a_commit_the_earlier_folder_stays() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("model");
        fill(&path, "a");
        let new = AtomicFolder::create(&path).unwrap();
        fill(new.path(), "b");
        drop(new);
        assert_eq!(contents(parent.path()), [folder("model", "a")]);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_failed_rename_restores_the_earlier_folder() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("model/");
        fill(&path, "a");
        let new = AtomicFolder::create(&path).unwrap();
        // A file cannot be renamed to a name that ends in a slash, a folder can.
        fs::remove_dir(new.path()).unwrap();
        fs::write(new.path(), "").unwrap();
        let error = new.commit().unwrap_err();
        assert_eq!(error.action, "rename into");
        assert!(path.join("a").exists());
    }

    #[test]
    fn every_moment_of_a_replacement_is_recovered() {
        let cases: [(&[&str], &str); 4] = [
            (&["model", ".model.new"], "model"),
            (&[".model.old", ".model.new"], ".model.old"),
            (&[".model.old", "model"], "model"),
            (&["model"], "model"),
        ];
        for (before, survivor) in cases {
            let parent = tempfile::tempdir().unwrap();
            for name in before {
                fill(&parent.path().join(name), name);
            }
            AtomicFolder::recover(&parent.path().join("model")).unwrap();
            assert_eq!(contents(parent.path()), [folder("model", survivor)]);
        }
    }

    #[test]
    fn leftovers_of_a_killed_process_are_not_committed() {
        let parent = tempfile::tempdir().unwrap();
        let (path, temporary) = (parent.path().join("step-1"), parent.path().join(".tmp-7"));
        fill(&temporary, "half");
        fill(&path, "a");
        let new = AtomicFolder::create_as(&path, &temporary).unwrap();
        fill(new.path(), "b");
        new.commit().unwrap();
        assert_eq!(contents(parent.path()), [folder("step-1", "b")]);
    }
}
