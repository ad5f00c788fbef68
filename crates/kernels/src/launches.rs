//! Records the GPU kernels that a thread launches.

/// Runs `f` and returns the names of the GPU kernels that this thread launches meanwhile, ours and Burn's,
/// in order; none in a build without GPUs. One recording runs at a time; the calls of other threads wait.
///
/// ```
/// use nextword_kernels::record_launches;
///
/// let (four, launches) = record_launches(|| 2 + 2);
/// assert_eq!((four, launches.len()), (4, 0));
/// ```
pub fn record_launches<R>(f: impl FnOnce() -> R) -> (R, Vec<&'static str>) {
    #[cfg(feature = "gpu")]
    return gpu::record(f);
    #[cfg(not(feature = "gpu"))]
    (f(), Vec::new())
}

#[cfg(feature = "gpu")]
mod gpu {
    use std::sync::{Arc, Mutex, PoisonError};
    use std::thread::{self, ThreadId};

    use cubecl::logging::{LaunchObservation, LaunchObserver};

    /// Names of the kernels that one thread launches.
    struct Launches {
        thread: ThreadId,
        names: Mutex<Vec<&'static str>>,
    }

    impl LaunchObserver for Launches {
        fn launched(&self, kernel: &'static str) {
            if thread::current().id() == self.thread {
                let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
                names.push(kernel);
            }
        }
    }

    pub(super) fn record<R>(f: impl FnOnce() -> R) -> (R, Vec<&'static str>) {
        static RECORDING: Mutex<()> = Mutex::new(());
        let _guard = RECORDING.lock().unwrap_or_else(PoisonError::into_inner);
        let launches = Arc::new(Launches {
            thread: thread::current().id(),
            names: Mutex::default(),
        });
        let observation = LaunchObservation::new(launches.clone());
        let result = f();
        drop(observation);
        let mut names = launches
            .names
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        (result, std::mem::take(&mut *names))
    }
}
