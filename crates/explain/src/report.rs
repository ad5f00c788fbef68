//! Everything about one prompt in one value, for JSON, the terminal and the page.

use std::collections::{BTreeMap, BTreeSet};

use nextword_generate::{FinishReason, SamplingConfig, TracedCandidate};
use nextword_model::ModelConfig;
use serde::Serialize;

use crate::ExplainError;
use crate::adapter_report::{AdapterReport, AdapterToken};
use crate::explainer::Explanation;
use crate::gradient_step::{GradientStep, gradient_steps};
use crate::graph::{Axis, Input, Node, PROBABILITIES};
use crate::head_notes::notes;
use crate::insight::{Contribution, LensStage, Prediction, TokenProb};
use crate::labels::{Label, label};
use crate::trace::Trace;
use crate::verification::Verification;
use crate::what_if::Edit;

/// Name and version of the JSON format.
pub const FORMAT: &str = "explain/1";

/// Default maximum number of values in a report.
pub const MAX_REPORT_VALUES: usize = 2_000_000;

/// Selects the contents of a report.
#[derive(Clone, Debug, PartialEq)]
pub struct ReportOptions {
    /// The layers to include; `None`: all, with the values of as many as fit.
    pub layers: Option<Vec<usize>>,
    /// Number of most likely next tokens to list.
    pub top: usize,
    /// Maximum number of values.
    pub max_values: usize,
}

impl Default for ReportOptions {
    fn default() -> Self {
        Self {
            layers: None,
            top: 10,
            max_values: MAX_REPORT_VALUES,
        }
    }
}

/// Everything about one prompt.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: &'static str,
    /// Where the model comes from.
    pub model: ModelInfo,
    /// The architecture.
    pub config: ModelConfig,
    /// The prompt as the user typed it.
    pub prompt: String,
    /// Parts of it that are not in the vocabulary.
    pub unknown: Vec<String>,
    /// Number of tokens removed to fit the context: from the start of the prompt, or from the end of a source.
    pub truncated: usize,
    /// The input tokens; in encoder-decoder models those of the decoder.
    pub tokens: Vec<TokenInfo>,
    /// The input tokens of the encoder in encoder-decoder models: the prompt.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source: Vec<TokenInfo>,
    /// The tokens of the completion, and how each was sampled.
    #[serde(rename = "answer")]
    pub completion: Vec<SampledToken>,
    /// Why generation stopped; `None` in an encoder, which generates nothing.
    pub finish: Option<FinishReason>,
    /// How tokens are sampled.
    pub sampling: SamplingConfig,
    /// The steps of the forward pass. Each computes one of the tensors below.
    pub steps: Vec<Step>,
    /// The tensors by name. Reports of large models omit some.
    pub tensors: BTreeMap<String, TensorValues>,
    /// The next-token prediction at each position; in an encoder that of the token itself.
    #[serde(rename = "next_words")]
    pub predictions: Vec<Prediction>,
    /// The logit lens.
    pub lens: Vec<LensStage>,
    /// Direct logit attribution of each sampled token. Empty in models with `head_transform`, whose logits are not
    /// sums.
    pub contributions: Vec<Contribution>,
    /// One step of gradient descent on the loss after the prompt, towards the generated token and towards
    /// the most likely other one. Empty for large models and long prompts; without those that would not lower
    /// the loss.
    pub training: Vec<GradientStep>,
    /// What the model's adapter changes; `None` without an adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterReport>,
    /// Observations, as text.
    pub notes: Vec<String>,
    /// The result of the recomputation.
    #[serde(rename = "verdict")]
    pub verification: VerificationSummary,
}

/// Where the model comes from.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)] // The fields of the model card.
pub struct ModelInfo {
    pub name: String,
    pub trained_on: String,
    pub step: u64,
    pub seed: u64,
    pub parameters: usize,
    /// Bits per weight if the matrices are quantized. All values are dequantized.
    pub bits: Option<u8>,
    pub version: String,
}

/// An input token.
#[derive(Clone, Debug, Serialize)]
pub struct TokenInfo {
    /// Its position, from 0.
    pub position: usize,
    /// Its id.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// Whether it is part of the prompt or of the completion.
    #[serde(rename = "from")]
    pub origin: TokenOrigin,
    /// The forward pass that computed it. Keys and values of earlier passes come from the KV cache.
    pub pass: usize,
}

/// Where a token comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenOrigin {
    /// The prompt.
    Prompt,
    /// The token with which every target of an encoder-decoder model starts.
    Start,
    /// The completion.
    #[serde(rename = "answer")]
    Completion,
}

/// A token of the completion, and how it was sampled.
#[derive(Clone, Debug, Serialize)]
pub struct SampledToken {
    /// The position after which it was sampled, or in an encoder that of the masked token.
    pub after: usize,
    /// The token, with the model's probability (before temperature and filters).
    pub token: TokenProb,
    /// Its probability when it was sampled (after temperature and filters).
    #[serde(rename = "share")]
    pub sampling_probability: f64,
    /// The random number in [0, 1); `None` at temperature 0.
    pub uniform: Option<f64>,
    /// The most likely tokens: the filter that removed each, or its interval of the random number.
    pub candidates: Vec<CandidateInfo>,
    /// Number of tokens that are not listed.
    #[serde(rename = "more")]
    pub omitted: usize,
}

/// A candidate token, with its text.
#[derive(Clone, Debug, Serialize)]
pub struct CandidateInfo {
    /// Its text.
    pub text: String,
    /// Its logit, probabilities, and the filter that removed it.
    #[serde(flatten)]
    pub candidate: TracedCandidate,
}

/// A step of the forward pass.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Its names and its purpose.
    #[serde(flatten)]
    pub label: Label,
    /// The operation with the names of its operands.
    #[serde(flatten)]
    pub node: Node,
}

/// The values of a tensor.
#[derive(Clone, Debug, Serialize)]
pub struct TensorValues {
    /// Meaning of each axis.
    pub axes: Vec<Axis>,
    /// Length of each axis.
    pub shape: Vec<usize>,
    /// Whether it was computed from other tensors, because the forward pass does not report it.
    pub computed: bool,
    /// The values in row-major order; `None` where masked.
    pub data: Vec<Option<f32>>,
}

/// The verification with its summary.
#[derive(Clone, Debug, Serialize)]
pub struct VerificationSummary {
    /// Whether every tensor was reported and equals its recomputation up to rounding.
    pub verified: bool,
    /// The result in one sentence.
    #[serde(rename = "sentence")]
    pub summary: String,
    /// The differences of each tensor.
    #[serde(flatten)]
    pub details: Verification,
}

impl Report {
    pub(crate) fn new(
        explanation: &Explanation<'_>,
        options: &ReportOptions,
    ) -> Result<Self, ExplainError> {
        let (trace, explainer) = (&explanation.trace, explanation.explainer);
        let (card, config) = (explainer.generator().card(), &trace.config);
        let mut notes = notes(trace);
        notes.extend(trace.bits.map(quantization_note));
        let (nodes, included) = select_nodes(explanation, options, &mut notes)?;
        let included = nodes.iter().filter(|node| included.contains(&node.name));
        let tensors = included.map(|node| (node.name.clone(), tensor_values(trace, node)));
        Ok(Self {
            format: FORMAT,
            model: ModelInfo {
                name: card.name.clone(),
                trained_on: card.trained_on.clone(),
                step: card.step,
                seed: card.seed,
                parameters: config.parameter_counts().total(),
                bits: trace.bits,
                version: card.version.clone(),
            },
            prompt: explanation.prompt.clone(),
            unknown: explanation.unknown.clone(),
            truncated: trace.truncated,
            tokens: input_tokens(explanation, Input::Target),
            source: input_tokens(explanation, Input::Source),
            completion: sampled_tokens(explanation, options.top),
            finish: trace.finish.clone(),
            sampling: reported_sampling(explanation),
            tensors: tensors.collect(),
            steps: nodes
                .into_iter()
                .map(|node| Step {
                    label: label(&node),
                    node,
                })
                .collect(),
            predictions: explanation.predictions(options.top),
            lens: explanation.logit_lens_at(options.top.min(5), &lens_positions(trace)),
            contributions: trace
                .samples
                .iter()
                .zip(&trace.sampled_at)
                .filter(|_| !config.head_transform)
                .map(|(sample, at)| explanation.contribution(*at, sample.sampled.id))
                .collect(),
            training: gradient_steps(trace, explainer.weights(), &|id| explainer.token_text(id)),
            adapter: adapter_report(explanation, options.top)?,
            notes,
            verification: VerificationSummary {
                verified: trace.verification.is_verified(),
                summary: trace.verification.summary(),
                details: trace.verification.clone(),
            },
            config: config.clone(),
        })
    }
}

/// What the model's adapter changes after the prompt, with about `top` next tokens; `None` without an adapter.
fn adapter_report(
    explanation: &Explanation<'_>,
    top: usize,
) -> Result<Option<AdapterReport>, ExplainError> {
    let Some(base_values) = explanation.explainer.base_values() else {
        return Ok(None);
    };
    // `before` is the model with the adapter.
    let base = explanation.what_if(&[Edit::Adapter { scale: 0.0 }])?;
    let listed = base
        .before
        .iter()
        .take(top)
        .chain(base.after.iter().take(top));
    let listed: BTreeSet<u32> = listed.map(|token| token.id).collect();
    let tokens = base.tokens.into_iter();
    let tokens = tokens.filter(|token| listed.contains(&token.id));
    let tokens = tokens.map(|token| AdapterToken {
        id: token.id,
        text: token.text,
        base: token.after,
        tuned: token.before,
    });
    let replaced = base_values.keys().cloned().collect();
    Ok(Some(AdapterReport::new(
        &explanation.trace,
        tokens.collect(),
        replaced,
    )))
}

/// The note on the weights of a quantized model.
fn quantization_note(bits: u8) -> String {
    format!(
        "the matrices of this model are quantized to {bits} bits; the weights shown are dequantized: an \
         integer times the scale of its block of 32, plus the block's minimum if it has one"
    )
}

fn tensor_values(trace: &Trace, node: &Node) -> TensorValues {
    let data = trace.visible_values(node).into_iter();
    TensorValues {
        axes: node.axes.clone(),
        shape: node.shape.clone(),
        computed: !node.observed,
        data: data.map(|x| x.map(|x| x as f32)).collect(),
    }
}

impl Explanation<'_> {
    /// All tensors of `layer`, which the report of a large model may omit.
    ///
    /// # Errors
    /// [`ExplainError::Address`] if there is no such layer; [`ExplainError::TooLarge`] if its tensors
    /// have more than `max_values` values.
    pub fn layer_tensors(
        &self,
        layer: usize,
        max_values: usize,
    ) -> Result<BTreeMap<String, TensorValues>, ExplainError> {
        let config = &self.trace.config;
        let layers = config.n_layers.max(config.encoder_layers());
        if layer >= layers {
            return Err(ExplainError::Address {
                address: format!("layer {layer}"),
                problem: format!("the model has layers 0 to {}", layers - 1),
                hint: "try layer 0".to_string(),
            });
        }
        let nodes = self.trace.graph.iter();
        let nodes: Vec<&Node> = nodes.filter(|node| node.layer == Some(layer)).collect();
        let count = nodes.iter().map(|node| size(node)).sum();
        if count > max_values {
            return Err(too_large(count, max_values));
        }
        let tensors = nodes.iter();
        Ok(tensors
            .map(|node| (node.name.clone(), tensor_values(&self.trace, node)))
            .collect())
    }
}

/// Maximum number of multiplications for the logit lens. In a small model the output layer is most of the
/// work, and the lens applies it after every sublayer.
const MAX_LENS_PRODUCTS: usize = 300_000_000;

/// The positions of the logit lens: all if affordable, otherwise those where a token was sampled.
fn lens_positions(trace: &Trace) -> Vec<usize> {
    let config = &trace.config;
    let products = (2 * config.n_layers + 1) * config.vocab_size * config.d_model;
    let affordable = (MAX_LENS_PRODUCTS / products).max(1);
    let end = trace.ids.len();
    let first = if end <= affordable {
        0
    } else {
        trace.focus().max(end.saturating_sub(affordable))
    };
    (first..end).collect()
}

fn size(node: &Node) -> usize {
    node.shape.iter().product()
}

fn too_large(count: usize, limit: usize) -> ExplainError {
    ExplainError::TooLarge {
        subject: "this report".to_string(),
        count,
        limit,
        hint: "select one layer with --layer N, or use a shorter prompt",
    }
}

/// Returns the requested steps, and the names of those whose values are included: all of them, or as
/// many as fit.
fn select_nodes(
    explanation: &Explanation<'_>,
    options: &ReportOptions,
    notes: &mut Vec<String>,
) -> Result<(Vec<Node>, BTreeSet<String>), ExplainError> {
    let trace = &explanation.trace;
    let layers = options.layers.as_deref();
    let is_selected = |node: &&Node| {
        let layer = node.layer;
        layer.is_none_or(|layer| layers.is_none_or(|layers| layers.contains(&layer)))
    };
    let nodes: Vec<Node> = trace.graph.iter().filter(is_selected).cloned().collect();
    let count: usize = nodes.iter().map(size).sum();
    if count <= options.max_values {
        let names = nodes.iter().map(|node| node.name.clone()).collect();
        return Ok((nodes, names));
    }
    // Most important first: tensors outside of layers, then attention weights and outputs of every layer,
    // then the details of the first layers, and last the tensors with a vocabulary axis.
    let rank = |node: &&Node| {
        let is_output =
            node.name.ends_with("hook_pattern") || node.name.ends_with("hook_resid_post");
        match node.layer {
            None if node.axes.contains(&Axis::Token) => usize::MAX,
            None => 0,
            Some(_) if is_output => 1,
            Some(layer) => 2 + layer,
        }
    };
    let mut by_rank: Vec<&Node> = nodes.iter().collect();
    by_rank.sort_by_key(rank);
    let mut budget = options.max_values;
    let mut included = BTreeSet::new();
    for node in by_rank {
        if let Some(rest) = budget.checked_sub(size(node)) {
            budget = rest;
            included.insert(node.name.clone());
        }
    }
    if included.is_empty() {
        return Err(too_large(count, options.max_values));
    }
    notes.push(format!(
        "the {count} values are too many to show at once, so those of {} steps are omitted; select a layer with \
        --layer N",
        nodes.len() - included.len()
    ));
    Ok((nodes, included))
}

/// How tokens are sampled, without the tokens that are never generated, as JSON has no infinity.
fn reported_sampling(explanation: &Explanation<'_>) -> SamplingConfig {
    let mut sampling = explanation.options.sampling.clone();
    sampling.logit_bias.retain(|_, bias| bias.is_finite());
    sampling
}

fn input_tokens(explanation: &Explanation<'_>, input: Input) -> Vec<TokenInfo> {
    let trace = &explanation.trace;
    let has_source = !trace.source.is_empty();
    let tokens = trace.inputs().of(input).iter().enumerate();
    tokens
        .map(|(position, id)| TokenInfo {
            position,
            id: *id,
            text: explanation.explainer.token_text(*id),
            origin: match input {
                Input::Target if position >= trace.prompt_len => TokenOrigin::Completion,
                Input::Target if has_source => TokenOrigin::Start,
                Input::Source | Input::Target => TokenOrigin::Prompt,
            },
            pass: match input {
                Input::Source => 0,
                Input::Target => trace.passes[position],
            },
        })
        .collect()
}

fn sampled_tokens(explanation: &Explanation<'_>, top: usize) -> Vec<SampledToken> {
    let trace = &explanation.trace;
    let samples = trace.samples.iter().zip(&trace.sampled_at);
    samples
        .map(|(sample, after)| {
            let after = *after;
            let id = sample.sampled.id;
            // Forbidden tokens count as omitted: JSON has no infinity.
            let allowed = sample.candidates.iter().filter(|c| c.adjusted.is_finite());
            let mut order: Vec<&TracedCandidate> = allowed.collect();
            order.sort_by(|a, b| b.adjusted.total_cmp(&a.adjusted));
            let listed = order.iter().enumerate();
            let listed = listed.filter(|(rank, c)| *rank < top || c.id == id);
            let candidates: Vec<CandidateInfo> = listed
                .map(|(_, candidate)| CandidateInfo {
                    text: explanation.explainer.token_text(candidate.id),
                    candidate: **candidate,
                })
                .collect();
            SampledToken {
                after,
                token: TokenProb {
                    id,
                    text: explanation.explainer.token_text(id),
                    probability: trace.value(PROBABILITIES).at(&[after, id as usize]),
                },
                sampling_probability: sample.sampled.probability,
                uniform: sample.uniform,
                omitted: sample.candidates.len() - candidates.len(),
                candidates,
            }
        })
        .collect()
}
