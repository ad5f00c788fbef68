//! Losses, metrics and gradients of `PyTorch`, from the fixture that `scripts/make_preference_reference.py` writes.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::Device;
use nextword_data::{Samples, SamplesBuilder};
use nextword_model::weights::{self, NamedTensors, load_tensors, save_tensors};
use nextword_model::{ModelConfig, Transformer};
use serde::Deserialize;
use serde_json::Value;

use super::log_probs::{Batching, of_samples};
use super::reference::ReferenceLogProbs;
use super::{ComparedSamples, Objective};
use crate::stepper::StepGradients;
use crate::{PreferenceSettings, TrainError};

#[derive(Deserialize)]
struct Case {
    samples: Vec<CaseSample>,
    ratings: Vec<bool>,
    reference: Vec<f64>,
    log_probs: Vec<f64>,
    losses: Vec<CaseLoss>,
}

#[derive(Deserialize)]
struct CaseSample {
    ids: Vec<u32>,
    start: usize,
}

#[derive(Deserialize)]
struct CaseLoss {
    name: String,
    settings: PreferenceSettings,
    value: f64,
    metrics: serde_json::Map<String, Value>,
}

const BATCHING: Batching = Batching {
    rows: 3,
    max_length: 16,
    padding_id: 0,
};

fn fixture(path: &str) -> PathBuf {
    Path::new("../../tests/fixtures").join(path)
}

/// The fixture model, with its tensors changed.
fn model(change: impl FnOnce(&mut NamedTensors)) -> Transformer {
    let config = std::fs::read(fixture("llama_like/config.json")).unwrap();
    let config: ModelConfig = serde_json::from_slice(&config).unwrap();
    let mut tensors = load_tensors(&fixture("llama_like/model.safetensors")).unwrap();
    change(&mut tensors);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    save_tensors(&tensors, &path).unwrap();
    weights::load(&config, &path, &Device::flex()).unwrap()
}

impl Case {
    fn read() -> Self {
        let text = std::fs::read(fixture("preferences/case.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    fn samples(&self) -> Samples {
        let mut builder = SamplesBuilder::default();
        for sample in &self.samples {
            let trained = sample.start..sample.ids.len();
            builder.push(&sample.ids, &[trained]).unwrap();
        }
        builder.finish()
    }

    /// The log probabilities under the reference, computed here.
    fn reference(&self) -> Vec<f32> {
        let without = model(|tensors| {
            let down = tensors.get_mut("blocks.1.feed_forward.down.weight");
            down.unwrap().1.fill(0.0);
        });
        log_probs(&without, &self.samples())
    }

    fn objective(&self, settings: PreferenceSettings) -> Objective {
        let compared = || ComparedSamples {
            samples: self.samples(),
            ratings: if settings.loss.is_pairwise() {
                Vec::new()
            } else {
                self.ratings.clone()
            },
            reference: self.reference(),
        };
        Objective {
            settings,
            train: compared(),
            validation: compared(),
            batching: BATCHING,
        }
    }
}

fn log_probs(model: &Transformer, samples: &Samples) -> Vec<f32> {
    let all: Vec<usize> = (0..samples.len()).collect();
    of_samples(model, samples, &all, BATCHING, &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap()
}

/// One step on the pairs of each micro-batch.
fn step(objective: &Objective, pairs: &[Vec<usize>], recompute: bool) -> StepGradients {
    let batch = |pairs: &Vec<usize>| {
        let rows = pairs.iter().flat_map(|pair| [2 * pair, 2 * pair + 1]);
        let rows: Vec<usize> = rows.collect();
        objective.train.samples.batch(&rows, 16, 0).unwrap()
    };
    let batches: Vec<_> = pairs.iter().map(batch).collect();
    objective.gradients(&model(|_| {}).train(), &batches, pairs, recompute)
}

fn assert_near(found: &[f32], expected: &[f64], tolerance: f64, label: &str) {
    assert_eq!(found.len(), expected.len(), "{label}");
    let largest = expected.iter().fold(1.0, |a: f64, b| a.max(b.abs()));
    for (found, expected) in found.iter().zip(expected) {
        let error = (f64::from(*found) - expected).abs();
        assert!(error <= tolerance * largest, "{label}: {found} {expected}");
    }
}

#[test]
fn log_probabilities_are_those_of_pytorch() {
    let case = Case::read();
    assert_near(&case.reference(), &case.reference, 1e-6, "reference");
    let found = log_probs(&model(|_| {}), &case.samples());
    assert_near(&found, &case.log_probs, 1e-6, "model");
    // In other batches, the same bits.
    let alone = |index| {
        let samples = case.samples();
        let go_on = &mut |_| ControlFlow::Continue(());
        of_samples(&model(|_| {}), &samples, &[index], BATCHING, go_on).unwrap()[0]
    };
    let alone: Vec<f32> = (0..found.len()).map(alone).collect();
    assert_eq!(found, alone);
}

#[test]
fn losses_metrics_and_gradients_are_those_of_pytorch() {
    let case = Case::read();
    let expected = load_tensors(&fixture("preferences/gradients.safetensors")).unwrap();
    for loss in &case.losses {
        let name = &loss.name;
        let objective = case.objective(loss.settings);
        let found = step(&objective, &[vec![0, 1, 2, 3]], false);
        let close =
            |found: f64, expected: f64| (found - expected).abs() <= 1e-5 * expected.abs().max(1.0);
        assert!(
            close(found.loss, loss.value),
            "{name}: {} {}",
            found.loss,
            loss.value
        );
        let metrics = serde_json::to_value(found.preferences).unwrap();
        for (key, expected) in &loss.metrics {
            let (found, expected) = (metrics[key].as_f64().unwrap(), expected.as_f64().unwrap());
            assert!(close(found, expected), "{name}, {key}: {found} {expected}");
        }
        let gradients = found.gradients.into_map();
        let mut compared = 0;
        for (key, (_, expected)) in &expected {
            let Some(parameter) = key.strip_prefix(&format!("{name}.")) else {
                continue;
            };
            let found = weights::to_f32_vec(gradients[parameter].clone().into_data());
            let expected: Vec<f64> = expected.iter().map(|x| f64::from(*x)).collect();
            assert_near(&found, &expected, 1e-5, key);
            compared += 1;
        }
        assert_eq!(compared, 5, "{name}");

        let mut seen = Vec::new();
        let evaluation = objective.evaluate(&model(|_| {}), 0, &mut |done, total| {
            seen.push((done, total));
            ControlFlow::Continue(())
        });
        let evaluation = evaluation.unwrap().unwrap();
        assert_eq!(
            seen,
            (0..8)
                .step_by(BATCHING.rows)
                .map(|done| (done, 8))
                .collect::<Vec<_>>()
        );
        let stopped = objective.evaluate(&model(|_| {}), 0, &mut |done, _| match done {
            0 => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        });
        assert!(
            matches!(stopped, Err(TrainError::Interrupted)),
            "{stopped:?}"
        );
        assert!(close(evaluation.loss, loss.value), "{name}: {evaluation:?}");
        assert_eq!(
            serde_json::to_value(evaluation.metrics).unwrap(),
            metrics,
            "{name}"
        );
    }
}

#[test]
fn recomputation_and_micro_batches_change_nothing() {
    let case = Case::read();
    for loss in &case.losses {
        let objective = case.objective(loss.settings);
        let whole = step(&objective, &[vec![0, 1, 2, 3]], false);
        for (pairs, recompute) in [
            (vec![vec![0, 1, 2, 3]], true),
            (vec![vec![0, 1], vec![2, 3]], false),
            (vec![vec![0], vec![1, 2, 3]], true),
        ] {
            let found = step(&objective, &pairs, recompute);
            assert!((found.loss - whole.loss).abs() < 1e-12, "{}", loss.name);
            assert_eq!(found.preferences, whole.preferences, "{}", loss.name);
            for ((name, found), (_, expected)) in found.gradients.iter().zip(whole.gradients.iter())
            {
                let expected = weights::to_f32_vec(expected.clone().into_data());
                let expected: Vec<f64> = expected.iter().map(|x| f64::from(*x)).collect();
                let found = weights::to_f32_vec(found.clone().into_data());
                assert_near(&found, &expected, 1e-6, name);
            }
        }
    }
}

#[test]
fn padding_and_tokens_of_other_samples_get_no_gradient() {
    let case = Case::read();
    let objective = case.objective(PreferenceSettings::default());
    let found = step(&objective, &[vec![0]], false).gradients.into_map();
    let table = weights::to_f32_vec(found["token_embedding.weight"].clone().into_data());
    // The last token of a completion is not an input.
    let inputs: Vec<u32> = case.samples[..2]
        .iter()
        .flat_map(|sample| sample.ids[..sample.ids.len() - 1].to_vec())
        .collect();
    for (id, row) in table.chunks(32).enumerate() {
        let has_gradient = row.iter().any(|x| *x != 0.0);
        assert_eq!(has_gradient, inputs.contains(&(id as u32)), "{id}");
    }
}

#[test]
fn damaged_files_of_the_reference_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("reference.bin");
    let read = |counts| ReferenceLogProbs::read(&path, counts).unwrap();
    assert_eq!(read([2, 1]), Err("is missing"));
    let written = ReferenceLogProbs {
        key: [7; 32],
        train: vec![-1.5, -2.5],
        validation: vec![-3.0],
    };
    written.write(&path).unwrap();
    assert_eq!(read([2, 1]), Ok(written));
    assert!(read([1, 2]).unwrap_err().contains("numbers of samples"));
    assert!(read([2, 2]).unwrap_err().contains("length"));
    let bytes = std::fs::read(&path).unwrap();
    for at in 0..bytes.len() {
        if (16..48).contains(&at) {
            continue; // The key is compared by the caller.
        }
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        std::fs::write(&path, &damaged).unwrap();
        assert!(read([2, 1]).is_err(), "byte {at}");
    }
    for length in [0, 8, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        assert!(read([2, 1]).is_err(), "{length} bytes");
    }
}
