//! The optimizer.

use burn::tensor::{Device, Tensor};

use super::{assert_close, gpu, random_tensor, values};
use crate::{AdamwStep, Moments, adamw, sum_of_squares};

fn three_updates(len: usize, device: &Device) -> [Vec<f32>; 3] {
    let mut weight = random_tensor(1, len, device);
    let mut moments = Moments::default();
    for step in 1..4 {
        let gradient = random_tensor(10 + step, len, device);
        let step = AdamwStep {
            lr: 0.01,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            step,
            gradient_scale: 0.7,
        };
        weight = adamw(weight, gradient, &mut moments, 0.1, &step);
    }
    [weight, moments.first.unwrap(), moments.second.unwrap()].map(values)
}

#[test]
fn adamw_agrees_with_the_cpu() {
    let Some(gpu) = gpu() else { return };
    for len in [1, 7, 1000] {
        let (actual, expected) = (
            three_updates(len, &gpu),
            three_updates(len, &Device::flex()),
        );
        for (actual, expected) in actual.iter().zip(&expected) {
            assert_close("AdamW", actual, expected, 1e-6);
        }
    }
}

#[test]
fn an_update_does_not_change_tensors_that_share_the_storage() {
    let Some(gpu) = gpu() else { return };
    let weight = random_tensor(1, 100, &gpu);
    let before = values(weight.clone());
    let step = AdamwStep {
        lr: 0.1,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        step: 1,
        gradient_scale: 1.0,
    };
    let gradient = random_tensor(2, 100, &gpu);
    let after = adamw(
        weight.clone(),
        gradient,
        &mut Moments::default(),
        0.0,
        &step,
    );
    assert_eq!(values(weight), before);
    assert_ne!(values(after), before);
}

#[test]
fn the_sum_of_squares_agrees_with_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let sum = |device: &Device| {
        let lens = [1, 9000, 4096, 0, 333];
        let tensors: Vec<Tensor<1>> = (0..)
            .zip(lens)
            .map(|(salt, len)| random_tensor(salt, len, device))
            .collect();
        values(sum_of_squares(tensors.iter()).unwrap())[0]
    };
    let (actual, expected) = (sum(&gpu), sum(&Device::flex()));
    assert!(
        (actual / expected - 1.0).abs() < 1e-5,
        "{actual} {expected}"
    );
}
