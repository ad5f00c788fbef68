//! The order in which the losses and gradients of a step's micro-batches are added.

use std::collections::BTreeSet;

use burn::tensor::Tensor;
use nextword_data::TokenBatch;
use nextword_parallel::{Division, TreeSum};

use crate::Gradients;

/// The part of a step that one rank computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StepPart {
    /// The number of its first sequence in the step, which determines the dropout masks.
    pub(crate) first_sequence: usize,
    /// Number of targets of the whole step, of all ranks.
    pub(crate) target_count: usize,
    /// Number of micro-batches that are added from left to right (see [`Division`]).
    pub(crate) lane_len: usize,
}

impl StepPart {
    /// A whole step with one lane.
    pub(crate) fn whole(batches: &[TokenBatch]) -> Self {
        Self {
            first_sequence: 0,
            target_count: batches.iter().map(TokenBatch::target_count).sum(),
            lane_len: batches.len(),
        }
    }

    /// The part of `rank` in a step with `target_count` targets.
    pub(crate) fn of_rank(
        division: &Division,
        rank: usize,
        batch_size: usize,
        target_count: usize,
    ) -> Self {
        Self {
            first_sequence: division.micro_batches(rank).start * batch_size,
            target_count,
            lane_len: division.micro_batches_per_lane(),
        }
    }
}

/// Loss and gradients of some micro-batches.
type Term = (Tensor<1>, Gradients);

/// Adds the micro-batches of each lane from left to right, and lanes in the tree of [`TreeSum`].
#[derive(Debug)]
pub(crate) struct LaneSum {
    lane_len: usize,
    /// The sum of the current lane, and its number of micro-batches.
    lane: Option<(Term, usize)>,
    lanes: TreeSum<Term>,
}

impl LaneSum {
    pub(crate) fn new(part: &StepPart) -> Self {
        Self {
            lane_len: part.lane_len.max(1),
            lane: None,
            lanes: TreeSum::default(),
        }
    }

    /// Adds the next micro-batch.
    pub(crate) fn push(&mut self, loss: Tensor<1>, gradients: Gradients) {
        let next = (loss, gradients);
        let (sum, added) = match self.lane.take() {
            Some((sum, added)) => (add(sum, next), added + 1),
            None => (next, 1),
        };
        if added == self.lane_len {
            self.lanes.push(sum, add);
        } else {
            self.lane = Some((sum, added));
        }
    }

    /// What the last micro-batch is added to.
    pub(crate) fn before_last(self) -> BeforeLast {
        BeforeLast {
            terms: self
                .lane
                .into_iter()
                .map(|(sum, _)| sum)
                .chain(self.lanes.into_sums_before_last())
                .collect(),
        }
    }

    /// The sum of all; `None` without any.
    pub(crate) fn finish(mut self) -> Option<Term> {
        if let Some((sum, _)) = self.lane.take() {
            self.lanes.push(sum, add);
        }
        self.lanes.finish(add)
    }
}

/// The sums that the last micro-batch is added to: gradient by gradient, as soon as one is known, with the bits of
/// [`LaneSum`].
#[derive(Debug)]
pub(crate) struct BeforeLast {
    /// That of its lane, if there is one, then those of the lanes, from the right to the left.
    terms: Vec<Term>,
}

impl BeforeLast {
    /// The sum of the gradient `name` with that of the last micro-batch, which may have none.
    pub(crate) fn add(&mut self, name: &str, last: Option<Tensor<1>>) -> Option<Tensor<1>> {
        let terms = self.terms.iter_mut();
        let others = terms.filter_map(|(_, gradients)| gradients.remove(name));
        others.fold(last, |sum, other| {
            Some(match sum {
                Some(sum) => other + sum,
                None => other,
            })
        })
    }

    /// The names of the gradients that the last micro-batch did not have.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        let gradients = self
            .terms
            .iter()
            .flat_map(|(_, gradients)| gradients.iter());
        gradients.map(|(name, _)| name.to_string()).collect()
    }

    /// The sum of the losses with that of the last micro-batch.
    pub(crate) fn add_loss(self, last: Tensor<1>) -> Tensor<1> {
        let losses = self.terms.into_iter().map(|(loss, _)| loss);
        losses.fold(last, |sum, other| other + sum)
    }
}

fn add((loss, mut gradients): Term, (other, others): Term) -> Term {
    gradients.add(others);
    (loss + other, gradients)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::float_cmp)] // The order of additions determines each bit.
mod tests {
    use std::collections::BTreeMap;

    use burn::tensor::Device;

    use super::*;

    /// The sum of `terms` as losses, in lanes of `lane_len`.
    fn sum(terms: &[f32], lane_len: usize) -> f32 {
        let part = StepPart {
            first_sequence: 0,
            target_count: 1,
            lane_len,
        };
        let mut sum = LaneSum::new(&part);
        for term in terms {
            let loss = Tensor::from_data([*term], &Device::flex());
            sum.push(loss, Gradients::default());
        }
        sum.finish().unwrap().0.into_scalar()
    }

    #[test]
    fn lanes_are_added_in_pairs_and_micro_batches_from_left_to_right() {
        // The three orders give three sums.
        let [a, b, c, d, e, f] = [-1.4_f32, 0.3, -14.3, 3.3, -6.5, 8.6];
        let terms = [a, b, c, d, e, f];
        assert_eq!(sum(&terms, 6), ((((a + b) + c) + d) + e) + f);
        assert_eq!(sum(&terms, 3), ((a + b) + c) + ((d + e) + f));
        assert_eq!(sum(&terms, 1), ((a + b) + (c + d)) + (e + f));
        assert_ne!(sum(&terms, 6), sum(&terms, 3));
        assert_ne!(sum(&terms, 3), sum(&terms, 1));
    }

    #[test]
    fn the_last_micro_batch_can_be_added_gradient_by_gradient() {
        let values = [-1.4_f32, 0.3, -14.3, 3.3, -6.5, 8.6, 0.7, 1.9];
        let tensor = |value: f32| Tensor::<1>::from_data([value], &Device::flex());
        // The gradient `b` is missing in some micro-batches.
        let term = |i: usize| {
            let names: &[&str] = if i % 3 == 1 { &["a"] } else { &["a", "b"] };
            let by_name = names
                .iter()
                .map(|name| ((*name).to_string(), tensor(values[i] / 3.0)));
            (tensor(values[i]), Gradients::from_map(by_name.collect()))
        };
        for len in 1..=values.len() {
            for lane_len in 1..=len {
                let part = StepPart {
                    first_sequence: 0,
                    target_count: 1,
                    lane_len,
                };
                let (mut whole, mut earlier) = (LaneSum::new(&part), LaneSum::new(&part));
                for i in 0..len {
                    let (loss, gradients) = term(i);
                    whole.push(loss.clone(), gradients.clone());
                    if i + 1 < len {
                        earlier.push(loss, gradients);
                    }
                }
                let (loss, expected) = whole.finish().unwrap();
                let mut before = earlier.before_last();
                let (last_loss, last) = term(len - 1);
                let mut sums = BTreeMap::new();
                for (name, gradient) in last.into_map() {
                    let sum = before.add(&name, Some(gradient)).unwrap();
                    sums.insert(name, sum.into_scalar::<f32>());
                }
                for name in before.names() {
                    let sum = before.add(&name, None).unwrap();
                    sums.insert(name, sum.into_scalar());
                }
                let expected = expected.into_map().into_iter();
                let expected: BTreeMap<String, f32> = expected
                    .map(|(name, sum)| (name, sum.into_scalar()))
                    .collect();
                assert_eq!(sums, expected, "{len} in lanes of {lane_len}");
                let (sum, loss): (f32, f32) =
                    (before.add_loss(last_loss).into_scalar(), loss.into_scalar());
                assert_eq!(sum, loss);
            }
        }
    }

    #[test]
    fn the_parts_of_two_ranks_follow_each_other() {
        let division = Division::new(8, 4, 2).unwrap();
        let part = StepPart::of_rank(&division, 1, 3, 100);
        let expected = StepPart {
            first_sequence: 12,
            target_count: 100,
            lane_len: 2,
        };
        assert_eq!(part, expected);
    }
}
