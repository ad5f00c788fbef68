//! Several samples in a row compute what they compute in rows of their own.
#![allow(clippy::single_range_in_vec_init)] // Samples with one span.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use nextword_data::{
    BatchMask, Loader, LoaderConfig, Packing, Samples, SamplesBuilder, TokenBatch,
};
use nextword_model::{
    Bits, FeedForwardKind, LoraConfig, ModelConfig, Position, Transformer, weights,
};
use nextword_train::{Gradients, forward_backward};

use crate::util::{Tolerance, assert_close, devices, flex};

const VOCAB: usize = 40;

/// A model for each kind of position; that of rotary ones has windows, soft caps and frequencies of its own in some
/// layers.
fn models() -> Vec<(&'static str, ModelConfig)> {
    let base = ModelConfig {
        vocab_size: VOCAB,
        context_length: 32,
        n_layers: 2,
        n_heads: 2,
        d_model: 16,
        ..ModelConfig::default()
    };
    let with = |position| ModelConfig {
        position,
        ..base.clone()
    };
    let mut rotary = ModelConfig {
        n_kv_heads: Some(1),
        feed_forward: FeedForwardKind::Swiglu,
        windows: vec![3, 0],
        score_soft_cap: Some(5.0),
        ..with(Position::Rotary)
    };
    rotary.rotary.width = Some(4);
    rotary.rotary.local_base = Some(100.0);
    vec![
        ("learned", with(Position::Learned)),
        ("sinusoidal", with(Position::Sinusoidal)),
        ("rotary", rotary),
        ("ALiBi", with(Position::Alibi)),
        ("none", with(Position::None)),
    ]
}

fn samples() -> Samples {
    let mut builder = SamplesBuilder::default();
    for (index, length) in [4, 19, 9, 13, 6, 6, 26, 12, 3, 5].into_iter().enumerate() {
        let id = |at: usize| ((7 * at + 11 * index + at * at) % VOCAB) as u32;
        let ids: Vec<u32> = (0..length).map(id).collect();
        builder.push(&ids, &[length / 2..length]).unwrap();
    }
    builder.finish()
}

/// All samples, packed into rows of 32 tokens, and in rows of their own.
fn batches() -> [TokenBatch; 2] {
    let samples = samples();
    let config = LoaderConfig {
        context_length: 32,
        batch_size: 1,
        packing: Packing::Samples,
        ..LoaderConfig::default()
    };
    let rows = Loader::from_samples(samples.clone(), config)
        .unwrap()
        .sequences_per_epoch();
    assert!(rows < 5, "{rows}");
    let config = LoaderConfig {
        batch_size: rows,
        ..config
    };
    let packed = Loader::from_samples(samples.clone(), config).unwrap();
    let all: Vec<usize> = (0..samples.len()).collect();
    [
        packed.batch(0, 0).unwrap(),
        samples.batch(&all, 32, 0).unwrap(),
    ]
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    weights::to_f32_vec(tensor.into_data())
}

fn step(model: &Transformer, batch: &TokenBatch, recompute: bool) -> (f32, Gradients) {
    let (loss, gradients) = forward_backward(model, std::slice::from_ref(batch), 1, 0, recompute);
    (values(loss)[0], gradients)
}

/// Compares a step on packed samples with one on separate rows. The sums of softmax and of weight gradients have
/// another order in a packed row, so that last bits differ.
fn check(label: &str, model: &Transformer, tolerance: Tolerance) {
    let [packed, separate] = batches();
    assert_eq!(packed.target_count(), separate.target_count());
    let (loss, gradients) = step(model, &packed, false);
    let (expected, expected_gradients) = step(model, &separate, false);
    assert_close(&[loss], &[expected], tolerance, label);
    let pairs = gradients.iter().zip(expected_gradients.iter());
    for ((name, gradient), (_, expected)) in pairs {
        assert_close(
            &values(gradient.clone()),
            &values(expected.clone()),
            tolerance,
            &format!("{label}: {name}"),
        );
    }
    let (recomputed, _) = step(model, &packed, true);
    assert_eq!(recomputed.to_bits(), loss.to_bits(), "{label}: recomputed");

    let leaking = TokenBatch {
        mask: BatchMask::Causal,
        ..packed
    };
    let (leaking, _) = step(model, &leaking, false);
    assert!(
        (leaking - expected).abs() > 1e-4,
        "{label}: borders have no effect"
    );
}

#[test]
fn packed_samples_have_the_loss_and_gradients_of_separate_rows() {
    let exact = Tolerance::new(1e-6, 1e-6);
    // Quantized layers round their inputs, some of which a difference in the last bit moves across a border.
    let rounded = Tolerance::new(1e-3, 1e-4);
    for (label, mut config) in models() {
        // Large initial weights, so that attention matters.
        config.init.std = 0.3;
        let model = config.init(&flex(), 3).unwrap();
        check(label, &model.clone().train(), exact);
        let lora = LoraConfig {
            rank: 2,
            ..LoraConfig::default()
        };
        let adapted = model.clone().with_new_adapter(&lora, 1).unwrap();
        check(&format!("{label}, adapter"), &adapted.train(), exact);
        let quantized = model.quantize(Bits::Int8).with_new_adapter(&lora, 1);
        check(
            &format!("{label}, adapter of 8-bit weights"),
            &quantized.unwrap().train(),
            rounded,
        );
    }
}

#[test]
fn packed_samples_have_the_same_loss_on_every_device() {
    let [packed, _] = batches();
    for (label, config) in models() {
        let loss = |device: &Device| {
            let model = config.init(device, 3).unwrap().train();
            step(&model, &packed, false).0
        };
        let expected = loss(&flex());
        for (name, device) in devices() {
            let found = loss(&device);
            assert!(
                (found - expected).abs() < 1e-4 * expected,
                "{label}, {name}: {found} {expected}"
            );
        }
    }
}
