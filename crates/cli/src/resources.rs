//! Whether this machine has the memory that a run needs.

use nextword_model::{DeviceName, MemoryEstimate};

use crate::format;

/// A step estimated at so many times the free memory does not fit, however rough the estimate.
const HOPELESS: u64 = 4;

/// Memory is short.
#[derive(Debug)]
pub(crate) struct TooLarge(String);

impl std::fmt::Display for TooLarge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TooLarge {}

/// Refuses a run on the CPU that cannot fit into the memory that is free. What the model and its
/// optimizer take is certain; activations are estimated, so they alone only call for a warning.
///
/// # Errors
/// [`TooLarge`] with both numbers.
pub(crate) fn check(device: &str, need: &MemoryEstimate) -> Result<Option<String>, TooLarge> {
    let on_cpu = matches!(
        device.parse::<DeviceName>(),
        Ok(DeviceName::Flex | DeviceName::NdArray | DeviceName::Auto)
    );
    match available().filter(|_| on_cpu) {
        Some(free) => compare(need, free),
        None => Ok(None),
    }
}

/// Refuses to explain a model whose weights do not fit in memory twice: as they are, and once more in
/// 64-bit floats for the recomputation.
///
/// # Errors
/// [`TooLarge`] with both numbers.
pub(crate) fn check_explained(parameters: usize) -> Result<(), TooLarge> {
    let need = parameters as u64 * (4 + 8);
    match available().filter(|free| need > *free) {
        None => Ok(()),
        Some(free) => Err(TooLarge(format!(
            "explaining a model of {parameters} parameters takes {} of memory, and {} are free; hint: \
             `nextword generate` takes a third of that, and a smaller model of the same kind can be \
             explained",
            format::bytes(need),
            format::bytes(free)
        ))),
    }
}

fn compare(need: &MemoryEstimate, free: u64) -> Result<Option<String>, TooLarge> {
    let certain = (need.total() - need.activations) as u64;
    let total = need.total() as u64;
    let has = format::bytes(free);
    if certain > free {
        let needs = format::bytes(certain);
        return Err(TooLarge(format!(
            "the model with its optimizer needs {needs} of memory, and {has} are free; hint: make \
             model.d_model or model.n_layers smaller"
        )));
    }
    let needs = format::bytes(total);
    let sentence = format!(
        "a step needs about {needs} of memory, and {has} are free; hint: lower train.batch_size \
         and raise train.accumulation by the same factor"
    );
    // The estimate may be off, but not by so much.
    if total > free.saturating_mul(HOPELESS) {
        return Err(TooLarge(sentence));
    }
    Ok((total > free).then_some(sentence))
}

/// Bytes of memory that are free, where the system tells.
fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_cannot_fit_is_refused_and_a_large_batch_is_warned_about() {
        let need = MemoryEstimate {
            weights: 100,
            gradients: 100,
            optimizer: 200,
            activations: 1000,
        };
        assert!(matches!(compare(&need, 1400), Ok(None)));
        assert!(matches!(compare(&need, 1399), Ok(Some(text)) if text.contains("batch_size")));
        assert!(matches!(compare(&need, 349), Err(TooLarge(text)) if text.contains("d_model")));
        let long = MemoryEstimate {
            activations: 10_000,
            ..need
        };
        assert!(matches!(compare(&long, 500), Err(TooLarge(text)) if text.contains("batch_size")));
        assert!(matches!(compare(&need, 399), Err(TooLarge(text)) if text.contains("d_model")));
    }
}
