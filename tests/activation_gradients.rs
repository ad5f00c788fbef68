//! Values and gradients of every activation and gate on every backend, compared with PyTorch's, which
//! `scripts/make_reference.py` computes in f64.

use std::collections::BTreeMap;
use std::fs;

use burn::tensor::{Device, Tensor, TensorData};
use nextword_kernels::{Activation, activate, gate};

use crate::util::{Tolerance, assert_close, devices, root};

const ACTIVATIONS: [(&str, Activation); 5] = [
    ("gelu", Activation::Gelu),
    ("gelu_tanh", Activation::GeluTanh),
    ("relu", Activation::Relu),
    ("relu_squared", Activation::ReluSquared),
    ("silu", Activation::Silu),
];

/// Rounding of f32, and of the approximations of `erf` and `tanh` on GPUs. The tanh approximation's
/// derivative differs from the exact GELU's by up to 1e-3.
const TOLERANCE: Tolerance = Tolerance::new(2e-6, 4e-6);

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

#[test]
fn activations_and_gates_have_pytorch_gradients_on_all_backends() {
    let path = root().join("tests/fixtures/activations/gradients.json");
    let expected: BTreeMap<String, Vec<f32>> =
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    for (device_name, device) in devices() {
        let device = device.autodiff();
        let input = |name: &str, device: &Device| {
            let data = TensorData::new(expected[name].clone(), [1, expected[name].len()]);
            Tensor::<2>::from_data(data, device)
        };
        for (name, activation) in ACTIVATIONS {
            let check = |found: Tensor<2>, expected_name: &str| {
                let label = format!("{expected_name} on {device_name}");
                assert_close(&values(found), &expected[expected_name], TOLERANCE, &label);
            };
            let [x, up, factor] = ["x", "up", "factor"].map(|name| input(name, &device));
            let x = x.require_grad();
            let y = activate(activation, x.clone());
            let gradients = (y.clone() * factor.clone()).sum().backward();
            check(y, name);
            check(x.grad(&gradients).unwrap(), &format!("{name}_dx"));

            let (x, up) = (input("x", &device).require_grad(), up.require_grad());
            let gated = gate(activation, x.clone(), up.clone());
            let gradients = (gated * factor).sum().backward();
            check(x.grad(&gradients).unwrap(), &format!("{name}_d_gate"));
            check(up.grad(&gradients).unwrap(), &format!("{name}_d_up"));
        }
    }
}
