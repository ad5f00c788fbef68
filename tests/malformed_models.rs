//! Damaged and malicious Hugging Face files: an error sentence, never a panic, bounded memory.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Int, Tensor};
use nextword_convert::{export_gguf, export_hf, import};
use nextword_model::weights::FloatType;
use nextword_model::{CounterRng, ForwardContext, ModelDir};
use serde_json::{Value, json};

use crate::parity::fixtures;
use crate::util::{flex, nextword, stderr};

/// Mutations per kind of file; `NEXTWORD_MALFORMED` sets another number.
pub(crate) const DAMAGES_PER_FILE: u64 = 700;

/// Maximum length of a helpful message.
pub(crate) const MAX_LEN: usize = 64 << 10;

/// A sequential generator from a seed.
pub(crate) struct TestRng(CounterRng, u64);

impl TestRng {
    pub(crate) fn new(name: &str) -> Self {
        Self(CounterRng::new(1).named(name), 0)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.1 += 1;
        (self.0.at(self.1) % n.max(1) as u64) as usize
    }
}

/// A model folder with its tensors in two shards and an index.
fn sharded(folder: &Path) {
    let whole = nextword_model::weights::load_tensors(&folder.join("model.safetensors")).unwrap();
    let mut map = serde_json::Map::new();
    for number in 0..2 {
        let file = format!("model-{}-of-2.safetensors", number + 1);
        let part = whole.iter().enumerate().filter(|(at, _)| at % 2 == number);
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

pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

/// The number of mutations: `usual` unless the environment sets another.
pub(crate) fn each(usual: u64) -> u64 {
    let count = std::env::var("NEXTWORD_MALFORMED").ok();
    count.and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// Changes, removes, duplicates or inserts bytes.
pub(crate) fn corrupt_bytes(bytes: &mut Vec<u8>, rng: &mut TestRng) {
    // Most mutations hit the headers.
    let reach = if rng.below(3) == 0 {
        bytes.len()
    } else {
        bytes.len().min(4096)
    };
    for _ in 0..=rng.below(3) {
        let at = rng.below(reach.min(bytes.len()));
        let end = (at + 1 + rng.below(64)).min(bytes.len());
        match rng.below(6) {
            _ if bytes.is_empty() => bytes.push(rng.below(256) as u8),
            0 | 1 => bytes[at] = rng.below(256) as u8,
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            _ => {
                let n = rng.below(40);
                let noise: Vec<u8> = (0..n).map(|_| rng.below(256) as u8).collect();
                bytes.splice(at..at, noise);
            }
        }
    }
}

/// Replaces one value somewhere in `value` by an unsuitable one.
fn corrupt_json(value: &mut Value, rng: &mut TestRng) {
    let descend = rng.below(8) > 0;
    match value {
        Value::Object(map) if descend && !map.is_empty() => {
            let at = rng.below(map.len());
            let key = map.keys().nth(at).unwrap().clone();
            match rng.below(12) {
                0 => drop(map.remove(&key)),
                1 => drop(map.insert(format!("{key}x"), json!(1))),
                _ => corrupt_json(&mut map[&key], rng),
            }
        }
        Value::Array(list) if descend && !list.is_empty() => {
            let at = rng.below(list.len());
            match rng.below(12) {
                0 => drop(list.remove(at)),
                1 => list.push(list[at].clone()),
                _ => corrupt_json(&mut list[at], rng),
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

/// Imports `folder`: a success must work, a failure must have a message.
fn attempt(folder: &Path, out: &Path) -> bool {
    if let Err(error) = import(folder, out) {
        let text = error.to_string();
        assert!(
            !text.is_empty() && text.len() < MAX_LEN,
            "{} bytes",
            text.len()
        );
        assert!(!text.contains("internal error"), "{text}");
        return false;
    }
    let record = ModelDir::open(out).unwrap();
    if record.config.context_length <= 4096 {
        let device = flex();
        let model = record.load(&device).unwrap();
        let tokens = Tensor::<2, Int>::from_ints([[0, 0, 0]], &device);
        let seen = tokens.narrow(1, 0, record.config.context_length.min(3));
        assert_eq!(
            model.forward(seen, &mut ForwardContext::inference()).dims()[2],
            record.config.vocab_size
        );
    }
    let tokenizer = nextword_data::load_tokenizer(record.tokenizer_path()).unwrap();
    let ids = tokenizer.encode("w0 w5\n naïve </s> w97").ids;
    assert!(
        ids.iter()
            .all(|id| (*id as usize) < record.config.vocab_size)
    );
    let _ = tokenizer.decode(&ids);
    // Any result is fine, as long as it does not panic.
    let _ = export_hf(&record, FloatType::F32, &out.with_extension("hf"));
    let _ = export_gguf(
        &record,
        nextword_convert::GgufType::Q8_0,
        &out.with_extension("gguf"),
    );
    true
}

#[test]
fn damaged_models_give_an_error_sentence() {
    let each = each(DAMAGES_PER_FILE);
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
    let (mut tried, mut imported) = (0, 0);
    for (number, name) in files.into_iter().enumerate() {
        let mut rng = TestRng::new(name);
        let models = fs::read_dir(fixtures()).unwrap();
        let mut models: Vec<PathBuf> = models.map(|model| model.unwrap().path()).collect();
        models.sort();
        let sound: Vec<PathBuf> = models
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
        for folder in &sound {
            assert!(attempt(folder, &out), "{} is sound", folder.display());
        }
        for _ in 0..each {
            let folder = &sound[rng.below(sound.len())];
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
            tried += 1;
            imported += usize::from(attempt(folder, &out));
            fs::write(&path, before).unwrap();
        }
    }
    println!("{tried} damaged models: {imported} were sound enough, the others refused");
    assert!(imported > 0 && imported < tried);
}

/// Claimed sizes are checked before memory is allocated: the program is limited to 1 GB.
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
    for (number, (name, bytes)) in claims.into_iter().enumerate() {
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
        let done = limited
            .arg("--out")
            .arg(dir.path().join("out"))
            .output()
            .unwrap();
        let said = stderr(&done);
        if number != 7 {
            assert_eq!(done.status.code(), Some(3), "{name} {number}: {said}");
        }
        assert!(
            said.len() < MAX_LEN && !said.contains("internal error"),
            "{name}: {said}"
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
    let (from, out) = (dir.path().join("model"), dir.path().join("record"));
    copy(&fixtures().join("gpt2"), &from);
    let refused = |to: &Path, what: &str| {
        let error = import(&from, to).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    refused(&from, "the model that is read");
    refused(dir.path(), "the model that is read");
    import(&from, &out).unwrap();
    import(&from, &out).unwrap();
    fs::write(out.join("diary.txt"), "mine").unwrap();
    refused(&out, "diary.txt");
    let record = ModelDir::open(&out).unwrap();
    let error = export_hf(&record, FloatType::F32, &out)
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
    let refused = |kind: &str, field: &str, value: Value| {
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
    refused(
        "llama",
        "rope_parameters",
        json!({"rope_type": "longrope", "factor": 2.0}),
    );
    refused(
        "llama",
        "rope_parameters",
        json!({"rope_type": "linear", "factor": 2.0, "beta": 1}),
    );
    refused("llama", "hidden_act", json!("mish"));
    refused("llama", "residual_multiplier", json!(0.22));
    refused("llama", "quantization_config", json!({"bits": 4}));
    refused("gpt2", "activation_function", json!("tanh"));
    refused("gpt2", "scale_attn_weights", json!(false));
    refused("gpt2", "add_cross_attention", json!(true));
    refused("gpt2", "pruned_heads", json!({"0": [1]}));
    refused("gpt_neox", "rotary_pct", json!("half"));
    refused("gemma3_text", "use_bidirectional_attention", json!(true));
    refused(
        "gemma3_text",
        "layer_types",
        json!(["chunked_attention", "x", "y"]),
    );
    refused("qwen2", "model_type", json!("qwen2_moe"));
}

#[test]
fn inexpressible_features_are_named_on_export() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("record");
    import(&fixtures().join("llama"), &out).unwrap();
    let mut record = ModelDir::open(&out).unwrap();
    record.config.residual = false;
    let error = export_hf(&record, FloatType::F32, &dir.path().join("hf")).unwrap_err();
    assert!(
        error.to_string().contains("model.residual = false"),
        "{error}"
    );
    let record = ModelDir::open(&out).unwrap();
    let file = dir.path().join("model.gguf");
    let error = export_gguf(&record, nextword_convert::GgufType::F32, &file).unwrap_err();
    assert!(
        error.to_string().contains("a token for each word"),
        "{error}"
    );
    assert!(!file.exists());
}
