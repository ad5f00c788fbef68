//! Benchmark of tokenization.

use std::convert::Infallible;
use std::time::Instant;

use nextword_data::{Stories, Tokenizer};

use crate::Measurement;
use crate::measurement::measure_rounds;

/// Size of the built-in text in bytes.
const SAMPLE_BYTES: usize = 1 << 20;

/// Times a tokenizer on one core, in seconds per megabyte of `text`. `subject` is its name in the result.
///
/// ```
/// use nextword_benchmark::{sample_text, tokenize};
/// use nextword_data::{TokenizerConfig, TokenizerKind, build_tokenizer};
///
/// # fn main() -> Result<(), nextword_data::DataError> {
/// let config = TokenizerConfig { kind: TokenizerKind::Byte, ..TokenizerConfig::default() };
/// let tokenizer = build_tokenizer(&config, std::iter::empty())?;
/// let measurement = tokenize("bytes", tokenizer.as_ref(), &sample_text(), 2);
/// // One token per byte: a million in the time of a megabyte.
/// let tokens = measurement.tokens_per_second.unwrap_or(0.0) * measurement.seconds.median;
/// assert!((tokens - 1e6).abs() < 1.0);
/// # Ok(())
/// # }
/// ```
pub fn tokenize(
    subject: &str,
    tokenizer: &dyn Tokenizer,
    text: &str,
    rounds: usize,
) -> Measurement {
    let mut tokens = tokenizer.encode(text).ids.len(); // Warms up.
    let round = || {
        let start = Instant::now();
        tokens = tokenizer.encode(text).ids.len();
        Ok::<_, Infallible>(start.elapsed().as_secs_f64() / text.len().max(1) as f64 * 1e6)
    };
    let Ok(timed) = measure_rounds(rounds.max(1), round);
    let megabytes = text.len() as f64 / 1e6;
    let per_second = tokens as f64 / megabytes / timed.seconds.median;
    Measurement {
        tokens_per_second: Some(per_second),
        ..timed.report("tokenize", subject, "one core", "megabyte")
    }
}

/// At least 1 MiB of built-in stories, one per line: a text for [`tokenize`].
pub fn sample_text() -> String {
    let mut text = String::with_capacity(SAMPLE_BYTES + 4096);
    for story in Stories::new(1, usize::MAX).iter() {
        text.push_str(&story);
        text.push('\n');
        if text.len() >= SAMPLE_BYTES {
            break;
        }
    }
    text
}
