//! Which rows are multiplied together.

use std::ops::Range;

use crate::IGNORE;
use crate::cpu::matmul::k_blocks;

/// The rows to process, in chunks.
#[derive(Debug)]
pub(super) struct Rows {
    /// The rows that count, if others are left out.
    selected: Option<Vec<usize>>,
    /// Number of rows of a chunk without selection, by which losses are summed.
    full_chunk: usize,
    pub(super) chunks: Vec<Chunk>,
}

/// Rows that are processed at once; those of a selection are numbered consecutively.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) rows: Range<usize>,
    /// The parts whose sums in the weight gradient are added one after the other.
    pub(super) parts: Vec<Range<usize>>,
}

impl Rows {
    /// All `rows` rows, `chunk_rows` at a time.
    pub(super) fn all(rows: usize, chunk_rows: usize) -> Self {
        let chunks = (0..rows).step_by(chunk_rows).map(|first| {
            let rows = first..rows.min(first + chunk_rows);
            let parts = vec![rows.clone()];
            Chunk { rows, parts }
        });
        Self {
            selected: None,
            full_chunk: chunk_rows,
            chunks: chunks.collect(),
        }
    }

    /// The rows whose target is not [`IGNORE`], at most `chunk_rows` at a time.
    ///
    /// The parts are the blocks along the rows in which [`all`](Self::all) sums the weight gradient: without rows
    /// that add zeros, the sums stay bitwise the same.
    pub(super) fn counted(targets: &[u32], chunk_rows: usize) -> Self {
        let mut selected = Vec::new();
        let mut chunks: Vec<Chunk> = Vec::new();
        for (index, chunk) in targets.chunks(chunk_rows).enumerate() {
            let (block, _) = k_blocks(chunk.len());
            for (number, targets) in chunk.chunks(block).enumerate() {
                let first = index * chunk_rows + number * block;
                let start = selected.len();
                let counted = targets.iter().enumerate();
                let counted = counted.filter(|(_, target)| **target != IGNORE);
                selected.extend(counted.map(|(i, _)| first + i));
                let part = start..selected.len();
                if part.is_empty() {
                    continue;
                }
                match chunks.last_mut() {
                    Some(chunk) if part.end - chunk.rows.start <= chunk_rows => {
                        chunk.rows.end = part.end;
                        chunk.parts.push(part);
                    }
                    _ => chunks.push(Chunk {
                        rows: part.clone(),
                        parts: vec![part],
                    }),
                }
            }
        }
        Self {
            selected: Some(selected),
            full_chunk: chunk_rows,
            chunks,
        }
    }

    /// Whether rows are left out.
    pub(super) fn is_selection(&self) -> bool {
        self.selected.is_some()
    }

    /// Number of rows to process.
    pub(super) fn len(&self) -> usize {
        self.chunks.last().map_or(0, |chunk| chunk.rows.end)
    }

    /// Number of rows of the largest chunk.
    pub(super) fn max_chunk(&self) -> usize {
        self.chunks
            .iter()
            .map(|chunk| chunk.rows.len())
            .max()
            .unwrap_or(0)
    }

    /// The position of row `row` among all rows.
    pub(super) fn position(&self, row: usize) -> usize {
        self.selected.as_ref().map_or(row, |selected| selected[row])
    }

    /// Sums the losses of the rows, in the order of [`all`](Self::all).
    pub(super) fn sum(&self, losses: &[f32]) -> f64 {
        let (mut total, mut sum, mut chunk) = (0.0, 0.0, 0);
        for (row, loss) in losses.iter().enumerate() {
            let of_row = self.position(row) / self.full_chunk;
            if of_row != chunk {
                total += sum;
                (sum, chunk) = (0.0, of_row);
            }
            sum += f64::from(*loss);
        }
        total + sum
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp)]
mod tests {
    use super::*;

    #[test]
    fn only_counted_rows_are_selected() {
        let targets = [IGNORE, 3, IGNORE, 5, 6, IGNORE];
        let rows = Rows::counted(&targets, 4);
        assert_eq!(rows.selected, Some(vec![1, 3, 4]));
        // Two chunks of four rows and of two are blocks of their own; their counted rows fit into one chunk.
        let chunk = Chunk {
            rows: 0..3,
            parts: vec![0..2, 2..3],
        };
        assert_eq!(rows.chunks, [chunk]);
        assert_eq!((rows.len(), rows.max_chunk(), rows.position(2)), (3, 3, 4));
    }

    #[test]
    fn a_chunk_has_no_more_rows_than_without_selection() {
        let targets: Vec<u32> = (0..5000)
            .map(|i| if i % 3 == 0 { IGNORE } else { 1 })
            .collect();
        let rows = Rows::counted(&targets, 700);
        assert!(rows.max_chunk() <= 700 && rows.chunks.len() < 8);
        let parts = rows.chunks.iter().flat_map(|chunk| chunk.parts.clone());
        assert!(parts.flatten().eq(0..rows.len()));
    }

    #[test]
    fn no_counted_row_means_no_chunk() {
        let rows = Rows::counted(&[IGNORE; 9], 4);
        assert_eq!((rows.len(), rows.max_chunk(), rows.chunks.len()), (0, 0, 0));
        assert_eq!(rows.sum(&[]), 0.0);
    }
}
