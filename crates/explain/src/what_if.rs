//! Interventions: predictions with another token, with another embedding, or without a part of the model.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ablation::Removed;
use crate::adapted::{graph_with_adapter, interpolate, scale_updates};
use crate::evaluate::{Arrays, DisabledHead, Inputs, evaluate};
use crate::explainer::Explanation;
use crate::graph::{AttentionKind, Node, PROBABILITIES};
use crate::{ExplainError, TokenProb};

/// Number of most likely tokens to list.
const MAX_LISTED: usize = 10;

/// One intervention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case", deny_unknown_fields)]
pub enum Edit {
    /// Replaces the token at a position of the prompt, in encoder-decoder models of the source.
    Token {
        /// The position, from 0.
        position: usize,
        /// The token's id.
        id: u32,
    },
    /// Sets the output of an attention head to zero (ablation).
    HeadOff {
        /// The layer, from 0.
        layer: usize,
        /// The head, from 0.
        head: usize,
        /// The attention: in encoder-decoder models there are three.
        #[serde(default, skip_serializing_if = "AttentionKind::is_default")]
        attention: AttentionKind,
    },
    /// Replaces one element of a token's embedding, at every position of the token; in encoder-decoder models with
    /// embeddings of their own, that of the encoder.
    Embedding {
        /// The token's id.
        id: u32,
        /// The element, from 0.
        dim: usize,
        /// The new value.
        value: f64,
    },
    /// Removes all residual connections: the output of each sublayer replaces the residual stream. In a
    /// parallel block, the sum of both outputs replaces it.
    NoResidual,
    /// Removes all positions: their embeddings, rotations, or penalties for distance.
    NoPositions,
    /// Removes the attention mask: every token of the prompt attends to all of them.
    NoMask,
    /// Multiplies what the adapter adds: 0 is the base model, 1 the model with the adapter. Parameters that the adapter
    /// replaces are interpolated.
    Adapter {
        /// The factor.
        scale: f64,
    },
}

impl Edit {
    fn removed(&self) -> Option<Removed> {
        match self {
            Self::NoResidual => Some(Removed::Residuals),
            Self::NoPositions => Some(Removed::Positions),
            Self::NoMask => Some(Removed::Mask),
            Self::Token { .. }
            | Self::HeadOff { .. }
            | Self::Embedding { .. }
            | Self::Adapter { .. } => None,
        }
    }
}

/// Next-token predictions with and without the edits.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WhatIf {
    /// The edits.
    pub edits: Vec<Edit>,
    /// The most likely next tokens after the prompt, without the edits.
    pub before: Vec<TokenProb>,
    /// The most likely next tokens with the edits.
    pub after: Vec<TokenProb>,
    /// The tokens of both lists, sorted by the larger of their two probabilities.
    #[serde(rename = "words")]
    pub tokens: Vec<ProbChange>,
    /// The token that follows each position of the prompt, with its probability there.
    pub positions: Vec<PositionChange>,
}

/// The probability of the token that follows a position, before and after the edits.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PositionChange {
    /// The position.
    pub position: usize,
    /// The token that follows it: the prompt's own next one, or the sampled one.
    pub next: u32,
    /// Its text.
    pub text: String,
    /// Its probability without the edits.
    pub before: f64,
    /// Its probability with the edits.
    pub after: f64,
}

/// A token's probability before and after the edits.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProbChange {
    /// The token.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// Its probability without the edits.
    pub before: f64,
    /// Its probability with the edits.
    pub after: f64,
}

/// The prompt and the model with edits.
struct Edited<'e> {
    explanation: &'e Explanation<'e>,
    /// The prompt, in encoder-decoder models the source.
    ids: Vec<u32>,
    nodes: Vec<Node>,
    disabled_heads: Vec<DisabledHead>,
    removed: Vec<Removed>,
    /// The weights, if they are others than the model's.
    weights: Option<Arrays>,
}

impl<'e> Edited<'e> {
    fn new(explanation: &'e Explanation<'e>) -> Self {
        let trace = &explanation.trace;
        let prompt = trace.prompt_inputs();
        let ids = if trace.config.has_encoder() {
            prompt.source
        } else {
            prompt.target
        };
        Self {
            explanation,
            ids: ids.to_vec(),
            nodes: graph_with_adapter(&trace.config, trace.prompt_lengths(), &trace.adapted),
            disabled_heads: Vec::new(),
            removed: Vec::new(),
            weights: None,
        }
    }

    /// What the model reads.
    fn inputs(&self) -> Inputs<'_> {
        let trace = &self.explanation.trace;
        if trace.config.has_encoder() {
            Inputs {
                source: &self.ids,
                ..trace.prompt_inputs()
            }
        } else {
            Inputs::from(&self.ids[..])
        }
    }

    fn apply(&mut self, edit: &Edit) -> Result<(), ExplainError> {
        let config = &self.explanation.trace.config;
        if let Some(part) = edit.removed() {
            let is_new = !self.removed.contains(&part);
            if is_new && !part.apply(&mut self.nodes, config.parallel) {
                let problem = format!("this model has no {}", part.name());
                return Err(ExplainError::WhatIf(problem));
            }
            self.removed.push(part);
            return Ok(());
        }
        match *edit {
            Edit::NoResidual | Edit::NoPositions | Edit::NoMask => {} // Applied above.
            Edit::Adapter { scale } => return self.scale_adapter(scale),
            Edit::Token { position, id } => {
                check_range(position, self.ids.len(), "prompt position")?;
                check_range(id as usize, config.vocab_size, "token id")?;
                self.ids[position] = id;
            }
            Edit::HeadOff {
                layer,
                head,
                attention,
            } => {
                let (layers, name) = match attention {
                    AttentionKind::Encoder => (config.encoder_layers(), "encoder layer"),
                    AttentionKind::Cross if !config.has_encoder() => {
                        (0, "layer with cross-attention")
                    }
                    AttentionKind::SelfAttention | AttentionKind::Cross => {
                        (config.n_layers, "layer")
                    }
                };
                check_range(layer, layers, name)?;
                check_range(head, config.n_heads, "head")?;
                self.disabled_heads.push(DisabledHead {
                    attention,
                    layer,
                    head,
                });
            }
            Edit::Embedding { id, dim, value } => {
                check_range(id as usize, config.vocab_size, "token id")?;
                check_range(dim, config.d_model, "embedding element")?;
                if !value.is_finite() {
                    return Err(ExplainError::WhatIf(format!(
                        "the new embedding value must be a finite number, but is {value}"
                    )));
                }
                let at = id as usize * config.d_model + dim;
                let table = self.explanation.explainer.prompt_table();
                if let Some(table) = self.own_weights().get_mut(table) {
                    table.data[at] = value;
                }
            }
        }
        Ok(())
    }

    fn scale_adapter(&mut self, scale: f64) -> Result<(), ExplainError> {
        let Some(base) = self.explanation.explainer.base_values() else {
            let problem = "this model has no adapter".to_string();
            return Err(ExplainError::WhatIf(problem));
        };
        if !scale.is_finite() {
            let problem = format!("the adapter's scale must be a finite number, but is {scale}");
            return Err(ExplainError::WhatIf(problem));
        }
        scale_updates(&mut self.nodes, scale);
        if !base.is_empty() {
            interpolate(self.own_weights(), base, scale);
        }
        Ok(())
    }

    /// A copy of the model's weights, to be changed.
    fn own_weights(&mut self) -> &mut Arrays {
        let explainer = self.explanation.explainer;
        self.weights
            .get_or_insert_with(|| explainer.weights().clone())
    }
}

/// Recomputes the forward pass with `edits` in f64.
pub(crate) fn what_if(
    explanation: &Explanation<'_>,
    edits: &[Edit],
) -> Result<WhatIf, ExplainError> {
    let trace = &explanation.trace;
    let mut edited = Edited::new(explanation);
    for edit in edits {
        edited.apply(edit)?;
    }
    let weights = edited.weights.as_ref();
    let weights = weights.unwrap_or_else(|| explanation.explainer.weights());
    let last = trace.focus();
    let old_rows = &trace.reference[PROBABILITIES];
    let values = (!edits.is_empty()).then(|| {
        let heads = &edited.disabled_heads;
        evaluate(&edited.nodes, weights, edited.inputs(), heads)
    });
    let new_rows = values
        .as_ref()
        .map_or(old_rows, |values| &values[PROBABILITIES]);
    let (old, new) = (old_rows.row(last), new_rows.row(last));
    if new_rows.data.iter().any(|p| !p.is_finite()) {
        let problem = "the recomputed values overflow; hint: use a smaller embedding value";
        return Err(ExplainError::WhatIf(problem.to_string()));
    }
    // A prompt's own next token, with the edits.
    let has_next = !trace.config.has_encoder() && !trace.predicts_masked();
    let following = |position: usize| {
        let next = edited.ids.get(position + 1);
        next.copied().filter(|_| has_next)
    };
    let (before, after) = (
        explanation.top_tokens(old, MAX_LISTED),
        explanation.top_tokens(new, MAX_LISTED),
    );
    Ok(WhatIf {
        edits: edits.to_vec(),
        tokens: prob_changes(before.iter().chain(&after), old, new),
        positions: (0..trace.prompt_len)
            .filter_map(|position| {
                let next = following(position).or_else(|| trace.next_id(position))?;
                Some(PositionChange {
                    position,
                    next,
                    text: explanation.explainer.token_text(next),
                    before: old_rows.at(&[position, next as usize]),
                    after: new_rows.at(&[position, next as usize]),
                })
            })
            .collect(),
        before,
        after,
    })
}

fn prob_changes<'g>(
    listed: impl Iterator<Item = &'g TokenProb>,
    old: &[f64],
    new: &[f64],
) -> Vec<ProbChange> {
    let tokens: BTreeMap<u32, &str> = listed
        .map(|token| (token.id, token.text.as_str()))
        .collect();
    let mut changes: Vec<ProbChange> = tokens
        .into_iter()
        .map(|(id, text)| ProbChange {
            id,
            text: text.to_string(),
            before: old[id as usize],
            after: new[id as usize],
        })
        .collect();
    changes.sort_by(|a, b| b.before.max(b.after).total_cmp(&a.before.max(a.after)));
    changes
}

fn check_range(at: usize, count: usize, kind: &str) -> Result<(), ExplainError> {
    if at < count {
        return Ok(());
    }
    if count == 0 {
        return Err(ExplainError::WhatIf(format!("this model has no {kind}")));
    }
    let problem = format!("no {kind} {at}; valid values: 0 to {}", count - 1);
    Err(ExplainError::WhatIf(problem))
}
