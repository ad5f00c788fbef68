//! CPU kernels for training and running Transformers.
//!
//! All kernels work on plain f32 slices, use all cores, and give bitwise identical results for any
//! number of threads.

// Each kernel is compiled once per instruction set, so all of its parts must be inlined into one
// function.
#![allow(clippy::inline_always)]
// Single letters follow the notation of the papers.
#![allow(clippy::many_single_char_names)]
// Arguments that contain `&mut` slices are passed by value to show that they are consumed.
#![allow(clippy::needless_pass_by_value)]
// Without the flex backend, only quantization and sampling use this module.
#![cfg_attr(not(feature = "flex"), allow(dead_code, unused_imports))]

pub(crate) mod activation;
pub(crate) mod adamw;
pub(crate) mod attention;
pub(crate) mod cross_entropy;
pub(crate) mod dropout;
pub(crate) mod elementwise;
pub(crate) mod embedding;
pub(crate) mod exp_f64;
pub(crate) mod gated;
pub(crate) mod isa;
mod math;
pub(crate) mod matmul;
pub(crate) mod norm;
pub(crate) mod norm_backward;
pub(crate) mod par;
pub(crate) mod reduce;
pub(crate) mod rotary;
mod scratch;
mod simd;
pub(crate) mod sum_of_squares;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod thread_pool;
pub(crate) mod view;
