//! Keys and values of earlier tokens, so that decoding processes only the new token.
//!
//! All memory is allocated at once: `slots` sequences of up to `capacity` tokens each, written in
//! place. Rows of a batch may have different lengths. A model with sliding windows stores all tokens
//! and masks those outside the window. A full slot accepts no more tokens: the caller decides which
//! ones to drop (see `generate`'s context overflow handling).

use std::ops::Range;

use burn::tensor::{Device, Tensor};
use nextword_kernels::write_cache;

use crate::ModelConfig;

/// Keys and values of every layer for several sequences.
///
/// # Example
///
/// ```
/// use burn::tensor::{Device, Int, Tensor};
/// use nextword_model::{ForwardContext, KvCache, presets};
///
/// let device = Device::flex();
/// let model = presets::statquest(5).init(&device, 3)?;
/// let ids = |ids: &[i32]| Tensor::<1, Int>::from_ints(ids, &device).unsqueeze::<2>();
///
/// let mut cache = KvCache::new(model.config(), 1, &device); // one slot
/// model.forward_cached(ids(&[0, 1, 2]), &mut cache, &[0]);
/// let next = model.forward_cached(ids(&[4]), &mut cache, &[0]); // [1, 1, 5]
/// assert_eq!(cache.len(0), 4);
///
/// let whole = model.forward(ids(&[0, 1, 2, 4]), &mut ForwardContext::inference());
/// assert!(next.all_close(whole.narrow(1, 3, 1), None, Some(1e-5)));
/// # Ok::<(), nextword_model::ModelError>(())
/// ```
#[derive(Clone, Debug)]
pub struct KvCache {
    /// Keys and values of each layer, `[slots, n_kv_heads, capacity, head_dim]`. An `Option` so that
    /// a write can take sole ownership of the tensors and update them in place.
    layers: Vec<Option<(Tensor<4>, Tensor<4>)>>,
    lengths: Vec<usize>,
    capacity: usize,
}

impl KvCache {
    /// Allocates a cache for `slots` sequences as long as the model's context.
    pub fn new(config: &ModelConfig, slots: usize, device: &Device) -> Self {
        Self::with_capacity(config, slots, config.context_length, device)
    }

    /// Allocates a cache for `slots` sequences of `capacity` tokens, at most the model's context.
    pub fn with_capacity(
        config: &ModelConfig,
        slots: usize,
        capacity: usize,
        device: &Device,
    ) -> Self {
        let capacity = capacity.min(config.context_length);
        let shape = [slots, config.kv_heads(), capacity, config.head_dim()];
        let zeros = || Tensor::zeros(shape, device);
        Self {
            layers: (0..config.n_layers)
                .map(|_| Some((zeros(), zeros())))
                .collect(),
            lengths: vec![0; slots],
            capacity,
        }
    }

    /// Number of tokens in `slot`.
    pub fn len(&self, slot: usize) -> usize {
        self.lengths[slot]
    }

    /// Whether all slots are empty.
    pub fn is_empty(&self) -> bool {
        self.lengths.iter().all(|len| *len == 0)
    }

    /// Maximum number of tokens in a slot.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.lengths.len()
    }

    /// Empties `slot`.
    pub fn clear(&mut self, slot: usize) {
        self.lengths[slot] = 0;
    }

    /// Drops all but the first `len` tokens of `slot`.
    pub fn truncate(&mut self, slot: usize, len: usize) {
        self.lengths[slot] = self.lengths[slot].min(len);
    }

    /// Replaces the contents of slot `to` with the first `len` tokens of slot `from`.
    ///
    /// # Panics
    /// If `from` has fewer than `len` tokens, or the slots are the same.
    pub fn copy_prefix(&mut self, from: usize, to: usize, len: usize) {
        assert!(
            from != to && len <= self.lengths[from],
            "cannot copy {len} tokens from slot {from} to slot {to}"
        );
        for layer in &mut self.layers {
            let Some((keys, values)) = layer.take() else {
                unreachable!("a write always puts the layer back");
            };
            // The copy ends before the write starts, so that the write has sole ownership.
            let [k, v] = [&keys, &values].map(|x| gather_slots(x, &[from], len) * 1.0);
            let write = |into, x| write_cache(into, x, &[to], &[0]);
            *layer = Some((write(keys, k), write(values, v)));
        }
        self.lengths[to] = len;
    }

    /// Appends `k` and `v`, `[rows, n_kv_heads, seq, head_dim]`, to the slots of the rows.
    ///
    /// # Panics
    /// If a slot is full, or `slots` contains duplicates.
    pub(crate) fn append(&mut self, layer: usize, slots: &[usize], k: Tensor<4>, v: Tensor<4>) {
        let seq = k.dims()[2];
        let starts: Vec<usize> = slots.iter().map(|slot| self.lengths[*slot]).collect();
        let longest = starts.iter().copied().max().unwrap_or(0) + seq;
        assert!(
            longest <= self.capacity,
            "{longest} tokens do not fit into a cache of {}",
            self.capacity
        );
        let Some((keys, values)) = self.layers[layer].take() else {
            unreachable!("a write always puts the layer back");
        };
        let write = |into, x| write_cache(into, x, slots, &starts);
        self.layers[layer] = Some((write(keys, k), write(values, v)));
    }

    /// The first `len` keys and values of `slots`, `[rows, n_kv_heads, len, head_dim]`: a view if the
    /// slots are contiguous, else a copy. Entries past the end of a shorter row are stale; the
    /// attention mask excludes them.
    pub(crate) fn visible(
        &self,
        layer: usize,
        slots: &[usize],
        len: usize,
    ) -> (Tensor<4>, Tensor<4>) {
        let Some((keys, values)) = &self.layers[layer] else {
            unreachable!("a write always puts the layer back");
        };
        (
            gather_slots(keys, slots, len),
            gather_slots(values, slots, len),
        )
    }

    pub(crate) fn advance(&mut self, slots: &[usize], seq: usize) {
        for slot in slots {
            self.lengths[*slot] += seq;
        }
    }
}

/// Whether `slots` are consecutive and ascending, so that one slice covers them.
fn is_contiguous(slots: &[usize]) -> bool {
    slots.windows(2).all(|pair| pair[1] == pair[0] + 1)
}

/// Splits the rows of `slots` into runs of consecutive slots.
pub(crate) fn contiguous_runs(slots: &[usize]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for row in 0..slots.len() {
        match runs.last_mut() {
            Some(run) if slots[row] == slots[row - 1] + 1 => run.end += 1,
            _ => runs.push(row..row + 1),
        }
    }
    runs
}

fn gather_slots(from: &Tensor<4>, slots: &[usize], len: usize) -> Tensor<4> {
    let slice = |first: usize, count: usize| from.clone().narrow(0, first, count).narrow(2, 0, len);
    if is_contiguous(slots) {
        return slice(slots[0], slots.len());
    }
    Tensor::cat(slots.iter().map(|slot| slice(*slot, 1)).collect(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(feature = "flex")]
    #[should_panic(expected = "duplicate slots: [1, 1]")]
    fn appending_to_a_slot_twice_panics() {
        let device = Device::flex();
        let config = crate::presets::statquest(5);
        let mut cache = KvCache::new(&config, 2, &device);
        let keys = Tensor::zeros([2, config.kv_heads(), 1, config.head_dim()], &device);
        cache.append(0, &[1, 1], keys.clone(), keys);
    }
}
