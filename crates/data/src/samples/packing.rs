//! Several samples in a row: best-fit decreasing bin packing.

use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Samples divided into rows. Each is in exactly one of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct PackedRows {
    /// All samples, row after row.
    samples: Vec<u32>,
    /// First sample of each row, and the number of samples.
    starts: Vec<u32>,
    /// Number of tokens in each row.
    lengths: Vec<u32>,
}

/// A row that is being filled.
#[derive(Debug, Default)]
struct OpenRow {
    samples: Vec<u32>,
    length: u32,
}

impl PackedRows {
    /// Packs samples of `lengths` into rows of at most `capacity` tokens. `order` has the index of each sample once.
    ///
    /// Best-fit decreasing: the samples are placed from the longest to the shortest, each into the row with the least
    /// space that is enough for it, or into a new row (Krell et al. 2021, arXiv 2107.02027, pack the histogram of the
    /// lengths with the same rule). It needs at most 11/9 of the rows of an optimal packing, plus four (Johnson 1973).
    ///
    /// Which row takes a length depends on the lengths alone; samples of equal length fill these places in their
    /// order. So the number of rows is the same for every order. If no two samples fit together, row `i` has sample
    /// `i`.
    pub(crate) fn best_fit(lengths: &[u32], order: &[u32], capacity: u32) -> Self {
        let mut decreasing = order.to_vec();
        decreasing.sort_by_key(|index| Reverse(lengths[*index as usize]));
        let mut rows: Vec<OpenRow> = Vec::new();
        // The rows with each amount of space.
        let mut by_space: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for index in decreasing {
            let length = lengths[index as usize];
            let row = take_row(&mut by_space, length).unwrap_or_else(|| {
                rows.push(OpenRow::default());
                rows.len() - 1
            });
            let open = &mut rows[row];
            open.samples.push(index);
            open.length += length;
            let space = capacity.saturating_sub(open.length);
            if space > 0 {
                by_space.entry(space).or_default().push(row);
            }
        }
        rows.sort_by_key(|row| row.samples.iter().min().copied());
        Self::from_rows(&rows)
    }

    fn from_rows(rows: &[OpenRow]) -> Self {
        let ends = rows.iter().scan(0, |end, row| {
            *end += row.samples.len() as u32;
            Some(*end)
        });
        Self {
            samples: rows.iter().flat_map(|row| &row.samples).copied().collect(),
            starts: std::iter::once(0).chain(ends).collect(),
            lengths: rows.iter().map(|row| row.length).collect(),
        }
    }

    /// The samples of a row.
    pub(crate) fn row(&self, row: usize) -> &[u32] {
        &self.samples[self.starts[row] as usize..self.starts[row + 1] as usize]
    }

    /// Number of tokens in each row.
    pub(crate) fn lengths(&self) -> &[u32] {
        &self.lengths
    }
}

/// Removes a row with the least space that is enough for `length` tokens.
fn take_row(by_space: &mut BTreeMap<u32, Vec<usize>>, length: u32) -> Option<usize> {
    let (&space, rows) = by_space.range_mut(length..).next()?;
    let row = rows.pop();
    if rows.is_empty() {
        by_space.remove(&space);
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sample_takes_the_fullest_row_with_space_for_it() {
        let lengths = [3, 7, 2, 6, 4, 3, 5];
        let order: Vec<u32> = (0..7).collect();
        let packed = PackedRows::best_fit(&lengths, &order, 10);
        // 7; 6; 5; 4 beside 6; 3 beside 7; 3 beside 5; 2 beside 5 and 3.
        let rows: Vec<&[u32]> = (0..3).map(|row| packed.row(row)).collect();
        assert_eq!(rows, [&[1, 0][..], &[6, 5, 2], &[3, 4]]);
        assert_eq!(packed.lengths(), [10, 10, 10]);
    }

    #[test]
    fn samples_of_equal_length_are_exchanged_and_the_rows_stay_as_full() {
        let lengths: Vec<u32> = (0..200).map(|index| 1 + index * index % 37).collect();
        let forward: Vec<u32> = (0..200).collect();
        let backward: Vec<u32> = (0..200).rev().collect();
        let [first, second] =
            [forward, backward].map(|order| PackedRows::best_fit(&lengths, &order, 48));
        assert_ne!(first, second);
        let sorted = |rows: &PackedRows| {
            let mut lengths = rows.lengths().to_vec();
            lengths.sort_unstable();
            lengths
        };
        assert_eq!(sorted(&first), sorted(&second));
        let tokens: u32 = lengths.iter().sum();
        assert_eq!(first.lengths().iter().sum::<u32>(), tokens);
        assert!((first.lengths().len() as u32) < tokens.div_ceil(48) * 11 / 9 + 4);
        let mut seen = first.samples.clone();
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..200));
    }

    #[test]
    fn samples_that_do_not_fit_together_are_rows_in_their_order() {
        let lengths = [6, 9, 7, 6];
        let packed = PackedRows::best_fit(&lengths, &[2, 0, 3, 1], 10);
        assert_eq!(packed.samples, [0, 1, 2, 3]);
        assert_eq!(packed.lengths(), lengths);
    }
}
