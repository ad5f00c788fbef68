//! The only place that writes to standard output and standard error.

use std::io::{IsTerminal, Write};

use serde::Serialize;

/// The reader of standard output has gone away: there is nothing left to do, and nothing wrong.
#[derive(Debug)]
pub(crate) struct ReaderGone;

impl std::fmt::Display for ReaderGone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("nobody reads the output any more")
    }
}

impl std::error::Error for ReaderGone {}

/// Writes `text` as it is and shows it at once.
pub(crate) fn text(text: &str) -> anyhow::Result<()> {
    bytes(text.as_bytes())
}

/// Writes `line` and a line break.
pub(crate) fn line(line: &str) -> anyhow::Result<()> {
    text(&format!("{line}\n"))
}

/// Writes `value` as one line of JSON.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(&serde_json::to_string(value)?)
}

/// Writes `bytes` and shows them at once.
pub(crate) fn bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(bytes).and_then(|()| out.flush());
    match written {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Err(ReaderGone.into()),
        other => Ok(other?),
    }
}

/// Writes a line to standard error, for the user's eyes. If nobody can see it, so be it.
pub(crate) fn note(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Rewrites the last line of standard error while something is under way; says nothing off a
/// terminal. An empty `line` clears it.
pub(crate) fn progress(line: &str) {
    let mut err = std::io::stderr().lock();
    if err.is_terminal() {
        let _ = write!(err, "\r\x1b[2K{line}");
        let _ = err.flush();
    }
}
