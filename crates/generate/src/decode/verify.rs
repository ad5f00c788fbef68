//! Speculative decoding of prompts.

use burn::tensor::{Int, Tensor, TensorData};
use nextword_model::weights;

use super::{Decoder, sample_key};
use crate::speculation::{DraftSampling, VERIFIED_TOKENS};

impl Decoder<'_> {
    /// The logits of the last token of an unfinished `row`, if it was proposed and verified. Otherwise drops
    /// the proposals.
    pub(super) fn verified_logits(&mut self, row: usize) -> Option<Vec<f32>> {
        let state = &mut self.rows[row];
        let (proposed, logits) = state.lookahead.pop_front()?;
        if state.finish.is_none() && state.context.last() == Some(&proposed) {
            return Some(logits);
        }
        state.lookahead.clear();
        self.cache.truncate(row, state.context.len() - 1);
        None
    }

    /// The tokens that may follow the contexts of `rows`.
    pub(super) fn propose(&mut self, rows: &[usize]) -> Vec<Vec<u32>> {
        let Some(drafter) = &mut self.drafter else {
            return vec![Vec::new(); rows.len()];
        };
        let per_row = (VERIFIED_TOKENS / rows.len()).saturating_sub(1);
        let proposals = rows.iter().map(|index| {
            let row = &self.rows[*index];
            let room = self.cache.capacity().saturating_sub(row.context.len());
            let left = self.options.max_tokens - row.tokens.len();
            let sampling = DraftSampling {
                sampler: &self.sampler,
                history: &row.history,
                key: sample_key(&self.options, *index, row),
            };
            let max_tokens = per_row.min(room).min(left - 1);
            drafter.propose(*index, &row.context, max_tokens, &sampling)
        });
        proposals.collect()
    }

    /// Computes the last tokens of `rows` and their proposals, each with the bits of a pass of its own.
    /// Returns the logits of the last tokens.
    pub(super) fn verify(
        &mut self,
        rows: &[usize],
        proposals: &[Vec<u32>],
    ) -> Vec<(usize, Vec<f32>)> {
        let (mut slots, mut ids) = (Vec::new(), Vec::new());
        for (row, proposed) in rows.iter().zip(proposals) {
            slots.extend(std::iter::repeat_n(*row, 1 + proposed.len()));
            ids.extend(self.rows[*row].context.last().map(|id| id.cast_signed()));
            ids.extend(proposed.iter().map(|id| id.cast_signed()));
        }
        let data = TensorData::new(ids, [slots.len(), 1]);
        let tokens = Tensor::<2, Int>::from_data(data, &self.model.device());
        let logits = self.model.forward_cached(tokens, &mut self.cache, &slots);
        let logits = weights::to_f32_vec(logits.into_data());
        let mut logits = logits
            .chunks(self.model.config().vocab_size)
            .map(<[f32]>::to_vec);
        let mut last = Vec::with_capacity(rows.len());
        for (row, proposed) in rows.iter().zip(proposals) {
            last.extend(logits.next().map(|logits| (*row, logits)));
            self.rows[*row].lookahead = proposed.iter().copied().zip(&mut logits).collect();
        }
        last
    }
}
