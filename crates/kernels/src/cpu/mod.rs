//! Fused kernels for training and running decoder-only Transformers on the CPU.
//!
//! All kernels work on plain slices of f32, use all cores, and give bitwise the same result for
//! any number of threads.

// Kernels are compiled once for each instruction set, which takes that all of their parts are
// inlined into one function.
#![allow(clippy::inline_always)]
// Formulas: letters are what the papers call them.
#![allow(clippy::many_single_char_names)]
// Arguments that hold `&mut` slices say by value that they are used up.
#![allow(clippy::needless_pass_by_value)]

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod columns;
mod crew;
pub mod cross_entropy;
pub mod dropout;
pub mod elementwise;
pub mod embedding;
pub mod exponentials;
pub mod gated;
mod math;
pub mod matmul;
pub mod norm;
mod norm_backward;
mod par;
pub mod rotary;
mod scratch;
mod simd;
pub mod squares;
pub mod view;

pub use par::for_each;
pub use simd::level_name;
