//! Shows `tracing` events of the libraries on standard error.

use std::ffi::OsStr;
use std::io::{IsTerminal, Write};

use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::output;

/// Environment variable that selects events: a level such as `info`, or `TARGET=LEVEL` pairs separated by
/// commas, such as `nextword_server=debug`. It takes precedence over `--verbose`.
const LOG_VARIABLE: &str = "NEXTWORD_LOG";

/// Shows warnings and errors; with `verbose` also what nextword's own crates do. An invalid `NEXTWORD_LOG`
/// is reported and ignored.
pub(crate) fn init(verbose: bool) {
    let mut filter = default_filter(verbose);
    match std::env::var_os(LOG_VARIABLE).map(|text| parse(&text)) {
        Some(Ok(selected)) => filter = selected,
        Some(Err(problem)) => output::eprint_line(&format!(
            "warning: {LOG_VARIABLE} is ignored: {problem}; hint: use a level (error, warn, info, debug, trace, off) \
             or TARGET=LEVEL, e.g. nextword_server=debug"
        )),
        None => {}
    }
    let format = tracing_subscriber::fmt::layer()
        .with_writer(|| LogLine)
        .with_ansi(false);
    let subscriber = tracing_subscriber::registry().with(format).with(filter);
    // Fails only in tests, where another one may be installed.
    let _ = subscriber.try_init();
}

fn default_filter(verbose: bool) -> Targets {
    let filter = Targets::new().with_default(Level::WARN);
    if verbose {
        filter.with_target("nextword", Level::INFO)
    } else {
        filter
    }
}

/// Parses the value of `NEXTWORD_LOG`. A target without a level is not accepted: most likely it is a
/// misspelled level.
fn parse(text: impl AsRef<OsStr>) -> Result<Targets, String> {
    let text = text.as_ref().to_str().ok_or("it is not UTF-8")?;
    let mut filter = Targets::new().with_default(Level::WARN);
    for directive in text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let (target, level) = directive.split_once('=').unwrap_or(("", directive));
        let level: LevelFilter = level
            .parse()
            .map_err(|_| format!("`{}` is not a level", level.escape_debug()))?;
        filter = match target {
            "" => filter.with_default(level),
            target => filter.with_target(target, level),
        };
    }
    Ok(filter)
}

/// Writes to standard error, after clearing a progress bar. Write errors are ignored.
struct LogLine;

impl Write for LogLine {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut err = std::io::stderr().lock();
        if err.is_terminal() {
            let _ = err.write_all(b"\r\x1b[2K");
        }
        let _ = err.write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn verbose_shows_details_of_our_crates_only() {
        let shown = |verbose, target| default_filter(verbose).would_enable(target, &Level::INFO);
        assert!(shown(true, "nextword_server::middleware"));
        assert!(!shown(true, "hyper") && !shown(false, "nextword_server"));
        assert!(default_filter(false).would_enable("hyper", &Level::WARN));
    }

    #[test]
    fn log_variable_selects_levels_by_target() {
        let filter = parse("debug").unwrap();
        assert!(filter.would_enable("nextword_train", &Level::DEBUG));
        let filter = parse(" nextword_server=debug, nextword_train=off ").unwrap();
        assert!(filter.would_enable("nextword_server::engine", &Level::DEBUG));
        assert!(!filter.would_enable("nextword_train", &Level::ERROR));
        assert!(!filter.would_enable("nextword_model", &Level::INFO));
        assert!(filter.would_enable("nextword_model", &Level::WARN));
    }

    #[test]
    fn invalid_log_variables_are_rejected() {
        for text in [
            "inof",
            "nextword_server",
            "nextword_server=loud",
            "a=b=info",
        ] {
            let problem = parse(text).unwrap_err();
            assert!(problem.contains("is not a level"), "{problem}");
        }
    }
}
