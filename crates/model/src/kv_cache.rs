//! Keys and values of the tokens seen so far, so that each new token costs one step.
//!
//! The memory is taken once: `slots` sequences of up to `capacity` tokens each, written in place.
//! Rows of a batch may have different lengths. A model with sliding windows keeps all tokens and
//! masks those behind the window. A full slot takes no more tokens: the caller decides what to
//! forget (see `generate`'s overflow rule).

use std::ops::Range;

use burn::tensor::{Device, Tensor};
use nextword_kernels::write_cache;

use crate::ModelConfig;

/// Keys and values of every layer for a number of sequences.
#[derive(Clone, Debug)]
pub struct KvCache {
    /// For each layer keys and values, `[slots, n_kv_heads, capacity, head_dim]`. An option so that
    /// a write can take the tensor out and so own it alone, which lets it happen in place.
    layers: Vec<Option<(Tensor<4>, Tensor<4>)>>,
    lengths: Vec<usize>,
    capacity: usize,
}

impl KvCache {
    /// Room for `slots` sequences as long as the model's context.
    pub fn new(config: &ModelConfig, slots: usize, device: &Device) -> Self {
        Self::with_capacity(config, slots, config.context_length, device)
    }

    /// Room for `slots` sequences of `capacity` tokens, at most the model's context.
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

    /// Tokens that `slot` holds.
    pub fn len(&self, slot: usize) -> usize {
        self.lengths[slot]
    }

    /// Whether no slot holds a token.
    pub fn is_empty(&self) -> bool {
        self.lengths.iter().all(|len| *len == 0)
    }

    /// The most tokens that a slot can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many sequences there is room for.
    pub fn slots(&self) -> usize {
        self.lengths.len()
    }

    /// Forgets what `slot` holds.
    pub fn clear(&mut self, slot: usize) {
        self.lengths[slot] = 0;
    }

    /// Forgets all but the first `len` tokens of `slot`.
    pub fn truncate(&mut self, slot: usize, len: usize) {
        self.lengths[slot] = self.lengths[slot].min(len);
    }

    /// Copies the first `len` tokens of slot `from` over what slot `to` holds.
    ///
    /// # Panics
    /// If `from` holds fewer, or the slots are the same.
    pub fn copy_prefix(&mut self, from: usize, to: usize, len: usize) {
        assert!(
            from != to && len <= self.lengths[from],
            "a prefix of another slot"
        );
        for layer in &mut self.layers {
            let Some((keys, values)) = layer.take() else {
                unreachable!("a cache layer is always put back");
            };
            // The copy is made before the write, so that the write owns its tensor alone.
            let [k, v] = [&keys, &values].map(|x| read(x, &[from], len) * 1.0);
            let write = |into, x| write_cache(into, x, &[to], &[0]);
            *layer = Some((write(keys, k), write(values, v)));
        }
        self.lengths[to] = len;
    }

    /// Writes `k` and `v`, `[rows, n_kv_heads, seq, head_dim]`, behind what the rows' slots hold.
    ///
    /// # Panics
    /// If a slot is full, or one is named twice.
    pub(crate) fn append(&mut self, layer: usize, slots: &[usize], k: Tensor<4>, v: Tensor<4>) {
        let seq = k.dims()[2];
        let starts: Vec<usize> = slots.iter().map(|slot| self.lengths[*slot]).collect();
        let longest = starts.iter().copied().max().unwrap_or(0) + seq;
        assert!(
            longest <= self.capacity,
            "{longest} tokens do not fit a cache of {}",
            self.capacity
        );
        let Some((keys, values)) = self.layers[layer].take() else {
            unreachable!("a cache layer is always put back");
        };
        let write = |into, x| write_cache(into, x, slots, &starts);
        self.layers[layer] = Some((write(keys, k), write(values, v)));
    }

    /// The first `len` keys and values of `slots`, `[rows, n_kv_heads, len, head_dim]`: where they
    /// lie if the slots are neighbours, else a copy. What lies behind a shorter row's end is stale
    /// and hidden by the mask.
    pub(crate) fn visible(
        &self,
        layer: usize,
        slots: &[usize],
        len: usize,
    ) -> (Tensor<4>, Tensor<4>) {
        let Some((keys, values)) = &self.layers[layer] else {
            unreachable!("a cache layer is always put back");
        };
        (read(keys, slots, len), read(values, slots, len))
    }

    pub(crate) fn advance(&mut self, slots: &[usize], seq: usize) {
        for slot in slots {
            self.lengths[*slot] += seq;
        }
    }
}

/// Whether `slots` are neighbours in order, so that one slice holds them.
fn is_run(slots: &[usize]) -> bool {
    slots.windows(2).all(|pair| pair[1] == pair[0] + 1)
}

/// The rows of `slots`, cut where they stop being neighbours.
pub(crate) fn runs(slots: &[usize]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for row in 0..slots.len() {
        match runs.last_mut() {
            Some(run) if slots[row] == slots[row - 1] + 1 => run.end += 1,
            _ => runs.push(row..row + 1),
        }
    }
    runs
}

fn read(from: &Tensor<4>, slots: &[usize], len: usize) -> Tensor<4> {
    let part = |first: usize, count: usize| from.clone().narrow(0, first, count).narrow(2, 0, len);
    if is_run(slots) {
        return part(slots[0], slots.len());
    }
    Tensor::cat(slots.iter().map(|slot| part(*slot, 1)).collect(), 0)
}
