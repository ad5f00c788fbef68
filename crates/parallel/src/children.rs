//! The processes that a launcher started on this machine.

use std::fs::Metadata;
use std::path::Path;

/// Whether the process `parent` has a child on this machine that runs the file `program`, also if the file was renamed,
/// replaced or removed since. `None` on systems without `/proc`.
///
/// ```
/// use nextword_parallel::has_child;
///
/// // This process has started none.
/// let program = std::fs::metadata(std::env::current_exe()?)?;
/// assert_ne!(has_child(std::process::id(), &program), Some(true));
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn has_child(parent: u32, program: &Metadata) -> Option<bool> {
    let processes = std::fs::read_dir("/proc").ok()?;
    let mut folders = processes.filter_map(|entry| Some(entry.ok()?.path()));
    Some(folders.any(|folder| {
        let stat = std::fs::read_to_string(folder.join("stat")).unwrap_or_default();
        // After the name in parentheses: the state and the parent.
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let found = rest.split_whitespace().nth(1);
        let is_child = found.and_then(|parent| parent.parse().ok()) == Some(parent);
        is_child && is_same_file(&folder.join("exe"), program)
    }))
}

/// Whether the link `executable` leads to the file of `program`. It does even where its path names another file by now.
#[cfg(unix)]
fn is_same_file(executable: &Path, program: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt as _;

    let found = std::fs::metadata(executable);
    found.is_ok_and(|found| (found.dev(), found.ino()) == (program.dev(), program.ino()))
}

/// Other systems have no `/proc`.
#[cfg(not(unix))]
fn is_same_file(_executable: &Path, _program: &Metadata) -> bool {
    false
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_child_is_found_while_it_runs_its_program() {
        let own = std::process::id();
        let folder = std::env::temp_dir().join(format!("nextword-children-{own}"));
        fs::create_dir_all(&folder).unwrap();
        let copy = folder.join("sleep");
        let sleep = ["/usr/bin/sleep", "/bin/sleep"].map(Path::new);
        let sleep = sleep.into_iter().find(|path| path.exists()).unwrap();
        fs::copy(sleep, &copy).unwrap();
        let program = fs::metadata(&copy).unwrap();
        let other = fs::metadata(std::env::current_exe().unwrap()).unwrap();
        let mut child = Command::new(&copy).arg("60").spawn().unwrap();
        // Between fork and exec, it still runs this program.
        while has_child(own, &program) != Some(true) {
            std::thread::yield_now();
        }
        assert_eq!(has_child(own, &other), Some(false));
        assert_eq!(has_child(child.id(), &program), Some(false));
        // Another version of the program is installed meanwhile.
        fs::remove_file(&copy).unwrap();
        fs::copy(sleep, &copy).unwrap();
        assert_eq!(has_child(own, &program), Some(true));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(has_child(own, &program), Some(false));
        fs::remove_dir_all(&folder).unwrap();
    }
}
