//! Reading a prompt, and writing one token after the other.

use std::time::Instant;

use burn::tensor::Device;
use nextword_generate::{DecodeOptions, Decoder, SamplingConfig};
use nextword_model::{Precision, QuantizedMatrix, Transformer};

use super::args::{BenchDecodeArgs, BenchPrefillArgs, ModelChoice};
use super::{Report, machine, time};
use crate::commands::quantize;
use crate::{exit, records};

/// Measures single tokens of one answer, of a random prompt.
pub(crate) fn decode(args: &BenchDecodeArgs) -> anyhow::Result<Report> {
    let device = records::device(&args.common.device)?;
    let (mut subject, mut model) = open(&args.model, &device)?;
    if let Some(bits) = args.bits {
        if model.bits().is_some() || !QuantizedMatrix::runs_on(&device) {
            return Err(exit::usage(
                "--bits rounds plain weights on the device flex; hint: leave it out, and give a record \
                 that `nextword quantize` has made",
            ));
        }
        subject = format!("{subject} in {bits} bits");
        model = model.quantize(quantize::bits(bits));
    }
    let context = model.config().context_length;
    let tokens = args.tokens.min(context / 2).max(1);
    let prompt = prompt(&model, (context - tokens).clamp(1, 16));
    let round = || {
        let mut decoder = Decoder::new(&model, std::slice::from_ref(&prompt), options(tokens + 1))?;
        decoder.step()?; // Reads the prompt.
        let begin = Instant::now();
        for _ in 0..tokens {
            decoder.step()?;
        }
        anyhow::Ok(begin.elapsed().as_secs_f64() / tokens as f64)
    };
    round()?; // Warms up.
    let timed = time(args.common.rounds, round)?;
    let per_second = 1.0 / timed.seconds.median;
    let report = timed.report("decode", subject, &args.common.device, "token");
    // The bandwidth is measured after the memory, since it takes memory of its own.
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

/// Measures the reading of a prompt.
pub(crate) fn prefill(args: &BenchPrefillArgs) -> anyhow::Result<Report> {
    let device = records::device(&args.common.device)?;
    let (subject, model) = open(&args.model, &device)?;
    let peak = machine::peak_flops(&device, Precision::F32);
    let longest = (model.config().context_length - 1).max(1);
    let len = args.tokens.unwrap_or(longest).clamp(1, longest);
    let prompt = prompt(&model, len);
    let round = || {
        let mut decoder = Decoder::new(&model, std::slice::from_ref(&prompt), options(1))?;
        let begin = Instant::now();
        decoder.step()?;
        anyhow::Ok(begin.elapsed().as_secs_f64())
    };
    round()?; // Warms up.
    let timed = time(args.common.rounds, round)?;
    let tokens_per_second = len as f64 / timed.seconds.median;
    // A token sees half of the prompt on average, and only the last one's logits are made.
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

/// Whether weights are read from the memory that `read_bandwidth` measures.
fn on_cpu(device: &Device) -> bool {
    QuantizedMatrix::runs_on(device)
}

/// The model to measure, with its name.
fn open(choice: &ModelChoice, device: &Device) -> anyhow::Result<(String, Transformer)> {
    Ok(match &choice.record {
        Some(path) => {
            let record = records::open(path, false)?;
            (path.display().to_string(), record.load(device)?)
        }
        None => {
            let config = choice.size.config();
            (choice.size.name().to_string(), config.init(device, 1337)?)
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
