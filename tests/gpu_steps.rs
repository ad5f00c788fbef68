//! Whole steps of training and decoding on a GPU: kernel launches and repetition.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use nextword_kernels::{Bits, record_launches};
use nextword_model::{DropoutConfig, KvCache, ModelConfig, Transformer, presets, weights};
use nextword_train::{Optimizer, OptimizerConfig, forward_backward};

use crate::util::{batch, devices};

/// Kernels of a layer in a decoding step, at most.
const DECODED_LAYER: usize = 10;
/// Kernels of a layer in a training step, forward and backward, at most.
const TRAINED_LAYER: usize = 34;
/// Kernels of a whole training step of GPT-2's smallest model, at most.
const TRAINING_STEP: usize = 800;

/// The software adapter, if the machine has one.
fn gpu() -> Option<Device> {
    let mut devices = devices().into_iter();
    devices.find_map(|(name, device)| (name == "wgpu").then_some(device))
}

/// The tensors of GPT-2, but small.
fn gpt2(n_layers: usize) -> ModelConfig {
    ModelConfig {
        vocab_size: 1000,
        context_length: 64,
        dropout: DropoutConfig::default(),
        ..presets::gpt2(n_layers, 4, 64)
    }
}

/// How often each kernel occurs.
fn counted(names: &[&'static str]) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(*name).or_default() += 1;
    }
    counts
}

/// Fails unless a model of three layers has at most `limit` launches more than one of two.
#[track_caller]
fn assert_launches_of_a_layer(
    label: &str,
    limit: usize,
    launches: impl Fn(usize) -> Vec<&'static str>,
) {
    let (two, three) = (launches(2), launches(3));
    let count = three.len() - two.len();
    let two = counted(&two);
    let layer: BTreeMap<&str, usize> = counted(&three)
        .into_iter()
        .map(|(name, count)| {
            (
                name,
                count.saturating_sub(two.get(name).copied().unwrap_or(0)),
            )
        })
        .filter(|(_, count)| *count > 0)
        .collect();
    eprintln!("{label}: {count} launches of a layer: {layer:#?}");
    assert!(
        count <= limit,
        "{label}: {count} launches of a layer: {layer:#?}"
    );
}

struct Run {
    model: Transformer,
    optimizer: Optimizer,
    step: u64,
}

impl Run {
    fn new(config: &ModelConfig, device: &Device) -> Self {
        Self {
            model: config.init(device, 7).unwrap().train(),
            optimizer: Optimizer::new(OptimizerConfig::default()),
            step: 0,
        }
    }

    /// Makes one update; reads the loss and the norm together, as a run does.
    fn update(mut self) -> Self {
        let batches = [batch(2, 32, self.model.config().vocab_size, self.step % 3)];
        let (loss, gradients) = forward_backward(&self.model, &batches, 3, self.step, false);
        let norm = gradients.norm().unwrap();
        let scalars = weights::to_f32_vec(Tensor::cat(vec![loss, norm], 0).into_data());
        let gradients = gradients.clip(f64::from(scalars[1]), 1.0);
        self.model = self.optimizer.update(self.model, gradients, 3e-3, 3e-3);
        self.step += 1;
        self
    }
}

#[test]
fn a_trained_layer_launches_few_kernels() {
    let Some(device) = gpu() else { return };
    assert_launches_of_a_layer("training", TRAINED_LAYER, |layers| {
        let run = Run::new(&gpt2(layers), &device);
        let batches = [batch(2, 32, 1000, 0)];
        let step = || forward_backward(&run.model, &batches, 3, 0, false);
        step(); // What is made once, such as tables.
        record_launches(step).1
    });
}

#[test]
fn a_training_step_launches_few_kernels() {
    let Some(device) = gpu() else { return };
    let run = Run::new(&gpt2(12), &device).update();
    let (_, names) = record_launches(|| run.update());
    let count = names.len();
    eprintln!("{count} launches of a step: {:#?}", counted(&names));
    assert!(
        count <= TRAINING_STEP,
        "{count} launches: {:#?}",
        counted(&names)
    );
}

#[test]
fn a_decoded_token_launches_few_kernels_per_layer() {
    let Some(device) = gpu() else { return };
    for (bits, rows) in [
        (None, 1),
        (None, 4),
        (Some(Bits::Int8), 1),
        (Some(Bits::Int4), 1),
    ] {
        let label = format!("decoding {rows} rows at {bits:?}");
        assert_launches_of_a_layer(&label, DECODED_LAYER, |layers| {
            let model = gpt2(layers).init(&device, 7).unwrap();
            let model = match bits {
                Some(bits) => model.quantize(bits),
                None => model,
            };
            let slots: Vec<usize> = (0..rows).collect();
            let mut cache = KvCache::new(model.config(), rows, &device);
            let mut decode = || {
                let ids = Tensor::<2, Int>::zeros([rows, 1], &device);
                weights::to_f32_vec(model.forward_cached(ids, &mut cache, &slots).into_data())
            };
            decode();
            record_launches(decode).1
        });
    }
}

#[test]
fn a_run_on_a_gpu_gives_the_same_bits_twice() {
    let Some(device) = gpu() else { return };
    let config = ModelConfig {
        dropout: DropoutConfig {
            embedding: 0.1,
            attention: 0.1,
            residual: 0.1,
        },
        ..gpt2(2)
    };
    let bits = || {
        let run = (0..4).fold(Run::new(&config, &device), |run, _| run.update());
        let mut bits = Vec::new();
        weights::for_each(&run.model.valid(), |_, data| {
            let values = weights::to_f32_vec(data);
            bits.extend(values.into_iter().map(f32::to_bits));
        });
        bits
    };
    assert_eq!(bits(), bits());
}
