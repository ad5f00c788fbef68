use burn::tensor::{Device, Distribution, Tensor};
use std::time::Instant;
fn main() {
    let device = Device::flex();
    // Weights of many layers, so that they come from memory.
    for (k, n) in [(576, 576), (576, 1536), (1536, 576), (768, 3072)] {
        let copies = (200_000_000 / (k * n * 4)).max(1);
        let ws: Vec<Tensor<2>> = (0..copies)
            .map(|_| Tensor::random([k, n], Distribution::Default, &device))
            .collect();
        let mut base = 0.0;
        for rows in [1usize, 2, 4, 6, 8, 9, 12, 16, 24, 32] {
            let x = Tensor::<3>::random([rows, 1, k], Distribution::Default, &device);
            let mut best = f64::MAX;
            for _ in 0..5 {
                let t = Instant::now();
                for w in &ws {
                    std::hint::black_box(nextword_kernels::linear(x.clone(), w.clone(), None));
                }
                best = best.min(t.elapsed().as_secs_f64());
            }
            let per = best / copies as f64;
            if rows == 1 {
                base = per;
            }
            let gf = 2.0 * (rows * k * n) as f64 / per / 1e9;
            println!(
                "{k}x{n} rows {rows:2}: {:.1} us, {:.1} GF/s, {:.1} GB/s, throughput x{:.2}",
                per * 1e6,
                gf,
                (k * n * 4) as f64 / per / 1e9,
                rows as f64 * base / per
            );
        }
    }
}
