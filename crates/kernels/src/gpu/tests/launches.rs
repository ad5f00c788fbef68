//! How many kernels an operation launches, forward and backward.

use burn::tensor::{Int, Tensor};

use super::{gpu, random_tensor};
use crate::gpu::cross_entropy::cross_entropy_sum;
use crate::{
    Activation, AttentionMask, AttentionOptions, CounterRng, DropoutMask, LinearFusion,
    LinearWeight, NormKind, Precision, RotaryTables, activate, attention, dropout, embed, gate,
    linear_fused, normalize, record_launches, rotate,
};

/// Fails unless the operation and its backward pass launch `count` kernels, besides the one that fills the
/// output's gradient with ones.
#[track_caller]
fn assert_launches<const D: usize>(
    label: &str,
    count: usize,
    lens: &[usize],
    f: impl FnOnce(&[Tensor<1>]) -> Tensor<D>,
) {
    let Some(gpu) = gpu() else { return };
    let device = gpu.autodiff();
    let load = |len: &usize| random_tensor(1, *len, &device).require_grad();
    let inputs: Vec<Tensor<1>> = lens.iter().map(load).collect();
    let (gradients, names) = record_launches(|| f(&inputs).backward());
    assert!(inputs.iter().all(|x| x.grad(&gradients).is_some()));
    assert_eq!(names.len(), count + 1, "{label}: {names:#?}");
}

#[test]
fn operations_launch_few_kernels() {
    assert_launches("activation", 2, &[64], |x| {
        activate(Activation::Gelu, x[0].clone())
    });
    assert_launches("gate", 2, &[64, 64], |x| {
        gate(Activation::Silu, x[0].clone(), x[1].clone())
    });
    let rng = CounterRng::new(1);
    let (rate, offset) = (0.1, 0);
    assert_launches("dropout", 2, &[64], |x| {
        dropout(x[0].clone(), DropoutMask { rng, rate, offset })
    });
    assert_launches("norm", 3, &[64, 16, 16], |x| {
        let rows = x[0].clone().reshape([4, 16]);
        normalize(
            NormKind::Layer,
            rows,
            x[1].clone(),
            Some(x[2].clone()),
            1e-5,
        )
    });
    assert_launches("embedding", 4, &[64], |x| {
        let ids = Tensor::<2, Int>::from_ints([[1, 3, 1]], &x[0].device().without_autodiff());
        embed(x[0].clone().reshape([4, 16]), ids)
    });
    let tables = RotaryTables::new(&[0.5; 8], 16);
    assert_launches("rotary", 2, &[64], |x| {
        rotate(x[0].clone().reshape([1, 4, 1, 16]), &tables, &[0])
    });
    assert_launches("loss", 3, &[64], |x| {
        cross_entropy_sum(x[0].clone().reshape([4, 16]), &[1, 2, 3, 4])
    });
    // The product, the gradient of the activation, and those of the input and of the parameters.
    assert_launches("linear layer", 4, &[64, 96, 6, 24], |x| {
        let weight = LinearWeight::Matrix(x[1].clone().reshape([16, 6]));
        let fusion = LinearFusion {
            residual: Some(x[3].clone().reshape([1, 4, 6])),
            activation: Some(Activation::Gelu),
        };
        let input = x[0].clone().reshape([1, 4, 16]);
        linear_fused(Precision::F32, input, weight, Some(x[2].clone()), fusion)
    });
    let mask = AttentionMask::causal(vec![0], 4);
    assert_launches("attention", 4, &[64; 3], |x| {
        let options = AttentionOptions {
            scale: 0.25,
            soft_cap: None,
            mask: &mask,
            window: None,
            alibi: &[],
            dropout: None,
        };
        let qkv = [0, 1, 2].map(|i: usize| x[i].clone().reshape([1, 4, 1, 16]));
        attention(qkv, &options)
    });
}
