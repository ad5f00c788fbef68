//! Matrix products for the CPU: general, of few rows, with quantized weights, in bf16.
#![allow(
    clippy::inline_always,
    reason = "the target features of an entry point reach only what is inlined into it"
)]
#![allow(
    clippy::many_single_char_names,
    reason = "m, k, n, a, b, c are what the literature calls them"
)]
#![allow(
    clippy::needless_range_loop,
    reason = "indexed loops over registers unroll; iterators over them often do not"
)]

pub mod gemm;
pub mod isa;
pub mod matrix;
pub mod matvec;
pub mod par;
pub mod quant;
pub mod scratch;
mod simd;
#[cfg(test)]
mod testing;

pub use gemm::{GemmOptions, gemm};
pub use matrix::{MatMut, MatRef};
pub use matvec::{MatvecOptions, matvec};
