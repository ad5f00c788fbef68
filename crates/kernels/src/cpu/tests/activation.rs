//! Activations, plain and gated.
#![allow(
    clippy::float_cmp,
    clippy::many_single_char_names,
    clippy::needless_for_each
)]

use crate::Activation;
use crate::cpu::activation;
use crate::cpu::gated::{self, GatedInput};
use crate::cpu::testing::{
    Rng, assert_close, assert_same_for_any_threads, check_gradient, erf, to_f64,
};

const ALL: [Activation; 5] = [
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Relu,
    Activation::ReluSquared,
    Activation::Silu,
];
const SIZES: [usize; 7] = [0, 1, 7, 16, 33, 1000, 40_000];

fn value(f: Activation, x: f64) -> f64 {
    match f {
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / 2.0_f64.sqrt())),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Relu => x.max(0.0),
        Activation::ReluSquared => x.max(0.0).powi(2),
        Activation::Silu => x / (1.0 + (-x).exp()),
    }
}

fn derivative(f: Activation, x: f64) -> f64 {
    match f {
        Activation::Relu => f64::from(u8::from(x > 0.0)),
        _ => (value(f, x + 1e-5) - value(f, x - 1e-5)) / 2e-5,
    }
}

#[test]
fn values_and_derivatives_match_f64() {
    let mut rng = Rng(1);
    for f in ALL {
        for len in SIZES {
            let x: Vec<f32> = rng.floats(len).iter().map(|x| x * 4.0).collect();
            let mut y = vec![f32::NAN; len];
            activation::forward(f, &x, &mut y);
            let want: Vec<f64> = to_f64(&x).iter().map(|x| value(f, *x)).collect();
            assert_close(&y, &want, 4e-7, &format!("{f:?}"));
            let dy = rng.floats(len);
            let mut dx = vec![f32::NAN; len];
            activation::backward(f, &x, &dy, &mut dx);
            let want: Vec<f64> = x
                .iter()
                .zip(&dy)
                .map(|(x, d)| derivative(f, f64::from(*x)) * f64::from(*d))
                .collect();
            assert_close(&dx, &want, 2e-6, &format!("{f:?} backward"));
        }
    }
}

#[test]
fn large_inputs_are_accurate() {
    for f in ALL {
        let x = [-1e4, -90.0, -20.0, 20.0, 90.0, 1e4, 0.0];
        let mut y = [f32::NAN; 7];
        activation::forward(f, &x, &mut y);
        let want: Vec<f64> = x.iter().map(|x| value(f, f64::from(*x))).collect();
        assert_close(&y, &want, 1e-6, &format!("{f:?}"));
        let mut dx = [f32::NAN; 7];
        activation::backward(f, &x, &[1.0; 7], &mut dx);
        assert!(dx.iter().all(|d| d.is_finite()), "{f:?}: {dx:?}");
    }
}

#[test]
fn gated_activations_match_f64() {
    let mut rng = Rng(3);
    for f in ALL {
        for len in SIZES {
            let [gate, up, grad] = [(); 3].map(|()| rng.floats(len));
            let x = GatedInput {
                gate: &gate,
                up: &up,
            };
            let [mut hidden, mut d_gate, mut d_up] = [(); 3].map(|()| vec![f32::NAN; len]);
            gated::forward(f, x, &mut hidden);
            gated::backward(f, x, &grad, &mut d_gate, &mut d_up);
            let (g, u, d) = (to_f64(&gate), to_f64(&up), to_f64(&grad));
            let each = |h: &dyn Fn(usize) -> f64| (0..len).map(h).collect::<Vec<_>>();
            assert_close(&hidden, &each(&|i| value(f, g[i]) * u[i]), 2e-6, "gated");
            assert_close(
                &d_gate,
                &each(&|i| derivative(f, g[i]) * u[i] * d[i]),
                2e-6,
                "gate",
            );
            assert_close(&d_up, &each(&|i| value(f, g[i]) * d[i]), 2e-6, "up");
        }
    }
    let input = [0.3];
    check_gradient(
        &mut rng,
        &input,
        &[derivative(Activation::Silu, 0.3)],
        |x| value(Activation::Silu, x[0]),
        "silu",
    );
}

#[test]
fn results_are_identical_for_any_thread_count() {
    let mut rng = Rng(4);
    let (x, dy) = (rng.floats(100_003), rng.floats(100_003));
    for f in ALL {
        assert_same_for_any_threads(|| {
            let mut y = vec![0.0; x.len()];
            activation::forward(f, &x, &mut y);
            let mut dx = vec![0.0; x.len()];
            activation::backward(f, &x, &dy, &mut dx);
            [y, dx].concat()
        });
    }
}
