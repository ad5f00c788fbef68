//! Time that threads have computed.

use std::time::Duration;

/// Time that the current thread has computed since it started. Unlike the time on a clock, it does not pass
/// while the thread waits or the process is stopped. `None` where the system does not report it.
///
/// ```
/// use std::time::Duration;
///
/// let before = nextword_base::thread_cpu_time();
/// std::thread::sleep(Duration::from_millis(50));
/// let after = nextword_base::thread_cpu_time();
/// let slept = after.zip(before).map(|(after, before)| after.saturating_sub(before));
/// assert!(slept.is_none_or(|slept| slept < Duration::from_millis(40)));
/// ```
pub fn thread_cpu_time() -> Option<Duration> {
    #[cfg(unix)]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let seconds = u64::try_from(time.tv_sec).ok()?;
        Some(Duration::new(seconds, u32::try_from(time.tv_nsec).ok()?))
    }
    #[cfg(not(unix))]
    {
        None
    }
}
