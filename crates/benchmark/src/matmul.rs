//! Benchmark of matrix products of typical model shapes.

use std::convert::Infallible;
use std::hint::black_box;
use std::time::Instant;

use burn::tensor::{Distribution, Tensor};
use nextword_kernels::{Precision, linear};

use crate::{Measurement, Runner, machine};

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

impl Runner {
    /// Times matrix products of the shapes in typical models, one measurement per shape.
    pub fn matmul(&self) -> Vec<Measurement> {
        let peak = machine::peak_flops(&self.device, Precision::F32);
        SHAPES
            .iter()
            .map(|(name, shape)| self.measure_product(name, *shape, peak))
            .collect()
    }

    fn measure_product(
        &self,
        name: &str,
        [rows, d_in, d_out]: [usize; 3],
        peak: f64,
    ) -> Measurement {
        let random =
            |shape: [usize; 3]| Tensor::<3>::random(shape, Distribution::Default, &self.device);
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
            let last = last.map(|y| y.narrow(1, 0, 1).narrow(2, 0, 1).into_scalar::<f32>());
            black_box(last);
            start.elapsed().as_secs_f64() / repeats as f64
        };
        round(); // Warms up.
        let Ok(timed) = self.measure(|| Ok::<_, Infallible>(round()));
        let subject = format!("{name} {rows}x{d_in}x{d_out}");
        let flops = work / timed.seconds.median;
        let report = self.report(timed, "matmul", subject, "product");
        report.with_flops(flops, peak)
    }
}
