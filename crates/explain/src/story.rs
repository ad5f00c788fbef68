//! Everything about one prompt in one value: what is written as JSON and what the page shows.

use std::collections::BTreeMap;

use nextword_generate::{Candidate, FinishReason, SamplingConfig};
use nextword_model::ModelConfig;
use serde::Serialize;

use crate::ExplainError;
use crate::explainer::Explanation;
use crate::graph::{Axis, Node, PROBABILITIES};
use crate::insight::{Contribution, Guess, Lens, NextWord, notes};
use crate::verdict::Verdict;
use crate::words::{About, about};

/// The format's name and version.
pub const FORMAT: &str = "explain/1";

/// The most numbers of a story, by default.
pub const MOST_SHOWN: usize = 2_000_000;

/// What a story holds.
#[derive(Clone, Debug, PartialEq)]
pub struct StoryOptions {
    /// The layers with all their tensors; `None`: all that fit.
    pub layers: Option<Vec<usize>>,
    /// The likeliest next tokens that are listed.
    pub top: usize,
    /// The most numbers.
    pub most: usize,
}

impl Default for StoryOptions {
    fn default() -> Self {
        Self {
            layers: None,
            top: 10,
            most: MOST_SHOWN,
        }
    }
}

/// Everything about one prompt.
#[derive(Clone, Debug, Serialize)]
pub struct Story {
    /// [`FORMAT`].
    pub format: &'static str,
    /// Where the model comes from.
    pub model: ModelFacts,
    /// The architecture.
    pub config: ModelConfig,
    /// What the user typed.
    pub prompt: String,
    /// Pieces of it that the vocabulary does not have.
    pub unknown: Vec<String>,
    /// Tokens of the prompt that did not fit the context.
    pub truncated: usize,
    /// What went into the model.
    pub tokens: Vec<TokenFacts>,
    /// The answer's tokens, each with how it was chosen.
    pub answer: Vec<Chosen>,
    /// Why the answer ended.
    pub finish: FinishReason,
    /// How tokens are chosen.
    pub sampling: SamplingConfig,
    /// The steps from word to next word, each a tensor below.
    pub steps: Vec<Step>,
    /// The numbers by name.
    pub tensors: BTreeMap<String, TensorFacts>,
    /// What the model expects after each token.
    pub next_words: Vec<NextWord>,
    /// What the output layer would say on the way.
    pub lens: Vec<Lens>,
    /// Who spoke for each chosen token.
    pub contributions: Vec<Contribution>,
    /// What is worth pointing out.
    pub notes: Vec<String>,
    /// What the recomputation found.
    pub verdict: VerdictFacts,
}

/// Where the model comes from.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)] // As in the record's card.
pub struct ModelFacts {
    pub name: String,
    pub trained_on: String,
    pub step: u64,
    pub seed: u64,
    pub parameters: usize,
    /// Bits of a weight where matrices are quantized: shown are the values that they stand for.
    pub bits: Option<u8>,
    pub version: String,
}

/// A token that went into the model.
#[derive(Clone, Debug, Serialize)]
pub struct TokenFacts {
    /// Its place, from 0.
    pub position: usize,
    /// Its id.
    pub id: u32,
    /// How it is shown.
    pub text: String,
    /// Whether the user gave it or the model chose it.
    pub from: Origin,
    /// The forward pass that computed it. Keys and values of earlier passes come from the cache.
    pub pass: usize,
}

/// Where a token comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The user gave it.
    Prompt,
    /// The model chose it.
    Answer,
}

/// A token of the answer.
#[derive(Clone, Debug, Serialize)]
pub struct Chosen {
    /// The position after which it was chosen.
    pub after: usize,
    /// The token, with its probability by the model alone.
    pub token: Guess,
    /// Its probability in the draw.
    pub share: f64,
    /// The random number in [0, 1); absent at temperature 0.
    pub uniform: Option<f64>,
    /// The likeliest tokens: which were cut, and between which numbers the others would be drawn.
    pub candidates: Vec<CandidateFacts>,
    /// Tokens that are not listed.
    pub more: usize,
}

/// A token before the draw, with its text.
#[derive(Clone, Debug, Serialize)]
pub struct CandidateFacts {
    /// How it is shown.
    pub text: String,
    /// The rest.
    #[serde(flatten)]
    pub candidate: Candidate,
}

/// A step from word to next word.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// What it is called.
    #[serde(flatten)]
    pub about: About,
    /// The operation, with the names of its operands.
    #[serde(flatten)]
    pub node: Node,
}

/// A tensor.
#[derive(Clone, Debug, Serialize)]
pub struct TensorFacts {
    /// What is counted along each axis.
    pub axes: Vec<Axis>,
    /// Length of each axis.
    pub shape: Vec<usize>,
    /// True where the forward pass does not show the numbers and they were computed from others.
    pub computed: bool,
    /// The numbers, the last axis fastest; `null` where a token may not look.
    pub data: Vec<Option<f32>>,
}

/// The verdict with its sentence.
#[derive(Clone, Debug, Serialize)]
pub struct VerdictFacts {
    /// Whether all numbers are there and right.
    pub verified: bool,
    /// In words.
    pub sentence: String,
    /// Tensor by tensor.
    #[serde(flatten)]
    pub verdict: Verdict,
}

impl Story {
    pub(crate) fn of(
        explanation: &Explanation<'_>,
        options: &StoryOptions,
    ) -> Result<Self, ExplainError> {
        let (trace, explainer) = (&explanation.trace, explanation.explainer);
        let (card, config) = (explainer.generator().card(), &trace.config);
        let mut remarks = notes(trace);
        remarks.extend(trace.bits.map(quantized));
        let nodes = chosen_nodes(explanation, options, &mut remarks)?;
        let tensors = nodes.iter().map(|node| {
            let data = trace.shown(node).into_iter();
            let facts = TensorFacts {
                axes: node.axes.clone(),
                shape: node.shape.clone(),
                computed: !node.seen,
                data: data.map(|x| x.map(|x| x as f32)).collect(),
            };
            (node.name.clone(), facts)
        });
        Ok(Self {
            format: FORMAT,
            model: ModelFacts {
                name: card.name.clone(),
                trained_on: card.trained_on.clone(),
                step: card.step,
                seed: card.seed,
                parameters: config.counts().total(),
                bits: trace.bits,
                version: card.version.clone(),
            },
            prompt: explanation.prompt.clone(),
            unknown: explanation.unknown.clone(),
            truncated: trace.truncated,
            tokens: tokens(explanation),
            answer: answer(explanation, options.top),
            finish: trace.finish.clone(),
            sampling: explanation.options.sampling.clone(),
            tensors: tensors.collect(),
            steps: nodes
                .into_iter()
                .map(|node| Step {
                    about: about(&node),
                    node,
                })
                .collect(),
            next_words: explanation.next_words(options.top),
            lens: explanation.lens(options.top.min(5)),
            contributions: trace
                .drawings
                .iter()
                .enumerate()
                .map(|(n, drawing)| {
                    explanation.contribution(trace.prompt - 1 + n, drawing.choice.id)
                })
                .collect(),
            notes: remarks,
            verdict: VerdictFacts {
                verified: trace.verdict.is_verified(),
                sentence: trace.verdict.sentence(),
                verdict: trace.verdict.clone(),
            },
            config: config.clone(),
        })
    }
}

/// What a reader of a quantized model's numbers has to know.
fn quantized(bits: u8) -> String {
    format!(
        "the matrices of this model are held in {bits} bits: each weight shown is the value that it \
         stands for, a whole number times the scale of its block of 32"
    )
}

/// The steps that are asked for, or as many as fit.
fn chosen_nodes(
    explanation: &Explanation<'_>,
    options: &StoryOptions,
    remarks: &mut Vec<String>,
) -> Result<Vec<Node>, ExplainError> {
    let trace = &explanation.trace;
    let size = |node: &Node| node.shape.iter().product::<usize>();
    let layers = options.layers.as_deref();
    let wanted = |node: &&Node| {
        let layer = node.layer;
        layer.is_none_or(|layer| layers.is_none_or(|layers| layers.contains(&layer)))
    };
    let nodes: Vec<Node> = trace.graph.iter().filter(wanted).cloned().collect();
    let count: usize = nodes.iter().map(size).sum();
    if count <= options.most {
        return Ok(nodes);
    }
    let too_large = |count| ExplainError::TooLarge {
        what: "this story".to_string(),
        count,
        limit: options.most,
        hint: if layers.is_some() {
            "ask for fewer layers with --layer N, or give a shorter prompt"
        } else {
            "ask for one layer with --layer N, or give a shorter prompt"
        },
    };
    // Of all layers: the residual stream and the percentages of each, and the first in full.
    let summary =
        |node: &Node| node.name.ends_with("hook_pattern") || node.name.ends_with("hook_resid_post");
    let mut kept = Vec::new();
    let mut left = options.most;
    for node in nodes {
        let is_large = node.axes.contains(&Axis::Token) && size(&node) > options.most / 4;
        let is_detail =
            layers.is_none() && node.layer.is_some_and(|layer| layer > 0) && !summary(&node);
        if is_large || is_detail {
            continue;
        }
        left = left
            .checked_sub(size(&node))
            .ok_or_else(|| too_large(count))?;
        kept.push(node);
    }
    remarks.push(format!(
        "{count} numbers are too many to show at once: {}",
        if layers.is_some() {
            "logits of all tokens are left out"
        } else {
            "below are the first layer in full, and percentages and results of the others; ask for a \
             layer with --layer N"
        }
    ));
    Ok(kept)
}

fn tokens(explanation: &Explanation<'_>) -> Vec<TokenFacts> {
    let trace = &explanation.trace;
    let tokens = trace.ids.iter().enumerate();
    tokens
        .map(|(position, id)| TokenFacts {
            position,
            id: *id,
            text: explanation.explainer.text(*id),
            from: if position < trace.prompt {
                Origin::Prompt
            } else {
                Origin::Answer
            },
            pass: trace.passes[position],
        })
        .collect()
}

fn answer(explanation: &Explanation<'_>, top: usize) -> Vec<Chosen> {
    let trace = &explanation.trace;
    let drawings = trace.drawings.iter().enumerate();
    drawings
        .map(|(n, drawing)| {
            let after = trace.prompt - 1 + n;
            let id = drawing.choice.id;
            let mut order: Vec<&Candidate> = drawing.candidates.iter().collect();
            order.sort_by(|a, b| b.adjusted.total_cmp(&a.adjusted));
            let listed = order.iter().enumerate();
            let listed = listed.filter(|(rank, c)| *rank < top || c.id == id);
            let candidates: Vec<CandidateFacts> = listed
                .map(|(_, candidate)| CandidateFacts {
                    text: explanation.explainer.text(candidate.id),
                    candidate: **candidate,
                })
                .collect();
            Chosen {
                after,
                token: Guess {
                    id,
                    text: explanation.explainer.text(id),
                    probability: trace.value(PROBABILITIES).at(&[after, id as usize]),
                },
                share: drawing.choice.probability,
                uniform: drawing.uniform,
                more: drawing.candidates.len() - candidates.len(),
                candidates,
            }
        })
        .collect()
}
