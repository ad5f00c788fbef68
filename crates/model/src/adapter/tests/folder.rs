//! Adapter folders that are written and read back.

use std::fs;

use super::*;
use crate::{AdapterDir, BaseModel, DEFAULT_TEMPLATE, ModelCard, ModelDir};

fn base_model() -> BaseModel {
    BaseModel {
        name: "base".to_string(),
        weights_sha256: "ab".repeat(32),
        bits: Some(8),
        ..BaseModel::default()
    }
}

#[test]
fn an_adapter_survives_its_folder_to_the_bit() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("adapter");
    let modules_to_save = vec!["head".to_string(), "norms".to_string()];
    let dora = LoraConfig {
        use_dora: true,
        use_rslora: true,
        modules_to_save,
        ..lora(5)
    };
    let mut card = ModelCard {
        name: "run".to_string(),
        ..ModelCard::default()
    };
    card.chat_templates
        .insert(DEFAULT_TEMPLATE.to_string(), "{{ messages }}".to_string());
    for config in [lora(3), dora] {
        let model = build(&llama(), None);
        let mut adapter = trained(&model, &config);
        let query = adapter.modules.get_mut("blocks.0.attention.query").unwrap();
        (query.scale, query.b[0]) = (0.1 + 1.0 / 3.0, -0.0);
        AdapterDir::save(&path, &adapter, &base_model(), &card).unwrap();
        assert!(AdapterDir::is_adapter(&path) && !AdapterDir::is_adapter(parent.path()));
        let saved = AdapterDir::open(&path).unwrap();
        assert_eq!((&saved.config, &saved.base), (&config, &base_model()));
        assert_eq!(
            (&saved.card.name, &saved.card.chat_templates),
            (&card.name, &card.chat_templates)
        );
        let loaded = saved.load(&llama()).unwrap();
        assert_eq!(loaded, adapter);
        let b = &loaded.modules["blocks.0.attention.query"].b;
        assert_eq!(b[0].to_bits(), (-0.0f32).to_bits());
        assert!(
            parent.path().read_dir().unwrap().count() == 1,
            "no temporary folder is left"
        );
    }
}

#[test]
fn the_same_adapter_gives_the_same_bytes() {
    let parent = tempfile::tempdir().unwrap();
    let adapter = trained(&build(&llama(), None), &lora(3));
    let bytes = ["one", "two"].map(|name| {
        let path = parent.path().join(name);
        AdapterDir::save(&path, &adapter, &base_model(), &ModelCard::default()).unwrap();
        ["adapter.json", "adapter.safetensors", "card.json"]
            .map(|file| fs::read(path.join(file)).unwrap())
    });
    assert!(bytes[0] == bytes[1]);
}

#[test]
fn a_newer_format_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("adapter");
    let adapter = trained(&build(&llama(), None), &lora(3));
    AdapterDir::save(&path, &adapter, &base_model(), &ModelCard::default()).unwrap();
    fs::write(path.join("adapter.json"), r#"{"format": 2, "new": 1}"#).unwrap();
    let error = AdapterDir::open(&path).unwrap_err().to_string();
    assert!(
        error.contains("has format 2") && error.contains("hint: "),
        "{error}"
    );
}

#[test]
fn a_base_model_is_told_from_another_by_its_weights() {
    let parent = tempfile::tempdir().unwrap();
    let open = |name: &str, seed| {
        let path = parent.path().join(name);
        let model = llama().init(&Device::flex(), seed).unwrap();
        ModelDir::save(&path, &model, "{}", &ModelCard::default()).unwrap();
        ModelDir::open(&path).unwrap()
    };
    let (base, copy, other) = (open("base", 1), open("copy", 1), open("other", 2));
    let described = BaseModel::of(&base).unwrap();
    assert_eq!((described.name.as_str(), described.bits), ("base", None));
    assert_eq!(
        described.tokenizer_sha256,
        nextword_base::hash::sha256_hex(b"{}")
    );
    described.check(&copy).unwrap();
    let error = described.check(&other).unwrap_err().to_string();
    assert!(
        error.contains("was made for base") && error.contains("other is another model"),
        "{error}"
    );
}

#[test]
fn an_adapter_is_not_the_base_of_another_one() {
    let parent = tempfile::tempdir().unwrap();
    let [base, path] = ["base", "adapter"].map(|name| parent.path().join(name));
    let model = build(&llama(), None);
    ModelDir::save(&base, &model, "{}", &ModelCard::default()).unwrap();
    let base = ModelDir::open(&base).unwrap();
    let description = BaseModel::of(&base).unwrap();
    let adapter = trained(&model, &lora(3));
    AdapterDir::save(&path, &adapter, &description, &ModelCard::default()).unwrap();
    let adapted = AdapterDir::open(&path)
        .unwrap()
        .with_base(base.clone())
        .unwrap();
    let attached = adapted.adapt(model.clone()).unwrap();
    assert_eq!(attached.adapter().unwrap(), adapter);
    assert!(!base.adapt(model).unwrap().has_adapter());
    let error = BaseModel::of(&adapted).unwrap_err().to_string();
    assert!(
        error.contains("cannot be the base of another one") && error.contains("nextword merge"),
        "{error}"
    );
}

#[test]
fn a_card_is_completed_by_that_of_the_base_without_reading_tensors() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("adapter");
    let adapter = trained(&build(&llama(), None), &lora(3));
    let card = ModelCard {
        name: "adapter".to_string(),
        prompt_template: Some("own {prompt}".to_string()),
        ..ModelCard::default()
    };
    AdapterDir::save(&path, &adapter, &base_model(), &card).unwrap();
    fs::remove_file(path.join("adapter.safetensors")).unwrap();
    let mut base = ModelCard {
        name: "base".to_string(),
        prompt_template: Some("base {prompt}".to_string()),
        ..ModelCard::default()
    };
    let template = ("default".to_string(), "{{ messages }}".to_string());
    base.chat_templates.extend([template]);
    base.special.eos_ids = vec![3];
    let completed = AdapterDir::open(&path).unwrap().card_over(&base);
    assert_eq!(
        (completed.name, completed.prompt_template),
        (card.name, card.prompt_template)
    );
    assert_eq!(
        (completed.chat_templates, completed.special),
        (base.chat_templates, base.special)
    );
}

#[test]
fn configuration_and_tokenizer_are_compared_without_the_weights() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("base");
    let model = build(&llama(), None);
    ModelDir::save(&path, &model, "{}", &ModelCard::default()).unwrap();
    let model = ModelDir::open(&path).unwrap();
    let described = BaseModel::of(&model).unwrap();
    fs::remove_file(model.weights_path()).unwrap();
    assert!(described.has_small_files_of(&model).unwrap());
    assert!(described.check(&model).is_err());
    let other_config = BaseModel {
        config_sha256: "ab".repeat(32),
        ..described.clone()
    };
    assert!(!other_config.has_small_files_of(&model).unwrap());
    fs::write(model.tokenizer_path(), "{ }").unwrap();
    assert!(!described.has_small_files_of(&model).unwrap());
}
