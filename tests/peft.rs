//! Adapters of PEFT, from fixtures that `scripts/make_finetune_reference.py` writes: what they compute, how they
//! are trained, and the commands that convert them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use nextword_convert::{import, import_peft};
use nextword_data::{SourceBatch, TokenBatch};
use nextword_eval::{batch_context, batch_tokens};
use nextword_model::weights::{NamedTensors, load_tensors, save_tensors, to_f32_vec};
use nextword_model::{Adapter, ForwardContext, ModelDir, Transformer};
use nextword_train::{Optimizer, OptimizerConfig, forward_backward};
use serde::Deserialize;
use serde_json::Value;

use crate::architectures::Source;
use crate::parity::fixtures as bases;
use crate::test_dir::{BAD_FILE, TestDir, USAGE};
use crate::util::{Tolerance, assert_close, copy, devices, flex, root};

const LOGITS: Tolerance = Tolerance::new(1e-5, 1e-4);
const LOSS: Tolerance = Tolerance::new(1e-5, 1e-5);
const GRADIENTS: Tolerance = Tolerance::new(1e-4, 1e-5);

#[derive(Deserialize)]
struct Settings {
    base: String,
    batch: usize,
    seq: usize,
    inputs: Vec<u32>,
    targets: Vec<u32>,
    source: Option<Source>,
    adamw: AdamW,
}

#[derive(Deserialize)]
struct AdamW {
    lr: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    clip_norm: f64,
}

/// The folder of the adapter `name`.
pub(crate) fn adapter_fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures/peft").join(name)
}

/// An adapter with its base, and what PEFT computes with them.
struct Case {
    dir: TestDir,
    settings: Settings,
    base: ModelDir,
    expected: NamedTensors,
    name: String,
}

impl Case {
    fn new(name: &str) -> Self {
        let dir = TestDir::new();
        let folder = adapter_fixture(name);
        let settings = fs::read(folder.join("case.json")).unwrap();
        let settings: Settings = serde_json::from_slice(&settings).unwrap();
        import(&bases().join(&settings.base), &dir.path("base")).unwrap();
        Self {
            base: ModelDir::open(&dir.path("base")).unwrap(),
            expected: load_tensors(&folder.join("expected.safetensors")).unwrap(),
            name: name.to_string(),
            dir,
            settings,
        }
    }

    /// Imports the adapter, with the tensors in `file` of the fixture.
    fn import(&self, file: &str) -> Adapter {
        let folder = self.dir.path("peft");
        copy(&adapter_fixture(&self.name), &folder);
        let tensors = folder.join("adapter_model.safetensors");
        fs::copy(adapter_fixture(&self.name).join(file), tensors).unwrap();
        import_peft(&folder, &self.base, &self.dir.path("adapter"))
            .unwrap_or_else(|e| panic!("{}: {e}", self.name))
            .adapter
    }

    fn model(&self, device: &Device) -> Transformer {
        let adapter = self.import("adapter_model.safetensors");
        let base = self.base.load(device).unwrap();
        base.with_adapter(&adapter).unwrap()
    }

    fn batch(&self) -> TokenBatch {
        TokenBatch {
            batch: self.settings.batch,
            seq: self.settings.seq,
            inputs: self.settings.inputs.clone(),
            targets: self.settings.targets.clone(),
            source: self.settings.source.clone().map(SourceBatch::from),
            ..TokenBatch::default()
        }
    }
}

fn names() -> Vec<String> {
    let folders = fs::read_dir(adapter_fixture("")).unwrap();
    let names = folders.map(|folder| folder.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    assert!(names.len() >= 16, "{names:?}");
    names
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    to_f32_vec(tensor.into_data())
}

#[test]
fn imported_adapters_compute_the_logits_of_peft() {
    for (backend, device) in devices() {
        for name in names() {
            let case = Case::new(&name);
            let batch = case.batch();
            let logits = |model: Transformer| {
                let mut ctx = batch_context(ForwardContext::inference(), &batch, &device);
                values(model.forward(batch_tokens(&batch, &device), &mut ctx))
            };
            let expected = &case.expected["logits"].1;
            let found = logits(case.model(&device));
            assert_close(&found, expected, LOGITS, &format!("{name} on {backend}"));
            let base = logits(case.base.load(&device).unwrap());
            let change = base.iter().zip(expected).map(|(a, b)| (a - b).abs());
            assert!(
                change.fold(0.0, f32::max) > 0.1,
                "{name}: the adapter has an effect"
            );
        }
    }
}

/// Adds the gradients of the factors A that are the same tensor in PEFT.
fn add_shared(gradients: &mut BTreeMap<String, Vec<f32>>, is_combined: bool) {
    if !is_combined {
        return;
    }
    let layers = gradients
        .keys()
        .filter_map(|name| name.strip_suffix(".attention.query.lora.a"));
    let layers: Vec<String> = layers.map(str::to_string).collect();
    for layer in layers {
        let names =
            ["query", "key", "value"].map(|part| format!("{layer}.attention.{part}.lora.a"));
        let parts = names.each_ref().map(|name| gradients[name].clone());
        let sum = (0..parts[0].len()).map(|i| parts.iter().map(|part| part[i]).sum::<f32>());
        let sum: Vec<f32> = sum.collect();
        for name in names {
            gradients.insert(name, sum.clone());
        }
    }
}

#[test]
fn losses_and_gradients_of_adapters_are_those_of_peft() {
    for (backend, device) in devices() {
        for name in ["llama", "qwen2", "gpt2", "gpt_neox", "gemma"] {
            let case = Case::new(name);
            let model = case.model(&device).train();
            let (loss, gradients) = forward_backward(&model, &[case.batch()], 0, 0, false);
            let label = format!("{name} on {backend}");
            assert_close(&values(loss), &case.expected["loss"].1, LOSS, &label);
            let gradients = gradients.iter();
            let mut found: BTreeMap<String, Vec<f32>> = gradients
                .map(|(name, gradient)| (name.to_string(), values(gradient.clone())))
                .collect();
            add_shared(&mut found, name.starts_with("gpt"));
            let expected = case.import("gradients.safetensors");
            assert_eq!(
                found.len(),
                2 * expected.modules.len(),
                "only the adapter has gradients"
            );
            for (module, update) in &expected.modules {
                for (part, expected) in [("a", &update.a), ("b", &update.b)] {
                    let found = &found[&format!("{module}.lora.{part}")];
                    let label = format!("gradient of {module}.lora_{part}, {label}");
                    assert_close(found, expected, GRADIENTS, &label);
                }
            }
        }
    }
}

/// Where PEFT has one A for queries, keys and values, AdamW treats its gradient differently from three.
#[test]
fn losses_of_ten_steps_are_those_of_peft() {
    for name in ["llama", "qwen2", "gemma"] {
        let case = Case::new(name);
        let mut model = case.model(&flex()).train();
        let adamw = &case.settings.adamw;
        let mut optimizer = Optimizer::new(OptimizerConfig {
            beta1: adamw.beta1,
            beta2: adamw.beta2,
            eps: adamw.eps,
            weight_decay: adamw.weight_decay,
            clip_norm: adamw.clip_norm,
            ..OptimizerConfig::default()
        });
        for (step, expected) in case.expected["losses"].1.iter().enumerate() {
            let (loss, gradients) = forward_backward(&model, &[case.batch()], 0, 0, false);
            let tolerance = Tolerance::new(1e-4, 1e-4);
            assert_close(
                &values(loss),
                &[*expected],
                tolerance,
                &format!("{name}, step {step}"),
            );
            let norm = f64::from(values(gradients.norm().unwrap())[0]);
            let gradients = gradients.clip(norm, adamw.clip_norm);
            model = optimizer.update(model, gradients, adamw.lr, adamw.lr);
        }
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn commands_import_and_export_adapters() {
    let case = Case::new("llama");
    let (dir, from) = (&case.dir, text(&adapter_fixture("llama")));
    let printed = dir.run_merged(&["import", &from, "--base", "base", "--out", "adapter"]);
    assert!(
        printed.contains("an adapter of") && printed.contains("llama"),
        "{printed}"
    );
    let printed = dir.run_merged(&[
        "import", &from, "--base", "base", "--out", "adapter", "--json",
    ]);
    let json: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(json["lora"]["rank"], 4, "{json}");
    let printed = dir.run_merged(&["export", "adapter", "--format", "peft", "--out", "peft"]);
    assert!(printed.contains("for PEFT"), "{printed}");
    let tensors = |path: PathBuf| load_tensors(&path.join("adapter_model.safetensors")).unwrap();
    assert!(tensors(dir.path("peft")) == tensors(adapter_fixture("llama")));
    let lora = [
        "export",
        "adapter",
        "--format",
        "gguf-lora",
        "--out",
        "lora.gguf",
    ];
    for _ in 0..2 {
        let printed = dir.run_merged(&lora); // An earlier file is replaced.
        assert!(printed.contains("for llama.cpp"), "{printed}");
    }
    // The base is elsewhere, or another one.
    fs::create_dir(dir.path("elsewhere")).unwrap();
    fs::rename(dir.path("base"), dir.path("elsewhere/moved")).unwrap();
    dir.rejects(&lora, BAD_FILE, &["--base PATH"]);
    import(&bases().join("qwen2"), &dir.path("other")).unwrap();
    dir.run_merged(&[lora.as_slice(), &["--base", "elsewhere/moved"]].concat());
    dir.rejects(
        &[lora.as_slice(), &["--base", "other"]].concat(),
        BAD_FILE,
        &["but this is"],
    );
}

#[test]
fn commands_say_which_arguments_an_adapter_needs() {
    let case = Case::new("llama");
    let (dir, from) = (&case.dir, text(&adapter_fixture("llama")));
    dir.rejects(&["import", &from, "--out", "x"], USAGE, &["--base MODEL"]);
    let foreign = text(&bases().join("llama"));
    let base = ["import", &foreign, "--base", "base", "--out", "x"];
    dir.rejects(&base, USAGE, &["--base applies only"]);
    dir.rejects(
        &[
            "import",
            &from,
            "--base",
            "base",
            "--dequantize",
            "--out",
            "x",
        ],
        USAGE,
        &["GGUF"],
    );
    let export = ["export", "base", "--format", "peft", "--out", "x"];
    dir.rejects(
        &export,
        USAGE,
        &["is not an adapter", "--format hf or gguf"],
    );
    let half = [
        "export", "base", "--format", "peft", "--dtype", "f16", "--out", "x",
    ];
    dir.rejects(&half, USAGE, &["f32"]);
    let base = [
        "export", "base", "--format", "hf", "--base", "base", "--out", "x",
    ];
    dir.rejects(&base, USAGE, &["is for adapters"]);
    // Tensors that do not fit.
    copy(&adapter_fixture("llama"), &dir.path("bad"));
    let path = dir.path("bad").join("adapter_model.safetensors");
    let mut tensors = load_tensors(&path).unwrap();
    let (name, _) = tensors.pop_first().unwrap();
    save_tensors(&tensors, &path).unwrap();
    dir.rejects(
        &["import", "bad", "--base", "base", "--out", "x"],
        BAD_FILE,
        &["missing", &name],
    );
}
