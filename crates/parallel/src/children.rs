//! The processes that a launcher started on this machine.

use std::path::Path;

/// Whether the process `parent` has a child on this machine that runs `program`. `None` on systems without `/proc`.
///
/// ```
/// use nextword_parallel::has_child;
///
/// // This process has started none.
/// let program = std::env::current_exe()?;
/// assert_ne!(has_child(std::process::id(), &program), Some(true));
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn has_child(parent: u32, program: &Path) -> Option<bool> {
    let processes = std::fs::read_dir("/proc").ok()?;
    let mut folders = processes.filter_map(|entry| Some(entry.ok()?.path()));
    Some(folders.any(|folder| {
        let stat = std::fs::read_to_string(folder.join("stat")).unwrap_or_default();
        // After the name in parentheses: the state and the parent.
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let found = rest.split_whitespace().nth(1);
        let is_child = found.and_then(|parent| parent.parse().ok()) == Some(parent);
        is_child && std::fs::read_link(folder.join("exe")).is_ok_and(|path| path == program)
    }))
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_child_is_found_while_it_runs_its_program() {
        let own = std::process::id();
        let sleep = ["/usr/bin/sleep", "/bin/sleep"].map(Path::new);
        let sleep = sleep.into_iter().find(|path| path.exists()).unwrap();
        let program = sleep.canonicalize().unwrap();
        let mut child = Command::new(sleep).arg("60").spawn().unwrap();
        // Between fork and exec, it still runs this program.
        while has_child(own, &program) != Some(true) {
            std::thread::yield_now();
        }
        assert_eq!(has_child(own, Path::new("/another/program")), Some(false));
        assert_eq!(has_child(child.id(), &program), Some(false));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(has_child(own, &program), Some(false));
    }
}
