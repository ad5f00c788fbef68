//! Adapters of small models.
#![allow(clippy::unwrap_used, clippy::float_cmp)]

mod damaged_folders;
mod equality;
mod folder;
mod gradients;
mod rows;
mod settings;

use burn::tensor::{Device, Int, Tensor, TensorData};
use nextword_base::CounterRng;

use crate::{
    Adapter, BiasConfig, Bits, FeedForwardKind, ForwardContext, InitConfig, LoraConfig,
    ModelConfig, NormKind, Position, Transformer,
};

/// Larger than usual, so that the logits are not nearly equal.
const INIT: InitConfig = InitConfig {
    std: 0.1,
    scale_output: true,
};

/// Llama's architecture at a small size, with three blocks.
fn llama() -> ModelConfig {
    ModelConfig {
        vocab_size: 41,
        context_length: 24,
        n_layers: 3,
        n_heads: 4,
        n_kv_heads: Some(2),
        d_model: 32,
        position: Position::Rotary,
        norm: NormKind::Rms,
        feed_forward: FeedForwardKind::Swiglu,
        bias: BiasConfig::none(),
        tied_head: false,
        init: INIT,
        ..ModelConfig::default()
    }
}

/// GPT-2's architecture at the same size: learned positions, biases and a tied output layer.
fn gpt2() -> ModelConfig {
    ModelConfig {
        vocab_size: 41,
        context_length: 24,
        n_layers: 3,
        d_model: 32,
        init: INIT,
        ..ModelConfig::default()
    }
}

fn build(config: &ModelConfig, bits: Option<Bits>) -> Transformer {
    let model = config.init(&Device::flex(), 5).unwrap();
    match bits {
        Some(bits) => model.quantize(bits),
        None => model,
    }
}

fn lora(rank: usize) -> LoraConfig {
    LoraConfig {
        rank,
        ..LoraConfig::default()
    }
}

/// An adapter whose values are all different from those of a new one.
fn trained(model: &Transformer, config: &LoraConfig) -> Adapter {
    let model = model.clone().with_new_adapter(config, 7).unwrap();
    let mut adapter = model.adapter().unwrap();
    let rng = CounterRng::new(11);
    for (number, module) in adapter.modules.values_mut().enumerate() {
        let rng = rng.stream(number as u64);
        for (i, value) in module.b.iter_mut().enumerate() {
            *value = 0.05 * rng.normal(i as u64) as f32;
        }
        for (i, value) in module.magnitude.iter_mut().flatten().enumerate() {
            *value *= 1.0 + 0.1 * rng.stream(1).normal(i as u64) as f32;
        }
    }
    for saved in adapter.saved.values_mut() {
        saved.values.iter_mut().for_each(|value| *value += 0.03);
    }
    adapter
}

/// `[2, 12]` ids below the vocabulary size, and targets.
fn tokens() -> (Tensor<2, Int>, Vec<u32>) {
    let rng = CounterRng::new(2);
    let ids: Vec<i32> = (0..24).map(|i| rng.below(i, 41) as i32).collect();
    let targets = (0..24).map(|i| {
        if i % 3 == 0 {
            crate::IGNORE
        } else {
            rng.below(30 + i, 41) as u32
        }
    });
    let tokens = Tensor::from_data(TensorData::new(ids, [2, 12]), &Device::flex());
    (tokens, targets.collect())
}

fn logits(model: &Transformer) -> Vec<f32> {
    let logits = model.forward(tokens().0, &mut ForwardContext::inference());
    logits.into_data().try_to_vec().unwrap()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

fn bits_of(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
