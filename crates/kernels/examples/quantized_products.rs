//! Compares products with quantized weights with the same products of f32 weights, for decoding (one row) up
//! to prompts (many rows).
//!
//! ```text
//! cargo run --release -p nextword-kernels --example quantized_products
//! ```

#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor};
use nextword_kernels::{Bits, QuantizedMatrix, linear, linear_quantized};

/// Repetitions of each measurement, alternating between both products; the median counts.
const ROUNDS: usize = 9;

/// Multiply-adds of a repetition, so that short products are repeated.
const MIN_MACS: usize = 100_000_000;

/// `[d_in, d_out]` of the matrices of SmolLM2-135M, and one of Llama 3.2 1B.
const SHAPES: [[usize; 2]; 4] = [[576, 576], [576, 1536], [1536, 576], [2048, 8192]];

const ROWS: [usize; 5] = [1, 4, 16, 128, 1024];

/// Median seconds of the calls of `first` and of `second`.
fn compare(
    calls: usize,
    first: &dyn Fn() -> Tensor<3>,
    second: &dyn Fn() -> Tensor<3>,
) -> [f64; 2] {
    let seconds = |product: &dyn Fn() -> Tensor<3>| {
        let start = Instant::now();
        for _ in 0..calls {
            black_box(product());
        }
        start.elapsed().as_secs_f64() / calls as f64
    };
    let mut rounds: Vec<[f64; 2]> = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push([seconds(first), seconds(second)]);
    }
    [0, 1].map(|i| {
        rounds.sort_by(|a, b| a[i].total_cmp(&b[i]));
        rounds[ROUNDS / 2][i]
    })
}

fn main() {
    let device = Device::flex();
    println!("billions of multiply-adds per second, and relative to f32\n");
    println!(
        "{:14}{:>6}{:>10}{:>18}{:>18}",
        "matrix", "rows", "f32", "8 bits", "4 bits"
    );
    for [d_in, d_out] in SHAPES {
        let weight = Tensor::<2>::random([d_in, d_out], Distribution::Uniform(-1.0, 1.0), &device);
        let matrices =
            [Bits::Int8, Bits::Int4].map(|b| QuantizedMatrix::from_weight(weight.clone(), b));
        for rows in ROWS {
            let x = Tensor::<3>::random([1, rows, d_in], Distribution::Uniform(-1.0, 1.0), &device);
            let macs = rows * d_in * d_out;
            let calls = MIN_MACS.div_ceil(macs);
            let giga = |seconds: f64| 1e-9 * macs as f64 / seconds;
            let float = || linear(x.clone(), weight.clone(), None);
            let [eight, four] = matrices.each_ref().map(|matrix| {
                compare(calls, &|| linear_quantized(x.clone(), matrix, None), &float)
            });
            let cell = |[quantized, float]: [f64; 2]| {
                format!("{:.1} ({:.2})", giga(quantized), float / quantized)
            };
            let shape = format!("{d_in} x {d_out}");
            let (plain, eight, four) = (giga(eight[1]), cell(eight), cell(four));
            println!("{shape:14}{rows:6}{plain:10.1}{eight:>18}{four:>18}");
        }
    }
}
