//! Benchmark of matrix products of typical model shapes.

use std::hint::black_box;
use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor};
use nextword_kernels::{Precision, linear};

use super::args::BenchCommon;
use super::{Report, machine, measure_rounds};
use crate::models;

/// Names, and the sizes `[rows, d_in, d_out]`.
const SHAPES: [(&str, [usize; 3]); 7] = [
    ("small, forward", [768, 128, 512]),
    ("medium, forward", [1024, 384, 1536]),
    ("medium, back", [1024, 1536, 384]),
    ("gpt2, forward", [512, 768, 3072]),
    ("gpt2, back", [512, 3072, 768]),
    ("gpt2, one token", [1, 768, 3072]),
    ("square", [1024, 1024, 1024]),
];

/// Times each shape.
pub(crate) fn run(common: &BenchCommon) -> anyhow::Result<Vec<Report>> {
    let device = models::open_device(&common.device)?;
    let peak = machine::peak_flops(&device, Precision::F32);
    SHAPES
        .iter()
        .map(|(name, shape)| measure(name, *shape, common, &device, peak))
        .collect()
}

fn measure(
    name: &str,
    [rows, d_in, d_out]: [usize; 3],
    common: &BenchCommon,
    device: &Device,
    peak: f64,
) -> anyhow::Result<Report> {
    let random = |shape: [usize; 3]| Tensor::<3>::random(shape, Distribution::Default, device);
    let (x, w) = (random([1, rows, d_in]), random([1, d_in, d_out]));
    let w = w.reshape([d_in, d_out]);
    let work = 2.0 * (rows * d_in * d_out) as f64;
    let repeats = (2e9 / work).clamp(2.0, 2000.0) as usize;
    let round = || {
        let start = Instant::now();
        let mut last = None;
        for _ in 0..repeats {
            last = Some(linear(x.clone(), w.clone(), None));
        }
        // Reading a value waits for the device.
        let last = last.map(|y| y.narrow(1, 0, 1).narrow(2, 0, 1).into_data());
        black_box(last);
        Ok(start.elapsed().as_secs_f64() / repeats as f64)
    };
    round()?; // Warms up.
    let timed = measure_rounds(common.rounds, round)?;
    let subject = format!("{name} {rows}x{d_in}x{d_out}");
    let flops = work / timed.seconds.median;
    let report = timed.report("matmul", subject, &common.device, "product");
    Ok(report.with_flops(flops, peak))
}
