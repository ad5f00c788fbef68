//! Benchmarks for users of a machine: how fast does it train, generate, tokenize and load?
//!
//! Each benchmark repeats the same work several times and returns a [`Measurement`]: the median and range
//! of the time, and the fraction of the machine's own measured peak. Nothing is printed.
//!
//! | for | see |
//! |---|---|
//! | training steps | [`Runner::train`] |
//! | one token after the other | [`Runner::decode`] |
//! | processing of prompts | [`Runner::prefill`] |
//! | matrix products of typical shapes | [`Runner::matmul`] |
//! | tokenization | [`tokenize`] |
//! | start of a program until its first token | [`load`] |
//! | peak performance of the machine | [`machine`] |
//!
//! ```
//! use nextword_benchmark::{Runner, TrainWorkload};
//!
//! # fn main() -> Result<(), nextword_benchmark::BenchmarkError> {
//! let runner = Runner::open("flex", 2)?;
//! let measurement = runner.train(&TrainWorkload { steps: 1, ..TrainWorkload::default() })?;
//! assert_eq!(measurement.subject, "small in f32");
//! assert_eq!(measurement.seconds.rounds, 2);
//! assert!(measurement.tokens_per_second.is_some_and(|speed| speed > 0.0));
//! # Ok(())
//! # }
//! ```

// Burn's nested tensor types overflow the default limit in release builds with wgpu.
#![recursion_limit = "256"]

mod decode;
mod error;
mod load;
pub mod machine;
mod matmul;
mod measurement;
mod runner;
mod size;
mod tokenize;
mod train;

pub use error::BenchmarkError;
pub use load::load;
pub use measurement::{Measurement, Spread};
pub use runner::Runner;
pub use size::Size;
pub use tokenize::{sample_text, tokenize};
pub use train::TrainWorkload;
