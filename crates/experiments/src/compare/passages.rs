//! Where two models differ most.

use nextword_data::Tokenizer;
use nextword_eval::TokenScore;
use serde::{Deserialize, Serialize};

/// Tokens before and after the one with the difference.
const CONTEXT: usize = 20;

/// A token of a passage and its losses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PassageToken {
    /// The token's text.
    pub text: String,
    /// Nats of the first model.
    pub a: f64,
    /// Nats of the second model.
    pub b: f64,
}

/// A token that the models predict differently, with its neighbours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Passage {
    /// The number of the token among all predicted ones.
    pub position: usize,
    /// The tokens, in order.
    pub tokens: Vec<PassageToken>,
    /// The index in `tokens` of the token with the difference.
    pub token: usize,
}

/// The `count` passages around the largest differences, which do not overlap.
pub(super) fn largest(
    a: &[TokenScore],
    b: &[TokenScore],
    tokenizer: &dyn Tokenizer,
    count: usize,
) -> Vec<Passage> {
    let difference = |at: &usize| (b[*at].nats - a[*at].nats).abs();
    let mut order: Vec<usize> = (0..a.len().min(b.len())).collect();
    order.sort_by(|x, y| difference(y).total_cmp(&difference(x)));
    let mut chosen: Vec<usize> = Vec::new();
    for at in order {
        if chosen.len() == count {
            break;
        }
        if chosen.iter().all(|other| other.abs_diff(at) > 2 * CONTEXT) {
            chosen.push(at);
        }
    }
    let passage = |at: &usize| {
        let range = at.saturating_sub(CONTEXT)..(at + CONTEXT + 1).min(a.len());
        Passage {
            position: *at,
            token: at - range.start,
            tokens: range
                .map(|at| PassageToken {
                    text: tokenizer.token_text(a[at].target).unwrap_or_default(),
                    a: a[at].nats,
                    b: b[at].nats,
                })
                .collect(),
        }
    };
    chosen.iter().map(passage).collect()
}
