//! The three uses that nextword exists for: experiments on any backend, saved models that load
//! anywhere, and layers that scale by configuration.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::{Int, Tensor};
use nextword_generate::{SamplingConfig, TextGenerator, TextOptions};
use nextword_model::{DeviceName, ForwardContext, ModelDir, weights};
use nextword_train::{
    NoHooks, NullReporter, RunFolder, StopFlag, Trainer, parse_config, prepare_run, read_config,
    to_toml,
};
use serde_json::Value;

use crate::util::{Tolerance, assert_close, device_names, root};

/// The quickstart, shortened so that a software GPU takes seconds for it.
const SHORT: &[&str] = &[
    "data.documents=100",
    "data.tokenizer.vocab_size=300",
    "model.context_length=32",
    "train.batch_size=4",
    "train.log_every=1",
    "schedule.warmup_steps=2",
    "validation.windows=4",
    "samples.every=0",
];

fn quickstart(out: &Path, device: &str, set: &[&str]) -> Vec<String> {
    let fixed = [
        format!("out={:?}", out.display().to_string()),
        format!("device={device:?}"),
    ];
    let settings = SHORT.iter().chain(set).map(ToString::to_string);
    settings.chain(fixed).collect()
}

fn train(out: &Path, device: &str, set: &[&str]) {
    let set = quickstart(out, device, set);
    let config = read_config(&root().join("configs/quickstart.toml"), &set).unwrap();
    let run = prepare_run(config).unwrap();
    let folder = RunFolder::create(out, &run.config).unwrap();
    let trainer = Trainer::begin(run, folder).unwrap();
    let stop = StopFlag::default();
    trainer.run(&mut NullReporter, &mut NoHooks, &stop).unwrap();
}

fn resume(out: &Path, device: &str, set: &str) {
    let (folder, stored) = RunFolder::open(out).unwrap();
    let text = to_toml(&stored).unwrap();
    let mut config = parse_config(&text, &folder.config_path(), &[set.to_string()]).unwrap();
    config.device = device.to_string();
    let trainer = Trainer::resume(prepare_run(config).unwrap(), folder).unwrap();
    let stop = StopFlag::default();
    trainer.run(&mut NullReporter, &mut NoHooks, &stop).unwrap();
}

fn losses(run: &Path) -> Vec<f64> {
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    metrics
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64())
        .collect()
}

/// What a saved model computes on `device`: logits for a fixed prompt, and greedy and sampled text.
fn outputs(model: &Path, device: &str) -> (Vec<f32>, [String; 2]) {
    let device = device.parse::<DeviceName>().unwrap().open().unwrap();
    let generator = TextGenerator::open(&ModelDir::open(model).unwrap(), &device).unwrap();
    let ids = Tensor::<2, Int>::from_data([[5, 17, 3, 44, 101, 8, 8, 200]], &device);
    let logits = generator
        .model()
        .forward(ids, &mut ForwardContext::inference());
    let text = |sampling: SamplingConfig| {
        let options = TextOptions {
            sampling,
            max_tokens: 16,
            ..TextOptions::default()
        };
        let next = |_: usize, _: &str| ControlFlow::Continue(());
        let texts = generator.generate(&["On a"], &options, next).unwrap();
        texts[0].text.clone()
    };
    let sampled = SamplingConfig {
        temperature: 1.0,
        seed: 3,
        ..SamplingConfig::default()
    };
    let texts = [text(SamplingConfig::greedy()), text(sampled)];
    (weights::to_f32_vec(logits.into_data()), texts)
}

fn assert_losses_agree(name: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{name}");
    for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = (found - expected).abs();
        assert!(
            difference < 1e-4,
            "{name}, step {step}: {found} against {expected}"
        );
    }
}

#[test]
fn quickstart_trains_resumes_and_generates_on_all_backends() {
    let folder = tempfile::tempdir().unwrap();
    let devices = device_names();
    let runs: Vec<PathBuf> = devices
        .iter()
        .map(|device| folder.path().join(device.replace(':', "-")))
        .collect();
    for (index, (device, run)) in devices.iter().zip(&runs).enumerate() {
        train(run, device, &["train.steps=4"]);
        assert_eq!(losses(run).len(), 4, "{device}");
        // Each run continues on the next backend.
        let next = devices[(index + 1) % devices.len()];
        resume(run, next, "train.steps=6");
        let found = losses(run);
        assert_eq!(found.len(), 6, "{device}");
        assert!(found[5] < found[0], "{device} learns: {found:?}");
        assert_losses_agree(&format!("{device}, then {next}"), &found, &losses(&runs[0]));
    }
    for (saver, run) in devices.iter().zip(&runs) {
        let model = run.join("last");
        let (expected_logits, expected_texts) = outputs(&model, devices[0]);
        let (first, last) = expected_logits.split_at(expected_logits.len() / 8 * 7);
        let first = &first[..last.len()];
        assert_ne!(first, last, "the logits depend on the prompt");
        assert_ne!(expected_texts[0], expected_texts[1]);
        for loader in &devices[1..] {
            let (logits, texts) = outputs(&model, loader);
            let what = format!("saved on {saver}, loaded on {loader}");
            assert_close(&logits, &expected_logits, Tolerance::new(1e-5, 1e-5), &what);
            assert_eq!(texts, expected_texts, "{what}");
        }
    }
}

#[test]
fn layers_scale_by_configuration_on_all_backends() {
    let folder = tempfile::tempdir().unwrap();
    let mut first_losses = [0.0; 3];
    for (first_loss, layers) in first_losses.iter_mut().zip([2, 4, 8]) {
        let set = format!("model.n_layers={layers}");
        let mut expected: Option<Vec<f64>> = None;
        for device in device_names() {
            let run = folder
                .path()
                .join(format!("{layers}-{device}").replace(':', "-"));
            train(
                &run,
                device,
                &["train.steps=2", "schedule.warmup_steps=1", &set],
            );
            let config = ModelDir::open(&run.join("last")).unwrap().config;
            assert_eq!(config.n_layers, layers);
            let found = losses(&run);
            assert_eq!(found.len(), 2, "{device}");
            assert_losses_agree(device, &found, expected.get_or_insert(found.clone()));
        }
        *first_loss = expected.unwrap()[0];
    }
    let bits = first_losses.map(f64::to_bits);
    assert!(
        bits[0] != bits[1] && bits[1] != bits[2],
        "the number of layers changes the model: {first_losses:?}"
    );
}
