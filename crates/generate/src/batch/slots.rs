//! Which slot holds which tokens, and which slot a new prompt gets.

/// What each slot of the cache holds in whole pieces of prompts.
#[derive(Debug)]
pub(super) struct Slots {
    chunk: usize,
    all: Vec<Slot>,
    clock: u64,
}

#[derive(Debug, Default)]
struct Slot {
    /// Tokens that were computed as whole pieces of a prompt: the beginning of what the slot holds.
    prefix: Vec<u32>,
    taken: bool,
    /// When it was freed.
    since: u64,
}

/// A slot for a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) slot: usize,
    /// Tokens of the prompt that are cached.
    pub(super) len: usize,
    /// The slot that holds them, if it is another one.
    pub(super) copy_from: Option<usize>,
}

impl Slots {
    pub(super) fn new(count: usize, chunk: usize) -> Self {
        Self {
            chunk,
            all: (0..count).map(|_| Slot::default()).collect(),
            clock: 0,
        }
    }

    /// Takes a free slot for `prompt`: the one that begins most like it, else the one that was free
    /// for longest. A `fresh` prompt uses nothing that is cached.
    pub(super) fn take(&mut self, prompt: &[u32], fresh: bool) -> Option<Found> {
        let shared = |slot: &Slot| if fresh { 0 } else { self.shared(slot, prompt) };
        let free = self.all.iter().enumerate().filter(|(_, slot)| !slot.taken);
        let (slot, held) = free
            .map(|(at, slot)| (at, shared(slot), slot))
            .max_by_key(|(_, shared, slot)| {
                // Where nothing is shared, as little as possible is lost.
                (
                    *shared,
                    std::cmp::Reverse((!slot.prefix.is_empty(), slot.since)),
                )
            })
            .map(|(at, shared, _)| (at, shared))?;
        let (from, most) = self
            .all
            .iter()
            .enumerate()
            .map(|(at, slot)| (at, shared(slot)))
            .max_by_key(|(at, shared)| (*shared, std::cmp::Reverse(*at)))?;
        let copies = most > held;
        let len = if copies { most } else { held };
        let found = &mut self.all[slot];
        found.taken = true;
        found.prefix = prompt[..len].to_vec();
        Some(Found {
            slot,
            len,
            copy_from: copies.then_some(from),
        })
    }

    /// Tokens of `prompt` that `slot` holds, in whole pieces, and never all: the last one's logits
    /// are still to be computed.
    fn shared(&self, slot: &Slot, prompt: &[u32]) -> usize {
        let same = slot
            .prefix
            .iter()
            .zip(prompt)
            .take_while(|(a, b)| a == b)
            .count();
        same.min(prompt.len().saturating_sub(1)) / self.chunk * self.chunk
    }

    /// Notes that `piece` of a prompt was computed behind the first `start` tokens of `slot`.
    pub(super) fn fill(&mut self, slot: usize, start: usize, piece: &[u32]) {
        let slot = &mut self.all[slot];
        if slot.prefix.len() == start && piece.len() == self.chunk {
            slot.prefix.extend_from_slice(piece);
        }
    }

    /// Notes that nothing in `slot` may be used again.
    pub(super) fn forget(&mut self, slot: usize) {
        self.all[slot].prefix.clear();
    }

    pub(super) fn free(&mut self, slot: usize) {
        self.clock += 1;
        self.all[slot].taken = false;
        self.all[slot].since = self.clock;
    }
}
