//! The panics with which `CubeCL` reports that a device has too little memory, as errors.

/// A device has too little memory.
#[derive(Debug)]
pub(super) struct DeviceMemoryError(String);

impl DeviceMemoryError {
    /// The error behind the message of a panic, if it is about the memory of a device.
    pub(super) fn from_panic(message: &str) -> Option<Self> {
        const ALLOCATION: &str = "can't allocate buffer of size: ";
        const MEMORY: &str = "out of device memory allocating ";
        let after = |prefix: &str| message.split_once(prefix).map(|(_, rest)| rest);
        let bytes = |rest: &str| {
            let digits = rest
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(rest.len());
            rest[..digits].parse::<u64>().ok()
        };
        let fact = if let Some(rest) = after(ALLOCATION) {
            format!(
                "the device cannot allocate a buffer of {} bytes",
                bytes(rest)?
            )
        } else if let Some(rest) = after(MEMORY) {
            format!(
                "the device is out of memory: it cannot allocate {} bytes",
                bytes(rest)?
            )
        } else if message.contains("Out of Memory") || message.contains("OutOfMemory") {
            "the device is out of memory".to_string()
        } else {
            return None;
        };
        Some(Self(fact))
    }
}

impl std::fmt::Display for DeviceMemoryError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}; hint: use a smaller model, weights of 8 or 4 bits, another device, or in training a smaller \
             train.batch_size with more train.accumulation, or train.recompute = true",
            self.0
        )
    }
}

impl std::error::Error for DeviceMemoryError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(message: &str) -> Option<String> {
        DeviceMemoryError::from_panic(message).map(|error| error.to_string())
    }

    #[test]
    fn panics_about_the_memory_of_a_device_become_errors() {
        let too_large = error(
            "called `Result::unwrap()` on an `Err` value: can't allocate buffer of size: 154389504 backtrace",
        );
        assert!(too_large.is_some_and(|text| {
            text.starts_with("the device cannot allocate a buffer of 154389504 bytes; hint: ")
        }));
        let full = error("out of device memory allocating 4096 bytes");
        assert!(full.is_some_and(|text| {
            text.starts_with("the device is out of memory: it cannot allocate 4096 bytes; ")
        }));
        assert!(error("wgpu error: Out of Memory").is_some());
        assert_eq!(
            error("index out of bounds: the len is 3 but the index is 3"),
            None
        );
    }
}
