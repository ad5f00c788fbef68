//! Activation functions and dropout.

use burn::tensor::{Device, Tensor};

use super::{compare, gpu, values};
use crate::{Activation, CounterRng, DropoutMask, activate, dropout, gate};

const ALL: [Activation; 5] = [
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Relu,
    Activation::ReluSquared,
    Activation::Silu,
];

#[test]
fn activations_and_their_derivatives_agree_with_the_cpu() {
    for f in ALL {
        compare(&format!("{f:?}"), &[1011], 1e-6, |x| {
            activate(f, x[0].clone() * 3.0)
        });
    }
}

#[test]
fn activations_of_large_values_are_finite() {
    let Some(gpu) = gpu() else { return };
    for f in ALL {
        let x = Tensor::<1>::from_floats([-1e4, -90.0, 0.0, 90.0, 1e4], &gpu.clone().autodiff());
        let x = x.require_grad();
        let y = activate(f, x.clone());
        let gradients = y.clone().backward(); // of the sum
        let all = [values(y), values(x.grad(&gradients).unwrap())].concat();
        assert!(all.iter().all(|v| v.is_finite()), "{f:?}: {all:?}");
    }
}

#[test]
fn gated_activations_and_their_derivatives_agree_with_the_cpu() {
    for f in ALL {
        compare(&format!("{f:?}"), &[1011, 1011], 1e-6, |x| {
            gate(f, x[0].clone(), x[1].clone())
        });
    }
}

#[test]
fn dropout_masks_have_the_bits_of_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let rng = CounterRng::new(11).named("dropout");
    for offset in [0, 7, u64::from(u32::MAX) - 100, 3 << 40, 1 << 62] {
        for rate in [0.1, 0.5, 0.937] {
            let mask = DropoutMask { rng, rate, offset };
            let masked = |device: &Device| values(dropout(Tensor::<1>::ones([3001], device), mask));
            assert!(masked(&gpu) == masked(&Device::flex()), "{mask:?}");
        }
    }
    compare("dropout", &[1001], 0.0, |x| {
        let rate = 0.3;
        dropout(
            x[0].clone(),
            DropoutMask {
                rng,
                rate,
                offset: 5,
            },
        )
    });
}
