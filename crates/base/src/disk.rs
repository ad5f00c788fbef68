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
        free_bytes(found.f_blocks, found.f_bavail, found.f_frsize)
    }
    #[cfg(not(unix))]
    {
        let _ = existing;
        None
    }
}

/// Bytes of the `available` blocks. A file system without blocks, as some network and virtual ones, reports no
/// sizes: it may still have space.
#[cfg(unix)]
fn free_bytes(blocks: u64, available: u64, block_size: u64) -> Option<u64> {
    let known = (blocks > 0).then_some(available)?;
    known.checked_mul(block_size)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_without_blocks_reports_no_free_space() {
        assert_eq!(free_bytes(0, 0, 4096), None);
        assert_eq!(free_bytes(0, 0, 0), None);
        assert_eq!(free_bytes(10, 0, 4096), Some(0)); // full
        assert_eq!(free_bytes(10, 3, 4096), Some(3 * 4096));
        assert_eq!(free_bytes(u64::MAX, u64::MAX, 4096), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn virtual_file_systems_have_no_known_size() {
        assert_eq!(free_disk_space(Path::new("/proc")), None);
    }
}
