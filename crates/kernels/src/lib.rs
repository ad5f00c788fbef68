//! Fused tensor operations under the model.
//!
//! Each operation is a function on Burn tensors with two bodies: a reference in plain Burn
//! operations, which every backend has and the tests hold the other to, and a fast one for Burn's
//! flex backend (the CPU) with a backward pass written by hand. Which one runs is decided by where
//! the tensors are; callers need not know.
//!
//! | operation | fast body |
//! |---|---|
//! | [`linear`], [`linear_table`] | packed matrix products on the widest vectors, matrix-vector products for few rows |
//! | [`linear_quantized`], [`embed_quantized`] | products with weights of 8 or 4 bits, read as they are |
//! | [`attention`] | causal grouped-query attention that never stores the scores |
//! | [`normalize`] | layer and RMS norm |
//! | [`activate`], [`gate`] | GELU and its kin, recomputed in the backward pass |
//! | [`rotate`] | rotary positions |
//! | [`embed`] | rows of a table, and their sums on the way back |
//! | [`write_cache`] | keys and values of all rows, in place |
//! | [`dropout`] | masks from a counter-based generator |
//! | [`cross_entropy_sum`] | output layer and softmax cross-entropy joined, in chunks |
//! | [`sum_of_squares`], [`adamw`] | all parameters in one parallel pass |
//!
//! On the CPU every result is bitwise the same for any number of threads.

#![recursion_limit = "256"]

mod activation;
mod adamw;
mod attention;
#[cfg(feature = "flex")]
#[allow(unsafe_code)] // Exposes pooled memory as tensor storage; each use states why it is sound.
mod buffer_pool;
#[allow(unsafe_code)] // SIMD and shared slices; each use states why it is sound.
pub mod cpu;
mod cross_entropy;
mod dropout;
mod embedding;
#[cfg(feature = "flex")]
mod fused;
mod kv_cache;
mod linear;
mod mask;
mod norm;
mod quantized;
pub mod reference;
mod rng;
mod rotary;

pub use activation::{Activation, activate, gate};
pub use adamw::{AdamwStep, Moments, adamw, sum_of_squares};
pub use attention::{AttentionDropout, AttentionOptions, attention};
pub use cross_entropy::{IGNORE, OutputLayer, OutputWeight, cross_entropy_sum};
pub use dropout::{DropoutMask, dropout};
pub use embedding::embed;
pub use kv_cache::write_cache;
pub use linear::{Precision, linear, linear_table, linear_with_precision};
pub use mask::AttentionMask;
pub use norm::{NormKind, normalize};
pub use quantized::{Bits, QuantizedMatrix, embed_quantized, linear_quantized};
pub use rng::CounterRng;
pub use rotary::{RotaryTables, rotate};
