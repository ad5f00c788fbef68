//! Assignment of cache slots to requests, with prefix reuse.

/// The reusable prompt prefix of each cache slot, in whole chunks.
#[derive(Debug)]
pub(super) struct Slots {
    chunk: usize,
    entries: Vec<Slot>,
    clock: u64,
}

#[derive(Debug, Default)]
struct Slot {
    /// Cached tokens that were computed as whole prefill chunks: a prefix of the slot's content.
    prefix: Vec<u32>,
    in_use: bool,
    /// Time of the last release.
    released_at: u64,
}

/// The slot assigned to a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotAssignment {
    pub(super) slot: usize,
    /// Number of prompt tokens that are cached.
    pub(super) cached_len: usize,
    /// The slot to copy them from, if it is another one.
    pub(super) copy_from: Option<usize>,
}

impl Slots {
    pub(super) fn new(count: usize, chunk: usize) -> Self {
        Self {
            chunk,
            entries: (0..count).map(|_| Slot::default()).collect(),
            clock: 0,
        }
    }

    /// Assigns a free slot to `prompt`: the one with the longest common prefix, else the least
    /// recently used one. With `skip_cache` no cached tokens are used.
    pub(super) fn assign(&mut self, prompt: &[u32], skip_cache: bool) -> Option<SlotAssignment> {
        let shared_len = |slot: &Slot| {
            if skip_cache {
                0
            } else {
                self.shared_len(slot, prompt)
            }
        };
        let free = self
            .entries
            .iter()
            .enumerate()
            .filter(|(_, slot)| !slot.in_use);
        let (slot, own_len) = free
            .map(|(index, slot)| (index, shared_len(slot), slot))
            .max_by_key(|(_, shared, slot)| {
                // Without a common prefix, prefer an empty slot, then the least recently used one.
                (
                    *shared,
                    std::cmp::Reverse((!slot.prefix.is_empty(), slot.released_at)),
                )
            })
            .map(|(index, shared, _)| (index, shared))?;
        let (source, longest) = self
            .entries
            .iter()
            .enumerate()
            .map(|(index, slot)| (index, shared_len(slot)))
            .max_by_key(|(index, shared)| (*shared, std::cmp::Reverse(*index)))?;
        let copies = longest > own_len;
        let cached_len = if copies { longest } else { own_len };
        let assigned = &mut self.entries[slot];
        assigned.in_use = true;
        assigned.prefix = prompt[..cached_len].to_vec();
        Some(SlotAssignment {
            slot,
            cached_len,
            copy_from: copies.then_some(source),
        })
    }

    /// Length of the common prefix of `prompt` and `slot`, in whole chunks. Always less than the
    /// prompt, because the logits of its last token are still to be computed.
    fn shared_len(&self, slot: &Slot, prompt: &[u32]) -> usize {
        let same = slot
            .prefix
            .iter()
            .zip(prompt)
            .take_while(|(a, b)| a == b)
            .count();
        same.min(prompt.len().saturating_sub(1)) / self.chunk * self.chunk
    }

    /// Records that `tokens` of a prompt were computed after the first `start` tokens of `slot`.
    pub(super) fn record_chunk(&mut self, slot: usize, start: usize, tokens: &[u32]) {
        let slot = &mut self.entries[slot];
        if slot.prefix.len() == start && tokens.len() == self.chunk {
            slot.prefix.extend_from_slice(tokens);
        }
    }

    /// Marks the content of `slot` as not reusable.
    pub(super) fn invalidate(&mut self, slot: usize) {
        self.entries[slot].prefix.clear();
    }

    pub(super) fn release(&mut self, slot: usize) {
        self.clock += 1;
        self.entries[slot].in_use = false;
        self.entries[slot].released_at = self.clock;
    }
}
