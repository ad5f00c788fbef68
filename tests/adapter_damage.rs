//! Damaged adapter folders and damaged files of conversations: an error message, never a panic, in bounded time and
//! memory.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nextword_model::{AdapterDir, BaseModel, LoraConfig, ModelCard, ModelDir};
use nextword_train::{parse_config, prepare_conversations};
use serde_json::Value;

use crate::malformed_models::{
    MAX_MESSAGE_LEN, corrupt_bytes, corrupt_json, mutation_count, test_rng, with_limited_memory,
};
use crate::test_dir::TestDir;
use crate::util::{flex, root};

/// The longest time that one damaged file may take; an undamaged one takes milliseconds.
const MAX_TIME: Duration = Duration::from_secs(20);

/// Checks the time since `start` and the message of an error. Returns whether there was none.
fn is_valid(start: Instant, result: Result<(), String>) -> bool {
    assert!(start.elapsed() < MAX_TIME, "{:?}", start.elapsed());
    let Err(text) = result else {
        return true;
    };
    let len = text.len();
    assert!(!text.is_empty() && len < MAX_MESSAGE_LEN, "{len} bytes");
    assert!(!text.contains("internal error"), "{text}");
    false
}

/// Opens the adapter in `folder` with its base, and merges it.
fn use_adapter(folder: &Path, base: &ModelDir) -> Result<(), String> {
    let error = |error: nextword_model::ModelError| error.to_string();
    let adapter = AdapterDir::open(folder).map_err(error)?;
    adapter.load(&base.config).map_err(error)?;
    let model = adapter.with_base(base.clone()).map_err(error)?;
    let model = model.load(&flex()).map_err(error)?;
    model.into_merged().map(drop).map_err(error)
}

/// A folder with a trained adapter of a documented model: low-rank updates with magnitudes, and full copies.
fn adapter_folder(dir: &TestDir, base: &ModelDir) -> std::path::PathBuf {
    let config = LoraConfig {
        rank: 2,
        use_dora: true,
        modules_to_save: vec!["norms".to_string()],
        ..LoraConfig::default()
    };
    let model = base.load(&flex()).unwrap();
    let model = model.with_new_adapter(&config, 7).unwrap();
    let (path, card) = (dir.path("adapter"), ModelCard::default());
    let base = BaseModel::of(base).unwrap();
    AdapterDir::save(&path, &model.adapter().unwrap(), &base, &card).unwrap();
    path
}

/// Damages the contents of a file: as JSON if it is JSON, or its bytes.
fn damaged(before: &[u8], rng: &mut nextword_base::rng::RandomSequence) -> Vec<u8> {
    let mut bytes = before.to_vec();
    match serde_json::from_slice::<Value>(&bytes) {
        Ok(mut value) if rng.below(3) > 0 => {
            for _ in 0..=rng.below(3) {
                corrupt_json(&mut value, rng);
            }
            value.to_string().into_bytes()
        }
        _ => {
            corrupt_bytes(&mut bytes, rng);
            bytes
        }
    }
}

fn damage_folders() {
    let dir = TestDir::new();
    let base = ModelDir::open(&root().join("docs/models/letters")).unwrap();
    let folder = adapter_folder(&dir, &base);
    assert_eq!(use_adapter(&folder, &base), Ok(()));
    let files = fs::read_dir(&folder).unwrap();
    let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 2, "{files:?}");
    let mutations = mutation_count(100);
    let mut valid = 0;
    for file in &files {
        let mut rng = test_rng(&file.file_name().unwrap().to_string_lossy());
        let before = fs::read(file).unwrap();
        for _ in 0..mutations {
            fs::write(file, damaged(&before, &mut rng)).unwrap();
            let start = Instant::now();
            valid += u64::from(is_valid(start, use_adapter(&folder, &base)));
        }
        fs::write(file, before).unwrap();
    }
    println!(
        "{mutations} damaged files of each of {} kinds: {valid} could be used, the others were rejected",
        files.len()
    );
    assert!(valid > 0 && valid < mutations * files.len() as u64);
}

#[test]
fn damaged_adapter_folders_give_an_error_message() {
    let name = "adapter_damage::damaged_adapter_folders_give_an_error_message";
    with_limited_memory(name, 1, damage_folders);
}

/// Records of several formats, one a line.
const RECORDS: &str = r#"{"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
{"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "A fox.", "weight": 1}, {"from": "human", "value": "Why?"}, {"from": "gpt", "value": "It ran."}]}
{"prompt": "One day", "completion": " a fox met a crow."}
{"instruction": "Say it", "input": "now", "output": "It.", "history": [["a", "b"]]}
{"text": "One day a fox met a crow."}
"#;

/// Damages a line of `records`: as JSON, or its bytes, or the lines around it.
fn damaged_records(records: &[u8], rng: &mut nextword_base::rng::RandomSequence) -> Vec<u8> {
    let mut lines: Vec<Vec<u8>> = records.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    let at = rng.below(lines.len() - 1);
    match rng.below(8) {
        0 => lines.truncate(at),
        1 => lines.insert(at, b"[[[[{".to_vec()),
        _ => lines[at] = damaged(&lines[at], rng),
    }
    lines.join(&b'\n')
}

fn damage_conversations() {
    let dir = TestDir::new();
    let (file, mutations) = (dir.path("records.jsonl"), mutation_count(300));
    let base = root().join("docs/models/letters");
    let config = format!(
        "start_from = {:?}\n[data]\nconversations = {:?}\nsplit.validation = 0.3\n",
        base.display().to_string(),
        file.display().to_string()
    );
    let prepare = || {
        let config = parse_config(&config, "x.toml".as_ref(), &[]).unwrap();
        prepare_conversations(config)
            .map(drop)
            .map_err(|error| error.to_string())
    };
    fs::write(&file, RECORDS).unwrap();
    assert_eq!(prepare(), Ok(()));
    let mut rng = test_rng("records");
    let mut valid = 0;
    for _ in 0..mutations {
        let bytes = damaged_records(RECORDS.as_bytes(), &mut rng);
        fs::write(&file, bytes).unwrap();
        valid += u64::from(is_valid(Instant::now(), prepare()));
    }
    println!(
        "{mutations} damaged files of conversations: {valid} could be used, the others were rejected"
    );
    assert!(valid > 0 && valid < mutations, "{valid}");
}

#[test]
fn damaged_conversations_give_an_error_message() {
    let name = "adapter_damage::damaged_conversations_give_an_error_message";
    // Half a gigabyte is for the stack of chat templates.
    with_limited_memory(name, 2, damage_conversations);
}
