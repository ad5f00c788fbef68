//! CPU kernels compared with f64, finite differences, and single-threaded runs.

#![allow(clippy::unwrap_used, clippy::pedantic)]

mod activation;
mod attention;
mod attention_masks;
mod attention_reference;
mod bounds;
mod decode;
mod elementwise;
mod loss;
mod norm;
mod optimizer;
mod positions;
