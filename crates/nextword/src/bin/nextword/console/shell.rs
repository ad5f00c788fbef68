//! Command lines to suggest.

use std::path::Path;

/// Returns the command that resumes the run in `folder`.
pub(crate) fn resume_hint(folder: &Path) -> String {
    let folder = shell_quote(&folder.display().to_string());
    format!("resume with: {} resume {folder}", program())
}

/// Returns how to call this program: the path it was called by, or its name if it is on `PATH`.
pub(crate) fn program() -> String {
    let path = std::env::args().next().unwrap_or_default();
    if cfg!(not(test)) && path.contains(std::path::MAIN_SEPARATOR) {
        shell_quote(&path)
    } else {
        "nextword".to_string()
    }
}

/// Quotes `text` as one word of a shell command line.
pub(crate) fn shell_quote(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:,@%~".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_string()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interruption_suggests_resume() {
        let hint = resume_hint(Path::new("runs/my run"));
        assert_eq!(hint, "resume with: nextword resume 'runs/my run'");
    }

    #[test]
    fn words_are_quoted_if_a_shell_would_split_or_expand_them() {
        assert_eq!(shell_quote("runs/a-1.5"), "runs/a-1.5");
        assert_eq!(shell_quote(""), "''");
        assert_eq!(shell_quote("it's $HOME"), r"'it'\''s $HOME'");
    }
}
