//! Graphs without a part of the architecture: residual connections, positions or the attention mask.

use crate::node::{Node, Op};

/// A part of the architecture that an intervention removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removed {
    /// Residual connections: each sublayer's output replaces the residual stream.
    Residuals,
    /// Positions: embeddings of positions, rotations and the penalty for distance.
    Positions,
    /// The attention mask: every token attends to all tokens.
    Mask,
}

impl Removed {
    /// Its name in messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Residuals => "residual connections",
            Self::Positions => "positions",
            Self::Mask => "attention mask",
        }
    }

    /// Removes the part from `graph`. Returns whether the graph had it.
    pub(crate) fn apply(self, graph: &mut [Node]) -> bool {
        let mut found = false;
        for node in graph {
            found |= self.apply_to(&mut node.op);
        }
        found
    }

    fn apply_to(self, op: &mut Op) -> bool {
        match op {
            Op::Add { .. } if self != Self::Mask => self.unwrap_sum(op),
            Op::Rope { frequencies, .. } if self == Self::Positions => {
                frequencies.clear();
                true
            }
            Op::Scores { slopes, .. } if self == Self::Positions => {
                let had_slopes = !slopes.is_empty();
                slopes.clear();
                had_slopes
            }
            Op::Scores { causal, window, .. } if self == Self::Mask => {
                (*causal, *window) = (false, None);
                true
            }
            _ => false,
        }
    }

    /// Replaces a sum by the operand that stays.
    fn unwrap_sum(self, op: &mut Op) -> bool {
        let Op::Add { a, b } = op else {
            return false;
        };
        let adds_positions = b == "hook_pos_embed";
        if adds_positions != (self == Self::Positions) {
            return false;
        }
        let input = std::mem::take(if adds_positions { a } else { b });
        *op = Op::Copy { input };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::graph;
    use nextword_model::{ModelConfig, Position, presets};

    fn removed(config: &ModelConfig, part: Removed) -> (bool, Vec<Node>) {
        let mut nodes = graph(config, 3);
        let found = part.apply(&mut nodes);
        (found, nodes)
    }

    #[test]
    fn each_part_is_removed_and_nothing_else() {
        let config = presets::statquest(5);
        let (found, nodes) = removed(&config, Removed::Residuals);
        let sums = |nodes: &[Node]| {
            let sums = nodes
                .iter()
                .filter(|node| matches!(node.op, Op::Add { .. }));
            sums.map(|node| node.name.clone()).collect::<Vec<_>>()
        };
        assert!(found);
        assert_eq!(sums(&nodes), ["blocks.0.hook_resid_pre"]);
        let (found, nodes) = removed(&config, Removed::Positions);
        assert!(found);
        assert_eq!(sums(&nodes), ["blocks.0.hook_resid_post"]);
        let (found, nodes) = removed(&config, Removed::Mask);
        let causal = nodes.iter().find_map(|node| match node.op {
            Op::Scores { causal, .. } => Some(causal),
            _ => None,
        });
        assert!(found && sums(&nodes).len() == 2);
        assert_eq!(causal, Some(false));
    }

    #[test]
    fn a_part_that_the_model_lacks_is_not_found() {
        let config = ModelConfig {
            residual: false,
            position: Position::None,
            ..presets::statquest(5)
        };
        assert!(!removed(&config, Removed::Residuals).0);
        assert!(!removed(&config, Removed::Positions).0);
    }

    #[test]
    fn rotations_and_distances_count_as_positions() {
        for position in [Position::Rotary, Position::Alibi] {
            let config = ModelConfig {
                position,
                ..presets::statquest(5)
            };
            assert!(removed(&config, Removed::Positions).0, "{position:?}");
        }
    }
}
