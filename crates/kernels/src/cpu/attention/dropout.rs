//! Dropout factors of a tile of attention weights.

use nextword_base::rng::{GOLDEN_GAMMA, mix};

use super::super::dropout::Mask;
use super::mask::TileMask;
use super::sizes::QUERIES;
use super::{Options, Shape};

/// Generator of the dropout factors of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct DropoutTile {
    mask: Mask,
    threshold: u32,
    scale: f32,
    /// Stream position of query 0 of the block and key 0.
    base: u64,
    /// Stream positions from one query to the next.
    seq_k: u64,
}

impl DropoutTile {
    /// Creates the generator for the block that starts at query `first` of one head.
    pub(super) fn new(
        shape: &Shape,
        options: &Options<'_>,
        batch: usize,
        head: usize,
        first: usize,
    ) -> Option<Self> {
        let dropout = options.dropout?;
        let row = dropout.first_sequence + batch as u64;
        let head = row * shape.n_heads as u64 + head as u64;
        let query = head * shape.seq_q as u64 + first as u64;
        Some(Self {
            mask: dropout.mask,
            threshold: dropout.mask.threshold(),
            scale: dropout.mask.scale(),
            base: query * shape.seq_k as u64,
            seq_k: shape.seq_k as u64,
        })
    }

    /// Fills `out[key][query]` for a tile; keys that no query attends to may be skipped.
    ///
    /// Two positions share a draw. If the number of keys is even, these are always two adjacent
    /// keys of one query, so each draw is made once; otherwise each position makes its own draw.
    #[inline(always)]
    pub(super) fn fill(&self, tile: &TileMask<'_>, out: &mut [f32]) {
        let paired = self.seq_k.is_multiple_of(2);
        let mut key = 0;
        while key < tile.keys {
            let position = self.base + (tile.first_key + key) as u64;
            let first = tile.query_range(key, key + 1).0 & !15;
            if paired && position.is_multiple_of(2) && key + 1 < tile.keys {
                let (low, high) = out[key * QUERIES..(key + 2) * QUERIES].split_at_mut(QUERIES);
                self.fill_key_pair(position, first, low, high);
                key += 2;
            } else {
                self.fill_key(
                    position,
                    first,
                    &mut out[key * QUERIES..(key + 1) * QUERIES],
                );
                key += 1;
            }
        }
    }

    /// Fills a key at an even position and the next key, for the queries from `first` on.
    #[inline(always)]
    fn fill_key_pair(&self, position: u64, first: usize, low: &mut [f32], high: &mut [f32]) {
        let step = (self.seq_k / 2).wrapping_mul(GOLDEN_GAMMA);
        let start = self.mask.draw_input(position / 2);
        // Sixteen at a time: a constant trip count lets the compiler vectorize the loop.
        for query in (first..QUERIES).step_by(16) {
            let mut bits = [0; 16];
            for (i, bits) in bits.iter_mut().enumerate() {
                *bits = mix(start.wrapping_add(((query + i) as u64).wrapping_mul(step)));
            }
            for (low, bits) in low[query..query + 16].iter_mut().zip(bits) {
                *low = self.factor_for(bits as u32);
            }
            for (high, bits) in high[query..query + 16].iter_mut().zip(bits) {
                *high = self.factor_for((bits >> 32) as u32);
            }
        }
    }

    /// Fills one key, for the queries from `first` on.
    #[inline(always)]
    fn fill_key(&self, position: u64, first: usize, out: &mut [f32]) {
        for query in (first..QUERIES).step_by(16) {
            for (i, out) in out[query..query + 16].iter_mut().enumerate() {
                let position = position + (query + i) as u64 * self.seq_k;
                let draw = mix(self.mask.draw_input(position / 2));
                *out = self.factor_for((draw >> (32 * (position % 2))) as u32);
            }
        }
    }

    #[inline(always)]
    fn factor_for(&self, bits: u32) -> f32 {
        if bits < self.threshold {
            0.0
        } else {
            self.scale
        }
    }
}
