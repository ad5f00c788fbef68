//! The CPU's kernels against f64, finite differences, and themselves on one thread.

#![allow(clippy::unwrap_used, clippy::pedantic)]

mod activation;
mod attention;
mod attention_reference;
mod common;
mod decode;
mod elementwise;
mod loss;
mod norm;
mod optimizer;
mod positions;
