//! Norms.

use super::{compare, gpu, random_tensor, run, values};
use crate::{NormKind, normalize};

#[test]
fn norms_and_their_gradients_agree_with_the_cpu() {
    for (rows, width) in [(3, 5), (37, 384), (130, 70)] {
        for kind in [NormKind::Layer, NormKind::Rms] {
            let label = format!("{kind:?} of {rows} rows of {width}");
            compare(&label, &[rows * width, width, width], 2e-5, |x| {
                let rows = x[0].clone().reshape([rows, width]);
                normalize(kind, rows, x[1].clone(), Some(x[2].clone()), 1e-2)
            });
            compare(&label, &[rows * width, width], 2e-5, |x| {
                let rows = x[0].clone().reshape([rows, 1, width]);
                normalize(kind, rows, x[1].clone(), None, 1e-2)
            });
        }
    }
}

/// Frozen parameters need the gradient of the input alone, and the first norm of a model may need those of the
/// parameters alone.
#[test]
fn norms_give_the_gradients_of_input_and_parameters_alone() {
    let Some(gpu) = gpu() else { return };
    let device = gpu.autodiff();
    let (rows, width) = (37, 70);
    let load = |salt: u64, len: usize| random_tensor(salt, len, &device);
    let all = run(
        &device.clone().without_autodiff(),
        &[rows * width, width, width],
        &|x| {
            let rows = x[0].clone().reshape([rows, width]);
            normalize(
                NormKind::Layer,
                rows,
                x[1].clone(),
                Some(x[2].clone()),
                1e-2,
            )
        },
    );
    for trained in [[true, false], [false, true]] {
        let inputs = [(0, rows * width), (1, width), (2, width)].map(|(salt, len)| {
            let is_trained = if salt == 0 { trained[0] } else { trained[1] };
            let x = load(salt, len);
            if is_trained { x.require_grad() } else { x }
        });
        let [x, weight, bias] = inputs.clone();
        let y = normalize(
            NormKind::Layer,
            x.reshape([rows, width]),
            weight,
            Some(bias),
            1e-2,
        );
        let weights = load(99, rows * width).reshape([rows, width]);
        let gradients = (y * weights).backward();
        for (i, input) in inputs.iter().enumerate() {
            let Some(gradient) = input.grad(&gradients) else {
                assert!(!trained[usize::from(i > 0)]);
                continue;
            };
            super::assert_close("gradient", &values(gradient), &all[i + 1], 2e-5);
        }
    }
}
