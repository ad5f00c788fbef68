//! What is explained is what PyTorch computes inside the same models, from fixtures that
//! `scripts/inside.py` writes.
//!
//! `NEXTWORD_INSIDE` names another folder of our models, `NEXTWORD_PARITY` one of transformers'.

use std::fs;
use std::path::{Path, PathBuf};

use nextword_convert::import;
use nextword_explain::evaluate::weights_of;
use nextword_explain::{Trace, TraceOptions};
use nextword_model::{ModelConfig, Record, Transformer, weights};
use serde::Deserialize;

use crate::util::{flex, root};

/// The largest difference, as a part of the tensor's largest number, or of 1 if that is more.
const CLOSE: f64 = 1e-5;

/// A model of ours with token ids.
#[derive(Deserialize)]
struct Ours {
    config: ModelConfig,
    ids: Vec<u32>,
}

/// The ids of one of transformers' models.
#[derive(Deserialize)]
struct Theirs {
    inputs: Vec<u32>,
}

/// The folders in `folder` that hold what PyTorch computed.
fn looked_into(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    folders.retain(|folder| folder.join("inside.safetensors").is_file());
    folders.sort();
    folders
}

fn folder(variable: &str, otherwise: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| root().join(otherwise), PathBuf::from)
}

/// Compares every tensor in `folder` with the trace of `model`; gives how many there are.
fn compare(folder: &Path, model: &Transformer, ids: &[u32]) -> usize {
    let shown = folder.file_name().unwrap().to_str().unwrap();
    let trace = Trace::record(model, &weights_of(model), ids, &TraceOptions::default()).unwrap();
    let inside = weights::load_tensors(&folder.join("inside.safetensors")).unwrap();
    let mut worst = (0.0, String::new());
    for (name, (shape, values)) in &inside {
        let ours = trace.values.get(name);
        let ours = ours.unwrap_or_else(|| panic!("{shown}: {name} is not explained"));
        assert_eq!(&ours.shape, shape, "{shown}: {name}");
        let finite = values.iter().filter(|x| x.is_finite());
        let largest = finite.fold(1.0_f64, |most, x| most.max(f64::from(x.abs())));
        for (at, (ours, theirs)) in ours.data.iter().zip(values).enumerate() {
            let (ours, theirs) = (*ours, f64::from(*theirs));
            if ours.total_cmp(&theirs).is_eq() {
                continue; // Hidden on both sides, too.
            }
            let apart = (ours - theirs).abs() / largest;
            assert!(apart <= CLOSE, "{shown}, {name} {at}: {ours}, {theirs}");
            if apart > worst.0 {
                worst = (apart, name.clone());
            }
        }
    }
    let (worst, name) = worst;
    println!(
        "{shown}: {} tensors, largest difference {worst:.1e}, in {name}",
        inside.len()
    );
    inside.len()
}

#[test]
fn explained_tensors_are_pytorchs_for_every_option() {
    let mut compared = 0;
    for folder in looked_into(&folder("NEXTWORD_INSIDE", "tests/fixtures/inside")) {
        let ours = fs::read(folder.join("model.json")).unwrap();
        let Ours { config, ids } = serde_json::from_slice(&ours).unwrap();
        let model = weights::load(&config, &folder.join("model.safetensors"), &flex()).unwrap();
        compared += compare(&folder, &model, &ids);
    }
    assert!(compared > 200, "{compared} tensors were compared");
}

#[test]
fn explained_tensors_are_those_inside_transformers_models() {
    let scratch = tempfile::tempdir().unwrap();
    let mut compared = 0;
    for folder in looked_into(&folder("NEXTWORD_PARITY", "tests/fixtures/hf")) {
        let record = scratch.path().join(folder.file_name().unwrap());
        import(&folder, &record).unwrap();
        let model = Record::open(&record).unwrap().load(&flex()).unwrap();
        let inputs = fs::read(folder.join("inputs.json")).unwrap();
        let Theirs { inputs } = serde_json::from_slice(&inputs).unwrap();
        let inside = weights::load_tensors(&folder.join("inside.safetensors")).unwrap();
        let seq = inside["logits"].0[0];
        compared += compare(&folder, &model, &inputs[..seq]);
    }
    assert!(compared > 150, "{compared} tensors were compared");
}
