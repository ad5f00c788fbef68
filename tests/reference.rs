//! PyTorch's results, from fixtures that `scripts/make_reference.py` writes.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData, activation};
use nextword_data::TokenBatch;
use nextword_model::{ForwardContext, ModelConfig, Transformer, weights};
use nextword_train::{Optimizer, OptimizerConfig, forward_backward};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::util::{Tolerance, assert_close, devices, flex, root};

/// Tolerances relative to the largest value of a tensor. f32 rounds to 6e-8; sums over a few dozen values
/// in another order differ by about ten times that.
const LOGITS: Tolerance = Tolerance::new(5e-6, 5e-6);
const LOSS: Tolerance = Tolerance::new(2e-6, 2e-6);
const GRADIENTS: Tolerance = Tolerance::new(2e-5, 2e-5);
const UPDATED: Tolerance = Tolerance::new(1e-5, 1e-5);

#[derive(Deserialize)]
struct Inputs {
    batch: usize,
    seq: usize,
    inputs: Vec<u32>,
    targets: Vec<u32>,
}

impl From<Inputs> for TokenBatch {
    fn from(inputs: Inputs) -> Self {
        Self {
            batch: inputs.batch,
            seq: inputs.seq,
            inputs: inputs.inputs,
            targets: inputs.targets,
            ..Self::default()
        }
    }
}

#[derive(Deserialize)]
struct Run {
    batch: usize,
    seq: usize,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    clip_norm: f64,
    /// Parameters whose true gradient is 0 (softmax is invariant to a shift of all scores): only
    /// rounding is left, which Adam amplifies to full steps.
    noise: Vec<String>,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    learning_rate: f64,
    inputs: Vec<u32>,
    targets: Vec<u32>,
    loss: f32,
    grad_norm: f32,
}

fn fixture(path: &str) -> PathBuf {
    root().join("tests/fixtures").join(path)
}

fn json<T: DeserializeOwned>(path: &str) -> T {
    serde_json::from_slice(&fs::read(fixture(path)).unwrap()).unwrap()
}

fn model(name: &str, device: &Device) -> Transformer {
    let config: ModelConfig = json(&format!("{name}/config.json"));
    weights::load(
        &config,
        &fixture(&format!("{name}/model.safetensors")),
        device,
    )
    .unwrap()
}

fn to_f32_vec<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    weights::to_f32_vec(tensor.into_data())
}

fn check_model(name: &str) {
    let batch = TokenBatch::from(json::<Inputs>(&format!("{name}/inputs.json")));
    let path = fixture(&format!("{name}/expected.safetensors"));
    let expected = weights::load_tensors(&path).unwrap();
    for (backend, device) in devices() {
        let model = model(name, &device);
        let ids: Vec<i32> = batch.inputs.iter().map(|id| id.cast_signed()).collect();
        let data = TensorData::new(ids, [batch.batch, batch.seq]);
        let tokens = Tensor::<2, Int>::from_data(data, &device);
        let logits = to_f32_vec(model.forward(tokens, &mut ForwardContext::inference()));
        assert_close(
            &logits,
            &expected["logits"].1,
            LOGITS,
            &format!("{name} logits on {backend}"),
        );

        let (loss, gradients) =
            forward_backward(&model.train(), std::slice::from_ref(&batch), 0, 0, false);
        assert_close(
            &to_f32_vec(loss),
            &expected["loss"].1,
            LOSS,
            &format!("{name} loss on {backend}"),
        );
        let mut seen = 2;
        for (parameter, gradient) in gradients.iter() {
            let label = format!("{name} gradient of {parameter} on {backend}");
            let expected = &expected[&format!("grad.{parameter}")].1;
            assert_close(&to_f32_vec(gradient.clone()), expected, GRADIENTS, &label);
            seen += 1;
        }
        assert_eq!(
            seen,
            expected.len(),
            "{name}: every tensor of the fixture is compared"
        );
    }
}

#[test]
fn a_gpt2_matches_pytorch_in_logits_loss_and_gradients() {
    check_model("gpt2_like");
}

#[test]
fn a_llama_matches_pytorch_in_logits_loss_and_gradients() {
    check_model("llama_like");
}

#[test]
fn ten_clipped_adamw_steps_match_pytorch() {
    let run: Run = json("adamw/run.json");
    let expected = weights::load_tensors(&fixture("adamw/expected.safetensors")).unwrap();
    assert!(
        run.steps
            .iter()
            .any(|step| step.grad_norm > run.clip_norm as f32)
    );
    assert!(
        run.steps
            .iter()
            .any(|step| step.grad_norm < run.clip_norm as f32)
    );
    for (backend, device) in devices() {
        let mut model = model("gpt2_like", &device).train();
        let mut optimizer = Optimizer::new(OptimizerConfig {
            beta1: run.beta1,
            beta2: run.beta2,
            eps: run.eps,
            weight_decay: run.weight_decay,
            clip_norm: run.clip_norm,
            ..OptimizerConfig::default()
        });
        for (number, step) in run.steps.iter().enumerate() {
            let batch = TokenBatch {
                batch: run.batch,
                seq: run.seq,
                inputs: step.inputs.clone(),
                targets: step.targets.clone(),
                ..TokenBatch::default()
            };
            let (loss, gradients) = forward_backward(&model, &[batch], 0, 0, false);
            let norm = gradients.norm().unwrap();
            let label = format!("step {number} on {backend}");
            assert_close(
                &to_f32_vec(loss),
                &[step.loss],
                Tolerance::new(1e-5, 1e-5),
                &format!("loss of {label}"),
            );
            assert_close(
                &to_f32_vec(norm.clone()),
                &[step.grad_norm],
                Tolerance::new(1e-5, 1e-5),
                &format!("norm of {label}"),
            );
            let norm = f64::from(to_f32_vec(norm)[0]);
            let gradients = gradients.clip(norm, run.clip_norm);
            model = optimizer.update(model, gradients, step.learning_rate, step.learning_rate);
        }
        let mut compared = 0;
        weights::for_each(&model.valid(), |name, data| {
            if !run.noise.iter().any(|noise| noise == name) {
                let label = format!("{name} after ten steps on {backend}");
                assert_close(
                    &weights::to_f32_vec(data),
                    &expected[name].1,
                    UPDATED,
                    &label,
                );
                compared += 1;
            }
        });
        assert_eq!(compared + run.noise.len(), expected.len());
    }
}

#[test]
fn activations_match_pytorch() {
    let expected: BTreeMap<String, Vec<f32>> = json("activations/expected.json");
    let device = flex();
    let x = Tensor::<1>::from_data(
        TensorData::new(expected["x"].clone(), [expected["x"].len()]),
        &device,
    );
    let found = [
        ("gelu", activation::gelu(x.clone())),
        ("gelu_tanh", activation::gelu_approximate(x.clone())),
        ("silu", activation::silu(x.clone())),
        ("relu_squared", activation::relu(x).square()),
    ];
    for (name, found) in found {
        for ((x, found), expected) in expected["x"]
            .iter()
            .zip(to_f32_vec(found))
            .zip(&expected[name])
        {
            let tolerance = 1e-6 * expected.abs().max(1.0);
            assert!(
                (found - expected).abs() <= tolerance,
                "{name}({x}): {found}, not {expected}"
            );
        }
    }
}
