//! What the model would say if a token, a head or an embedding were otherwise.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::evaluate::{Arrays, evaluate};
use crate::explainer::Explanation;
use crate::graph::PROBABILITIES;
use crate::{ExplainError, Guess};

/// The likeliest tokens that are listed.
const LISTED: usize = 10;

/// One change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case", deny_unknown_fields)]
pub enum Edit {
    /// Another token at a position.
    Token {
        /// The position, from 0.
        position: usize,
        /// The token's id.
        id: u32,
    },
    /// A head that says nothing.
    HeadOff {
        /// The layer, from 0.
        layer: usize,
        /// The head, from 0.
        head: usize,
    },
    /// Another number in a token's embedding, wherever the token stands.
    Embedding {
        /// The token's id.
        id: u32,
        /// Which of its numbers, from 0.
        dim: usize,
        /// The new number.
        value: f64,
    },
}

/// What came next and what would.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WhatIf {
    /// The changes.
    pub edits: Vec<Edit>,
    /// The likeliest next tokens after the prompt, as things are.
    pub before: Vec<Guess>,
    /// The same after the changes.
    pub after: Vec<Guess>,
    /// The tokens of both lists, the likeliest on either side first.
    pub words: Vec<Moved>,
}

/// How a token's probability moves.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Moved {
    /// The token.
    pub id: u32,
    /// How it is shown.
    pub text: String,
    /// Its probability as things are.
    pub before: f64,
    /// Its probability after the changes.
    pub after: f64,
}

/// Recomputes the pass with `edits`, in f64.
pub(crate) fn what_if(
    explanation: &Explanation<'_>,
    edits: &[Edit],
) -> Result<WhatIf, ExplainError> {
    let trace = &explanation.trace;
    let config = &trace.config;
    let mut ids = trace.ids.clone();
    let mut off = Vec::new();
    let mut changed: Option<Arrays> = None;
    for edit in edits {
        match *edit {
            Edit::Token { position, id } => {
                check(position, trace.prompt, "position of the prompt")?;
                check(id as usize, config.vocab_size, "token")?;
                ids[position] = id;
            }
            Edit::HeadOff { layer, head } => {
                check(layer, config.n_layers, "layer")?;
                check(head, config.n_heads, "head")?;
                off.push((layer, head));
            }
            Edit::Embedding { id, dim, value } => {
                check(id as usize, config.vocab_size, "token")?;
                check(dim, config.d_model, "embedding number")?;
                if !value.is_finite() {
                    return Err(ExplainError::WhatIf(format!("{value} is no number")));
                }
                let weights =
                    changed.get_or_insert_with(|| explanation.explainer.weights().clone());
                if let Some(table) = weights.get_mut("token_embedding.weight") {
                    table.data[id as usize * config.d_model + dim] = value;
                }
            }
        }
    }
    let weights = changed.as_ref();
    let weights = weights.unwrap_or_else(|| explanation.explainer.weights());
    let last = trace.prompt - 1;
    let was = trace.exact[PROBABILITIES].row(last);
    let after = (!edits.is_empty()).then(|| evaluate(&trace.graph, weights, &ids, &off));
    let now = after
        .as_ref()
        .map_or(was, |after| after[PROBABILITIES].row(last));
    if now.iter().any(|p| !p.is_finite()) {
        let problem = "the numbers grow beyond all bounds; hint: a value nearer to the other ones";
        return Err(ExplainError::WhatIf(problem.to_string()));
    }
    let (before, after) = (
        explanation.guesses(was, LISTED),
        explanation.guesses(now, LISTED),
    );
    Ok(WhatIf {
        edits: edits.to_vec(),
        words: moved(before.iter().chain(&after), was, now),
        before,
        after,
    })
}

fn moved<'g>(guesses: impl Iterator<Item = &'g Guess>, was: &[f64], now: &[f64]) -> Vec<Moved> {
    let tokens: BTreeMap<u32, &str> = guesses
        .map(|guess| (guess.id, guess.text.as_str()))
        .collect();
    let mut words: Vec<Moved> = tokens
        .into_iter()
        .map(|(id, text)| Moved {
            id,
            text: text.to_string(),
            before: was[id as usize],
            after: now[id as usize],
        })
        .collect();
    words.sort_by(|a, b| b.before.max(b.after).total_cmp(&a.before.max(a.after)));
    words
}

fn check(at: usize, count: usize, what: &str) -> Result<(), ExplainError> {
    if at < count {
        return Ok(());
    }
    let problem = format!("there is no {what} {at}; they are 0 to {}", count - 1);
    Err(ExplainError::WhatIf(problem))
}
