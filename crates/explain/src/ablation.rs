//! Graphs without a part of the architecture: residual connections, positions or the attention mask.

use crate::node::{Node, Op};

/// A part of the architecture that an intervention removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removed {
    /// Residual connections: each sublayer's output replaces the residual stream. In a parallel block, whose
    /// sublayers read the same input, the sum of their outputs replaces it.
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

    /// Removes the part from `graph`, whose blocks are `parallel` or not. Returns whether the graph had it.
    pub(crate) fn apply(self, graph: &mut [Node], parallel: bool) -> bool {
        let mut found = false;
        for node in graph {
            let adds_sublayers =
                matches!(&node.op, Op::Add { a, .. } if a.ends_with(".hook_resid_mid"));
            if !(parallel && adds_sublayers) {
                found |= self.apply_to(&mut node.op);
            }
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
                let is_masked = *causal || window.is_some();
                (*causal, *window) = (false, None);
                is_masked
            }
            _ => false,
        }
    }

    /// Replaces a sum by the operand that stays.
    fn unwrap_sum(self, op: &mut Op) -> bool {
        let Op::Add { a, b } = op else {
            return false;
        };
        let adds_positions = b.ends_with("hook_pos_embed");
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
    use nextword_model::{FeedForwardKind, ModelConfig, Position, presets};

    fn removed(config: &ModelConfig, part: Removed) -> (bool, Vec<Node>) {
        let mut nodes = graph(config, 3);
        let found = part.apply(&mut nodes, config.parallel);
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
    fn parallel_sublayers_are_still_added_to_each_other() {
        let config = ModelConfig {
            parallel: true,
            n_layers: 2,
            feed_forward: FeedForwardKind::Gelu,
            ..presets::statquest(5)
        };
        let (found, nodes) = removed(&config, Removed::Residuals);
        assert!(found);
        for layer in 0..2 {
            let op = |name: &str| {
                let name = format!("blocks.{layer}.{name}");
                let node = nodes.iter().find(|node| node.name == name);
                node.map(|node| node.op.clone())
            };
            let input = format!("blocks.{layer}.hook_attn_out");
            assert_eq!(op("hook_resid_mid"), Some(Op::Copy { input }));
            let a = format!("blocks.{layer}.hook_resid_mid");
            let b = format!("blocks.{layer}.hook_mlp_out");
            assert_eq!(op("hook_resid_post"), Some(Op::Add { a, b }));
        }
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
