//! The order of additions.

/// Adds terms that arrive one after another in a fixed binary tree: neighbours in pairs, then pairs of pairs.
///
/// Six terms become `((0 + 1) + (2 + 3)) + (4 + 5)`. If each of `n` adders gets a contiguous run of `2^k` terms, the
/// same tree over their sums has the bits of one adder that gets all terms. In between, the sums of the subtrees that
/// are complete are in memory: at most [`largest_stack`] of them.
///
/// ```
/// use nextword_parallel::TreeSum;
///
/// let mut tree = TreeSum::default();
/// for term in ["a", "b", "c", "d", "e", "f"] {
///     tree.push(term.to_string(), |left, right| format!("({left}{right})"));
/// }
/// let sum = tree.finish(|left, right| format!("({left}{right})"));
/// assert_eq!(sum.as_deref(), Some("(((ab)(cd))(ef))"));
/// ```
#[derive(Clone, Debug)]
pub struct TreeSum<T> {
    /// Sums of complete subtrees with their numbers of terms, which decrease.
    stack: Vec<(usize, T)>,
}

impl<T> Default for TreeSum<T> {
    fn default() -> Self {
        Self { stack: Vec::new() }
    }
}

impl<T> TreeSum<T> {
    /// Adds the next term.
    pub fn push(&mut self, term: T, mut add: impl FnMut(T, T) -> T) {
        let (mut terms, mut sum) = (1, term);
        while let Some((_, left)) = self.stack.pop_if(|(left, _)| *left == terms) {
            (terms, sum) = (2 * terms, add(left, sum));
        }
        self.stack.push((terms, sum));
    }

    /// The sums to which a last term is added from the left, in this order: `sum = add(left, sum)` for each gives what
    /// [`push`](Self::push) and [`finish`](Self::finish) would, also part by part of a term.
    ///
    /// ```
    /// use nextword_parallel::TreeSum;
    ///
    /// let mut tree = TreeSum::default();
    /// for term in ["a", "b", "c"] {
    ///     tree.push(term.to_string(), |left, right| format!("({left}{right})"));
    /// }
    /// let left = tree.into_sums_before_last();
    /// assert_eq!(left, ["c", "(ab)"]); // A last term d gives ((ab)(cd)).
    /// ```
    pub fn into_sums_before_last(self) -> Vec<T> {
        self.stack.into_iter().rev().map(|(_, sum)| sum).collect()
    }

    /// The sum of all terms; `None` without any.
    pub fn finish(mut self, mut add: impl FnMut(T, T) -> T) -> Option<T> {
        let (_, mut sum) = self.stack.pop()?;
        while let Some((_, left)) = self.stack.pop() {
            sum = add(left, sum);
        }
        Some(sum)
    }
}

/// The number of sums that a [`TreeSum`] of `terms` keeps at most while the next term is computed.
///
/// ```
/// use nextword_parallel::largest_stack;
///
/// assert_eq!([1, 2, 4, 8].map(largest_stack), [0, 1, 2, 3]);
/// ```
pub fn largest_stack(terms: usize) -> usize {
    let stacks = (0..terms).map(|done| done.count_ones() as usize);
    stacks.max().unwrap_or(0)
}

/// Numbers that are added at once, so that those of all parts stay in the cache.
const CHUNK: usize = 16 << 10;

/// Adds `parts` parts of equal length, which lie one after another in `values`, in the order of [`TreeSum`]. The sum
/// is then in the first part.
pub(crate) fn add_parts(values: &mut [f32], parts: usize) {
    let len = values.len() / parts.max(1);
    for start in (0..len).step_by(CHUNK) {
        let end = (start + CHUNK).min(len);
        let mut stride = 1;
        while stride < parts {
            for left in (0..parts - stride).step_by(2 * stride) {
                let (before, after) = values.split_at_mut((left + stride) * len);
                let sums = &mut before[left * len + start..left * len + end];
                for (sum, value) in sums.iter_mut().zip(&after[start..end]) {
                    *sum += value;
                }
            }
            stride *= 2;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Numbers whose sum depends on the order of additions.
    fn terms(n: usize) -> Vec<f32> {
        let value = |i: usize| ((i * 2_654_435_761) % 1_000_003) as f32 / 7.0 + 0.001;
        (0..n).map(value).collect()
    }

    fn tree_sum(terms: &[f32]) -> f32 {
        let mut tree = TreeSum::default();
        for term in terms {
            tree.push(*term, |a, b| a + b);
        }
        tree.finish(|a, b| a + b).unwrap()
    }

    #[test]
    fn parts_are_added_in_the_order_of_the_tree() {
        for parts in 1..20 {
            let len = CHUNK + 3;
            let mut values = terms(parts * len);
            let expected: Vec<f32> = (0..len)
                .map(|i| (0..parts).map(|part| values[part * len + i]).collect())
                .map(|column: Vec<f32>| tree_sum(&column))
                .collect();
            add_parts(&mut values, parts);
            assert_eq!(&values[..len], expected, "{parts} parts");
        }
    }

    #[test]
    fn runs_of_a_power_of_two_can_be_added_apart() {
        for n in 1..=64 {
            let all = terms(n);
            let runs = (0..7).map(|k| 1 << k).filter(|run| n % run == 0);
            for run in runs {
                let apart: Vec<f32> = all.chunks(run).map(tree_sum).collect();
                assert_eq!(
                    tree_sum(&apart).to_bits(),
                    tree_sum(&all).to_bits(),
                    "{n} in {run}"
                );
            }
        }
    }

    #[test]
    fn the_tree_is_not_the_order_from_left_to_right() {
        let all = terms(8);
        let from_left: f32 = all.iter().sum();
        assert_ne!(tree_sum(&all).to_bits(), from_left.to_bits());
    }

    #[test]
    fn the_stack_is_as_large_as_stated() {
        for n in 1..40 {
            let mut tree = TreeSum::default();
            let mut largest = 0;
            for term in terms(n) {
                largest = largest.max(tree.stack.len());
                tree.push(term, |a, b| a + b);
            }
            assert_eq!(largest, largest_stack(n), "{n} terms");
        }
    }

    #[test]
    fn nothing_has_no_sum() {
        assert_eq!(TreeSum::<f32>::default().finish(|a, b| a + b), None);
    }
}
