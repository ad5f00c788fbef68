//! How ranks share the state of an optimizer.

use std::collections::BTreeMap;
use std::ops::Range;

/// A parameter whose state is shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardedParameter {
    /// Its name.
    pub name: String,
    /// Number of its values.
    pub len: usize,
    /// Numbers of state per value.
    pub state_per_value: usize,
    /// Whether one rank has all of it, because its update needs all values.
    pub is_whole: bool,
}

/// Which rank has the state of which values, as in `ZeRO` (Rajbhandari et al. 2019, arXiv 1910.02054), stage 1: of each
/// parameter, each rank has a contiguous range, which may be empty. Ranges begin at multiples of a chunk.
///
/// ```
/// use nextword_parallel::{ShardedParameter, Shards};
///
/// let parameter = |name: &str, len, is_whole| ShardedParameter {
///     name: name.to_string(), len, state_per_value: 2, is_whole,
/// };
/// let shards = Shards::new(&[parameter("a", 100, false), parameter("b", 30, true)], 10, 2);
/// assert_eq!(shards.range("b", 0), 0..30); // whole
/// assert_eq!(shards.range("a", 0), 0..40); // so that both have about as much
/// assert_eq!(shards.range("a", 1), 40..100);
/// assert_eq!(shards.range("unknown", 1), 0..0);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shards {
    /// The range of each rank.
    by_name: BTreeMap<String, Vec<Range<usize>>>,
}

impl Shards {
    /// Divides `parameters` so that each of `ranks` ranks has about as much state: the largest first, each piece to the
    /// rank that has the least. All ranks get the same result.
    pub fn new(parameters: &[ShardedParameter], chunk: usize, ranks: usize) -> Self {
        let mut order: Vec<&ShardedParameter> = parameters.iter().collect();
        let size = |parameter: &ShardedParameter| parameter.len * parameter.state_per_value;
        // Those that can be divided come last, to fill what the others leave.
        order.sort_by_key(|parameter| (!parameter.is_whole, std::cmp::Reverse(size(parameter))));
        let mut loads = vec![0; ranks.max(1)];
        let by_name = order.into_iter().map(|parameter| {
            let piece = if parameter.is_whole {
                parameter.len
            } else {
                chunk
            };
            let ranges = divide(parameter, piece.max(1), &mut loads);
            (parameter.name.clone(), ranges)
        });
        Self {
            by_name: by_name.collect(),
        }
    }

    /// The values of parameter `name` whose state `rank` has; empty if it has none.
    pub fn range(&self, name: &str, rank: usize) -> Range<usize> {
        let ranges = self.by_name.get(name);
        let range = ranges.and_then(|ranges| ranges.get(rank));
        range.cloned().unwrap_or_default()
    }

    /// Number of values of parameter `name`; `None` if it is not shared.
    pub fn len(&self, name: &str) -> Option<usize> {
        Some(self.by_name.get(name)?.last()?.end)
    }
}

/// The range of each rank of a parameter in pieces, and adds their state to `loads`.
fn divide(parameter: &ShardedParameter, piece: usize, loads: &mut [usize]) -> Vec<Range<usize>> {
    let mut pieces = vec![0; loads.len()];
    for start in (0..parameter.len).step_by(piece) {
        let len = piece.min(parameter.len - start);
        let least = (0..loads.len())
            .min_by_key(|rank| loads[*rank])
            .unwrap_or_default();
        loads[least] += len * parameter.state_per_value.max(1);
        pieces[least] += 1;
    }
    let mut end = 0;
    let ranges = pieces.into_iter().map(|pieces| {
        let start = end;
        end = (start + pieces * piece).min(parameter.len);
        start..end
    });
    ranges.collect()
}

/// Consecutive ranges of these lengths.
///
/// ```
/// assert_eq!(nextword_parallel::consecutive([2, 0, 3]), [0..2, 2..2, 2..5]);
/// ```
pub fn consecutive(lengths: impl IntoIterator<Item = usize>) -> Vec<Range<usize>> {
    let lengths = lengths.into_iter().scan(0, |end, len| {
        *end += len;
        Some(*end - len..*end)
    });
    lengths.collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The parameters of GPT-2 with 12 layers of `d` values; matrices of blocks are whole if `with_whole`.
    fn gpt2(d: usize, with_whole: bool) -> Vec<ShardedParameter> {
        let parameter = |name: String, len, is_block_matrix: bool| {
            let is_whole = is_block_matrix && with_whole;
            ShardedParameter {
                name,
                len,
                state_per_value: if is_whole { 1 } else { 2 },
                is_whole,
            }
        };
        let mut all = vec![parameter("embedding".to_string(), 50_257 * d, false)];
        for block in 0..12 {
            let name = |part: &str| format!("blocks.{block}.{part}");
            for part in ["query", "key", "value", "output"] {
                all.push(parameter(name(part), d * d, true));
                all.push(parameter(name(&format!("{part}.bias")), d, false));
            }
            for part in ["up", "down"] {
                all.push(parameter(name(part), 4 * d * d, true));
            }
        }
        all
    }

    #[test]
    fn each_value_belongs_to_one_rank_and_all_have_about_as_much() {
        for with_whole in [false, true] {
            for ranks in [1, 2, 3, 4, 8, 16] {
                let parameters = gpt2(768, with_whole);
                let shards = Shards::new(&parameters, 1 << 14, ranks);
                let mut loads = vec![0; ranks];
                for parameter in &parameters {
                    let ranges = (0..ranks).map(|rank| shards.range(&parameter.name, rank));
                    let all: Vec<_> = ranges.clone().flatten().collect();
                    assert!(all.into_iter().eq(0..parameter.len), "{parameter:?}");
                    assert_eq!(shards.len(&parameter.name), Some(parameter.len));
                    for (rank, range) in ranges.enumerate() {
                        loads[rank] += range.len() * parameter.state_per_value;
                        assert!(range.is_empty() || range.start.is_multiple_of(1 << 14));
                        assert!(
                            !parameter.is_whole || range.is_empty() || range.len() == parameter.len
                        );
                    }
                }
                let mean = loads.iter().sum::<usize>() as f64 / ranks as f64;
                for load in loads {
                    let share = load as f64 / mean;
                    assert!((share - 1.0).abs() < 0.01, "{ranks} ranks: {share}");
                }
            }
        }
    }
}
