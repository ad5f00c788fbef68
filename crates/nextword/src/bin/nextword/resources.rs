//! Checks whether this machine has enough memory for a run.

use nextword_model::{DeviceName, MemoryEstimate};

use crate::format;

/// Ratio of estimated to free memory above which a run is refused, even though the estimate is rough.
const OVERCOMMIT_LIMIT: u64 = 4;

/// Not enough free memory.
#[derive(Debug)]
pub(crate) struct InsufficientMemory(String);

impl std::fmt::Display for InsufficientMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InsufficientMemory {}

/// Refuses a run on the CPU that cannot fit into free memory. The sizes of model and optimizer state
/// are exact; those of activations are estimated, so exceeding memory by them returns a warning.
///
/// # Errors
/// [`InsufficientMemory`] with the needed and the free bytes.
pub(crate) fn check(
    device: &str,
    need: &MemoryEstimate,
) -> Result<Option<String>, InsufficientMemory> {
    let on_cpu = matches!(
        device.parse::<DeviceName>(),
        Ok(DeviceName::Flex | DeviceName::NdArray | DeviceName::Auto)
    );
    match free_memory().filter(|_| on_cpu) {
        Some(free) => compare(need, free),
        None => Ok(None),
    }
}

/// Refuses to explain a model whose weights do not fit into free memory twice: in f32, and in f64 for
/// the recomputation.
///
/// # Errors
/// [`InsufficientMemory`] with the needed and the free bytes.
pub(crate) fn check_explained(parameters: usize) -> Result<(), InsufficientMemory> {
    let need = parameters as u64 * (4 + 8);
    match free_memory().filter(|free| need > *free) {
        None => Ok(()),
        Some(free) => Err(InsufficientMemory(format!(
            "explaining a model with {parameters} parameters needs {} of memory, but only {} are free; hint: \
             explain a smaller model (`nextword generate` needs only a third of that memory)",
            format::bytes(need),
            format::bytes(free)
        ))),
    }
}

fn compare(need: &MemoryEstimate, free: u64) -> Result<Option<String>, InsufficientMemory> {
    let exact = (need.total() - need.activations) as u64;
    let total = need.total() as u64;
    let available = format::bytes(free);
    if exact > free {
        let needs = format::bytes(exact);
        return Err(InsufficientMemory(format!(
            "the model and its optimizer state need {needs} of memory, but only {available} are free; \
             hint: lower model.d_model or model.n_layers"
        )));
    }
    let needs = format::bytes(total);
    let message = format!(
        "a step needs about {needs} of memory, but only {available} are free; hint: lower \
         train.batch_size and raise train.accumulation by the same factor"
    );
    if total > free.saturating_mul(OVERCOMMIT_LIMIT) {
        return Err(InsufficientMemory(message));
    }
    Ok((total > free).then_some(message))
}

/// Returns the bytes of free memory, where the system reports them.
fn free_memory() -> Option<u64> {
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
    fn memory_check_refuses_models_and_warns_about_batches() {
        let need = MemoryEstimate {
            weights: 100,
            gradients: 100,
            optimizer: 200,
            activations: 1000,
        };
        assert!(matches!(compare(&need, 1400), Ok(None)));
        assert!(matches!(compare(&need, 1399), Ok(Some(text)) if text.contains("batch_size")));
        assert!(
            matches!(compare(&need, 349), Err(InsufficientMemory(text)) if text.contains("d_model"))
        );
        let long = MemoryEstimate {
            activations: 10_000,
            ..need
        };
        assert!(
            matches!(compare(&long, 500), Err(InsufficientMemory(text)) if text.contains("batch_size"))
        );
        assert!(
            matches!(compare(&need, 399), Err(InsufficientMemory(text)) if text.contains("d_model"))
        );
    }
}
