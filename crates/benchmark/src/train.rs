//! Benchmark of training steps.

use std::time::Instant;

use burn::module::Module;
use nextword_data::{CounterRng, TokenBatch};
use nextword_kernels::record_launches;
use nextword_model::{ModelConfig, Precision};
use nextword_train::{OptimizerConfig, Stepper};

use crate::{BenchmarkError, Measurement, Runner, Size, machine};

/// Training steps on random tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainWorkload {
    /// Model shape and batch size.
    pub size: Size,
    /// Precision of matrix products.
    pub precision: Precision,
    /// Whether activations are recomputed in the backward pass.
    pub recompute: bool,
    /// Steps per round, at least one.
    pub steps: u64,
    /// Steps before the first round.
    pub warm_up: u64,
}

impl Default for TrainWorkload {
    /// Ten steps per round of the small model in f32, after three warm-up steps.
    fn default() -> Self {
        Self {
            size: Size::Small,
            precision: Precision::F32,
            recompute: false,
            steps: 10,
            warm_up: 3,
        }
    }
}

impl Runner {
    /// Times steps with `AdamW`: forward, backward, clipping, update.
    ///
    /// # Errors
    /// [`BenchmarkError::Model`] if the device does not support the precision.
    pub fn train(&self, workload: &TrainWorkload) -> Result<Measurement, BenchmarkError> {
        let TrainWorkload {
            size, precision, ..
        } = *workload;
        let config = size.config();
        let peak = machine::peak_flops(&self.device, precision);
        let (batch, seq) = (size.batch(), config.context_length);
        let model = config.init(&self.device, 1337)?.train();
        let model = model.with_precision(precision)?;
        let optimizer = OptimizerConfig::default();
        let mut stepper = Stepper::new(model, optimizer, 1337, workload.recompute);
        let mut next_step = 0;
        let mut steps = |count: u64| {
            for _ in 0..count {
                stepper.step(&[tokens(&config, batch, next_step)], next_step, 1e-3, 1e-3);
                next_step += 1;
            }
        };
        steps(workload.warm_up);
        let count = workload.steps.max(1);
        let timed = self.measure(|| {
            let start = Instant::now();
            steps(count);
            Ok::<_, BenchmarkError>(start.elapsed().as_secs_f64() / count as f64)
        })?;
        let ((), launches) = record_launches(|| steps(1));
        let tokens_per_second = (batch * seq) as f64 / timed.seconds.median;
        let flops = tokens_per_second * config.training_flops(seq) as f64;
        let precision = match precision {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        };
        let subject = format!("{} in {precision}", size.name());
        Ok(Measurement {
            tokens_per_second: Some(tokens_per_second),
            launches: Some(launches.len()).filter(|count| *count > 0),
            ..self
                .report(timed, "train", subject, "step")
                .with_flops(flops, peak)
        })
    }
}

/// Returns a batch of pseudo-random token ids, with a target at every position.
fn tokens(config: &ModelConfig, batch: usize, step: u64) -> TokenBatch {
    let (seq, vocab) = (config.context_length, config.vocab_size as u64);
    let random = CounterRng::new(1337).stream(step);
    let id = |i: usize| random.below(i as u64, vocab) as u32;
    TokenBatch {
        inputs: (0..batch * seq).map(id).collect(),
        targets: (0..batch * seq).map(|i| id(i + 1)).collect(),
        batch,
        seq,
        ..TokenBatch::default()
    }
}
