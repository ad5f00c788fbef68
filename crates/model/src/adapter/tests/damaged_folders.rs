//! Damaged adapter folders: each is an error, or the adapter that was saved.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::weights::{NamedTensors, load_tensors, save_tensors};
use crate::{AdapterDir, BaseModel, ModelCard, ModelError};

const SETTINGS: &str = "adapter.json";
const TENSORS: &str = "adapter.safetensors";

fn saved(path: &Path) -> Adapter {
    let modules_to_save = vec!["norms".to_string()];
    let config = LoraConfig {
        use_dora: true,
        modules_to_save,
        ..lora(3)
    };
    let adapter = trained(&build(&llama(), None), &config);
    AdapterDir::save(path, &adapter, &BaseModel::default(), &ModelCard::default()).unwrap();
    adapter
}

fn load(path: &Path) -> Result<Adapter, ModelError> {
    AdapterDir::open(path)?.load(&llama())
}

/// Panics unless loading fails with a message that contains `name`.
#[track_caller]
fn assert_error(path: &Path, name: &str) {
    let error = load(path).unwrap_err().to_string();
    assert!(error.contains(name), "{error}\ndoes not contain {name}");
}

#[test]
fn every_damaged_tensor_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    saved(folder.path());
    let file = folder.path().join(TENSORS);
    let tensors = load_tensors(&file).unwrap();
    for name in tensors.keys().step_by(3) {
        let damage = |change: &dyn Fn(&mut NamedTensors), message: &str| {
            let mut damaged = tensors.clone();
            change(&mut damaged);
            save_tensors(&damaged, &file).unwrap();
            assert_error(folder.path(), message);
        };
        let quoted = format!("`{name}`");
        damage(&|tensors| drop(tensors.remove(name)), &quoted);
        for value in [f32::NAN, f32::INFINITY] {
            damage(
                &|tensors| tensors.get_mut(name).unwrap().1[0] = value,
                &quoted,
            );
        }
        damage(
            &|tensors| {
                let (shape, values) = tensors.get_mut(name).unwrap();
                shape.insert(0, 2);
                values.extend(values.clone());
            },
            &quoted,
        );
        damage(
            &|tensors| {
                let tensor = tensors.remove(name).unwrap();
                tensors.insert(format!("{name}.x"), tensor);
            },
            &format!("`{name}.x`"),
        );
    }
    save_tensors(&NamedTensors::new(), &file).unwrap();
    assert_error(folder.path(), "missing");
}

#[test]
fn every_damaged_module_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    saved(folder.path());
    let file = folder.path().join(SETTINGS);
    let settings: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let count = settings["modules"].as_array().unwrap().len();
    for index in (0..count).step_by(4) {
        let name = settings["modules"][index]["name"].as_str().unwrap();
        let damage = |key: &str, value: Value, message: &str| {
            let mut damaged = settings.clone();
            damaged["modules"][index][key] = value;
            fs::write(&file, damaged.to_string()).unwrap();
            assert_error(folder.path(), message);
        };
        for rank in [0, 33, usize::MAX] {
            damage("rank", json!(rank), &format!("`{name}`: rank {rank}"));
        }
        damage("rank", json!(2), &format!("`{name}.lora_a` has shape"));
        damage("rank", json!(-1), SETTINGS);
        damage("rank", Value::Null, SETTINGS);
        damage("scale", json!(1e300), SETTINGS);
        damage("scale", json!("1"), SETTINGS);
        damage(
            "name",
            json!("head"),
            "`head`: the model has no such linear layer",
        );
        damage(
            "name",
            json!("blocks.7.attention.query"),
            "`blocks.7.attention.query`",
        );
        let neighbor = settings["modules"][(index + 1) % count]["name"].clone();
        damage("name", neighbor, "twice");
        let mut shorter = settings.clone();
        shorter["modules"].as_array_mut().unwrap().remove(index);
        fs::write(&file, shorter.to_string()).unwrap();
        assert_error(folder.path(), &format!("unexpected: `{name}.lora_a`"));
    }
    for name in ["blocks.0.attention.query.weight", "head.bias", "x"] {
        let mut damaged = settings.clone();
        damaged["saved"].as_array_mut().unwrap().push(json!(name));
        fs::write(&file, damaged.to_string()).unwrap();
        assert_error(folder.path(), &format!("`{name}`"));
    }
    for key in ["format", "lora", "base", "modules"] {
        let mut damaged = settings.clone();
        damaged.as_object_mut().unwrap().remove(key);
        fs::write(&file, damaged.to_string()).unwrap();
        assert_error(folder.path(), key);
    }
    for (key, value) in [
        ("rank", json!(0)),
        ("r", json!(4)),
        ("alpha", Value::Null),
        ("dropout", json!(2)),
    ] {
        let mut damaged = settings.clone();
        damaged["lora"][key] = value;
        fs::write(&file, damaged.to_string()).unwrap();
        assert_error(folder.path(), SETTINGS);
    }
}

#[test]
fn cut_and_flipped_files_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let adapter = saved(folder.path());
    let rng = CounterRng::new(4);
    for name in [SETTINGS, TENSORS, "card.json"] {
        let file = folder.path().join(name);
        let bytes = fs::read(&file).unwrap();
        // The values of the tensors are not protected; the header is.
        let header = if name == TENSORS {
            8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
        } else {
            bytes.len()
        };
        for trial in 0..200 {
            let mut damaged = bytes.clone();
            if trial % 4 == 0 {
                damaged.truncate(rng.below(2 * trial, bytes.len() as u64) as usize);
            } else {
                let at = rng.below(2 * trial, header as u64) as usize;
                damaged[at] ^= 1 << rng.below(2 * trial + 1, 8);
            }
            fs::write(&file, &damaged).unwrap();
            match load(folder.path()) {
                Err(error) => assert!(
                    error.to_string().contains("adapter") || name == "card.json",
                    "{error}"
                ),
                Ok(loaded) => {
                    // Only names and numbers that do not concern the tensors may differ.
                    assert!(loaded.modules.keys().eq(adapter.modules.keys()));
                    let is_cut = trial % 4 == 0 && name == TENSORS;
                    assert!(!is_cut, "{name} cut to {} bytes", damaged.len());
                }
            }
        }
        fs::write(&file, &bytes).unwrap();
    }
    assert_eq!(load(folder.path()).unwrap(), adapter);
    for name in [SETTINGS, TENSORS] {
        let bytes = fs::read(folder.path().join(name)).unwrap();
        fs::remove_file(folder.path().join(name)).unwrap();
        assert_error(folder.path(), name);
        fs::write(folder.path().join(name), bytes).unwrap();
    }
}
