//! Weights that stay in their mapped file: the same bits without a copy, and a file that never changes.

use std::fs;
use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData};
use nextword_model::weights::{TensorFile, for_each, is_in_block, layout, to_f32_vec};
use nextword_model::{
    Bits, ForwardContext, ModelCard, ModelConfig, ModelDir, Transformer, presets,
};
use nextword_train::{Optimizer, OptimizerConfig, forward_backward};

use crate::test_dir::{TestDir, USAGE};
use crate::util::{batch, copy, flex, root, stderr};

/// Matrices in the layout of memory, except for the gate, whose sides are not multiples of 32 and 16.
fn config() -> ModelConfig {
    ModelConfig {
        d_model: 64,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: Some(2),
        d_ff: Some(72),
        context_length: 24,
        ..presets::llama_like(96)
    }
}

/// The model in f32, 8 bits and 4 bits.
fn models() -> [Transformer; 3] {
    let model = config().init(&flex(), 21).unwrap();
    let [int8, int4] = [Bits::Int8, Bits::Int4].map(|bits| model.clone().quantize(bits));
    [model, int8, int4]
}

fn save(model: &Transformer, path: &Path) -> ModelDir {
    ModelDir::save(path, model, "{}", &ModelCard::default()).unwrap();
    ModelDir::open(path).unwrap()
}

fn logits(model: &Transformer) -> Vec<f32> {
    let ids: Vec<i32> = (0..24).map(|i| i * 7 % 96).collect();
    let tokens = Tensor::<2, Int>::from_data(TensorData::new(ids, [2, 12]), &model.device());
    to_f32_vec(
        model
            .forward(tokens, &mut ForwardContext::inference())
            .into_data(),
    )
}

#[test]
fn mapped_weights_compute_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    for (index, model) in models().into_iter().enumerate() {
        let saved = save(&model, &folder.path().join(index.to_string()));
        let expected = logits(&model);
        assert_eq!(logits(&saved.load(&flex()).unwrap()), expected);
        let mapped = saved.with_mapping(true).load(&flex()).unwrap();
        assert_eq!(logits(&mapped), expected);
        assert_eq!(mapped.bits(), model.bits());
    }
    // A folder of an earlier version, whose integers are in another order.
    let old = ModelDir::open(&root().join("tests/fixtures/int4")).unwrap();
    let [copied, mapped] = [false, true].map(|is_mapped| {
        let model = old.clone().with_mapping(is_mapped).load(&flex()).unwrap();
        let mut values = Vec::new();
        for_each(&model, |_, data| values.extend(to_f32_vec(data)));
        values.extend(model.dequantized().flat_map(|(_, data)| to_f32_vec(data)));
        values
    });
    assert!(!copied.is_empty());
    assert_eq!(copied, mapped);
}

/// Mapped bytes of `file` in this process.
#[cfg(target_os = "linux")]
fn mapped_bytes(file: &Path) -> u64 {
    let file = fs::canonicalize(file).unwrap().display().to_string();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let lines = maps.lines().filter(|line| line.ends_with(&file));
    let size = |line: &str| {
        let (from, to) = line.split_once(' ')?.0.split_once('-')?;
        let address = |text| u64::from_str_radix(text, 16).ok();
        Some(address(to)? - address(from)?)
    };
    lines.filter_map(size).sum()
}

#[test]
#[cfg(target_os = "linux")]
fn a_mapped_model_keeps_its_file_mapped_and_a_copied_one_does_not() {
    let folder = tempfile::tempdir().unwrap();
    for (index, model) in models().iter().enumerate() {
        let saved = save(model, &folder.path().join(index.to_string()));
        let file = saved.weights_path();
        let size = fs::metadata(&file).unwrap().len();
        let copied = saved.load(&flex()).unwrap();
        assert_eq!(mapped_bytes(&file), 0);
        drop(copied);
        let mapped = saved.with_mapping(true).load(&flex()).unwrap();
        assert!(mapped_bytes(&file) >= size);
        let clone = mapped.clone();
        drop(mapped);
        assert!(mapped_bytes(&file) >= size);
        drop(clone);
        assert_eq!(mapped_bytes(&file), 0);
    }
}

#[test]
fn quantized_lines_are_aligned_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    for model in models().into_iter().skip(1) {
        let path = folder.path().join("model");
        let file = save(&model, &path).weights_path();
        let bytes = fs::read(&file).unwrap();
        let header =
            8 + usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&bytes[8..header]).unwrap();
        let lines = json.as_object().unwrap().iter();
        let lines: Vec<_> = lines
            .filter(|(name, _)| name.ends_with("8_panels") || name.ends_with("4_panels"))
            .collect();
        assert_eq!(lines.len(), 2 + 2 * 4, "{lines:?}"); // Embedding, output layer, attention.
        for (name, tensor) in lines {
            let start = tensor["data_offsets"][0].as_u64().unwrap();
            assert_eq!((start + header as u64) % 64, 0, "{name}");
        }
        let has = |name: &str| TensorFile::open(&file).unwrap().shape(name).is_some();
        let integers = if model.bits() == Some(4) {
            "int4"
        } else {
            "int8"
        };
        assert!(has(&format!(
            "blocks.0.feed_forward.gate.weight.{integers}"
        )));
    }
}

#[test]
fn training_a_mapped_model_copies_its_weights_first() {
    let folder = tempfile::tempdir().unwrap();
    let saved = save(&models()[0], &folder.path().join("model"));
    let before = fs::read(saved.weights_path()).unwrap();
    let trained = |is_mapped: bool| {
        let model = saved.clone().with_mapping(is_mapped).load(&flex()).unwrap();
        let mut model = model.train();
        let mut optimizer = Optimizer::new(OptimizerConfig::default());
        for step in 0..3 {
            let batch = batch(2, 24, 96, step);
            let (_, gradients) = forward_backward(&model, &[batch], 0, 0, false);
            model = optimizer.update(model, gradients, 1e-2, 1e-2);
        }
        let mut values = Vec::new();
        for_each(&model, |_, data| values.extend(to_f32_vec(data)));
        values
    };
    let (copied, mapped) = (trained(false), trained(true));
    assert!(copied == mapped);
    assert!(fs::read(saved.weights_path()).unwrap() == before);
}

/// On Windows, a mapped file cannot be replaced.
#[test]
#[cfg(unix)]
fn a_replaced_folder_does_not_change_a_mapped_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let [float, _, int4] = models();
    let expected = logits(&int4);
    let mapped = save(&int4, &path).with_mapping(true).load(&flex()).unwrap();
    save(&float, &path);
    assert_eq!(logits(&mapped), expected);
}

#[test]
fn damaged_files_in_the_layout_of_memory_are_errors_or_load() {
    let folder = tempfile::tempdir().unwrap();
    let config = ModelConfig {
        d_model: 32,
        n_layers: 1,
        n_heads: 2,
        n_kv_heads: Some(2),
        d_ff: Some(32),
        context_length: 8,
        ..presets::llama_like(16)
    };
    let model = config.init(&flex(), 3).unwrap();
    for bits in [Bits::Int8, Bits::Int4] {
        let saved = save(&model.clone().quantize(bits), &folder.path().join("model"));
        let file = saved.weights_path();
        let valid = fs::read(&file).unwrap();
        let header = usize::try_from(u64::from_le_bytes(valid[..8].try_into().unwrap())).unwrap();
        let (mut tried, mut rejected) = (0, 0);
        // Most of the header, and some of the values.
        let offsets = (0..8 + header).step_by(3);
        for offset in offsets.chain((8 + header..valid.len()).step_by(297)) {
            let mut bytes = valid.clone();
            bytes[offset] = bytes[offset].wrapping_add(1);
            fs::write(&file, bytes).unwrap();
            let [copied, mapped] = [false, true].map(|is_mapped| {
                let model = saved.clone().with_mapping(is_mapped);
                model.load(&flex()).is_ok()
            });
            assert_eq!(copied, mapped, "byte {offset}");
            tried += 1;
            rejected += usize::from(!copied);
        }
        assert!(2 * rejected > tried, "{rejected} of {tried}");
        for len in [valid.len() - 1, valid.len() / 2, header, 7] {
            fs::write(&file, &valid[..len]).unwrap();
            assert!(saved.clone().with_mapping(true).load(&flex()).is_err());
        }
    }
}

#[test]
fn a_weight_that_is_changed_is_no_longer_that_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let saved = save(&models()[0], &folder.path().join("model"));
    let load = || saved.clone().with_mapping(true).load(&flex()).unwrap();
    let mut changed = load();
    let weight = changed.blocks[0].attention.query.weight.val();
    changed.blocks[0].attention.query.weight = Param::from_tensor(weight.mul_scalar(2.0));
    assert_ne!(logits(&changed), logits(&load()));
    assert_eq!(logits(&models()[0]), logits(&load()));
}

#[test]
fn commands_answer_the_same_with_and_without_mapping() {
    let dir = TestDir::new();
    copy(&root().join("docs/models/letters"), &dir.path("letters"));
    let output = dir.run(&["quantize", "letters", "--bits", "4", "--out", "small"]);
    assert!(output.status.success(), "{}", stderr(&output));
    for model in ["letters", "small"] {
        let generate = [
            "generate",
            model,
            "The",
            "--max-tokens",
            "20",
            "--seed",
            "3",
        ];
        let mapped = dir.run(&generate);
        let copied = dir.run(&[&generate[..], &["--no-mmap"]].concat());
        assert!(mapped.status.success() && copied.status.success());
        assert!(!mapped.stdout.is_empty());
        assert_eq!(mapped.stdout, copied.stdout);
    }
}

#[test]
fn quantizing_for_a_text_is_deterministic_and_recorded() {
    let dir = TestDir::new();
    copy(&root().join("docs/models/letters"), &dir.path("letters"));
    let story = "The cat saw a bird. The bird saw the cat. They were both very happy.\n";
    dir.write("text.txt", story.repeat(20));
    let quantize = |out: &str, options: &[&str]| {
        let args = ["quantize", "letters", "--bits", "4", "--out", out];
        let output = dir.run(&[&args[..], options].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        let file = dir.path(out).join("model.safetensors");
        (
            fs::read(file).unwrap(),
            ModelDir::open(&dir.path(out)).unwrap(),
        )
    };
    let calibrate = ["--calibrate", "text.txt", "--calibration-tokens", "600"];
    let (plain, uncalibrated) = quantize("plain", &[]);
    let (first, model) = quantize("first", &calibrate);
    let (second, _) = quantize("second", &calibrate);
    assert!(first == second);
    assert!(first != plain && first.len() == plain.len());
    let [before, after] = [&uncalibrated, &model].map(|model| model.open_weights().unwrap());
    let mut matrices = 0;
    for (name, shape) in layout(&model.config) {
        if let [d_in, d_out] = shape[..]
            && is_in_block(&name)
        {
            let [before, after] = [&before, &after].map(|weights| {
                let matrix = weights.quantized_matrix(&name, [d_in, d_out]);
                matrix.unwrap().unwrap().dequantize()
            });
            assert!(before != after, "{name}");
            matrices += 1;
        }
    }
    assert!(matrices >= 6 * model.config.n_layers, "{matrices}");
    let record = model.card.calibrated_on.as_ref().unwrap();
    assert!(
        record.starts_with("text.txt (") && record.ends_with(" tokens)"),
        "{record}"
    );
    let (_, few) = quantize(
        "few",
        &["--calibrate", "text.txt", "--calibration-tokens", "5"],
    );
    let record_of_few = few.card.calibrated_on.unwrap();
    assert_eq!(record_of_few, "text.txt (5 tokens)");
    let inspected = dir.run(&["inspect", "first"]);
    assert!(String::from_utf8_lossy(&inspected.stdout).contains(record));

    let refused = dir.run(&[
        "quantize",
        "letters",
        "--out",
        "other",
        "--calibrate",
        "text.txt",
    ]);
    assert_eq!(refused.status.code(), Some(USAGE));
    assert!(
        stderr(&refused).contains("--bits 4"),
        "{}",
        stderr(&refused)
    );
    assert!(!dir.path("other").exists());
}
