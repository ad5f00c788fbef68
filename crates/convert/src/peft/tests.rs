//! Adapters that PEFT wrote.

#![allow(clippy::unwrap_used, clippy::float_cmp)]

mod embedding;

use std::fs;
use std::path::{Path, PathBuf};

use nextword_model::weights::{NamedTensors, load_tensors, save_tensors};
use nextword_model::{
    Adapter, AdapterDir, BaseModel, ModelCard, ModelDir, SavedTensor, TargetModules,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{export_peft, export_peft_with_base_name, import_peft};

const TENSORS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

/// A temporary folder with the imported base of the adapter `name`, and a copy of the adapter's files.
struct Case {
    folder: TempDir,
    base: ModelDir,
}

impl Case {
    fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let from = fixtures().join("peft").join(name);
        let case: Value = read_json(&from.join("case.json"));
        let base = folder.path().join("base");
        let foreign_base = fixtures().join("hf").join(case["base"].as_str().unwrap());
        crate::import(&foreign_base, &base).unwrap();
        let peft = folder.path().join("peft");
        fs::create_dir(&peft).unwrap();
        for file in [TENSORS, CONFIG] {
            fs::copy(from.join(file), peft.join(file)).unwrap();
        }
        let base = ModelDir::open(&base).unwrap();
        Self { folder, base }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Imports the folder `peft`.
    fn import(&self) -> Result<Adapter, String> {
        let to = self.path("adapter");
        let imported = import_peft(&self.path("peft"), &self.base, &to);
        imported.map_err(|error| error.to_string())?;
        Ok(AdapterDir::open(&to)
            .unwrap()
            .load(&self.base.config)
            .unwrap())
    }

    /// Exports the folder `adapter` to `name`, which becomes the source of the next import.
    fn export(&self) -> Vec<String> {
        let adapter = AdapterDir::open(&self.path("adapter")).unwrap();
        let to = self.path("peft");
        export_peft(&adapter, &self.base, &to).unwrap().notes
    }

    fn change_tensors(&self, change: impl FnOnce(&mut NamedTensors)) {
        let path = self.path("peft").join(TENSORS);
        let mut tensors = load_tensors(&path).unwrap();
        change(&mut tensors);
        save_tensors(&tensors, &path).unwrap();
    }

    fn change_config(&self, change: impl FnOnce(&mut Value)) {
        let path = self.path("peft").join(CONFIG);
        let mut config = read_json(&path);
        change(&mut config);
        fs::write(path, config.to_string()).unwrap();
    }
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn all_cases() -> Vec<String> {
    let folders = fs::read_dir(fixtures().join("peft")).unwrap();
    let names = folders.map(|folder| folder.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    assert!(names.len() >= 16, "{names:?}");
    names
}

#[test]
fn exported_adapters_have_the_bits_of_the_imported_ones() {
    for name in all_cases() {
        let case = Case::new(&name);
        let adapter = case.import().unwrap_or_else(|e| panic!("{name}: {e}"));
        let original = load_tensors(&case.path("peft").join(TENSORS)).unwrap();
        case.export();
        let exported = load_tensors(&case.path("peft").join(TENSORS)).unwrap();
        if !name.ends_with("_embedding") {
            assert_eq!(
                exported.keys().collect::<Vec<_>>(),
                original.keys().collect::<Vec<_>>()
            );
            assert!(exported == original, "{name}");
        }
        let again = case.import().unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(
            (again.modules, again.saved),
            (adapter.modules, adapter.saved),
            "{name}"
        );
    }
}

#[test]
fn independent_updates_of_combined_matrices_survive_export_and_import() {
    for name in ["gpt2", "gpt_neox"] {
        let case = Case::new(name);
        let mut adapter = case.import().unwrap();
        for (index, update) in adapter.modules.values_mut().enumerate() {
            let change = index as f32 / 64.0;
            update.a.iter_mut().for_each(|value| *value += change);
        }
        let base = BaseModel::of(&case.base).unwrap();
        AdapterDir::save(
            &case.path("adapter"),
            &adapter,
            &base,
            &ModelCard::default(),
        )
        .unwrap();
        case.export();
        let config = read_json(&case.path("peft").join(CONFIG));
        let combined = if name == "gpt2" {
            "c_attn"
        } else {
            "query_key_value"
        };
        assert_eq!(config["rank_pattern"], json!({combined: 12}), "{config}");
        assert_eq!(config["alpha_pattern"], json!({combined: 24}), "{config}");
        assert_eq!(case.import().unwrap().modules, adapter.modules, "{name}");
    }
}

#[test]
fn patterns_give_ranks_and_scales_of_single_modules() {
    let adapter = Case::new("llama_patterns").import().unwrap();
    let rank_and_scale = |module: &str| {
        let update = &adapter.modules[module];
        (update.rank, update.scale)
    };
    assert_eq!(rank_and_scale("blocks.0.attention.query"), (6, 5.0 / 6.0));
    assert_eq!(rank_and_scale("blocks.1.attention.key"), (3, 7.0 / 3.0));
    assert_eq!(rank_and_scale("blocks.0.attention.value"), (3, 11.0 / 3.0));
    assert_eq!(rank_and_scale("blocks.1.attention.value"), (3, 5.0 / 3.0));
    assert_eq!(rank_and_scale("blocks.1.feed_forward.down"), (2, 2.5));
    let adapter = Case::new("llama_rslora").import().unwrap();
    let scales = adapter.modules.values().map(|update| update.scale);
    assert_eq!(scales.fold(0.0, f32::max), 16.0 / 2.0_f32.sqrt());
}

#[test]
fn settings_describe_the_adapted_modules() {
    let config = Case::new("gemma2").import().unwrap().config;
    let names = serde_json::to_value(&config.target_modules).unwrap();
    assert_eq!((names, config.layers), (json!(["key", "up"]), None));
    let config = Case::new("llama_saved").import().unwrap().config;
    assert_eq!(config.target_modules, TargetModules::AllLinear);
    assert_eq!(config.modules_to_save, ["head", "norms"]);
}

#[test]
fn names_with_the_name_of_the_adapter_are_accepted() {
    let case = Case::new("llama");
    let adapter = case.import().unwrap();
    case.change_tensors(|tensors| {
        let renamed = std::mem::take(tensors).into_iter();
        let renamed =
            renamed.map(|(name, tensor)| (name.replace(".weight", ".default.weight"), tensor));
        tensors.extend(renamed);
    });
    assert_eq!(case.import().unwrap(), adapter);
}

#[test]
fn tensors_that_do_not_fit_are_errors_that_name_them() {
    const QUERY: &str = "base_model.model.model.layers.1.self_attn.q_proj";
    let error = |change: &dyn Fn(&mut NamedTensors)| {
        let case = Case::new("llama");
        case.change_tensors(|tensors| change(tensors));
        let error = case.import().unwrap_err();
        assert!(!case.path("adapter").exists(), "nothing is written");
        error
    };
    let b = format!("{QUERY}.lora_B.weight");
    for (change, part) in [
        (
            &(|t: &mut NamedTensors| drop(t.remove(&b))) as &dyn Fn(&mut NamedTensors),
            "missing",
        ),
        (&|t| t.get_mut(&b).unwrap().0.reverse(), "has shape [4, 24]"),
        (&|t| t.get_mut(&b).unwrap().1[3] = f32::NAN, "NaN"),
        (&|t| t.get_mut(&b).unwrap().1[0] = f32::INFINITY, "infinity"),
    ] {
        let error = error(change);
        assert!(error.contains(part) && error.contains(&b), "{error}");
    }
    for (added, part) in [
        (
            "model.layers.2.self_attn.q_proj.lora_A.weight",
            "no such module",
        ),
        ("model.layers.0.self_attn.lora_A.weight", "no such module"),
        ("model.embed_tokens.lora_embedding_A", "missing"),
        ("model.embed_tokens.lora_A.weight", "unused"),
        ("lm_head.lora_A.weight", "missing"),
        (
            "model.layers.0.self_attn.q_proj.base_layer.weight",
            "unused",
        ),
        ("model.layers.0.self_attn.q_proj.weight", "full copy"),
        ("model.norm.bias", "not a parameter"),
        ("model.layers.0.self_attn.q_proj.lora_B.bias", "lora_bias"),
        (
            "model.layers.0.mlp.up_proj.lora_magnitude_vector",
            "use_dora",
        ),
        (
            "model.layers.0.mlp.up_proj.lora_A.other.weight",
            "same tensor",
        ),
    ] {
        let name = format!("base_model.model.{added}");
        let error = error(&|tensors| drop(tensors.insert(name.clone(), (vec![1], vec![0.5]))));
        let module = added.split(".lora").next().unwrap();
        assert!(
            error.contains(part) && error.contains(module),
            "{added}: {error}"
        );
    }
}

#[test]
fn adapters_of_other_models_are_rejected() {
    let case = Case::new("llama");
    for other in ["gpt2", "gemma2"] {
        let other = Case::new(other);
        let error = import_peft(&case.path("peft"), &other.base, &case.path("other"));
        let error = error.map(drop).unwrap_err().to_string();
        assert!(error.contains("base model"), "{error}");
    }
}

#[test]
fn ranks_must_be_those_of_the_settings() {
    let case = Case::new("llama");
    case.change_config(|config| config["r"] = json!(8));
    let error = case.import().unwrap_err();
    assert!(
        error.contains("has rank 4") && error.contains("rank 8"),
        "{error}"
    );
    let case = Case::new("llama_dora");
    case.change_tensors(|tensors| {
        tensors.retain(|name, _| !name.contains("0.mlp.up_proj.lora_magnitude"));
    });
    let error = case.import().unwrap_err();
    assert!(
        error.contains("missing") && error.contains("up_proj.lora_magnitude_vector"),
        "{error}"
    );
}

#[test]
fn the_largest_rank_of_a_combined_matrix_is_that_of_all_its_parts() {
    let case = Case::new("gpt2");
    let mut width = 0;
    case.change_tensors(|tensors| {
        let mut tensors = tensors.iter_mut();
        let found = tensors.find(|(name, _)| name.contains("c_attn.lora_A"));
        let (_, (shape, values)) = found.unwrap();
        width = shape[1];
        *shape = vec![3 * width + 1, width];
        *values = vec![0.0; shape[0] * width];
    });
    let error = case.import().unwrap_err();
    let limit = 3 * width;
    let expected = format!("has rank {}, which is not between 1 and {limit}", limit + 1);
    assert!(error.contains(&expected), "{error}");
}

#[test]
fn copies_of_tied_weights_must_be_equal() {
    const HEAD: &str = "base_model.model.lm_head.weight";
    const TABLE: &str = "base_model.model.model.embed_tokens.weight";
    let case = Case::new("qwen2_tied");
    case.change_tensors(|tensors| tensors.get_mut(HEAD).unwrap().1[7] += 1.0);
    assert!(case.import().unwrap_err().contains("ties"));
    case.change_tensors(|tensors| drop(tensors.remove(HEAD)));
    assert_eq!(
        case.import().unwrap().config.modules_to_save,
        ["token_embedding"]
    );
    case.change_config(|config| config["ensure_weight_tying"] = json!(false));
    assert!(case.import().unwrap_err().contains("ensure_weight_tying"));
    case.change_tensors(|tensors| {
        let table = tensors.remove(TABLE).unwrap();
        tensors.insert(HEAD.to_string(), table);
    });
    assert!(case.import().unwrap_err().contains("ties"));
}

#[test]
fn notes_say_what_vllm_does_not_load() {
    for (name, notes) in [
        ("llama", vec![]),
        ("llama_dora", vec!["DoRA"]),
        ("llama_saved", vec!["modules_to_save"]),
        ("gpt2_bias", vec!["biases"]),
    ] {
        let case = Case::new(name);
        case.import().unwrap();
        let found = case.export();
        assert_eq!(found.len(), notes.len(), "{name}: {found:?}");
        for (found, part) in found.iter().zip(notes) {
            assert!(found.contains(part), "{name}: {found}");
        }
        let config = read_json(&case.path("peft").join(CONFIG));
        let bias = if name == "gpt2_bias" {
            "lora_only"
        } else {
            "none"
        };
        assert_eq!(config["bias"], bias);
    }
}

#[test]
fn pickle_files_are_named_and_never_opened() {
    let case = Case::new("llama");
    fs::rename(
        case.path("peft").join(TENSORS),
        case.path("peft").join("adapter_model.bin"),
    )
    .unwrap();
    let error = case.import().unwrap_err();
    for part in ["adapter_model.bin", "pickle", "never opened", "save_file"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn folders_with_other_files_are_not_replaced() {
    let case = Case::new("llama");
    let to = case.path("adapter");
    fs::create_dir(&to).unwrap();
    for file in ["notes.txt", "README.md"] {
        fs::write(to.join(file), "mine").unwrap();
        assert!(case.import().unwrap_err().contains(file));
        fs::remove_file(to.join(file)).unwrap();
    }
    case.import().unwrap();
    case.import().unwrap(); // An earlier adapter is replaced.
    let error = export_peft(
        &AdapterDir::open(&to).unwrap(),
        &case.base,
        case.folder.path(),
    );
    assert!(
        error
            .map(drop)
            .unwrap_err()
            .to_string()
            .contains("contains")
    );
}

#[test]
fn the_name_of_the_base_can_be_chosen() {
    let case = Case::new("llama");
    case.import().unwrap();
    let adapter = AdapterDir::open(&case.path("adapter")).unwrap();
    let to = case.path("named");
    export_peft_with_base_name(&adapter, &case.base, "me/my-llama", &to).unwrap();
    let config = read_json(&to.join(CONFIG));
    assert_eq!(config["base_model_name_or_path"], "me/my-llama");
    let readme = fs::read_to_string(to.join("README.md")).unwrap();
    assert!(readme.contains("me/my-llama"), "{readme}");
}

#[test]
fn a_setting_that_is_wrong_for_all_modules_is_one_line() {
    let case = Case::new("llama");
    case.change_config(|config| config["r"] = json!(3));
    let error = case.import().unwrap_err();
    let lines: Vec<&str> = error.lines().skip(1).collect();
    assert_eq!(lines.len(), 1, "{error}");
    assert!(lines[0].contains("rank 3") && lines[0].contains(" more with the same problem)"));
}
