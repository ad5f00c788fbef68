//! Benchmarks of prefill and of token-by-token decoding.

use std::time::Instant;

use burn::tensor::Device;
use nextword_generate::{DecodeOptions, Decoder, SamplingConfig};
use nextword_model::{Precision, QuantizedMatrix, Transformer};

use super::args::{BenchDecodeArgs, BenchPrefillArgs, ModelArgs};
use super::{Report, machine, measure_rounds};
use crate::commands::quantize;
use crate::{exit, models};

/// Times the tokens of one completion of a fixed prompt.
pub(crate) fn decode(args: &BenchDecodeArgs) -> anyhow::Result<Report> {
    let device = models::open_device(&args.common.device)?;
    let (mut subject, mut model) = open(&args.model, &device)?;
    if let Some(bits) = args.bits {
        if model.bits().is_some() || !QuantizedMatrix::has_native_kernel(&device) {
            return Err(exit::usage(
                "--bits requires unquantized weights and the device flex; hint: omit it and pass a model written by \
                 `nextword quantize`",
            ));
        }
        subject = format!("{subject} at {bits} bits");
        model = model.quantize(quantize::bits(bits));
    }
    let context = model.config().context_length;
    let tokens = args.tokens.min(context / 2).max(1);
    let prompt = prompt(&model, (context - tokens).clamp(1, 16));
    let round = || {
        let mut decoder = Decoder::new(&model, std::slice::from_ref(&prompt), options(tokens + 1))?;
        decoder.step()?; // Prefill.
        let start = Instant::now();
        for _ in 0..tokens {
            decoder.step()?;
        }
        anyhow::Ok(start.elapsed().as_secs_f64() / tokens as f64)
    };
    round()?; // Warms up.
    let timed = measure_rounds(args.common.rounds, round)?;
    let per_second = 1.0 / timed.seconds.median;
    let report = timed.report("decode", subject, &args.common.device, "token");
    // Measured last, because it would raise the peak memory in the report.
    let bandwidth = on_cpu(&device).then(machine::read_bandwidth);
    let bytes = model.bytes_per_token() as f64 * per_second;
    Ok(Report {
        tokens_per_second: Some(per_second),
        share_of_peak: bandwidth.map(|peak| bytes / peak),
        peak: bandwidth,
        peak_is_bandwidth: true,
        ..report
    })
}

/// Times prompt processing.
pub(crate) fn prefill(args: &BenchPrefillArgs) -> anyhow::Result<Report> {
    let device = models::open_device(&args.common.device)?;
    let (subject, model) = open(&args.model, &device)?;
    let peak = machine::peak_flops(&device, Precision::F32);
    let max_len = (model.config().context_length - 1).max(1);
    let len = args.tokens.unwrap_or(max_len).clamp(1, max_len);
    let prompt = prompt(&model, len);
    let round = || {
        let mut decoder = Decoder::new(&model, std::slice::from_ref(&prompt), options(1))?;
        let start = Instant::now();
        decoder.step()?;
        anyhow::Ok(start.elapsed().as_secs_f64())
    };
    round()?; // Warms up.
    let timed = measure_rounds(args.common.rounds, round)?;
    let tokens_per_second = len as f64 / timed.seconds.median;
    // A token attends to half of the prompt on average; only the last one's logits are computed.
    let config = model.config();
    let head = 2 * config.d_model * config.vocab_size;
    let work = len * (config.forward_flops(len.div_ceil(2)) - head) + head;
    let flops = work as f64 / timed.seconds.median;
    let report = timed.report("prefill", subject, &args.common.device, "prompt");
    Ok(Report {
        tokens_per_second: Some(tokens_per_second),
        ..report.with_flops(flops, peak)
    })
}

/// Returns whether the weights are in the memory that `read_bandwidth` measures.
fn on_cpu(device: &Device) -> bool {
    QuantizedMatrix::has_native_kernel(device)
}

/// Opens the model to measure and returns its name.
fn open(args: &ModelArgs, device: &Device) -> anyhow::Result<(String, Transformer)> {
    Ok(match &args.path {
        Some(path) => {
            let dir = models::open(path, false)?;
            (path.display().to_string(), dir.load(device)?)
        }
        None => {
            let config = args.size.config();
            (args.size.name().to_string(), config.init(device, 1337)?)
        }
    })
}

fn prompt(model: &Transformer, len: usize) -> Vec<u32> {
    let vocab = model.config().vocab_size;
    (0..len).map(|i| (i * 7919 % vocab) as u32).collect()
}

fn options(max_tokens: usize) -> DecodeOptions {
    DecodeOptions {
        sampling: SamplingConfig {
            temperature: 0.0,
            ..SamplingConfig::default()
        },
        max_tokens,
        ..DecodeOptions::default()
    }
}
