//! Ctrl-C and SIGTERM: the first signal asks a run or a server to finish, the second ends it immediately.

use std::sync::atomic::{AtomicUsize, Ordering};

use nextword_train::StopFlag;

use crate::{exit::Code, output};

/// Installs the signal handler and returns the flag that the first signal raises. It prints what happens if it `speaks`:
/// of several ranks, one does.
///
/// # Errors
/// If the handler cannot be installed.
pub(crate) fn stop_flag(speaks: bool) -> anyhow::Result<StopFlag> {
    static SIGNALS: AtomicUsize = AtomicUsize::new(0);
    let flag = StopFlag::default();
    let handler_flag = flag.clone();
    ctrlc::set_handler(move || {
        let is_first = SIGNALS.fetch_add(1, Ordering::SeqCst) == 0;
        if is_first {
            handler_flag.raise();
            if speaks {
                output::eprint_line(&stop_message(&handler_flag));
            }
        }
        if !is_first || !handler_flag.has_stepped() {
            std::process::exit(Code::Interrupted as i32);
        }
    })?;
    Ok(flag)
}

/// Installs the handler of a sweep, which has processes to wait for: the first signal raises the flag.
///
/// # Errors
/// If the handler cannot be installed.
pub(crate) fn sweep_stop_flag() -> anyhow::Result<StopFlag> {
    let flag = StopFlag::default();
    let handler_flag = flag.clone();
    ctrlc::set_handler(move || {
        if handler_flag.is_raised() {
            std::process::exit(Code::Interrupted as i32);
        }
        handler_flag.raise();
        output::eprint_line(
            "\nstopping after the current steps and saving; press Ctrl-C again to stop immediately",
        );
    })?;
    Ok(flag)
}

/// Raises `flag` when SIGUSR1 arrives: `mpirun` passes it on to all ranks and leaves them the time to save.
///
/// # Errors
/// If the handler cannot be installed.
#[cfg(unix)]
pub(crate) fn stop_on_user_signal(flag: &StopFlag, speaks: bool) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let flag = flag.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let mut signals = {
        let _context = runtime.enter();
        signal(SignalKind::user_defined1())?
    };
    std::thread::spawn(move || {
        runtime.block_on(signals.recv());
        flag.raise();
        if speaks {
            output::eprint_line(&stop_message(&flag));
        }
        if !flag.has_stepped() {
            std::process::exit(Code::Interrupted as i32);
        }
        // Later ones change nothing.
        while runtime.block_on(signals.recv()).is_some() {}
    });
    Ok(())
}

/// Other systems have no such signal.
#[cfg(not(unix))]
#[allow(clippy::unnecessary_wraps)] // Fails on other systems.
pub(crate) fn stop_on_user_signal(_flag: &StopFlag, _speaks: bool) -> anyhow::Result<()> {
    Ok(())
}

/// Calls `handle` for each Ctrl-C and SIGTERM, with the number of earlier ones.
///
/// # Errors
/// If the handler cannot be installed.
#[cfg(unix)]
pub(crate) fn on_each(handle: impl Fn(usize) + Send + 'static) -> anyhow::Result<()> {
    let signals = AtomicUsize::new(0);
    ctrlc::set_handler(move || handle(signals.fetch_add(1, Ordering::SeqCst)))?;
    Ok(())
}

/// What the first signal leads to.
fn stop_message(run: &StopFlag) -> String {
    if !run.has_stepped() {
        return "\nstopped before the first step: there is nothing to save".to_string();
    }
    let kept = if run.has_checkpoint() {
        "the last checkpoint is kept"
    } else {
        "nothing is saved yet"
    };
    format!(
        "\nstopping after this step and saving; press Ctrl-C again to stop immediately ({kept})"
    )
}

/// Signals that request a server's shutdown, for as often as they are awaited.
#[cfg(unix)]
pub(crate) struct StopSignals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl StopSignals {
    /// Installs the handlers.
    ///
    /// # Errors
    /// If a handler cannot be installed.
    pub(crate) fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next signal.
    pub(crate) async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// SIGHUP, which asks a server to read its adapters again.
#[cfg(unix)]
pub(crate) struct HangupSignal(tokio::signal::unix::Signal);

#[cfg(unix)]
impl HangupSignal {
    /// Installs the handler.
    ///
    /// # Errors
    /// If it cannot be installed.
    pub(crate) fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self(signal(SignalKind::hangup())?))
    }

    /// Waits for the next signal.
    pub(crate) async fn recv(&mut self) {
        self.0.recv().await;
    }
}

/// Other systems have no such signal.
#[cfg(not(unix))]
pub(crate) struct HangupSignal;

#[cfg(not(unix))]
impl HangupSignal {
    #[allow(clippy::unnecessary_wraps)] // Fails on other systems.
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    /// Waits for ever.
    pub(crate) async fn recv(&mut self) {
        std::future::pending::<()>().await;
    }
}

/// Ctrl-C requests a server's shutdown.
#[cfg(not(unix))]
pub(crate) struct StopSignals;

#[cfg(not(unix))]
impl StopSignals {
    #[allow(clippy::unnecessary_wraps)] // Fails on other systems.
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    /// Waits for the next signal.
    pub(crate) async fn recv(&mut self) {
        // Without a handler no signal can arrive.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
