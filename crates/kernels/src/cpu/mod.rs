//! CPU kernels for training and running decoder-only Transformers.
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

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod cross_entropy;
pub mod dropout;
pub mod elementwise;
pub mod embedding;
pub mod exp_f64;
pub mod gated;
mod math;
pub mod matmul;
pub mod norm;
mod norm_backward;
mod par;
pub mod reduce;
pub mod rotary;
mod scratch;
mod simd;
pub mod sum_of_squares;
mod thread_pool;
pub mod view;

pub use par::for_each;
pub use simd::isa_name;
