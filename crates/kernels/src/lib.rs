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
mod cache;
#[allow(unsafe_code)] // Vector instructions and shared slices; each use says why it is sound.
pub mod cpu;
mod cross_entropy;
mod dropout;
mod embedding;
#[cfg(feature = "flex")]
mod fused;
mod linear;
mod norm;
#[cfg(feature = "flex")]
#[allow(unsafe_code)] // The memory of a tensor; each use says why it is sound.
mod pool;
mod quantized;
pub mod reference;
mod rng;
mod rotary;
mod sight;

pub use activation::{Activation, activate, gate};
pub use adamw::{AdamwStep, Moments, adamw, sum_of_squares};
pub use attention::{AttentionDropout, AttentionOptions, attention};
pub use cache::write_cache;
pub use cross_entropy::{IGNORE, OutputLayer, OutputWeight, cross_entropy_sum};
pub use dropout::{DropoutMask, dropout};
pub use embedding::embed;
pub use linear::{Precision, linear, linear_in, linear_table};
pub use norm::{NormKind, normalize};
pub use quantized::{Bits, QuantizedMatrix, embed_quantized, linear_quantized};
pub use rng::CounterRng;
pub use rotary::{RotaryTables, rotate};
pub use sight::Sight;
