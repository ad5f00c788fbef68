//! Damaged and malicious Hugging Face files: an error message, never a panic, bounded memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use burn::tensor::{Int, Tensor};
use nextword_base::rng::{CounterRng, RandomSequence};
use nextword_convert::{export_gguf, export_hf, import};
use nextword_model::weights::FloatType;
use nextword_model::{ForwardContext, ModelDir};
use serde_json::{Value, json};

use crate::parity::fixtures;
use crate::util::{copy, flex, nextword, stderr};

/// Default number of mutations per kind of file; see [`mutation_count`].
pub(crate) const MUTATIONS_PER_FILE: u64 = 700;

/// Maximum length of an error message in bytes.
pub(crate) const MAX_MESSAGE_LEN: usize = 64 << 10;

/// Random numbers for the test `name`.
pub(crate) fn test_rng(name: &str) -> RandomSequence {
    CounterRng::new(1).named(name).sequence()
}

/// A model folder with its tensors in two shards and an index.
fn sharded(folder: &Path) {
    let tensors = nextword_model::weights::load_tensors(&folder.join("model.safetensors")).unwrap();
    let mut map = serde_json::Map::new();
    for number in 0..2 {
        let file = format!("model-{}-of-2.safetensors", number + 1);
        let part = tensors
            .iter()
            .enumerate()
            .filter(|(index, _)| index % 2 == number);
        let part: std::collections::BTreeMap<_, _> = part
            .map(|(_, (name, tensor))| (name.clone(), tensor.clone()))
            .collect();
        for name in part.keys() {
            map.insert(name.clone(), json!(file));
        }
        nextword_model::weights::save_tensors(&part, &folder.join(&file)).unwrap();
    }
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    let index = json!({"metadata": {"total_size": 0}, "weight_map": map});
    fs::write(
        folder.join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
}

/// The number of mutations: `default` unless `NEXTWORD_MALFORMED` sets another.
pub(crate) fn mutation_count(default: u64) -> u64 {
    let count = std::env::var("NEXTWORD_MALFORMED").ok();
    count.and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// Set in the process that has little memory.
const LIMITED: &str = "NEXTWORD_TEST_LIMITED";

/// Runs `damage`, the body of the test `name`, in a process of its own that cannot allocate more than this number of gigabytes,
/// where the system has such a limit.
pub(crate) fn with_limited_memory(name: &str, gigabytes: u32, damage: impl FnOnce()) {
    if cfg!(not(target_os = "linux")) || std::env::var_os(LIMITED).is_some() {
        return damage();
    }
    let output = Command::new("sh")
        .args(["-c", "ulimit -v $1; shift; exec \"$@\"", "sh"])
        .arg((gigabytes * 1_000_000).to_string())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "--test-threads", "1", name])
        .env(LIMITED, "1")
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", stderr(&output));
    assert!(printed.contains("damaged files"), "{printed}");
}

/// Changes, removes, duplicates or inserts bytes.
pub(crate) fn corrupt_bytes(bytes: &mut Vec<u8>, rng: &mut RandomSequence) {
    // Most mutations affect the headers.
    let range = if rng.below(3) == 0 {
        bytes.len()
    } else {
        bytes.len().min(4096)
    };
    for _ in 0..=rng.below(3) {
        let start = rng.below(range.min(bytes.len()));
        let end = (start + 1 + rng.below(64)).min(bytes.len());
        match rng.below(6) {
            _ if bytes.is_empty() => bytes.push(rng.below(256) as u8),
            0 | 1 => bytes[start] = rng.below(256) as u8,
            2 => bytes.truncate(start),
            3 => drop(bytes.drain(start..end)),
            4 => {
                let duplicate = bytes[start..end].to_vec();
                bytes.splice(start..start, duplicate);
            }
            _ => {
                let n = rng.below(40);
                let random: Vec<u8> = (0..n).map(|_| rng.below(256) as u8).collect();
                bytes.splice(start..start, random);
            }
        }
    }
}

/// Replaces, removes, adds or duplicates one value somewhere in `value`.
pub(crate) fn corrupt_json(value: &mut Value, rng: &mut RandomSequence) {
    let descend = rng.below(8) > 0;
    match value {
        Value::Object(map) if descend && !map.is_empty() => {
            let index = rng.below(map.len());
            let key = map.keys().nth(index).unwrap().clone();
            match rng.below(12) {
                0 => drop(map.remove(&key)),
                1 => drop(map.insert(format!("{key}x"), json!(1))),
                _ => corrupt_json(&mut map[&key], rng),
            }
        }
        Value::Array(list) if descend && !list.is_empty() => {
            let index = rng.below(list.len());
            match rng.below(12) {
                0 => drop(list.remove(index)),
                1 => list.push(list[index].clone()),
                _ => corrupt_json(&mut list[index], rng),
            }
        }
        _ => {
            let bad = [
                json!(0),
                json!(1),
                json!(-1),
                json!(3),
                json!(16_777_216),
                json!(4_294_967_296_u64),
                json!(u64::MAX),
                json!(i64::MIN),
                json!(1e308),
                json!(-1e-308),
                json!(0.5),
                json!(null),
                json!(true),
                json!(false),
                json!(""),
                json!("../../etc/passwd"),
                json!("linear"),
                json!("\u{0}"),
                json!("x".repeat(5000)),
                json!([]),
                json!({}),
                json!([[[[1]]]]),
            ];
            *value = bad[rng.below(bad.len())].clone();
        }
    }
}

/// Imports `folder` and returns whether it succeeded. The model must then work; an error must have a
/// message.
fn attempt(folder: &Path, out: &Path) -> bool {
    if let Err(error) = import(folder, out) {
        let text = error.to_string();
        assert!(
            !text.is_empty() && text.len() < MAX_MESSAGE_LEN,
            "{} bytes",
            text.len()
        );
        assert!(!text.contains("internal error"), "{text}");
        return false;
    }
    let model_dir = ModelDir::open(out).unwrap();
    if model_dir.config.context_length <= 4096 {
        let device = flex();
        let model = model_dir.load(&device).unwrap();
        let tokens = Tensor::<2, Int>::from_ints([[0, 0, 0]], &device);
        let input = tokens.narrow(1, 0, model_dir.config.context_length.min(3));
        assert_eq!(
            model
                .forward(input, &mut ForwardContext::inference())
                .dims()[2],
            model_dir.config.vocab_size
        );
    }
    let tokenizer = nextword_data::load_tokenizer(model_dir.tokenizer_path()).unwrap();
    let ids = tokenizer.encode("w0 w5\n naïve </s> w97").ids;
    assert!(
        ids.iter()
            .all(|id| (*id as usize) < model_dir.config.vocab_size)
    );
    let _ = tokenizer.decode(&ids);
    // Any result is fine, as long as it does not panic.
    let _ = export_hf(&model_dir, FloatType::F32, &out.with_extension("hf"));
    let _ = export_gguf(
        &model_dir,
        nextword_convert::GgufType::Q8_0,
        &out.with_extension("gguf"),
    );
    true
}

#[test]
fn damaged_models_give_an_error_message() {
    let mutations = mutation_count(MUTATIONS_PER_FILE);
    let dir = tempfile::tempdir().unwrap();
    let files = [
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors.index.json",
        "model-1-of-2.safetensors",
        "chat_template.jinja",
    ];
    let (mut attempts, mut imported) = (0, 0);
    for (number, name) in files.into_iter().enumerate() {
        let mut rng = test_rng(name);
        let models = fs::read_dir(fixtures()).unwrap();
        let mut models: Vec<PathBuf> = models.map(|model| model.unwrap().path()).collect();
        models.sort();
        let valid: Vec<PathBuf> = models
            .iter()
            .map(|model| {
                let kind = model.file_name().unwrap();
                let folder = dir.path().join(format!("{number}-{}", kind.display()));
                copy(model, &folder);
                fs::write(folder.join("chat_template.jinja"), "{{ messages }}").unwrap();
                if !folder.join(name).exists() {
                    sharded(&folder);
                }
                folder
            })
            .collect();
        let out = dir.path().join(format!("out-{number}"));
        for folder in &valid {
            assert!(attempt(folder, &out), "{} is valid", folder.display());
        }
        for _ in 0..mutations {
            let folder = &valid[rng.below(valid.len())];
            let path = folder.join(name);
            let before = fs::read(&path).unwrap();
            let mut bytes = before.clone();
            let parsed = serde_json::from_slice::<Value>(&bytes);
            match parsed {
                Ok(mut value) if rng.below(3) > 0 => {
                    for _ in 0..=rng.below(3) {
                        corrupt_json(&mut value, &mut rng);
                    }
                    bytes = value.to_string().into_bytes();
                }
                _ => corrupt_bytes(&mut bytes, &mut rng),
            }
            fs::write(&path, bytes).unwrap();
            attempts += 1;
            imported += usize::from(attempt(folder, &out));
            fs::write(&path, before).unwrap();
        }
    }
    println!("{attempts} damaged models: {imported} could be imported, the others were rejected");
    assert!(imported > 0 && imported < attempts);
}

/// Claimed sizes are checked before memory is allocated. The program is limited to 1 GB here.
#[cfg(target_os = "linux")]
#[test]
fn claimed_sizes_allocate_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("model");
    copy(&fixtures().join("llama"), &folder);
    let config: Value =
        serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    let claim = |field: &str, value: Value| {
        let mut config = config.clone();
        config[field] = value;
        ("config.json", config.to_string().into_bytes())
    };
    let mut header = 15_000_000_u64.to_le_bytes().to_vec();
    header.resize(15_000_008, b'{');
    let huge = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16]}}"#;
    let mut shape = (huge.len() as u64).to_le_bytes().to_vec();
    shape.extend(huge.as_bytes());
    shape.extend([0; 16]);
    let claims = [
        claim("vocab_size", json!(16_000_000)),
        claim("hidden_size", json!(1_000_000)),
        claim("intermediate_size", json!(1_000_000)),
        claim("num_hidden_layers", json!(4096)),
        claim("num_hidden_layers", json!(u64::MAX)),
        claim("num_attention_heads", json!(1_000_000)),
        claim("max_position_embeddings", json!(u64::MAX)),
        claim("architectures", json!("x".repeat(10 << 20))),
        ("model.safetensors", header),
        ("model.safetensors", shape),
        ("tokenizer.json", vec![b'['; 20 << 20]),
        ("tokenizer_config.json", vec![b'['; 15 << 20]),
    ];
    for (case, (name, bytes)) in claims.into_iter().enumerate() {
        let path = folder.join(name);
        let before = fs::read(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        let program = nextword();
        let mut limited = std::process::Command::new("sh");
        limited.args(["-c", "ulimit -v 1000000; exec \"$@\"", "sh"]);
        limited
            .arg(program.get_program())
            .arg("import")
            .arg(&folder);
        let output = limited
            .arg("--out")
            .arg(dir.path().join("out"))
            .output()
            .unwrap();
        let error = stderr(&output);
        if case != 7 {
            assert_eq!(output.status.code(), Some(3), "{name} {case}: {error}");
        }
        assert!(
            error.len() < MAX_MESSAGE_LEN && !error.contains("internal error"),
            "{name}: {error}"
        );
        fs::write(&path, before).unwrap();
    }
}

#[test]
fn pickle_files_are_named_and_never_opened() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["pytorch_model.bin", "ckpt.pt"] {
        let folder = dir.path().join(name.replace('.', "-"));
        copy(&fixtures().join("gpt2"), &folder);
        fs::remove_file(folder.join("model.safetensors")).unwrap();
        fs::write(folder.join(name), b"\x80\x04cos\nsystem\n").unwrap();
        for from in [folder.clone(), folder.join(name)] {
            let error = import(&from, &dir.path().join("out"))
                .unwrap_err()
                .to_string();
            for part in [name, "pickle", "never opened", "save_file"] {
                assert!(error.contains(part), "{error}");
            }
        }
    }
}

#[test]
fn import_replaces_only_an_earlier_model() {
    let dir = tempfile::tempdir().unwrap();
    let (from, out) = (dir.path().join("model"), dir.path().join("imported"));
    copy(&fixtures().join("gpt2"), &from);
    let assert_rejected = |to: &Path, expected: &str| {
        let error = import(&from, to).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    assert_rejected(&from, "the model that is read");
    assert_rejected(dir.path(), "the model that is read");
    import(&from, &out).unwrap();
    import(&from, &out).unwrap();
    fs::write(out.join("diary.txt"), "mine").unwrap();
    assert_rejected(&out, "diary.txt");
    let model_dir = ModelDir::open(&out).unwrap();
    let error = export_hf(&model_dir, FloatType::F32, &out)
        .unwrap_err()
        .to_string();
    assert!(error.contains("the model that is read"), "{error}");
    assert_eq!(fs::read_to_string(out.join("diary.txt")).unwrap(), "mine");
}

#[test]
fn missing_unused_and_misshapen_tensors_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("model");
    copy(&fixtures().join("qwen3"), &folder);
    let path = folder.join("model.safetensors");
    let mut tensors = nextword_model::weights::load_tensors(&path).unwrap();
    let (shape, values) = tensors.remove("model.norm.weight").unwrap();
    tensors.insert("model.norm.scale".into(), (shape, values));
    let head = tensors.get_mut("lm_head.weight").unwrap();
    head.0.reverse();
    nextword_model::weights::save_tensors(&tensors, &path).unwrap();
    let error = import(&folder, &dir.path().join("out"))
        .unwrap_err()
        .to_string();
    for part in [
        "missing: `model.norm.weight` [24]",
        "unused: `model.norm.scale`",
        "`lm_head.weight` has shape [24, 101], but config.json requires [101, 24]",
    ] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(error.lines().count(), 4, "{error}");
}

#[test]
fn fields_that_change_the_logits_are_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let assert_rejected = |kind: &str, field: &str, value: Value| {
        let folder = dir.path().join(format!("{kind}-{field}"));
        copy(&fixtures().join(kind), &folder);
        let path = folder.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[field] = value.clone();
        fs::write(&path, config.to_string()).unwrap();
        let error = import(&folder, &dir.path().join("out"))
            .unwrap_err()
            .to_string();
        assert!(error.contains(field), "{kind} {field}: {error}");
    };
    assert_rejected(
        "llama",
        "rope_parameters",
        json!({"rope_type": "longrope", "factor": 2.0}),
    );
    assert_rejected(
        "llama",
        "rope_parameters",
        json!({"rope_type": "linear", "factor": 2.0, "beta": 1}),
    );
    assert_rejected("llama", "hidden_act", json!("mish"));
    assert_rejected("llama", "residual_multiplier", json!(0.22));
    assert_rejected("llama", "quantization_config", json!({"bits": 4}));
    assert_rejected("gpt2", "activation_function", json!("tanh"));
    assert_rejected("gpt2", "scale_attn_weights", json!(false));
    assert_rejected("gpt2", "add_cross_attention", json!(true));
    assert_rejected("gpt2", "pruned_heads", json!({"0": [1]}));
    assert_rejected("gpt_neox", "rotary_pct", json!("half"));
    assert_rejected("gemma3_text", "use_bidirectional_attention", json!(true));
    assert_rejected(
        "gemma3_text",
        "layer_types",
        json!(["chunked_attention", "x", "y"]),
    );
    assert_rejected("qwen2", "model_type", json!("qwen2_moe"));
}

#[test]
fn inexpressible_features_are_named_on_export() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("imported");
    import(&fixtures().join("llama"), &out).unwrap();
    let mut model_dir = ModelDir::open(&out).unwrap();
    model_dir.config.residual = false;
    let error = export_hf(&model_dir, FloatType::F32, &dir.path().join("hf")).unwrap_err();
    assert!(
        error.to_string().contains("model.residual = false"),
        "{error}"
    );
    let model_dir = ModelDir::open(&out).unwrap();
    let file = dir.path().join("model.gguf");
    let error = export_gguf(&model_dir, nextword_convert::GgufType::F32, &file).unwrap_err();
    assert!(
        error.to_string().contains("a token for each word"),
        "{error}"
    );
    assert!(!file.exists());
}
