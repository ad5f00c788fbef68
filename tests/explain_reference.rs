//! Explained tensors equal PyTorch's intermediate tensors of the same models, from fixtures that
//! `scripts/dump_activations.py` writes.
//!
//! `NEXTWORD_INSIDE` names another folder of our models, `NEXTWORD_PARITY` one of transformers models.

use std::fs;
use std::path::{Path, PathBuf};

use nextword_convert::import;
use nextword_explain::evaluate::weights_of;
use nextword_explain::{Trace, TraceOptions};
use nextword_model::{ModelConfig, ModelDir, Transformer, weights};
use serde::Deserialize;

use crate::util::{flex, root};

/// Tolerance relative to the tensor's largest value, or to 1 if that is larger.
const CLOSE: f64 = 1e-5;

/// A model of ours with token ids.
#[derive(Deserialize)]
struct OurModel {
    config: ModelConfig,
    ids: Vec<u32>,
}

/// The token ids for a transformers model.
#[derive(Deserialize)]
struct TransformersInputs {
    inputs: Vec<u32>,
}

/// The folders in `folder` with PyTorch's activations.
fn models_with_activations(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    folders.retain(|folder| folder.join("inside.safetensors").is_file());
    folders.sort();
    folders
}

fn folder(variable: &str, default: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| root().join(default), PathBuf::from)
}

/// Compares every tensor in `folder` with the trace of `model`; returns their number.
fn compare(folder: &Path, model: &Transformer, ids: &[u32]) -> usize {
    let label = folder.file_name().unwrap().to_str().unwrap();
    let trace = Trace::record(model, &weights_of(model), ids, &TraceOptions::default()).unwrap();
    let inside = weights::load_tensors(&folder.join("inside.safetensors")).unwrap();
    let mut worst = (0.0, String::new());
    for (name, (shape, values)) in &inside {
        let is_rotated = name.ends_with("hook_rot_q") || name.ends_with("hook_rot_k");
        if is_rotated && label.contains("yarn") {
            continue; // YaRN's factor scales these in transformers, and our scores.
        }
        let ours = trace.values.get(name);
        let ours = ours.unwrap_or_else(|| panic!("{label}: {name} is not explained"));
        assert_eq!(&ours.shape, shape, "{label}: {name}");
        let finite = values.iter().filter(|x| x.is_finite());
        let largest = finite.fold(1.0_f64, |max, x| max.max(f64::from(x.abs())));
        for (index, (ours, theirs)) in ours.data.iter().zip(values).enumerate() {
            let (ours, theirs) = (*ours, f64::from(*theirs));
            if ours.total_cmp(&theirs).is_eq() {
                continue; // Masked on both sides.
            }
            let difference = (ours - theirs).abs() / largest;
            assert!(
                difference <= CLOSE,
                "{label}, {name} {index}: {ours}, {theirs}"
            );
            if difference > worst.0 {
                worst = (difference, name.clone());
            }
        }
    }
    let (worst, name) = worst;
    println!(
        "{label}: {} tensors, largest difference {worst:.1e}, in {name}",
        inside.len()
    );
    inside.len()
}

#[test]
fn explained_tensors_match_pytorch_for_every_option() {
    let mut compared = 0;
    for folder in models_with_activations(&folder("NEXTWORD_INSIDE", "tests/fixtures/inside")) {
        let ours = fs::read(folder.join("model.json")).unwrap();
        let OurModel { config, ids } = serde_json::from_slice(&ours).unwrap();
        let model = weights::load(&config, &folder.join("model.safetensors"), &flex()).unwrap();
        compared += compare(&folder, &model, &ids);
    }
    assert!(compared > 200, "only {compared} tensors were compared");
}

#[test]
fn explained_tensors_match_transformers_models() {
    let scratch = tempfile::tempdir().unwrap();
    let mut compared = 0;
    for folder in models_with_activations(&folder("NEXTWORD_PARITY", "tests/fixtures/hf")) {
        let model_dir = scratch.path().join(folder.file_name().unwrap());
        import(&folder, &model_dir).unwrap();
        let model = ModelDir::open(&model_dir).unwrap().load(&flex()).unwrap();
        let inputs = fs::read(folder.join("inputs.json")).unwrap();
        let TransformersInputs { inputs } = serde_json::from_slice(&inputs).unwrap();
        let inside = weights::load_tensors(&folder.join("inside.safetensors")).unwrap();
        let seq = inside["logits"].0[0];
        compared += compare(&folder, &model, &inputs[..seq]);
    }
    assert!(compared > 150, "only {compared} tensors were compared");
}
