//! Benchmark of training steps.

use std::time::Instant;

use burn::module::Module;
use nextword_data::TokenBatch;
use nextword_model::{ModelConfig, Precision};
use nextword_train::{OptimizerConfig, Stepper};

use super::args::BenchTrainArgs;
use super::{Report, machine, measure_rounds};
use crate::models;

/// Times steps on random tokens: forward, backward, clipping, update.
pub(crate) fn run(args: &BenchTrainArgs) -> anyhow::Result<Report> {
    let config = args.size.config();
    let device = models::open_device(&args.common.device)?;
    let precision = match args.precision.as_str() {
        "bf16" => Precision::Bf16,
        _ => Precision::F32,
    };
    let peak = machine::peak_flops(&device, precision);
    let (batch, seq) = (args.size.batch(), config.context_length);
    let model = config.init(&device, 1337)?.train();
    let model = model.with_precision(precision)?;
    let mut stepper = Stepper::new(model, OptimizerConfig::default(), 1337, args.recompute);
    let mut next_step = 0;
    let mut steps = |count: u64| {
        for _ in 0..count {
            stepper.step(&[tokens(&config, batch, next_step)], next_step, 1e-3, 1e-3);
            next_step += 1;
        }
    };
    steps(args.warm_up);
    let timed = measure_rounds(args.common.rounds, || {
        let start = Instant::now();
        steps(args.steps);
        Ok(start.elapsed().as_secs_f64() / args.steps as f64)
    })?;
    let tokens_per_second = (batch * seq) as f64 / timed.seconds.median;
    let flops = tokens_per_second * config.training_flops(seq) as f64;
    let subject = format!("{} in {}", args.size.name(), args.precision);
    let report = timed.report("train", subject, &args.common.device, "step");
    Ok(Report {
        tokens_per_second: Some(tokens_per_second),
        ..report.with_flops(flops, peak)
    })
}

/// Returns a batch of pseudo-random token ids, with a target at every position.
fn tokens(config: &ModelConfig, batch: usize, step: u64) -> TokenBatch {
    let (seq, vocab) = (config.context_length, config.vocab_size as u64);
    let id = |i: usize| {
        let hash = (step << 32 | i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((hash >> 33) % vocab) as u32
    };
    TokenBatch {
        inputs: (0..batch * seq).map(id).collect(),
        targets: (0..batch * seq).map(|i| id(i + 1)).collect(),
        batch,
        seq,
    }
}
