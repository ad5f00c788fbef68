//! Ctrl-C and SIGTERM: the first signal saves and stops the run, the second exits immediately.

use std::sync::atomic::{AtomicUsize, Ordering};

use nextword_train::StopFlag;

use crate::{exit::Code, output};

/// Installs the signal handler and returns the flag that the first signal raises.
///
/// # Errors
/// If the handler cannot be installed.
pub(crate) fn stop_flag() -> anyhow::Result<StopFlag> {
    static SIGNALS: AtomicUsize = AtomicUsize::new(0);
    let flag = StopFlag::default();
    let handler_flag = flag.clone();
    ctrlc::set_handler(move || {
        if SIGNALS.fetch_add(1, Ordering::SeqCst) == 0 {
            handler_flag.raise();
            output::eprint_line(
                "\nstopping after this step and saving; press Ctrl-C again to stop immediately (the last \
                 checkpoint is kept)",
            );
        } else {
            std::process::exit(Code::Interrupted as i32);
        }
    })?;
    Ok(flag)
}
