//! Free space on disks.

use std::path::Path;

/// Bytes that this user can still write to the disk of `path`, which need not exist yet: its nearest existing
/// parent decides. `None` where the system does not report it.
///
/// ```
/// let folder = tempfile::tempdir()?;
/// let here = nextword_base::free_disk_space(folder.path());
/// assert_eq!(here.is_some(), cfg!(unix));
/// assert_eq!(nextword_base::free_disk_space(&folder.path().join("a/b")).is_some(), here.is_some());
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn free_disk_space(path: &Path) -> Option<u64> {
    // A relative path ends in the empty one, which stands for the working directory.
    let mut parents = path.ancestors().map(|parent| match parent.as_os_str() {
        name if name.is_empty() => Path::new("."),
        _ => parent,
    });
    let existing = parents.find(|parent| parent.exists())?;
    #[cfg(unix)]
    {
        let found = rustix::fs::statvfs(existing).ok()?;
        found.f_bavail.checked_mul(found.f_frsize)
    }
    #[cfg(not(unix))]
    {
        let _ = existing;
        None
    }
}
