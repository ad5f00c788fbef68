//! Every GPU kernel against the fast CPU implementation of the same operation, which is itself held to f64.
//!
//! They run on a software adapter; without one they do nothing, unless `NEXTWORD_REQUIRE_WGPU` is set.

mod activation;
mod attention;
mod cross_entropy;
mod kv_cache;
mod launches;
mod linear;
mod norm;
mod optimizer;
mod positions;
mod shaders;

use burn::tensor::{Device, DeviceKind, Gradients, Tensor, TensorData};
use nextword_base::CounterRng;

/// The software adapter, if the machine has one.
pub(super) fn gpu() -> Option<Device> {
    use std::sync::OnceLock;
    static FOUND: OnceLock<bool> = OnceLock::new();
    let device = Device::wgpu(DeviceKind::Cpu);
    let found = *FOUND.get_or_init(|| {
        std::panic::catch_unwind(|| Tensor::<1>::ones([1], &device).into_scalar::<f32>() == 1.0)
            .unwrap_or(false)
    });
    let required = std::env::var("NEXTWORD_REQUIRE_WGPU").is_ok_and(|value| value != "0");
    assert!(found || !required, "no software adapter for wgpu");
    found.then_some(device)
}

/// `len` uniform values in [-2, 2).
pub(super) fn random(salt: u64, len: usize) -> Vec<f32> {
    let rng = CounterRng::new(salt);
    (0..len as u64)
        .map(|i| (rng.uniform(i) * 4.0 - 2.0) as f32)
        .collect()
}

/// A flat tensor of random values.
pub(super) fn random_tensor(salt: u64, len: usize, device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(random(salt, len), [len]), device)
}

pub(super) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec::<f32>().unwrap()
}

/// Fails unless all values agree within `tolerance`, relative to the largest expected value or 1.
#[track_caller]
pub(super) fn assert_close(label: &str, actual: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(actual.len(), expected.len(), "{label}: number of values");
    let scale = expected.iter().fold(1.0_f32, |max, x| max.max(x.abs()));
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        let close = (a - e).abs() <= tolerance * scale;
        assert!(close, "{label}: element {i} is {a}, not {e}");
    }
}

/// The output of `f` and the gradients of all inputs, which are random and flat, on one device.
fn run<const O: usize>(
    device: &Device,
    lens: &[usize],
    f: &impl Fn(&[Tensor<1>]) -> Tensor<O>,
) -> Vec<Vec<f32>> {
    let device = device.clone().autodiff();
    let load =
        |(salt, len): (usize, &usize)| random_tensor(salt as u64, *len, &device).require_grad();
    let inputs: Vec<Tensor<1>> = lens.iter().enumerate().map(load).collect();
    let output = f(&inputs);
    let shape = output.dims();
    let weights = random_tensor(99, shape.iter().product(), &device).reshape(shape);
    let gradients: Gradients = (output.clone() * weights).backward(); // of the sum
    let gradient = |input: &Tensor<1>| values(input.grad(&gradients).unwrap());
    let mut all = vec![values(output)];
    all.extend(inputs.iter().map(gradient));
    all
}

/// Fails unless sums of `terms` products agree. Each product is of values between -2 and 2. Two orders of a sum
/// differ by the rounding of its partial sums, in practice less than `terms` times 2e-7; a product that is left out
/// or added twice is more than `terms` times 1e-6 for all but a few. The relative part is for activation functions.
#[track_caller]
fn assert_close_sums(label: &str, actual: &[f32], expected: &[f32], terms: usize) {
    assert_eq!(actual.len(), expected.len(), "{label}: number of values");
    let absolute = 1e-6 * (terms + 4) as f32;
    let excess = |(a, e): (&f32, &f32)| (a - e).abs() - 1e-5 * e.abs() - absolute;
    let excesses = actual.iter().zip(expected).map(excess).enumerate();
    let worst = excesses.max_by(|(_, a), (_, b)| a.total_cmp(b));
    let Some((i, excess)) = worst else { return };
    let (a, e) = (actual[i], expected[i]);
    assert!(excess <= 0.0, "{label}: element {i} is {a}, not {e}");
}

/// Compares output and gradients of `f`, and its output without gradients, on the software adapter with those on the
/// CPU. Inputs are random and flat, of the lengths in `inputs`; the second number of each is that of the products in
/// an element of its gradient, as `terms` is for the output.
pub(super) fn compare_sums<const O: usize>(
    label: &str,
    inputs: &[(usize, usize)],
    terms: usize,
    f: impl Fn(&[Tensor<1>]) -> Tensor<O>,
) {
    let Some(gpu) = gpu() else { return };
    let lens: Vec<usize> = inputs.iter().map(|(len, _)| *len).collect();
    let results = |device: &Device| {
        let load = |(salt, len): (usize, &usize)| random_tensor(salt as u64, *len, device);
        let plain: Vec<Tensor<1>> = lens.iter().enumerate().map(load).collect();
        let mut all = run(device, &lens, &f);
        all.push(values(f(&plain)));
        all
    };
    let (actual, expected) = (results(&gpu), results(&Device::flex()));
    let gradients = inputs.iter().map(|(_, terms)| *terms);
    let terms = std::iter::once(terms).chain(gradients).chain([terms]);
    for (i, terms) in terms.enumerate() {
        let part = match i {
            0 => "output".to_string(),
            i if i > inputs.len() => "output without gradients".to_string(),
            i => format!("gradient of input {}", i - 1),
        };
        assert_close_sums(&format!("{label}: {part}"), &actual[i], &expected[i], terms);
    }
}

/// Compares output and gradients of `f` on the software adapter with those on the CPU, for random flat
/// inputs of these lengths.
pub(super) fn compare<const O: usize>(
    label: &str,
    lens: &[usize],
    tolerance: f32,
    f: impl Fn(&[Tensor<1>]) -> Tensor<O>,
) {
    let Some(gpu) = gpu() else { return };
    let actual = run(&gpu, lens, &f);
    let expected = run(&Device::flex(), lens, &f);
    for (i, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
        let part = match i {
            0 => "output".to_string(),
            i => format!("gradient of input {}", i - 1),
        };
        assert_close(&format!("{label}: {part}"), actual, expected, tolerance);
    }
}
