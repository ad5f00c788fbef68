//! Everything that the model computed for one prompt and its completion.

mod record;

use nextword_generate::{FinishReason, SamplingConfig, SamplingTrace};
use nextword_model::{Architecture, ModelConfig};

use crate::adapted::AdaptedModules;
use crate::array::Array;
use crate::evaluate::{Arrays, Inputs, eval_node, evaluate};
use crate::graph::{Lengths, Node, Op};
use crate::recorder::Recorder;
use crate::verification::Verification;

pub use self::record::count_values;

/// Maximum number of values in one trace.
pub const MAX_TRACE_VALUES: usize = 1 << 26;

/// How the completion is generated.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceOptions {
    /// How each token is sampled.
    pub sampling: SamplingConfig,
    /// Maximum number of tokens to generate.
    pub max_tokens: usize,
    /// The completion ends with the first of these tokens.
    pub stop_ids: Vec<u32>,
    /// The BOS token, which is kept at the start when a long prompt is truncated.
    pub bos_id: Option<u32>,
    /// The decoder's first token in encoder-decoder models.
    pub start_id: Option<u32>,
    /// The token whose positions an encoder predicts.
    pub mask_id: Option<u32>,
}

impl Default for TraceOptions {
    fn default() -> Self {
        Self {
            sampling: SamplingConfig::greedy(),
            max_tokens: 1,
            stop_ids: Vec::new(),
            bos_id: None,
            start_id: None,
            mask_id: None,
        }
    }
}

/// Everything that the model computed.
#[derive(Clone, Debug)]
pub struct Trace {
    /// The architecture.
    pub config: ModelConfig,
    /// The operations of the forward pass.
    pub graph: Vec<Node>,
    /// The linear layers with a low-rank update, if the model has an adapter.
    pub adapted: AdaptedModules,
    /// The input tokens of the only stack, or of the decoder: the prompt's, or the token that begins a target, then
    /// those of the completion except its last.
    pub ids: Vec<u32>,
    /// Number of tokens in `ids` that are not part of the completion.
    pub prompt_len: usize,
    /// The input tokens of the encoder in encoder-decoder models: the prompt. Empty in others.
    pub source: Vec<u32>,
    /// Number of tokens removed to fit the context: from the start of a prompt, from the end of a source.
    pub truncated: usize,
    /// The forward pass that computed each position: pass 0 is the prefill, pass n the n-th decode step,
    /// which reads the keys and values of earlier positions from the KV cache.
    pub passes: Vec<usize>,
    /// The model's values by name. Tensors that the forward pass does not report are computed from
    /// those that it reports.
    pub values: Arrays,
    /// The same tensors, recomputed with plain loops in f64.
    pub reference: Arrays,
    /// How each token of the completion was sampled, or in an encoder each masked token.
    pub samples: Vec<SamplingTrace>,
    /// The position whose logits each of them was sampled from.
    pub sampled_at: Vec<usize>,
    /// Why generation stopped; `None` in an encoder, which generates nothing.
    pub finish: Option<FinishReason>,
    /// The comparison of `values` with `reference`.
    pub verification: Verification,
    /// Bits per weight if the model's matrices are quantized.
    pub bits: Option<u8>,
}

impl Trace {
    /// Assembles the recorded tensors and compares them with their recomputation.
    fn collect_values(&mut self, all_weights: &Arrays, mut recorder: Recorder) {
        self.reference = evaluate(&self.graph, all_weights, self.inputs(), &[]);
        for node in &self.graph {
            let masked = match node.op {
                Op::Scores { .. } => f64::NEG_INFINITY,
                _ => 0.0,
            };
            let reference = &self.reference[&node.name];
            let recorded = recorder.take(&node.name, &node.shape, masked);
            let value = if recorded.is_none() && node.observed {
                self.verification.missing.push(node.name.clone());
                reference.clone()
            } else {
                // A value that the forward pass does not report, such as a probability, follows from the
                // model's own operands, and is compared with the recomputation like all others.
                let step = eval_node(node, &self.values, all_weights, self.inputs());
                let value = recorded.unwrap_or_else(|| step.clone());
                let count = self.count_visible(node, value.data.len());
                self.verification
                    .compare(&node.name, count, &value, reference, &step);
                value
            };
            self.values.insert(node.name.clone(), value);
        }
        self.verification.unexpected = recorder.names().cloned().collect();
    }

    /// Number of the `len` values of `node` that are not masked.
    fn count_visible(&self, node: &Node, len: usize) -> usize {
        let is_visible = |at: &usize| self.is_value_visible(node, *at);
        (0..len).filter(is_visible).count()
    }

    /// Whether the value at `offset` in `node` is not masked.
    fn is_value_visible(&self, node: &Node, offset: usize) -> bool {
        if !node.is_square() {
            return true;
        }
        let (queries, keys) = (node.shape[1], node.shape[2]);
        self.is_visible(node, offset / keys % queries, offset % keys)
    }

    /// The tokens that the model reads.
    pub fn inputs(&self) -> Inputs<'_> {
        Inputs {
            target: &self.ids,
            source: &self.source,
        }
    }

    /// The tokens before the completion.
    pub fn prompt_inputs(&self) -> Inputs<'_> {
        Inputs {
            target: &self.ids[..self.prompt_len],
            source: &self.source,
        }
    }

    /// Numbers of tokens that the model reads.
    pub fn lengths(&self) -> Lengths {
        Lengths {
            target: self.ids.len(),
            ..self.prompt_lengths()
        }
    }

    /// Numbers of tokens before the completion.
    pub fn prompt_lengths(&self) -> Lengths {
        Lengths {
            target: self.prompt_len,
            source: self.source.len(),
            prompt: self.prompt_len,
        }
    }

    /// The position of the first prediction that the model was asked for: the last of the prompt, the first of a
    /// target, or the first masked one.
    pub fn focus(&self) -> usize {
        self.sampled_at.first().copied().unwrap_or(0)
    }

    /// Whether the model predicts masked tokens, and not next ones.
    pub fn predicts_masked(&self) -> bool {
        self.config.architecture == Architecture::Encoder
    }

    /// The operation that computes `name`, if the graph has it.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.graph.iter().find(|node| node.name == name)
    }

    /// The model's values of the tensor `name`.
    ///
    /// # Panics
    /// If the graph has no such tensor.
    pub fn value(&self, name: &str) -> &Array {
        &self.values[name]
    }

    /// Whether position `query` may attend to position `key` in the scores or weights `node`.
    pub fn is_visible(&self, node: &Node, query: usize, key: usize) -> bool {
        match &node.op {
            Op::Softmax { input } => self
                .node(input)
                .is_none_or(|scores| scores.op.is_visible(query, key)),
            op => op.is_visible(query, key),
        }
    }

    /// The values of `node`, with `None` where masked.
    pub fn visible_values(&self, node: &Node) -> Vec<Option<f64>> {
        let values = self.values[&node.name].data.iter().enumerate();
        values
            .map(|(at, x)| self.is_value_visible(node, at).then_some(*x))
            .collect()
    }

    /// How the token after `position` was sampled, or the masked one there; `None` elsewhere.
    pub fn sample_after(&self, position: usize) -> Option<&SamplingTrace> {
        let at = self.sampled_at.iter().position(|at| *at == position)?;
        self.samples.get(at)
    }

    /// The token that the logits at `position` predict: the prompt's own next one, or the sampled one. In an encoder
    /// the token itself, unless it is masked.
    pub fn next_id(&self, position: usize) -> Option<u32> {
        let next = position + usize::from(!self.predicts_masked());
        let sampled = self.sample_after(position).map(|sample| sample.sampled.id);
        sampled.or_else(|| self.ids.get(next).copied())
    }
}
