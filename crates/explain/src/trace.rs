//! Everything that the model computed for one prompt and its completion.

use burn::tensor::{Tensor, TensorData};
use nextword_generate::{
    DecodeOptions, Decoder, FinishReason, History, Overflow, SampleKey, Sampler, SamplingConfig,
    SamplingTrace, truncate_left,
};
use nextword_model::{Architecture, ForwardContext, ModelConfig, Transformer, weights};

use crate::ExplainError;
use crate::adapted::{AdaptedModules, adapted_modules, graph_with_adapter};
use crate::array::Array;
use crate::evaluate::{Arrays, eval_node, evaluate};
use crate::graph::{Node, Op, graph};
use crate::recorder::Recorder;
use crate::verification::{Tolerance, Verification};

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
}

impl Default for TraceOptions {
    fn default() -> Self {
        Self {
            sampling: SamplingConfig::greedy(),
            max_tokens: 1,
            stop_ids: Vec::new(),
            bos_id: None,
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
    /// The input tokens: the prompt's, then those of the completion except its last.
    pub ids: Vec<u32>,
    /// Number of prompt tokens in `ids`.
    pub prompt_len: usize,
    /// Number of tokens removed from the start of the prompt to fit the context.
    pub truncated: usize,
    /// The forward pass that computed each position: pass 0 is the prefill, pass n the n-th decode step,
    /// which reads the keys and values of earlier positions from the KV cache.
    pub passes: Vec<usize>,
    /// The model's values by name. Tensors that the forward pass does not report are computed from
    /// those that it reports.
    pub values: Arrays,
    /// The same tensors, recomputed with plain loops in f64.
    pub reference: Arrays,
    /// How each token of the completion was sampled.
    pub samples: Vec<SamplingTrace>,
    /// Why generation stopped.
    pub finish: FinishReason,
    /// The comparison of `values` with `reference`.
    pub verification: Verification,
    /// Bits per weight if the model's matrices are quantized.
    pub bits: Option<u8>,
}

impl Trace {
    /// Generates a completion of `prompt` and records every intermediate value.
    ///
    /// # Errors
    /// [`ExplainError::Generate`] if the prompt is invalid or the model computes NaN or infinity;
    /// [`ExplainError::TooLarge`] if the trace would exceed [`MAX_TRACE_VALUES`].
    pub fn record(
        model: &Transformer,
        all_weights: &Arrays,
        prompt: &[u32],
        options: &TraceOptions,
    ) -> Result<Self, ExplainError> {
        let config = model.config().clone();
        config.require(&[Architecture::Decoder], "explain the model")?;
        let adapted = adapted_modules(model);
        let tokens = prompt.len().saturating_add(options.max_tokens);
        check_size(&config, &adapted, tokens)?;
        let mut recorder = Recorder::new(config.position);
        let decode_options = DecodeOptions {
            sampling: options.sampling.clone(),
            max_tokens: options.max_tokens.max(1),
            stop_ids: options.stop_ids.clone(),
            overflow: Overflow::Stop,
            bos_id: options.bos_id,
            start_id: None,
            first_sequence: 0,
        };
        let mut decoder = Decoder::new(model, &[prompt.to_vec()], decode_options)?;
        let sampler = Sampler::new(options.sampling.clone())?;
        let mut history = History::new(prompt);
        let mut step_logits: Vec<Vec<f32>> = Vec::new();
        let mut samples = Vec::new();
        while !decoder.is_done() {
            for token in decoder.step_with_probe(&mut recorder)? {
                let logits = recorder.last("logits").unwrap_or_default().to_vec();
                let key = SampleKey {
                    sequence: 0,
                    position: samples.len() as u64,
                };
                samples.push(sampler.trace(&logits, &history, key)?);
                history.push(token.sampled.id);
                step_logits.push(logits);
            }
        }
        let Some(sequence) = decoder.into_sequences().pop() else {
            unreachable!("one prompt, one sequence");
        };
        let prompt_len = prompt.len() - sequence.truncated;
        let mut ids = prompt.to_vec();
        truncate_left(&mut ids, options.bos_id, prompt_len);
        ids.extend(&sequence.ids()[..samples.len() - 1]);
        let bits = model.bits();
        let passes = (0..ids.len()).map(|at| (at + 1).saturating_sub(prompt_len));
        let mut trace = Self {
            graph: graph_with_adapter(&config, ids.len(), &adapted),
            adapted,
            prompt_len,
            truncated: sequence.truncated,
            passes: passes.collect(),
            values: Arrays::new(),
            reference: Arrays::new(),
            samples,
            finish: sequence.finish,
            verification: Verification::new(bits.map_or(Tolerance::F32, |_| Tolerance::QUANTIZED)),
            bits,
            config,
            ids,
        };
        let mut rows = trace.prompt_logits(model, &recorder);
        rows.extend(step_logits);
        recorder.replace("logits", rows);
        trace.collect_values(all_weights, recorder);
        Ok(trace)
    }

    /// Logits at each position of the prompt except the last, row by row as generation computes them.
    fn prompt_logits(&self, model: &Transformer, recorder: &Recorder) -> Vec<Vec<f32>> {
        let last = self.config.n_layers - 1;
        let name = if self.config.has_final_norm() {
            "ln_final.hook_normalized".to_string()
        } else {
            format!("blocks.{last}.hook_resid_post")
        };
        let hidden = recorder.first(&name).unwrap_or_default();
        let (d, device) = (self.config.d_model, model.device());
        let rows = hidden.chunks_exact(d).take(self.prompt_len - 1);
        rows.map(|row| {
            let row = TensorData::new(row.to_vec(), [1, 1, d]);
            let row = Tensor::<3>::from_data(row, &device);
            weights::to_f32_vec(
                model
                    .logits(row, &mut ForwardContext::inference())
                    .into_data(),
            )
        })
        .collect()
    }

    /// Assembles the recorded tensors and compares them with their recomputation.
    fn collect_values(&mut self, all_weights: &Arrays, mut recorder: Recorder) {
        self.reference = evaluate(&self.graph, all_weights, &self.ids, &[]);
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
                let step = eval_node(node, &self.values, all_weights, &self.ids);
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
        if !node.is_square() {
            return len;
        }
        let seq = self.ids.len();
        (0..len)
            .filter(|at| self.is_visible(node, at / seq % seq, at % seq))
            .count()
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

    /// Whether position `query` may attend to position `key` in `node`'s layer.
    pub fn is_visible(&self, node: &Node, query: usize, key: usize) -> bool {
        let window = node.layer.and_then(|layer| self.config.window(layer));
        crate::evaluate::is_visible(query, key, window)
    }

    /// The values of `node`, with `None` where masked.
    pub fn visible_values(&self, node: &Node) -> Vec<Option<f64>> {
        let value = &self.values[&node.name];
        if !node.is_square() {
            return value.data.iter().copied().map(Some).collect();
        }
        let seq = self.ids.len();
        let values = value.data.iter().enumerate();
        values
            .map(|(at, x)| {
                self.is_visible(node, at / seq % seq, at % seq)
                    .then_some(*x)
            })
            .collect()
    }

    /// How the token after `position` was sampled; `None` within the prompt.
    pub fn sample_after(&self, position: usize) -> Option<&SamplingTrace> {
        self.samples
            .get((position + 1).checked_sub(self.prompt_len)?)
    }

    /// The token that follows `position`: the prompt's own, or the sampled one.
    pub fn next_id(&self, position: usize) -> Option<u32> {
        let input = self.ids.get(position + 1).copied();
        input.or_else(|| self.sample_after(position).map(|sample| sample.sampled.id))
    }
}

/// Number of values in a trace of `tokens` tokens, without those of an adapter.
pub fn count_values(config: &ModelConfig, tokens: usize) -> usize {
    count_of(&graph(config, tokens))
}

fn count_of(nodes: &[Node]) -> usize {
    let size = |node: &Node| {
        node.shape
            .iter()
            .fold(1, |n: usize, d| n.saturating_mul(*d))
    };
    nodes.iter().map(size).fold(0, usize::saturating_add)
}

fn check_size(
    config: &ModelConfig,
    adapted: &AdaptedModules,
    tokens: usize,
) -> Result<(), ExplainError> {
    let tokens = tokens.min(config.context_length);
    let count = count_of(&graph_with_adapter(config, tokens, adapted));
    if count <= MAX_TRACE_VALUES {
        return Ok(());
    }
    Err(ExplainError::TooLarge {
        subject: format!(
            "a trace of {tokens} tokens through {} layers",
            config.n_layers
        ),
        count,
        limit: MAX_TRACE_VALUES,
        hint: "use a shorter prompt or a smaller --max-tokens",
    })
}
