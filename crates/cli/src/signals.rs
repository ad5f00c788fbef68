//! Ctrl-C and SIGTERM: the first asks the run to save and stop, the second ends it at once.

use std::sync::atomic::{AtomicUsize, Ordering};

use nextword_train::StopFlag;

use crate::{exit::Code, output};

/// The flag that the first signal raises.
///
/// # Errors
/// If the system does not let us listen.
pub(crate) fn stop_flag() -> anyhow::Result<StopFlag> {
    static SIGNALS: AtomicUsize = AtomicUsize::new(0);
    let flag = StopFlag::default();
    let raised = flag.clone();
    ctrlc::set_handler(move || {
        if SIGNALS.fetch_add(1, Ordering::SeqCst) == 0 {
            raised.raise();
            output::note(
                "\nstopping after this step, then saving; once more stops at once (the last \
                 checkpoint stays)",
            );
        } else {
            std::process::exit(Code::Interrupted as i32);
        }
    })?;
    Ok(flag)
}
