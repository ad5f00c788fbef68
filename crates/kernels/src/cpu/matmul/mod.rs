//! Matrix multiplication on the CPU: general (GEMM), for few rows (matvec), with quantized
//! weights, and in bf16.
#![allow(
    clippy::inline_always,
    reason = "target features of an entry point apply only to code inlined into it"
)]
#![allow(
    clippy::many_single_char_names,
    reason = "m, k, n, a, b, c are the standard names in the literature"
)]
#![allow(
    clippy::needless_range_loop,
    reason = "indexed loops over registers unroll; iterators often do not"
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
