//! Every file in configs/ is loaded and built.

use std::fs;
use std::path::{Path, PathBuf};

use nextword_data::{Dataset, TokenizerConfig};
use nextword_train::{RunConfig, prepare_conversations, prepare_run, read_config};

use crate::util::{flex, root};

/// The vocabulary size of configs whose text is not in the repository.
const SHAKESPEARE_VOCAB: usize = 65;
const GPT2_VOCAB: usize = 50_257;

fn files() -> Vec<PathBuf> {
    let files = fs::read_dir(root().join("configs")).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

/// The config with its vocabulary size filled in.
fn resolved(path: &Path) -> RunConfig {
    let mut config = read_config(path, &[]).unwrap();
    let is_builtin = config.data.builtin.is_some() || config.data.has_pairs();
    if is_builtin && config.start_from.is_none() {
        config.device = "flex".to_string();
        config = prepare_run(config).unwrap().config;
    } else if config.model.vocab_size == 0 {
        config.model.vocab_size = match config.data.path {
            Some(_) => SHAKESPEARE_VOCAB,
            None => GPT2_VOCAB,
        };
    }
    config
}

/// Parameters of each config's model; with GPT-2's vocabulary where the text determines it.
const PARAMETERS: [(&str, usize); 12] = [
    ("fill-in", 940_800),
    ("gpt2-124m", 124_439_808),
    ("llama-small", 2_718_144),
    ("quickstart", 924_416),
    ("shakespeare-char", 10_745_088),
    ("shakespeare-char-cpu", 804_096),
    ("statquest", 37),
    ("statquest-normal", 78),
    ("translate-decoder", 827_424),
    ("translate-encoder-decoder", 831_072),
    ("translate-prefix", 827_424),
    ("two-layers", 173),
];

#[test]
fn configs_build_with_the_stated_parameter_counts() {
    let mut seen = Vec::new();
    for path in files() {
        let config = resolved(&path);
        let name = path.file_stem().unwrap().to_str().unwrap().to_string();
        assert_eq!(config.name, name, "the run has the name of its file");
        if config.start_from.is_some() {
            continue; // Its model comes from `start_from`: tests/commands.rs trains it.
        }
        let count = config.model.parameter_counts().total();
        let expected = PARAMETERS
            .iter()
            .find(|(config_name, _)| *config_name == name);
        assert_eq!(expected.map(|(_, n)| *n), Some(count), "{name}");
        let model = config.model.init(&flex(), 1).unwrap();
        let built = burn::module::Module::num_params(&model);
        assert_eq!(built, count, "{name} as built");
        seen.push(name);
    }
    assert_eq!(seen.len(), PARAMETERS.len(), "{seen:?}");
}

/// The runs on conversations start from the model of the quickstart, which keeps its context.
#[test]
fn the_built_in_conversations_fit_into_the_context_of_the_quickstart() {
    let read = |name: &str| {
        let path = root().join("configs").join(name).with_extension("toml");
        read_config(&path, &[]).unwrap()
    };
    let quickstart = read("quickstart");
    let tokenizer = Dataset::build(&quickstart.data).unwrap().tokenizer;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokenizer.json");
    fs::write(&file, tokenizer.to_json().unwrap()).unwrap();
    for name in ["chat", "chat-dpo"] {
        let mut config = read(name);
        config.start_from = None;
        config.model = quickstart.model.clone();
        config.data.tokenizer = TokenizerConfig::from_file(&file);
        let report = prepare_conversations(config).unwrap().unwrap().report;
        assert_eq!(
            (report.too_long, report.sequence_length),
            (0, 256),
            "{name}"
        );
    }
}
