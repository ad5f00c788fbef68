//! Logs panics that the server catches, with their message and location.
//!
//! The payload of a caught panic has no location; only the panic hook receives it. The hook installed
//! here records recent panics, then calls the previous hook, so hooks of the embedding program still run.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::{Mutex, Once, PoisonError};

/// Maximum number of recorded panics. Uncaught panics are never removed, so the oldest are dropped.
const MAX_RECORDED: usize = 16;

/// Recent panics, newest first. Shared by all threads, since a panic of a worker thread may be resumed
/// on the thread that waits for it.
static RECORDED: Mutex<VecDeque<Panic>> = Mutex::new(VecDeque::new());

struct Panic {
    message: String,
    location: String,
}

/// Installs the hook, once per process.
pub(crate) fn install_hook() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        let previous = take_hook();
        set_hook(Box::new(move |info| {
            if let Some(location) = info.location() {
                record(Panic {
                    message: message(info.payload()),
                    location: location.to_string(),
                });
            }
            previous(info);
        }));
    });
}

fn record(panic: Panic) {
    let mut recorded = RECORDED.lock().unwrap_or_else(PoisonError::into_inner);
    recorded.push_front(panic);
    recorded.truncate(MAX_RECORDED);
}

/// Runs `work`. If it panics, logs the panic of `context` and returns `None`.
pub(crate) fn catch<T>(context: &str, work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work))
        .map_err(|payload| log(context, &*payload))
        .ok()
}

/// Logs a caught panic of `context`.
pub(crate) fn log(context: &str, payload: &(dyn Any + Send)) {
    let message = message(payload);
    let location = take_location(&message);
    let location = location.as_deref().unwrap_or("an unknown location");
    tracing::error!("{context} panicked at {location}: {message}");
}

/// Removes the newest recorded panic with this message, and returns its location.
fn take_location(message: &str) -> Option<String> {
    let mut recorded = RECORDED.lock().unwrap_or_else(PoisonError::into_inner);
    let index = recorded.iter().position(|panic| panic.message == message)?;
    recorded.remove(index).map(|panic| panic.location)
}

/// The message of a panic, on one line.
fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let words = text.unwrap_or("unknown reason").split_whitespace();
    words.collect::<Vec<_>>().join(" ")
}

/// The log of this test process: all tests share its global subscriber and panic hook.
#[cfg(test)]
pub(crate) mod test_log {
    use std::io;

    use super::{Mutex, Once, PoisonError, install_hook, message, set_hook, take_hook};

    static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());
    static PREVIOUS_HOOK_MESSAGES: Mutex<Vec<String>> = Mutex::new(Vec::new());

    struct Writer;

    impl io::Write for Writer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut log = LOG.lock().unwrap_or_else(PoisonError::into_inner);
            log.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Installs the subscriber, a hook like that of an embedding program, and the hook under test.
    pub(crate) fn init() {
        static INIT: Once = Once::new();
        INIT.call_once(|| {
            let subscriber = tracing_subscriber::fmt()
                .with_ansi(false)
                .with_writer(|| Writer)
                .finish();
            assert!(tracing::subscriber::set_global_default(subscriber).is_ok());
            let default = take_hook();
            set_hook(Box::new(move |info| {
                let messages = PREVIOUS_HOOK_MESSAGES.lock();
                let mut messages = messages.unwrap_or_else(PoisonError::into_inner);
                messages.push(message(info.payload()));
                drop(messages);
                default(info);
            }));
            install_hook();
        });
    }

    /// The logged lines that contain `text`.
    pub(crate) fn lines_with(text: &str) -> Vec<String> {
        let log = LOG.lock().unwrap_or_else(PoisonError::into_inner);
        let log = String::from_utf8_lossy(&log);
        let lines = log.lines().filter(|line| line.contains(text));
        lines.map(str::to_owned).collect()
    }

    /// Whether the hook that was installed first received a panic with this message.
    pub(crate) fn previous_hook_received(message: &str) -> bool {
        let messages = PREVIOUS_HOOK_MESSAGES.lock();
        let messages = messages.unwrap_or_else(PoisonError::into_inner);
        messages.iter().any(|other| other == message)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn caught_panic_is_logged_once_with_message_and_location() {
        test_log::init();
        let line = line!() + 1;
        let caught = catch("a test", || -> u8 { panic!("caught\n  {}", "here") });
        assert_eq!(caught, None);
        let lines = test_log::lines_with("caught here");
        let expected = format!("a test panicked at {}:{line}:", file!());
        assert!(
            lines.len() == 1 && lines[0].contains(&expected) && lines[0].contains("ERROR"),
            "{lines:?}"
        );
        assert_eq!(catch("a test", || 3), Some(3));
    }

    #[test]
    fn panic_resumed_on_another_thread_keeps_its_location() {
        test_log::init();
        let line = line!() + 1;
        let worker = std::thread::spawn(|| panic!("on a worker"));
        let payload = worker.join().unwrap_err();
        catch("a caller", || std::panic::resume_unwind(payload));
        let lines = test_log::lines_with("on a worker");
        let expected = format!("a caller panicked at {}:{line}:", file!());
        assert!(
            lines.len() == 1 && lines[0].contains(&expected),
            "{lines:?}"
        );
    }

    #[test]
    fn previous_hook_still_runs() {
        test_log::init();
        catch("a test", || panic!("for both hooks"));
        assert!(test_log::previous_hook_received("for both hooks"));
    }
}
