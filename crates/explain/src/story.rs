//! Everything about one prompt in one value: what is written as JSON and what the page shows.

use std::collections::{BTreeMap, BTreeSet};

use nextword_generate::{Candidate, FinishReason, SamplingConfig};
use nextword_model::ModelConfig;
use serde::Serialize;

use crate::ExplainError;
use crate::explainer::Explanation;
use crate::graph::{Axis, Node, PROBABILITIES};
use crate::insight::{Contribution, Guess, Lens, NextWord, notes};
use crate::trace::Trace;
use crate::verdict::Verdict;
use crate::words::{About, about};

/// The format's name and version.
pub const FORMAT: &str = "explain/1";

/// The most numbers of a story, by default.
pub const MOST_SHOWN: usize = 2_000_000;

/// What a story holds.
#[derive(Clone, Debug, PartialEq)]
pub struct StoryOptions {
    /// The only layers to tell of; `None`: all, with as many of their numbers as fit.
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
    /// The numbers by name; those of a large model's details are left out.
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
        let (nodes, shown) = chosen_nodes(explanation, options, &mut remarks)?;
        let shown = nodes.iter().filter(|node| shown.contains(&node.name));
        let tensors = shown.map(|node| (node.name.clone(), tensor(trace, node)));
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
            lens: explanation.lens_at(options.top.min(5), &lens_positions(trace)),
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

fn tensor(trace: &Trace, node: &Node) -> TensorFacts {
    let data = trace.shown(node).into_iter();
    TensorFacts {
        axes: node.axes.clone(),
        shape: node.shape.clone(),
        computed: !node.seen,
        data: data.map(|x| x.map(|x| x as f32)).collect(),
    }
}

impl Explanation<'_> {
    /// All tensors of `layer`, which the story of a large model leaves out.
    ///
    /// # Errors
    /// [`ExplainError::Address`] if there is no such layer; [`ExplainError::TooLarge`] if its tensors
    /// hold more than `most` numbers.
    pub fn layer(
        &self,
        layer: usize,
        most: usize,
    ) -> Result<BTreeMap<String, TensorFacts>, ExplainError> {
        let layers = self.trace.config.n_layers;
        if layer >= layers {
            return Err(ExplainError::Address {
                address: format!("layer {layer}"),
                problem: format!("the layers are 0 to {}", layers - 1),
                hint: "layer 0".to_string(),
            });
        }
        let nodes = self.trace.graph.iter();
        let nodes: Vec<&Node> = nodes.filter(|node| node.layer == Some(layer)).collect();
        let count = nodes.iter().map(|node| size(node)).sum();
        if count > most {
            return Err(too_large(count, most));
        }
        let tensors = nodes.iter();
        Ok(tensors
            .map(|node| (node.name.clone(), tensor(&self.trace, node)))
            .collect())
    }
}

/// Products that guesses on the way may take; the output layer alone is most of a small model's work.
const MOST_LENS: usize = 300_000_000;

/// The positions whose guesses on the way are worth their time: all, or those where a token was chosen.
fn lens_positions(trace: &Trace) -> Vec<usize> {
    let config = &trace.config;
    let position = (2 * config.n_layers + 1) * config.vocab_size * config.d_model;
    let affordable = (MOST_LENS / position).max(1);
    let last = trace.ids.len();
    let first = if last <= affordable {
        0
    } else {
        (trace.prompt - 1).max(last.saturating_sub(affordable))
    };
    (first..last).collect()
}

fn size(node: &Node) -> usize {
    node.shape.iter().product()
}

fn too_large(count: usize, limit: usize) -> ExplainError {
    ExplainError::TooLarge {
        what: "this story".to_string(),
        count,
        limit,
        hint: "ask for one layer with --layer N, or give a shorter prompt",
    }
}

/// The steps that are asked for, and the names of those whose numbers are shown: all, or as many as
/// fit.
fn chosen_nodes(
    explanation: &Explanation<'_>,
    options: &StoryOptions,
    remarks: &mut Vec<String>,
) -> Result<(Vec<Node>, BTreeSet<String>), ExplainError> {
    let trace = &explanation.trace;
    let layers = options.layers.as_deref();
    let wanted = |node: &&Node| {
        let layer = node.layer;
        layer.is_none_or(|layer| layers.is_none_or(|layers| layers.contains(&layer)))
    };
    let nodes: Vec<Node> = trace.graph.iter().filter(wanted).cloned().collect();
    let count: usize = nodes.iter().map(size).sum();
    if count <= options.most {
        let names = nodes.iter().map(|node| node.name.clone()).collect();
        return Ok((nodes, names));
    }
    // What tells most comes first: what is around the layers, then percentages and results of every
    // layer, then the first layers' details; the vocabulary's columns last.
    let importance = |node: &&Node| {
        let is_result =
            node.name.ends_with("hook_pattern") || node.name.ends_with("hook_resid_post");
        match node.layer {
            None if node.axes.contains(&Axis::Token) => usize::MAX,
            None => 0,
            Some(_) if is_result => 1,
            Some(layer) => 2 + layer,
        }
    };
    let mut by_importance: Vec<&Node> = nodes.iter().collect();
    by_importance.sort_by_key(importance);
    let mut left = options.most;
    let mut kept = BTreeSet::new();
    for node in by_importance {
        if let Some(rest) = left.checked_sub(size(node)) {
            left = rest;
            kept.insert(node.name.clone());
        }
    }
    if kept.is_empty() {
        return Err(too_large(count, options.most));
    }
    remarks.push(format!(
        "{count} numbers are too many to show at once: those of {} steps are left out; ask for a layer with \
         --layer N",
        nodes.len() - kept.len()
    ));
    Ok((nodes, kept))
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
