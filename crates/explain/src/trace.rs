//! Everything that the model computed for one prompt and the answer to it.

use burn::tensor::{Tensor, TensorData};
use nextword_generate::{
    DecodeOptions, Decoder, Drawing, FinishReason, History, Overflow, Place, Sampler,
    SamplingConfig, shorten,
};
use nextword_model::{Bits, ModelConfig, Pass, Transformer, weights};

use crate::ExplainError;
use crate::array::Array;
use crate::evaluate::{Arrays, evaluate, follow};
use crate::graph::{Node, Op, graph};
use crate::recorder::Recorder;
use crate::verdict::{Tolerance, Verdict};

/// The most numbers that one trace may hold.
pub const MOST_NUMBERS: usize = 1 << 26;

/// How the answer is made that is looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceOptions {
    /// How each token is chosen.
    pub sampling: SamplingConfig,
    /// The most tokens of the answer.
    pub max_tokens: usize,
    /// The answer ends with the first of these.
    pub stop_ids: Vec<u32>,
    /// As [`DecodeOptions::first_id`].
    pub first_id: Option<u32>,
}

impl Default for TraceOptions {
    fn default() -> Self {
        Self {
            sampling: SamplingConfig::greedy(),
            max_tokens: 1,
            stop_ids: Vec::new(),
            first_id: None,
        }
    }
}

/// Everything that the model computed.
#[derive(Clone, Debug)]
pub struct Trace {
    /// The architecture.
    pub config: ModelConfig,
    /// What follows from what.
    pub graph: Vec<Node>,
    /// The tokens that went into the model: the prompt's, then those of the answer but its last.
    pub ids: Vec<u32>,
    /// How many of them are the prompt's.
    pub prompt: usize,
    /// Tokens at the beginning of the prompt that did not fit the context.
    pub truncated: usize,
    /// The forward pass that computed each token: 0 read the prompt, pass n the n-th token of the
    /// answer, with the keys and values of all earlier ones from the cache.
    pub passes: Vec<usize>,
    /// The model's numbers by name. What its pass does not show is computed from what it shows.
    pub values: Arrays,
    /// The same from plain loops in f64.
    pub exact: Arrays,
    /// How each token of the answer was chosen.
    pub drawings: Vec<Drawing>,
    /// Why the answer ended.
    pub finish: FinishReason,
    /// How far the two are apart.
    pub verdict: Verdict,
    /// Bits of a weight where the model's matrices are quantized.
    pub bits: Option<u8>,
}

impl Trace {
    /// Reads `prompt` and answers, watched.
    ///
    /// # Errors
    /// [`ExplainError::Generate`] if the model cannot read the prompt or computes what is no number;
    /// [`ExplainError::TooLarge`] if there would be more than [`MOST_NUMBERS`] numbers.
    pub fn record(
        model: &Transformer,
        all_weights: &Arrays,
        prompt: &[u32],
        options: &TraceOptions,
    ) -> Result<Self, ExplainError> {
        let config = model.config().clone();
        check_size(&config, prompt.len().saturating_add(options.max_tokens))?;
        let mut recorder = Recorder::new(config.position);
        let decode = DecodeOptions {
            sampling: options.sampling.clone(),
            max_tokens: options.max_tokens.max(1),
            stop_ids: options.stop_ids.clone(),
            overflow: Overflow::Stop,
            first_id: options.first_id,
            first_sequence: 0,
        };
        let mut decoder = Decoder::new(model, &[prompt.to_vec()], decode)?;
        let sampler = Sampler::new(options.sampling.clone())?;
        let mut history = History::new(prompt);
        let mut logits: Vec<Vec<f32>> = Vec::new();
        let mut drawings = Vec::new();
        while !decoder.is_done() {
            for token in decoder.step_watched(&mut recorder)? {
                let seen = recorder.last("logits").unwrap_or_default().to_vec();
                let place = Place {
                    sequence: 0,
                    position: drawings.len() as u64,
                };
                drawings.push(sampler.drawing(&seen, &history, place)?);
                history.push(token.choice.id);
                logits.push(seen);
            }
        }
        let Some(sequence) = decoder.into_sequences().pop() else {
            unreachable!("one prompt, one sequence");
        };
        let kept = prompt.len() - sequence.truncated;
        let mut ids = prompt.to_vec();
        shorten(&mut ids, options.first_id, kept);
        ids.extend(&sequence.ids()[..drawings.len() - 1]);
        let bits = model.bits().map(|bits| match bits {
            Bits::Int8 => 8,
            Bits::Int4 => 4,
        });
        let passes = (0..ids.len()).map(|at| (at + 1).saturating_sub(kept));
        let mut trace = Self {
            graph: graph(&config, ids.len()),
            prompt: kept,
            truncated: sequence.truncated,
            passes: passes.collect(),
            values: Arrays::new(),
            exact: Arrays::new(),
            drawings,
            finish: sequence.finish,
            verdict: Verdict::new(bits.map_or(Tolerance::FLOATS, |_| Tolerance::QUANTIZED)),
            bits,
            config,
            ids,
        };
        let mut rows = trace.prompt_logits(model, &recorder);
        rows.extend(logits);
        recorder.put("logits", rows);
        trace.fill(all_weights, recorder);
        Ok(trace)
    }

    /// Logits after each token of the prompt but its last, row by row as generation computes them.
    fn prompt_logits(&self, model: &Transformer, recorder: &Recorder) -> Vec<Vec<f32>> {
        let last = self.config.n_layers - 1;
        let name = if self.config.has_final_norm() {
            "ln_final.hook_normalized".to_string()
        } else {
            format!("blocks.{last}.hook_resid_post")
        };
        let hidden = recorder.first(&name).unwrap_or_default();
        let (d, device) = (self.config.d_model, model.device());
        let rows = hidden.chunks_exact(d).take(self.prompt - 1);
        rows.map(|row| {
            let row = TensorData::new(row.to_vec(), [1, 1, d]);
            let row = Tensor::<3>::from_data(row, &device);
            weights::floats(model.logits(row, &mut Pass::plain()).into_data())
        })
        .collect()
    }

    /// Puts the recorded tensors in order and computes them again.
    fn fill(&mut self, all_weights: &Arrays, mut recorder: Recorder) {
        self.exact = evaluate(&self.graph, all_weights, &self.ids, &[]);
        for node in &self.graph {
            let hidden = match node.op {
                Op::Scores { .. } => f64::NEG_INFINITY,
                _ => 0.0,
            };
            let exact = &self.exact[&node.name];
            let value = match recorder.take(&node.name, &node.shape, hidden) {
                Some(value) => {
                    let step = follow(node, &self.values, all_weights, &self.ids);
                    self.verdict.compare(&node.name, &value, exact, &step);
                    value
                }
                None if node.seen => {
                    self.verdict.missing.push(node.name.clone());
                    exact.clone()
                }
                None => follow(node, &self.values, all_weights, &self.ids),
            };
            self.values.insert(node.name.clone(), value);
        }
        self.verdict.unknown = recorder.names().cloned().collect();
    }

    /// How `name` is computed.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.graph.iter().find(|node| node.name == name)
    }

    /// The model's numbers at `name`.
    ///
    /// # Panics
    /// If the graph has no such tensor.
    pub fn value(&self, name: &str) -> &Array {
        &self.values[name]
    }

    /// Whether the token at `query` sees the one at `key` in `node`'s layer.
    pub fn sees(&self, node: &Node, query: usize, key: usize) -> bool {
        let window = node.layer.and_then(|layer| self.config.window(layer));
        crate::evaluate::sees(query, key, window)
    }

    /// The numbers of `node` as they are shown: `None` where a token may not look.
    pub fn shown(&self, node: &Node) -> Vec<Option<f64>> {
        let value = &self.values[&node.name];
        if !node.is_square() {
            return value.data.iter().copied().map(Some).collect();
        }
        let seq = self.ids.len();
        let shown = value.data.iter().enumerate();
        shown
            .map(|(at, x)| self.sees(node, at / seq % seq, at % seq).then_some(*x))
            .collect()
    }

    /// The token chosen after the token at `position`, if it is one of the answer.
    pub fn chosen(&self, position: usize) -> Option<&Drawing> {
        self.drawings.get((position + 1).checked_sub(self.prompt)?)
    }

    /// The token that follows `position`: the prompt's own, or the one that was chosen.
    pub fn next(&self, position: usize) -> Option<u32> {
        let given = self.ids.get(position + 1).copied();
        given.or_else(|| self.chosen(position).map(|drawing| drawing.choice.id))
    }
}

/// How many numbers a trace of `tokens` tokens has.
pub fn count_numbers(config: &ModelConfig, tokens: usize) -> usize {
    let size = |node: &Node| {
        node.shape
            .iter()
            .fold(1, |n: usize, d| n.saturating_mul(*d))
    };
    let nodes = graph(config, tokens);
    nodes.iter().map(size).fold(0, usize::saturating_add)
}

fn check_size(config: &ModelConfig, tokens: usize) -> Result<(), ExplainError> {
    let tokens = tokens.min(config.context_length);
    let count = count_numbers(config, tokens);
    if count <= MOST_NUMBERS {
        return Ok(());
    }
    Err(ExplainError::TooLarge {
        what: format!(
            "a trace of {tokens} tokens through {} layers",
            config.n_layers
        ),
        count,
        limit: MOST_NUMBERS,
        hint: "give a shorter prompt and fewer --max-tokens",
    })
}
