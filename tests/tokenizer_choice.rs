//! What a configuration leaves open about its tokenizer is decided as in earlier versions, and as the model says.

use nextword_data::{Builtin, Packing, TokenizerConfig, TokenizerKind, load_tokenizer};
use nextword_model::{ModelConfig, ModelDir, presets};
use nextword_train::{RunConfig, prepare_run, prepare_stored_run, use_declared_eos};

use crate::util::root;

/// StatQuest's configuration as written for version 0.1, without `data.tokenizer.unk`.
fn old() -> RunConfig {
    let mut config = RunConfig {
        model: ModelConfig {
            vocab_size: 0,
            ..presets::statquest(5)
        },
        ..RunConfig::default()
    };
    config.data.builtin = Some(Builtin::Statquest);
    config.data.packing = Packing::Documents;
    config.data.tokenizer.kind = TokenizerKind::Word;
    config.data.split.validation = 0.0;
    config.train.steps = 10;
    config.schedule.warmup_steps = 0;
    config
}

#[test]
fn a_configuration_of_an_earlier_version_keeps_its_vocabulary() {
    let expecting = RunConfig {
        expect_parameters: Some(37),
        ..old()
    };
    let sized = RunConfig {
        model: presets::statquest(5),
        ..old()
    };
    for config in [expecting, sized] {
        let setup = prepare_run(config).unwrap();
        assert_eq!(setup.dataset.tokenizer.special_tokens().unk, None);
        assert_eq!(setup.config.model.parameter_counts().total(), 37);
        assert!(setup.config.warnings[0].contains("data.tokenizer.unk"));
        // The stored configuration says so, and a resumed run does not warn.
        assert_eq!(setup.config.data.tokenizer.unk, "");
        let mut stored = setup.config.clone();
        stored.warnings.clear();
        let resumed = prepare_stored_run(stored).unwrap();
        assert_eq!(resumed.data_fingerprint(), setup.data_fingerprint());
        assert!(resumed.config.warnings.is_empty());
    }
    let setup = prepare_run(old()).unwrap();
    assert!(setup.dataset.tokenizer.special_tokens().unk.is_some());
    assert!(setup.config.warnings.is_empty());
    let wrong = RunConfig {
        expect_parameters: Some(38),
        ..old()
    };
    let error = prepare_run(wrong).unwrap_err().to_string();
    assert!(error.contains("data.tokenizer.unk"), "{error}");
}

#[test]
fn the_model_of_a_tokenizer_file_declares_its_eos_token() {
    // A model whose documents end with a token that its name does not show.
    let folder = tempfile::tempdir().unwrap();
    let source = root().join("docs/models/statquest");
    for file in std::fs::read_dir(&source).unwrap() {
        let path = file.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    let file = folder.path().join("tokenizer.json");
    let tokenizer = load_tokenizer(&file).unwrap();
    let word = tokenizer.encode("awesome").ids[0];
    let dir = ModelDir::open(folder.path()).unwrap();
    let card_path = folder.path().join("card.json");
    let mut card: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&card_path).unwrap()).unwrap();
    let mut special = dir.card.special.clone();
    special.source = Some(nextword_model::TokenSource::Trained);
    special.document_eos_id = Some(word);
    let special = serde_json::to_value(&special).unwrap();
    for (key, value) in special.as_object().unwrap() {
        card[key] = value.clone();
    }
    std::fs::write(&card_path, card.to_string()).unwrap();

    let mut config = TokenizerConfig::from_file(&file);
    use_declared_eos(&mut config);
    assert_eq!(config.eos, "awesome");
    config.eos.clear();
    use_declared_eos(&mut config);
    assert_eq!(config.eos, "", "chosen by the configuration");

    let mut run = old();
    run.data.tokenizer = TokenizerConfig::from_file(&file);
    let setup = prepare_run(run).unwrap();
    assert_eq!(setup.dataset.tokenizer.special_tokens().eos, Some(word));
    assert_eq!(setup.config.data.tokenizer.eos, "awesome");
}
