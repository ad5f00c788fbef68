//! Import and export of transformers models, from fixtures that `scripts/parity.py` writes.
//!
//! `NEXTWORD_PARITY` names another folder of models: the script then loads the exports from there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData};
use nextword_convert::{export_hf, import};
use nextword_model::weights::{self, FloatType};
use nextword_model::{ForwardContext, ModelDir};
use serde::Deserialize;

use crate::util::{devices, root};

/// Tolerance of a logit.
const LOGITS: f32 = 1e-4;

#[derive(Deserialize)]
struct Inputs {
    batch: usize,
    seq: usize,
    inputs: Vec<i32>,
}

/// The folder of one model for each type.
pub(crate) fn fixtures() -> PathBuf {
    root().join("tests/fixtures/hf")
}

fn logits(model_dir: &ModelDir, inputs: &Inputs, device: &Device) -> Vec<f32> {
    let data = TensorData::new(inputs.inputs.clone(), [inputs.batch, inputs.seq]);
    let tokens = Tensor::<2, Int>::from_data(data, device);
    let model = model_dir.load(device).unwrap();
    weights::to_f32_vec(
        model
            .forward(tokens, &mut ForwardContext::inference())
            .into_data(),
    )
}

/// All tensors of a folder, from all shards.
fn tensors(folder: &Path) -> BTreeMap<String, (Vec<usize>, Vec<u32>)> {
    let files = fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path());
    let files = files.filter(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with("model") && name.ends_with(".safetensors")
    });
    let bits = |(name, (shape, values)): (String, (Vec<usize>, Vec<f32>))| {
        (
            name,
            (shape, values.into_iter().map(f32::to_bits).collect()),
        )
    };
    files
        .flat_map(|path| weights::load_tensors(&path).unwrap())
        .map(bits)
        .collect()
}

#[test]
fn imported_models_match_transformers() {
    let custom = std::env::var_os("NEXTWORD_PARITY").map(PathBuf::from);
    let folder = custom.clone().unwrap_or_else(fixtures);
    let scratch = tempfile::tempdir().unwrap();
    let exported = custom.map_or_else(|| scratch.path().to_path_buf(), |f| f.join("exported"));
    let devices = devices();
    let mut names: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.retain(|name| name != "exported");
    names.sort();
    assert!(names.len() >= 9, "one model for each type");
    for name in names {
        let (from, label) = (folder.join(&name), name.to_str().unwrap());
        let to = scratch.path().join("imported").join(label);
        import(&from, &to).unwrap_or_else(|e| panic!("{label}: {e}"));
        let model_dir = ModelDir::open(&to).unwrap();
        let inputs: Inputs =
            serde_json::from_slice(&fs::read(from.join("inputs.json")).unwrap()).unwrap();
        let expected = weights::load_tensors(&from.join("expected.safetensors")).unwrap();
        for (device_name, device) in &devices {
            let found = logits(&model_dir, &inputs, device);
            let expected = &expected["logits"].1;
            assert_eq!(found.len(), expected.len());
            let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
            let worst = worst.fold(
                0.0,
                |max: f32, d| if d > max || d.is_nan() { d } else { max },
            );
            println!("{label} on {device_name}: largest difference {worst:.1e}");
            assert!(worst <= LOGITS, "{label} on {device_name}: {worst}");
        }
        let out = exported.join(label);
        let kind = export_hf(&model_dir, FloatType::F32, &out).unwrap();
        // Without an effective sliding window, Mistral models are exported as Llama.
        let windowless = ["mistral_whole", "mistral_absent"];
        let is_llama = windowless.contains(&label) && kind == "llama";
        assert!(
            is_llama || label.starts_with(kind),
            "{label} was exported as {kind}"
        );
        assert!(
            tensors(&from) == tensors(&out),
            "{label}: weights after a round trip"
        );
    }
}
