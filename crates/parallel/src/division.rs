//! How ranks share the micro-batches of a step.

use std::ops::Range;

use crate::ParallelError;

/// The micro-batches of a step, divided into lanes and ranks.
///
/// A lane is a contiguous run of micro-batches that are added from left to right; lanes are added in the tree of
/// [`TreeSum`](crate::TreeSum). A rank computes a whole subtree of lanes, so that any allowed number of ranks has the
/// bits of one.
///
/// ```
/// use nextword_parallel::Division;
///
/// let division = Division::new(16, 8, 4)?; // 16 micro-batches in 8 lanes over 4 ranks
/// assert_eq!(division.micro_batches(3), 12..16);
/// assert_eq!(division.lanes_per_rank(), 2);
/// assert_eq!(Division::allowed_ranks(8), [1, 2, 4, 8]);
/// let error = Division::new(16, 8, 3).unwrap_err().to_string();
/// assert!(error.contains("1, 2, 4 or 8 ranks"), "{error}");
/// # Ok::<(), nextword_parallel::ParallelError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Division {
    micro_batches: usize,
    lanes: usize,
    ranks: usize,
}

impl Division {
    /// Divides `micro_batches`, of which `lanes` must be a divisor.
    ///
    /// # Errors
    /// [`ParallelError::Division`] if the ranks cannot share them; it names numbers that work.
    pub fn new(micro_batches: usize, lanes: usize, ranks: usize) -> Result<Self, ParallelError> {
        if Self::allowed_ranks(lanes).contains(&ranks) && micro_batches.is_multiple_of(lanes) {
            return Ok(Self {
                micro_batches,
                lanes,
                ranks,
            });
        }
        Err(ParallelError::Division {
            ranks,
            lanes,
            hint: hint(micro_batches, lanes, ranks),
        })
    }

    /// The numbers of ranks that can share `lanes`, in ascending order: the quotients of `lanes` and powers of two, and
    /// 1.
    pub fn allowed_ranks(lanes: usize) -> Vec<usize> {
        let powers = (0..usize::BITS).map(|power| 1usize << power);
        let runs = powers.take_while(|run| *run <= lanes && lanes.is_multiple_of(*run));
        let mut ranks: Vec<usize> = runs.map(|run| lanes / run).collect();
        if !ranks.contains(&1) {
            ranks.push(1);
        }
        ranks.sort_unstable();
        ranks
    }

    /// The micro-batches of `rank`.
    pub fn micro_batches(&self, rank: usize) -> Range<usize> {
        let share = self.micro_batches / self.ranks;
        rank * share..(rank + 1) * share
    }

    /// Number of lanes of each rank.
    pub fn lanes_per_rank(&self) -> usize {
        self.lanes / self.ranks
    }

    /// Number of micro-batches of each lane.
    pub fn micro_batches_per_lane(&self) -> usize {
        self.micro_batches / self.lanes
    }
}

/// Numbers of ranks, or of lanes, that work.
fn hint(micro_batches: usize, lanes: usize, ranks: usize) -> String {
    let allowed = Division::allowed_ranks(lanes);
    let more_lanes = (1..=micro_batches)
        .filter(|more| micro_batches.is_multiple_of(*more))
        .find(|more| Division::allowed_ranks(*more).contains(&ranks));
    let settings = match more_lanes {
        Some(lanes) => format!("--set train.lanes={lanes}"),
        None => {
            let accumulation = micro_batches.next_multiple_of(ranks.max(1));
            format!(
                "--set train.accumulation={accumulation} --set train.lanes={ranks}, with train.batch_size smaller by the \
                 same factor"
            )
        }
    };
    let listed = match allowed.split_last() {
        Some((last, [])) => format!("{last} rank"),
        Some((last, rest)) => {
            let rest: Vec<String> = rest.iter().map(ToString::to_string).collect();
            format!("{} or {last} ranks", rest.join(", "))
        }
        None => String::new(),
    };
    format!("use {listed}, or start the run with {settings}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_micro_batch_belongs_to_one_rank() {
        for (micro_batches, lanes) in [(1, 1), (8, 8), (24, 12), (6, 6), (5, 5), (16, 4)] {
            for ranks in Division::allowed_ranks(lanes) {
                let division = Division::new(micro_batches, lanes, ranks).unwrap();
                let all = (0..ranks).flat_map(|rank| division.micro_batches(rank));
                assert!(all.eq(0..micro_batches), "{division:?}");
                let per_rank = division.lanes_per_rank() * division.micro_batches_per_lane();
                assert_eq!(per_rank * ranks, micro_batches);
                assert!(ranks == 1 || division.lanes_per_rank().is_power_of_two());
            }
        }
    }

    #[test]
    fn a_refused_number_of_ranks_names_settings_that_work() {
        let message =
            |micro, lanes, ranks| Division::new(micro, lanes, ranks).unwrap_err().to_string();
        let three = message(12, 4, 3);
        assert!(three.contains("1, 2 or 4 ranks"), "{three}");
        assert!(three.contains("train.lanes=3"), "{three}");
        assert!(Division::new(12, 3, 3).is_ok());
        let none = message(1, 1, 4);
        assert!(none.contains("use 1 rank,"), "{none}");
        assert!(
            none.contains("train.accumulation=4 --set train.lanes=4"),
            "{none}"
        );
        assert!(Division::new(4, 4, 4).is_ok());
        assert!(Division::new(8, 8, 0).is_err());
    }

    #[test]
    fn odd_numbers_of_lanes_allow_one_rank_or_all() {
        assert_eq!(Division::allowed_ranks(5), [1, 5]);
        assert_eq!(Division::allowed_ranks(12), [1, 3, 6, 12]);
        assert_eq!(Division::allowed_ranks(1), [1]);
    }
}
