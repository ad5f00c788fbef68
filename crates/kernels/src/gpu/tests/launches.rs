//! How many kernels an operation launches, forward and backward.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};

use burn::tensor::{Int, Tensor};
use cubecl::logging::{LaunchObservation, LaunchObserver};

use super::{gpu, random_tensor};
use crate::gpu::cross_entropy::cross_entropy_sum;
use crate::{
    Activation, AttentionMask, AttentionOptions, CounterRng, DropoutMask, NormKind, RotaryTables,
    activate, attention, dropout, embed, gate, normalize, rotate,
};

/// Names of the kernels that one thread launches: other tests run at the same time.
struct Launches {
    thread: ThreadId,
    names: Mutex<Vec<&'static str>>,
}

impl LaunchObserver for Launches {
    fn launched(&self, kernel: &'static str) {
        if thread::current().id() == self.thread {
            let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            names.push(kernel);
        }
    }
}

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
    let launches = Arc::new(Launches {
        thread: thread::current().id(),
        names: Mutex::default(),
    });
    let observation = LaunchObservation::new(launches.clone());
    let gradients = f(&inputs).backward();
    drop(observation);
    assert!(inputs.iter().all(|x| x.grad(&gradients).is_some()));
    let names = launches.names.lock().unwrap();
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
    assert_launches("norm", 4, &[64, 16, 16], |x| {
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
