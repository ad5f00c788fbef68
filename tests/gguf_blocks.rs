//! GGUF files whose matrices have blocks of any type: they stay quantized, and go out as they came in.

use nextword_base::rng::RandomSequence;
use nextword_convert::{GgufType, export_gguf, open_gguf};
use nextword_model::{BlockFormat, ModelConfig, ModelDir, presets};
use serde_json::Value;

use crate::adapters::{rejects, succeeds};
use crate::gguf_file::{BLOCK_TYPES, BlockType, RawFile};
use crate::gguf_import::{logits, logits_of, random_model};
use crate::malformed_models::test_rng;
use crate::test_dir::{TestDir, USAGE};
use crate::util::{Tolerance, assert_close, devices, flex};

/// A model whose matrices have rows of 256 values or of a multiple of it.
fn config() -> ModelConfig {
    ModelConfig {
        n_layers: 1,
        n_heads: 8,
        n_kv_heads: Some(2),
        d_model: 256,
        d_ff: Some(512),
        context_length: 64,
        tied_head: false,
        ..presets::llama_like(40)
    }
}

/// A file with random blocks in place of the matrices; `kind` gets the number of a matrix.
fn file_of(
    dir: &TestDir,
    config: &ModelConfig,
    rng: &mut RandomSequence,
    kind: impl Fn(usize) -> &'static BlockType,
) -> RawFile {
    let path = dir.path("floats.gguf");
    export_gguf(&random_model(dir, config), GgufType::F32, &path).unwrap();
    let mut file = RawFile::read(&path);
    let matrices = file.tensors.iter_mut();
    let matrices = matrices.filter(|tensor| tensor.sizes.len() == 2);
    for (number, tensor) in matrices.enumerate() {
        tensor.randomize(kind(number), rng);
    }
    file
}

/// A small file with matrices of all block types.
pub(crate) fn file_of_all_types(dir: &TestDir) -> RawFile {
    let config = ModelConfig {
        n_layers: 2,
        d_ff: Some(256),
        ..config()
    };
    let mut rng = test_rng("block types");
    let count = BLOCK_TYPES.len();
    file_of(dir, &config, &mut rng, |number| {
        &BLOCK_TYPES[number % count]
    })
}

/// Asserts that the tensors of two files are the same bytes.
fn assert_same_tensors(a: &RawFile, b: &RawFile) {
    assert_eq!(a.tensors.len(), b.tensors.len());
    for (a, b) in a.tensors.iter().zip(&b.tensors) {
        assert_eq!((&a.name, a.kind, &a.sizes), (&b.name, b.kind, &b.sizes));
        assert!(a.bytes == b.bytes, "{}", a.name);
    }
}

#[test]
fn matrices_of_every_block_type_stay_quantized_and_go_out_as_they_came_in() {
    let dir = TestDir::new();
    let [path, again, folder] = ["model.gguf", "again.gguf", "folder"].map(|name| dir.path(name));
    let mut rng = test_rng("every block type");
    for kind in &BLOCK_TYPES {
        let file = file_of(&dir, &config(), &mut rng, |_| kind);
        file.write(&path);
        let opened = open_gguf(&path).unwrap();
        let formats = opened.block_formats().unwrap();
        let names: Vec<&str> = formats.keys().map(|format| format.name()).collect();
        assert_eq!(names, [kind.name]);
        let loaded = opened.load(&flex()).unwrap();
        assert_eq!(loaded.bits(), formats.keys().next().map(|f| f.bits()));
        assert_eq!(loaded.embedding_bits(), loaded.bits());
        // In memory, factors of scales take whole bytes.
        let blocks: usize = file.tensors.iter().map(|tensor| tensor.bytes.len()).sum();
        assert!(
            loaded.bytes_per_token() < blocks + blocks / 5,
            "{}",
            kind.name
        );
        let quantized = logits(&opened);
        let floats = logits_of(&loaded.dequantize());
        let close = Tolerance::new(2e-3, 2e-3);
        assert_close(&floats, &quantized, close, kind.name);

        let _ = std::fs::remove_dir_all(&folder);
        nextword_convert::import(&path, &folder).unwrap();
        let imported = ModelDir::open(&folder).unwrap();
        assert_eq!(imported.block_formats().unwrap(), formats);
        assert_eq!(logits(&imported), quantized, "{}", kind.name);
        for model in [&opened, &imported] {
            export_gguf(model, GgufType::F32, &again).unwrap();
            assert_same_tensors(&RawFile::read(&again), &file);
        }
    }
}

#[test]
fn other_devices_multiply_the_values_of_blocks() {
    let dir = TestDir::new();
    let path = dir.path("model.gguf");
    file_of_all_types(&dir).write(&path);
    let model = open_gguf(&path).unwrap();
    let quantized = logits(&model);
    let formats = model.open_weights().unwrap();
    for (name, device) in devices() {
        let loaded = model.load(&device).unwrap();
        // A matrix without a kernel is dequantized once.
        let kept: Vec<_> = loaded
            .dequantized()
            .filter_map(|(matrix, _)| formats.matrix_format(&matrix))
            .map(BlockFormat::name)
            .collect();
        match name {
            "flex" => assert_eq!(kept.len(), 2 + 2 * 7),
            "ndarray" => assert!(kept.is_empty(), "{kept:?}"),
            _ => {
                let has_kernel = |format: &&str| ["Q8_0", "Q4_0", "Q4_1"].contains(format);
                assert!(!kept.is_empty() && kept.iter().all(has_kernel), "{kept:?}");
            }
        }
        let found = logits_of(&loaded);
        assert_close(&found, &quantized, Tolerance::new(2e-3, 2e-3), name);
    }
}

/// Joined matrices (queries, keys and values of GPT-2), and a head that is the embedding.
#[test]
fn mixed_block_types_go_out_as_they_came_in() {
    let dir = TestDir::new();
    let [path, again] = ["model.gguf", "again.gguf"].map(|name| dir.path(name));
    let gpt2 = ModelConfig {
        n_layers: 3,
        n_heads: 4,
        d_model: 256,
        context_length: 16,
        ..ModelConfig::default()
    };
    let mut rng = test_rng("mixed block types");
    let count = BLOCK_TYPES.len();
    let kind = |number: usize| &BLOCK_TYPES[(number * 5 + 3) % count];
    let mut file = file_of(&dir, &gpt2, &mut rng, kind);
    // Position embeddings are floats.
    let floats = RawFile::read(&dir.path("floats.gguf"));
    let name = "position_embd.weight";
    let positions = floats.tensors.iter().find(|tensor| tensor.name == name);
    *file.tensor(name) = positions.unwrap().clone();
    file.write(&path);
    let opened = open_gguf(&path).unwrap();
    assert!(opened.block_formats().unwrap().len() > 8);
    export_gguf(&opened, GgufType::F16, &again).unwrap();
    assert_same_tensors(&RawFile::read(&again), &file);
}

/// In a folder, too, adapters are trained on quantized matrices and merged into floats only.
#[test]
fn an_adapter_is_trained_on_matrices_of_all_block_types() {
    let dir = TestDir::new();
    file_of_all_types(&dir).write(&dir.path("base.gguf"));
    succeeds(&dir, &["import", "base.gguf", "--out", "base"]);
    let details = succeeds(&dir, &["inspect", "base", "--json"]);
    let details: Value = serde_json::from_slice(&details.stdout).unwrap();
    let formats = details["formats"].as_object().unwrap();
    assert_eq!(formats.len(), BLOCK_TYPES.len(), "{formats:?}");
    let text = succeeds(&dir, &["inspect", "base"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("quantized to Q8_0 ("), "{text}");
    dir.write("text.txt", "a few words, then more, ".repeat(40));
    dir.write(
        "lora.toml",
        "name = 'tuned'\nstart_from = 'base'\n[data]\npath = 'text.txt'\n[train]\nsteps = 6\nbatch_size = 2\n\
         sequence_length = 16\n[schedule]\nlearning_rate = 0.01\nwarmup_steps = 0\n[validation]\nevery = 6\n[lora]\nrank = 4\n",
    );
    succeeds(&dir, &["train", "lora.toml", "--quiet"]);
    succeeds(&dir, &["plan", "lora.toml"]);
    let merge = ["merge", "runs/tuned", "--out", "merged"];
    rejects(&dir, &merge, USAGE, &["is quantized", "--dequantize"]);
    succeeds(&dir, &[&merge[..], &["--dequantize"]].concat());
    dir.write("other.txt", "then more, a few words");
    let loss = |model: &str| {
        let output = succeeds(&dir, &["eval", model, "other.txt", "--json"]);
        let value: Value = serde_json::from_slice(&output.stdout).unwrap();
        value["loss"]["nats_per_token"].as_f64().unwrap()
    };
    let (base, tuned, merged) = (loss("base"), loss("runs/tuned"), loss("merged"));
    assert!(tuned < base, "{tuned} {base}");
    assert!((merged - tuned).abs() < 1e-3 * tuned, "{merged} {tuned}");
    assert!((loss("base.gguf") - base).abs() < 1e-9);
    // Too narrow for these blocks.
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(dir.path("base/config.json")).unwrap()).unwrap();
    config["d_ff"] = 224.into();
    dir.write("base/config.json", config.to_string());
    let output = dir.run(&["generate", "base", "a"]);
    assert_eq!(output.status.code(), Some(crate::test_dir::BAD_FILE));
}
