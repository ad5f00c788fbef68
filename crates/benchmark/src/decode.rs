//! Benchmarks of prefill and of token-by-token decoding.

use std::time::Instant;

use nextword_generate::{DecodeOptions, Decoder, SamplingConfig};
use nextword_kernels::{is_flex, record_launches};
use nextword_model::{Precision, Transformer};

use crate::{BenchmarkError, Measurement, Runner, machine};

impl Runner {
    /// Times the tokens of one completion of a short fixed prompt: `tokens` per round, at most half of the
    /// context. `subject` is the name of the model in the result. The peak is the memory bandwidth, since each
    /// token reads all weights: on a CPU that of reading, elsewhere that of copies on the device.
    ///
    /// ```
    /// use nextword_benchmark::{Runner, Size};
    ///
    /// # fn main() -> Result<(), nextword_benchmark::BenchmarkError> {
    /// let runner = Runner::open("flex", 1)?;
    /// let model = Size::Small.config().init(runner.device(), 7)?;
    /// let measurement = runner.decode("small", &model, 4)?;
    /// assert!(measurement.peak_is_bandwidth && measurement.unit == "token");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`BenchmarkError::Generate`] if the model produces NaN or infinity.
    pub fn decode(
        &self,
        subject: &str,
        model: &Transformer,
        tokens: usize,
    ) -> Result<Measurement, BenchmarkError> {
        let context = model.config().context_length;
        let tokens = tokens.min(context / 2).max(1);
        let prompt = prompt(model, (context - tokens).clamp(1, 16));
        let round = || -> Result<f64, BenchmarkError> {
            let prompts = std::slice::from_ref(&prompt);
            let mut decoder = Decoder::new(model, prompts, options(tokens + 1))?;
            decoder.step()?; // Prefill.
            let start = Instant::now();
            for _ in 0..tokens {
                decoder.step()?;
            }
            Ok(start.elapsed().as_secs_f64() / tokens as f64)
        };
        round()?; // Warms up.
        let timed = self.measure(round)?;
        let launches = launches_per_token(model, &prompt)?;
        let per_second = 1.0 / timed.seconds.median;
        let report = self.report(timed, "decode", subject, "token");
        // Measured last, because it would raise the peak memory in the report.
        let bandwidth = if is_flex(&self.device) {
            machine::read_bandwidth()
        } else {
            machine::copy_bandwidth(&self.device)
        };
        let bytes = model.bytes_per_token() as f64 * per_second;
        Ok(Measurement {
            tokens_per_second: Some(per_second),
            share_of_peak: Some(bytes / bandwidth),
            peak: Some(bandwidth),
            peak_is_bandwidth: true,
            bytes_per_second: Some(bytes),
            launches,
            ..report
        })
    }

    /// Times the processing of a prompt of `tokens` tokens, by default as many as the context holds.
    /// `subject` is the name of the model in the result.
    ///
    /// ```
    /// use nextword_benchmark::{Runner, Size};
    ///
    /// # fn main() -> Result<(), nextword_benchmark::BenchmarkError> {
    /// let runner = Runner::open("flex", 1)?;
    /// let model = Size::Small.config().init(runner.device(), 7)?;
    /// let measurement = runner.prefill("small", &model, None)?;
    /// assert!(measurement.flops_per_second.is_some() && measurement.unit == "prompt");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`BenchmarkError::Generate`] if the model produces NaN or infinity.
    pub fn prefill(
        &self,
        subject: &str,
        model: &Transformer,
        tokens: Option<usize>,
    ) -> Result<Measurement, BenchmarkError> {
        let peak = machine::peak_flops(&self.device, Precision::F32);
        let config = model.config();
        let max_len = (config.context_length - 1).max(1);
        let len = tokens.unwrap_or(max_len).clamp(1, max_len);
        let prompt = prompt(model, len);
        let round = || -> Result<f64, BenchmarkError> {
            let prompts = std::slice::from_ref(&prompt);
            let mut decoder = Decoder::new(model, prompts, options(1))?;
            let start = Instant::now();
            decoder.step()?;
            Ok(start.elapsed().as_secs_f64())
        };
        round()?; // Warms up.
        let timed = self.measure(round)?;
        let tokens_per_second = len as f64 / timed.seconds.median;
        // A token attends to half of the prompt on average; only the last one's logits are computed.
        let head = 2 * config.d_model * config.vocab_size;
        let work = len * (config.forward_flops(len.div_ceil(2)) - head) + head;
        let flops = work as f64 / timed.seconds.median;
        Ok(Measurement {
            tokens_per_second: Some(tokens_per_second),
            ..self
                .report(timed, "prefill", subject, "prompt")
                .with_flops(flops, peak)
        })
    }
}

/// GPU kernels of one decoded token, if there are any.
fn launches_per_token(
    model: &Transformer,
    prompt: &[u32],
) -> Result<Option<usize>, BenchmarkError> {
    let mut decoder = Decoder::new(model, &[prompt.to_vec()], options(2))?;
    decoder.step()?; // Prefill.
    let (token, launches) = record_launches(|| decoder.step());
    token?;
    Ok(Some(launches.len()).filter(|count| *count > 0))
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
