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

pub(crate) mod gemm;
pub(crate) mod matrix;
pub(crate) mod matvec;
mod panel;
pub(crate) mod quant;
mod transposed;

pub(crate) use gemm::{GemmOptions, gemm, gemm_with_update, k_blocks};
pub(crate) use matrix::{MatMut, MatRef};
pub(crate) use matvec::{MatvecOptions, matvec};
pub(crate) use transposed::transposed_product;
