//! Speculative decoding of a batch.

use super::{Batcher, Event, RequestId};
use crate::speculation::VERIFIED_TOKENS;

/// The logits of a sequence's last token and of the tokens that were proposed after it.
#[derive(Debug)]
pub(super) struct Verification {
    pub(super) slot: usize,
    /// Row of the logits of its last token; those of the proposed tokens follow.
    pub(super) first: usize,
    pub(super) proposed: Vec<u32>,
}

impl Batcher {
    /// The tokens that may follow the context of `slot`, which will be cached up to `end`, with pages for
    /// them. `sequences` is the number of sequences in this step.
    pub(super) fn propose(&mut self, slot: usize, end: usize, sequences: usize) -> Vec<u32> {
        let (Some(drafter), Some(sequence)) = (&mut self.drafter, self.active.get(&slot)) else {
            return Vec::new();
        };
        if end != sequence.context.len() {
            return Vec::new();
        }
        let room = self.model.config().context_length.saturating_sub(end);
        let left = sequence.request.max_tokens - sequence.generated;
        let per_sequence = VERIFIED_TOKENS / sequences;
        let max_tokens = room.min(left.min(per_sequence).saturating_sub(1));
        let sampling = sequence.draft_sampling();
        let proposed = drafter.propose(slot, &sequence.context, max_tokens, &sampling);
        while !self.cache.reserve(slot, end + proposed.len()) {
            if !self.prefixes.evict(&mut self.cache) {
                return Vec::new();
            }
        }
        proposed
    }

    /// Samples the next tokens of the sequences from `logits`, as long as they are the proposed ones.
    pub(super) fn verify(
        &mut self,
        verifications: Vec<Verification>,
        logits: &[f32],
        events: &mut Vec<(RequestId, Event)>,
    ) {
        let rows: Vec<&[f32]> = logits.chunks(self.model.config().vocab_size).collect();
        let proposed = verifications.iter().filter(|v| !v.proposed.is_empty());
        let speculative: Vec<usize> = proposed.map(|v| v.slot).collect();
        let mut current = verifications;
        for index in 0.. {
            let batch: Vec<(usize, &[f32])> = current
                .iter()
                .map(|v| (v.slot, rows[v.first + index]))
                .collect();
            let tokens = self.sample(&batch, events);
            let sampled = current.into_iter().zip(tokens);
            let accepted = sampled.filter_map(|(v, token)| {
                let proposed = v.proposed.get(index).copied();
                self.proposals.proposed += u64::from(proposed.is_some());
                (token.is_some() && token == proposed).then_some(v)
            });
            current = accepted.collect();
            if current.is_empty() {
                break;
            }
            self.proposals.accepted += current.len() as u64;
        }
        // Drops the proposed tokens that were not sampled.
        for slot in speculative {
            if let Some(sequence) = self.active.get(&slot) {
                self.cache.truncate(slot, sequence.context.len() - 1);
            }
        }
    }
}
