//! Runs the model with a probe that records everything.

use burn::tensor::{Int, Tensor, TensorData};
use nextword_generate::{
    DecodeOptions, Decoder, History, Overflow, SampleKey, Sampler, SamplingTrace, truncate_left,
};
use nextword_model::{AttentionMask, ForwardContext, ModelConfig, Transformer, weights};

use super::{MAX_TRACE_VALUES, Trace, TraceOptions};
use crate::ExplainError;
use crate::adapted::{AdaptedModules, adapted_modules, graph_with_adapter};
use crate::evaluate::Arrays;
use crate::graph::{Lengths, Node, graph};
use crate::recorder::Recorder;
use crate::verification::{Tolerance, Verification};

impl Trace {
    /// Generates a completion of `prompt` and records every intermediate value. In an encoder-decoder model the prompt
    /// is the source and the completion the target. An encoder generates nothing: it predicts the tokens of `prompt`
    /// that are masked.
    ///
    /// # Errors
    /// [`ExplainError::Generate`] if the prompt is invalid or the model computes NaN or infinity;
    /// [`ExplainError::NoBlank`] if nothing is masked in the prompt of an encoder;
    /// [`ExplainError::TooLarge`] if the trace would exceed [`MAX_TRACE_VALUES`].
    pub fn record(
        model: &Transformer,
        all_weights: &Arrays,
        prompt: &[u32],
        options: &TraceOptions,
    ) -> Result<Self, ExplainError> {
        let config = model.config();
        if config.architecture.generates() {
            Self::record_completion(model, all_weights, prompt, options)
        } else {
            Self::record_blanks(model, all_weights, prompt, options)
        }
    }

    fn record_completion(
        model: &Transformer,
        all_weights: &Arrays,
        prompt: &[u32],
        options: &TraceOptions,
    ) -> Result<Self, ExplainError> {
        let config = model.config();
        let has_encoder = config.has_encoder();
        let given = if has_encoder { 1 } else { prompt.len() };
        let lengths = Lengths {
            target: given.saturating_add(options.max_tokens),
            source: prompt.len(),
            prompt: given,
        };
        check_size(config, &adapted_modules(model), lengths)?;
        let mut recorder = Recorder::new(config.position);
        let start = options.start_id.unwrap_or(0);
        let decode_options = DecodeOptions {
            sampling: options.sampling.clone(),
            max_tokens: options.max_tokens.max(1),
            stop_ids: options.stop_ids.clone(),
            overflow: Overflow::Stop,
            bos_id: options.bos_id,
            start_id: Some(start),
            first_sequence: 0,
        };
        let mut decoder = Decoder::new(model, &[prompt.to_vec()], decode_options)?;
        let sampler = Sampler::new(options.sampling.clone())?;
        let mut history = if has_encoder {
            History::new(&[start])
        } else {
            History::new(prompt)
        };
        let mut step_logits: Vec<Vec<f32>> = Vec::new();
        let mut samples = Vec::new();
        while !decoder.is_done() {
            for token in decoder.step_with_probe(&mut recorder)? {
                let logits = recorder.last("logits").unwrap_or_default().to_vec();
                samples.push(sampler.trace(&logits, &history, sample_key(&samples))?);
                history.push(token.sampled.id);
                step_logits.push(logits);
            }
        }
        let Some(sequence) = decoder.into_sequences().pop() else {
            unreachable!("one prompt, one sequence");
        };
        let mut trace = Self::new(model);
        trace.truncated = sequence.truncated;
        let kept = prompt.len() - sequence.truncated;
        if has_encoder {
            trace.source = prompt[..kept].to_vec();
            trace.ids = vec![start];
        } else {
            trace.ids = prompt.to_vec();
            truncate_left(&mut trace.ids, options.bos_id, kept);
        }
        trace.prompt_len = trace.ids.len();
        trace.sampled_at = (0..samples.len())
            .map(|n| trace.prompt_len - 1 + n)
            .collect();
        trace
            .ids
            .extend(&sequence.ids()[..samples.len().saturating_sub(1)]);
        trace.samples = samples;
        trace.finish = Some(sequence.finish);
        let mut rows = trace.prompt_logits(model, &recorder);
        rows.extend(step_logits);
        recorder.replace("logits", rows);
        trace.finish_recording(all_weights, recorder);
        Ok(trace)
    }

    /// Predicts the masked tokens of `ids` from both sides, in one pass.
    fn record_blanks(
        model: &Transformer,
        all_weights: &Arrays,
        ids: &[u32],
        options: &TraceOptions,
    ) -> Result<Self, ExplainError> {
        let config = model.config();
        let blanks = (0..ids.len()).filter(|at| Some(ids[*at]) == options.mask_id);
        let blanks: Vec<usize> = blanks.collect();
        if blanks.is_empty() {
            return Err(ExplainError::NoBlank);
        }
        check_size(config, &adapted_modules(model), ids.len().into())?;
        let mut recorder = Recorder::new(config.position);
        let data: Vec<i32> = ids.iter().map(|id| id.cast_signed()).collect();
        let data = TensorData::new(data, [1, ids.len()]);
        let tokens = Tensor::<2, Int>::from_data(data, &model.device());
        let mask = AttentionMask::bidirectional(vec![ids.len()], ids.len());
        let mut ctx = ForwardContext::with_probe(&mut recorder).with_mask(mask);
        let logits = weights::to_f32_vec(model.forward(tokens, &mut ctx).into_data());
        let sampler = Sampler::new(options.sampling.clone())?;
        let history = History::new(&[]);
        let mut samples: Vec<SamplingTrace> = Vec::new();
        for blank in &blanks {
            let row = &logits[blank * config.vocab_size..][..config.vocab_size];
            samples.push(sampler.trace(row, &history, sample_key(&samples))?);
        }
        let mut trace = Self::new(model);
        trace.ids = ids.to_vec();
        trace.prompt_len = ids.len();
        trace.sampled_at = blanks;
        trace.samples = samples;
        trace.finish_recording(all_weights, recorder);
        Ok(trace)
    }

    /// An empty trace of `model`.
    fn new(model: &Transformer) -> Self {
        let bits = model.bits();
        Self {
            config: model.config().clone(),
            graph: Vec::new(),
            adapted: adapted_modules(model),
            ids: Vec::new(),
            prompt_len: 0,
            source: Vec::new(),
            truncated: 0,
            passes: Vec::new(),
            values: Arrays::new(),
            reference: Arrays::new(),
            samples: Vec::new(),
            sampled_at: Vec::new(),
            finish: None,
            verification: Verification::new(bits.map_or(Tolerance::F32, |_| Tolerance::QUANTIZED)),
            bits,
        }
    }

    /// Builds the graph of the recorded tokens, and collects their values.
    fn finish_recording(&mut self, all_weights: &Arrays, recorder: Recorder) {
        let passes = (0..self.ids.len()).map(|at| (at + 1).saturating_sub(self.prompt_len));
        self.passes = passes.collect();
        self.graph = graph_with_adapter(&self.config, self.lengths(), &self.adapted);
        self.collect_values(all_weights, recorder);
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
}

/// The key of the sample after `samples`.
fn sample_key(samples: &[SamplingTrace]) -> SampleKey {
    SampleKey {
        sequence: 0,
        position: samples.len() as u64,
    }
}

/// Number of values in a trace of inputs of these lengths, without those of an adapter.
pub fn count_values(config: &ModelConfig, lengths: impl Into<Lengths>) -> usize {
    count_of(&graph(config, lengths))
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
    lengths: Lengths,
) -> Result<(), ExplainError> {
    let limit = config.context_length;
    let lengths = Lengths {
        target: lengths.target.min(limit),
        source: lengths.source.min(limit),
        ..lengths
    };
    let count = count_of(&graph_with_adapter(config, lengths, adapted));
    if count <= MAX_TRACE_VALUES {
        return Ok(());
    }
    let tokens = lengths.target
        + if config.has_encoder() {
            lengths.source
        } else {
            0
        };
    let layers = config.n_layers + config.encoder_layers();
    Err(ExplainError::TooLarge {
        subject: format!("a trace of {tokens} tokens through {layers} layers"),
        count,
        limit: MAX_TRACE_VALUES,
        hint: "use a shorter prompt or a smaller --max-tokens",
    })
}
