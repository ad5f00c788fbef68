//! The orthogonalization step of Muon.

use burn::tensor::Tensor;

/// Approximates the orthogonal matrix nearest to `direction`, `[d_in, d_out]`, scaled by
/// `sqrt(max(1, d_out / d_in))`.
///
/// Runs five Newton-Schulz iterations with the quintic of Jordan et al. (2024, "Muon"). The singular
/// values end up between about 0.7 and 1.2, which is sufficient.
pub(crate) fn orthogonalize(direction: Tensor<2>) -> Tensor<2> {
    let [d_in, d_out] = direction.dims();
    let wide = d_in <= d_out;
    let x = if wide {
        direction
    } else {
        direction.transpose()
    };
    let norm = (x.clone() * x.clone()).sum().sqrt() + 1e-7;
    let mut x = x / norm.unsqueeze();
    for _ in 0..5 {
        let a = x.clone().matmul(x.clone().transpose());
        let b = a.clone() * -4.7750 + a.clone().matmul(a) * 2.0315;
        x = x.clone() * 3.4445 + b.matmul(x);
    }
    let x = if wide { x } else { x.transpose() };
    x * (d_out as f64 / d_in as f64).max(1.0).sqrt()
}
