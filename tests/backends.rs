//! The same training run on every backend.

use burn::module::Module;
use burn::tensor::Device;
use nextword_model::{DropoutConfig, ModelConfig, presets, weights};
use nextword_train::{Optimizer, OptimizerConfig, forward_backward};

use crate::util::{Tolerance, assert_close, batch, devices};

const STEPS: u64 = 20;

/// Losses of a small training with dropout, and the weights after it.
fn train(config: &ModelConfig, device: &Device) -> (Vec<f32>, Vec<f32>) {
    let mut model = config.init(device, 7).unwrap().train();
    let settings = OptimizerConfig::default();
    let mut optimizer = Optimizer::new(settings);
    let mut losses = Vec::new();
    for step in 0..STEPS {
        let batches = [
            batch(4, 16, config.vocab_size, step),
            batch(4, 16, config.vocab_size, 99),
        ];
        let (loss, gradients) = forward_backward(&model, &batches, 3, step, false);
        let norm = weights::to_f32_vec(gradients.norm().unwrap().into_data())[0];
        let gradients = gradients.clip(f64::from(norm), settings.clip_norm);
        model = optimizer.update(model, gradients, 3e-3, 3e-3);
        losses.extend(weights::to_f32_vec(loss.into_data()));
    }
    let mut values = Vec::new();
    weights::for_each(&model.valid(), |_, data| {
        values.extend(weights::to_f32_vec(data));
    });
    (losses, values)
}

#[test]
fn losses_agree_on_all_backends() {
    let gpt = ModelConfig {
        context_length: 16,
        n_layers: 2,
        n_heads: 4,
        d_model: 32,
        dropout: DropoutConfig {
            embedding: 0.1,
            attention: 0.1,
            residual: 0.1,
        },
        ..presets::shakespeare_char_cpu(29)
    };
    let llama = ModelConfig {
        context_length: 16,
        n_layers: 2,
        n_heads: 4,
        d_model: 32,
        ..presets::llama_like(29)
    };
    for (label, config) in [("gpt", gpt), ("llama", llama)] {
        let devices = devices();
        let (losses, weights) = train(&config, &devices[0].1);
        assert_eq!(losses.len() as u64, STEPS);
        assert!(losses[19] < losses[0], "{label} learns: {losses:?}");
        for (name, device) in &devices[1..] {
            let (other_losses, other_weights) = train(&config, device);
            assert_close(
                &other_losses,
                &losses,
                Tolerance::new(1e-5, 1e-5),
                &format!("{label}: losses on {name}"),
            );
            assert_close(
                &other_weights,
                &weights,
                Tolerance::new(1e-4, 1e-4),
                &format!("{label}: weights on {name}"),
            );
        }
    }
}
