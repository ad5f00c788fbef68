//! Every file in configs/ is tried.

use std::fs;
use std::path::{Path, PathBuf};

use nextword_train::{RunConfig, prepare_run, read_config};

use crate::util::{flex, root};

/// What the vocabulary will be where a config leaves it to a text that a clone does not have.
const SHAKESPEARE_VOCAB: usize = 65;

fn files() -> Vec<PathBuf> {
    let files = fs::read_dir(root().join("configs")).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

/// The config with the vocabulary that its data gives.
fn resolved(path: &Path) -> RunConfig {
    let mut config = read_config(path, &[]).unwrap();
    if config.data.builtin.is_some() && config.start_from.is_none() {
        config.device = "flex".to_string();
        config = prepare_run(config).unwrap().config;
    } else if config.model.vocab_size == 0 {
        config.model.vocab_size = SHAKESPEARE_VOCAB;
    }
    config
}

#[test]
fn every_config_parses_and_matches_its_parameter_count() {
    let files = files();
    assert!(files.len() >= 7, "found {files:?}");
    for path in files {
        let config = resolved(&path);
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert_eq!(config.name, name, "the run is named like its file");
        if config.start_from.is_some() {
            continue; // Its model is the record's.
        }
        let expected = config.expect_parameters;
        assert!(
            expected.is_some() || name == "quickstart",
            "{name} states its size"
        );
        let counted = config.model.counts().total();
        assert_eq!(expected.unwrap_or(counted), counted, "{name}");
        if counted < 20_000_000 {
            let model = config.model.init(&flex(), 1).unwrap();
            let built = burn::module::Module::num_params(&model);
            assert_eq!(built, counted, "{name} as built");
        }
    }
}
