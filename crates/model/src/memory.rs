//! Memory of this machine and this process, and sizes for messages.

use std::fmt;

/// A number of bytes, displayed in binary units.
///
/// ```
/// use nextword_model::ByteSize;
///
/// assert_eq!(ByteSize(512).to_string(), "512 B");
/// assert_eq!(ByteSize(1536).to_string(), "1.5 KiB");
/// assert_eq!(ByteSize(312 << 20).to_string(), "312 MiB");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        // 1023.5 would be rounded to 1024.
        while value >= 1023.5 && unit + 1 < units.len() {
            value /= 1024.0;
            unit += 1;
        }
        let digits = usize::from(unit > 0 && value < 9.95);
        write!(f, "{value:.digits$} {}", units[unit])
    }
}

/// Bytes of memory that new allocations can use without swapping (`MemAvailable` on Linux), or `None`
/// where the system does not report them.
///
/// ```
/// if let Some(bytes) = nextword_model::available_memory() {
///     assert!(bytes > 0);
/// }
/// ```
pub fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    parse_kib(&text, "MemAvailable:")
}

/// Peak resident memory of this process in bytes (`VmHWM` on Linux), or `None` where the system does not
/// report it.
///
/// ```
/// let before = nextword_model::peak_memory();
/// let values = vec![1_u8; 1 << 20];
/// assert!(nextword_model::peak_memory() >= before, "{}", values.len());
/// ```
pub fn peak_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    parse_kib(&text, "VmHWM:")
}

/// Resident memory of this process in bytes (`VmRSS` on Linux), or `None` where the system does not report it.
///
/// ```
/// use nextword_model::{peak_memory, resident_memory};
///
/// assert_eq!(resident_memory().is_some(), cfg!(target_os = "linux"));
/// assert!(resident_memory() <= peak_memory());
/// ```
pub fn resident_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    parse_kib(&text, "VmRSS:")
}

/// Parses the line `KEY N kB` of a file in `/proc` into bytes.
fn parse_kib(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_sizes_never_show_1024_of_a_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            ((10 << 10) - 1, "10 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (u64::MAX, "16777216 TiB"),
        ] {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
    }

    #[test]
    fn proc_lines_are_parsed_in_kib() {
        let text = "MemFree:   10 kB\nMemAvailable:    2048 kB\n";
        assert_eq!(parse_kib(text, "MemAvailable:"), Some(2048 * 1024));
        assert_eq!(parse_kib(text, "SwapFree:"), None);
        assert_eq!(parse_kib("VmHWM: many kB", "VmHWM:"), None);
        assert_eq!(
            parse_kib(&format!("VmHWM: {} kB", u64::MAX), "VmHWM:"),
            None
        );
    }
}
