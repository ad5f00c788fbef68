//! Removes padding from batches, so that short texts take only the work of their own tokens.

use nextword_data::{BatchMask, IGNORE, TokenBatch};

/// The length of a row is rounded up to a multiple of this, which is more than the 8 tokens up to which
/// linear layers sum in another order. So a row has the same bits with and without its padding.
const LENGTH_MULTIPLE: usize = 16;

/// Returns the rows of `batch` without the padding at their ends. Rows of similar length stay in one
/// batch, in their order if all do. Rows without targets are left out.
pub(crate) fn without_padding(batch: TokenBatch) -> Vec<TokenBatch> {
    // The last tokens of a row without targets are context of the others, not padding.
    if matches!(batch.mask, BatchMask::Bidirectional(_)) {
        return vec![batch];
    }
    let seq = batch.seq.max(1);
    let mut rows: Vec<(usize, usize)> = Vec::with_capacity(batch.batch); // Length and index.
    for (index, targets) in batch.targets.chunks(seq).enumerate() {
        let last = targets.iter().rposition(|target| *target != IGNORE);
        if let Some(last) = last {
            rows.push(((last + 1).next_multiple_of(LENGTH_MULTIPLE).min(seq), index));
        }
    }
    let Some(longest) = rows.iter().map(|(len, _)| *len).max() else {
        return Vec::new();
    };
    if longest == seq && rows.len() == batch.batch && is_dense(&rows, longest) {
        return vec![batch];
    }
    if is_dense(&rows, longest) {
        return vec![select(&batch, &rows, longest)];
    }
    rows.sort_by_key(|(len, _)| std::cmp::Reverse(*len));
    let mut batches = Vec::new();
    while let Some((longest, _)) = rows.first().copied() {
        // Rows of at least three quarters of the longest.
        let count = rows
            .iter()
            .take_while(|(len, _)| 4 * len >= 3 * longest)
            .count();
        let group: Vec<_> = rows.drain(..count).collect();
        batches.push(select(&batch, &group, longest));
    }
    batches
}

/// Whether padding all rows to the length of the longest adds at most half of their tokens.
fn is_dense(rows: &[(usize, usize)], longest: usize) -> bool {
    let tokens: usize = rows.iter().map(|(len, _)| len).sum();
    2 * rows.len() * longest <= 3 * tokens
}

/// The first `len` tokens of some rows of `batch`.
fn select(batch: &TokenBatch, rows: &[(usize, usize)], len: usize) -> TokenBatch {
    let rows: Vec<usize> = rows.iter().map(|(_, index)| *index).collect();
    batch.select(&rows, len)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch of rows with these numbers of targets, each padded to `seq`.
    fn batch(seq: usize, lens: &[usize]) -> TokenBatch {
        let mut batch = TokenBatch {
            batch: lens.len(),
            seq,
            ..TokenBatch::default()
        };
        for (row, len) in lens.iter().enumerate() {
            let id = |at: usize| (100 * row + at) as u32;
            batch
                .inputs
                .extend((0..seq).map(|at| if at < *len { id(at) } else { 0 }));
            batch
                .targets
                .extend((0..seq).map(|at| if at < *len { id(at + 1) } else { IGNORE }));
        }
        batch
    }

    fn shapes(batches: &[TokenBatch]) -> Vec<[usize; 2]> {
        batches
            .iter()
            .map(|batch| [batch.batch, batch.seq])
            .collect()
    }

    #[test]
    fn full_rows_stay_as_they_are() {
        for full in [batch(64, &[64, 64, 50]), batch(8, &[8, 1]), batch(16, &[3])] {
            assert_eq!(without_padding(full.clone()), [full]);
        }
    }

    #[test]
    fn short_rows_lose_their_padding() {
        assert_eq!(shapes(&without_padding(batch(8192, &[5]))), [[1, 16]]);
        assert_eq!(shapes(&without_padding(batch(100, &[97, 99]))), [[2, 100]]);
        assert_eq!(shapes(&without_padding(batch(64, &[17, 30, 0]))), [[2, 32]]);
        assert!(without_padding(batch(64, &[0, 0])).is_empty());
    }

    #[test]
    fn rows_of_different_lengths_are_separated_and_none_is_lost() {
        let original = batch(1000, &[900, 3, 40, 1000, 35, 1]);
        let batches = without_padding(original.clone());
        assert_eq!(shapes(&batches), [[2, 1000], [2, 48], [2, 16]]);
        let targets = |batches: &[TokenBatch]| {
            let all = batches.iter().flat_map(|batch| batch.targets.clone());
            let mut all: Vec<u32> = all.filter(|target| *target != IGNORE).collect();
            all.sort_unstable();
            all
        };
        assert_eq!(targets(&batches), targets(&[original]));
        for batch in &batches {
            for (input, target) in batch.inputs.iter().zip(&batch.targets) {
                assert!(*target == IGNORE || *target == input + 1);
            }
        }
    }
}
