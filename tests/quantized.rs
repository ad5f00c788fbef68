//! 8- and 4-bit weights: their error, and exact saving and loading.

use std::path::Path;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Int, Tensor, TensorData};
use nextword_model::weights::{TensorFile, dequantized_values, to_f32_vec};
use nextword_model::{
    Bits, BlockFormat, ForwardContext, KvCache, ModelCard, ModelConfig, ModelDir, QuantizedMatrix,
    Transformer, presets,
};

use crate::resume::TINY;
use crate::test_dir::TestDir;
use crate::util::{Tolerance, assert_close, batch, devices, flex, root, stderr};

/// Models with tied and untied heads, with and without gates, with partial blocks and an odd inner
/// dimension.
fn configs() -> [ModelConfig; 3] {
    [
        ModelConfig {
            d_model: 72,
            n_heads: 3,
            n_layers: 2,
            d_ff: Some(99),
            context_length: 24,
            ..presets::shakespeare_char_cpu(65)
        },
        ModelConfig {
            d_model: 40,
            n_heads: 5,
            n_kv_heads: Some(5),
            n_layers: 2,
            context_length: 24,
            logit_soft_cap: Some(5.0),
            ..presets::llama_like(101)
        },
        presets::statquest(5),
    ]
}

/// Rounds each matrix of a model as quantization does: embedding and output layer to 8 bits.
struct RoundMatrices(Bits, Vec<String>);

impl ModuleMapper for RoundMatrices {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.1.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.1.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (name, shape) = (self.1.join("."), param.val().dims());
        if D != 2 || name.starts_with("position") {
            return param;
        }
        param.map(|tensor| {
            let device = tensor.device();
            let flat: Tensor<2> = tensor.reshape([shape[0], shape[1]]);
            let is_table = name.starts_with("token_embedding");
            let rounded = if is_table {
                QuantizedMatrix::from_table(flat, Bits::Int8)
            } else if name.starts_with("head") {
                QuantizedMatrix::from_weight(flat, Bits::Int8)
            } else {
                QuantizedMatrix::from_weight(flat, self.0)
            };
            let data = TensorData::new(rounded.dequantize(), rounded.shape());
            let values = Tensor::<2>::from_data(data, &device);
            let values = if is_table { values.transpose() } else { values };
            values.reshape(shape)
        })
    }
}

fn logits(model: &Transformer, ids: &[u32]) -> Vec<f32> {
    let ids: Vec<i32> = ids.iter().map(|id| id.cast_signed()).collect();
    let data = TensorData::new(ids, [1, 4]);
    let tokens = Tensor::<2, Int>::from_data(data, &model.device());
    to_f32_vec(
        model
            .forward(tokens, &mut ForwardContext::inference())
            .into_data(),
    )
}

#[test]
fn a_quantized_model_computes_with_rounded_weights() {
    for config in configs() {
        for bits in [Bits::Int8, Bits::Int4] {
            let model = config.init(&flex(), 11).unwrap();
            let oracle = model.clone().map(&mut RoundMatrices(bits, Vec::new()));
            let quantized = model.quantize(bits);
            let batch = batch(1, config.context_length, config.vocab_size, 5);
            let ids = &batch.inputs[..4];
            // Activations are rounded to 16 bits.
            assert_close(
                &logits(&quantized, ids),
                &logits(&oracle, ids),
                Tolerance::new(2e-3, 2e-3),
                "logits",
            );
            let loss = |model: &Transformer| {
                let inputs: Vec<i32> = batch.inputs.iter().map(|id| id.cast_signed()).collect();
                let data = TensorData::new(inputs, [1, config.context_length]);
                let tokens = Tensor::from_data(data, &flex());
                to_f32_vec(
                    model
                        .loss_sum(tokens, &batch.targets, &mut ForwardContext::inference())
                        .into_data(),
                )
            };
            assert_close(
                &loss(&quantized),
                &loss(&oracle),
                Tolerance::new(1e-3, 1e-3),
                "loss",
            );
        }
    }
}

#[test]
fn quantized_weights_load_identically_on_all_devices() {
    for config in configs() {
        for bits in [Bits::Int8, Bits::Int4] {
            let model = config.init(&flex(), 12).unwrap().quantize(bits);
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("small");
            ModelDir::save(&path, &model, "{}", &ModelCard::default()).unwrap();
            let ids = &batch(1, 4, config.vocab_size, 6).inputs;
            let before = logits(&model, ids);
            let model_dir = ModelDir::open(&path).unwrap();
            for (name, device) in devices() {
                let loaded = model_dir.load(&device).unwrap();
                let after = logits(&loaded, ids);
                if name == "flex" {
                    assert_eq!(loaded.bits(), Some(bits.number()));
                    assert_eq!(loaded.embedding_bits(), Some(8));
                    assert_eq!(before, after);
                }
                assert_close(&after, &before, Tolerance::new(2e-3, 2e-3), name);
            }
        }
    }
}

/// A folder of an earlier `quantize --bits 4`, which rounded the embedding to 4 bits, too.
#[test]
fn old_4_bit_folders_load_and_are_written_as_before() {
    let old = ModelDir::open(&root().join("tests/fixtures/int4")).unwrap();
    let loaded = old.load(&flex()).unwrap();
    assert_eq!([loaded.bits(), loaded.embedding_bits()], [Some(4); 2]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("loaded");
    ModelDir::save(&path, &loaded, "{}", &ModelCard::default()).unwrap();
    let written = ModelDir::open(&path).unwrap().weights_path();
    assert!(std::fs::read(written).unwrap() == std::fs::read(old.weights_path()).unwrap());
}

#[test]
fn the_embedding_stays_at_8_bits_unless_asked() {
    let dir = TestDir::new();
    let letters = root().join("docs/models/letters");
    let letters = letters.to_str().unwrap();
    for (out, options) in [("mixed", &[][..]), ("all", &["--embedding-bits", "4"])] {
        let args = ["quantize", letters, "--bits", "4", "--out", out, "--json"];
        let output = dir.run(&[&args[..], options].concat());
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let has = |model: &str, tensor: &str| {
        let path = dir.path(model).join("model.safetensors");
        TensorFile::open(&path).unwrap().shape(tensor).is_some()
    };
    assert!(has("mixed", "token_embedding.weight.int8"));
    assert!(has("all", "token_embedding.weight.int4"));
    assert!(has("mixed", "blocks.0.attention.query.weight.int4_panels"));
    let inspect = dir.run(&["inspect", "mixed"]);
    let lines = String::from_utf8(inspect.stdout).unwrap();
    assert!(
        lines.contains("4 bits per weight (8 in embedding and output layer)"),
        "{lines}"
    );
    let story = "The cat saw a bird. The bird saw the cat. They were both very happy.\n";
    dir.write("text.txt", story.repeat(20));
    let loss = |model: &str| {
        let output = dir.run(&["eval", model, "text.txt", "--json"]);
        assert!(output.status.success(), "{}", stderr(&output));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        report["loss"]["nats_per_token"].as_f64().unwrap()
    };
    let [exact, mixed, all] = [letters, "mixed", "all"].map(loss);
    assert!(
        (mixed - exact).abs() < 0.1 && (all - exact).abs() < 0.1,
        "{exact} exactly, {mixed} mixed, {all} with 4 bits"
    );
    // The losses of so small a model differ by chance; the errors of its embedding do not.
    let name = "token_embedding.weight";
    let config = ModelDir::open(Path::new(letters)).unwrap().config;
    let shape = [config.vocab_size, config.d_model];
    let table = |folder: &Path| {
        let file = TensorFile::open(&folder.join("model.safetensors")).unwrap();
        let values = dequantized_values(&file, name, &shape).unwrap();
        values.unwrap_or_else(|| file.values(name).unwrap())
    };
    let exact = table(Path::new(letters));
    let error = |model: &str| {
        let pairs = exact.iter().zip(table(&dir.path(model)));
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    let (mixed, all) = (error("mixed"), error("all"));
    assert!(mixed < all / 8.0, "{mixed} {all}");
}

#[test]
fn a_quantized_row_is_independent_of_the_batch() {
    let config = &configs()[0];
    let model = config.init(&flex(), 13).unwrap().quantize(Bits::Int8);
    let rows = 11;
    let step = |ids: &[i32]| {
        let mut cache = KvCache::new(config, ids.len(), &flex());
        let slots: Vec<usize> = (0..ids.len()).collect();
        let data = TensorData::new(ids.to_vec(), [ids.len(), 1]);
        let tokens = Tensor::<2, Int>::from_data(data, &flex());
        to_f32_vec(model.forward_cached(tokens, &mut cache, &slots).into_data())
    };
    let ids: Vec<i32> = (0..rows).collect();
    let batched = step(&ids);
    for (row, id) in ids.iter().enumerate() {
        let alone = step(&[*id]);
        let vocab = config.vocab_size;
        assert_eq!(alone, batched[row * vocab..(row + 1) * vocab], "row {row}");
    }
}

/// For any division of a text into batches, the loss at each position has the same bits.
#[test]
fn a_quantized_loss_does_not_depend_on_the_batch() {
    let config = &configs()[0];
    let model = config.init(&flex(), 14).unwrap().quantize(Bits::Int8);
    let loss = |ids: &[u32], targets: &[u32], rows: usize| {
        let ids: Vec<i32> = ids.iter().map(|id| id.cast_signed()).collect();
        let data = TensorData::new(ids, [rows, 24]);
        let tokens = Tensor::from_data(data, &flex());
        to_f32_vec(
            model
                .loss_sum(tokens, targets, &mut ForwardContext::inference())
                .into_data(),
        )[0]
    };
    let rows = 11;
    let all = batch(rows, 24, config.vocab_size, 15);
    for row in 0..rows {
        // Only this row's last position counts, alone and in a batch.
        let index = row * 24 + 23;
        let mut targets = vec![nextword_model::IGNORE; rows * 24];
        targets[index] = all.inputs[index] / 2;
        let range = row * 24..(row + 1) * 24;
        let batched = loss(&all.inputs, &targets, rows);
        let alone = loss(&all.inputs[range.clone()], &targets[range], 1);
        assert_eq!(batched.to_bits(), alone.to_bits(), "row {row}");
    }
}

/// A file in which any byte is another loads or is an error; a shorter one is an error.
#[test]
fn damaged_quantized_weights_do_not_panic() {
    let model = configs()[2].init(&flex(), 12).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let old = ModelDir::open(&root().join("tests/fixtures/int4")).unwrap();
    let path = folder.path().join("small");
    for bits in [Bits::Int8, Bits::Int4] {
        let quantized = model.clone().quantize(bits);
        ModelDir::save(&path, &quantized, "{}", &ModelCard::default()).unwrap();
        let file = path.join("model.safetensors");
        let valid = std::fs::read(&file).unwrap();
        let model_dir = ModelDir::open(&path).unwrap();
        let mut rejected = 0;
        for offset in 0..valid.len() {
            let mut bytes = valid.clone();
            bytes[offset] = if bits == Bits::Int8 { 0x80 } else { 0x0f };
            std::fs::write(&file, bytes).unwrap();
            rejected += usize::from(model_dir.load(&flex()).is_err());
        }
        assert!(rejected > 100, "{rejected}");
        std::fs::write(&file, &valid[..valid.len() - 1]).unwrap();
        assert!(model_dir.load(&flex()).is_err());
    }
    // In the symmetric format of earlier versions, -8 is an error.
    let mut bytes = std::fs::read(old.weights_path()).unwrap();
    let header_len = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let offsets = &header["blocks.0.attention.query.weight.int4"]["data_offsets"];
    let start = usize::try_from(offsets[0].as_u64().unwrap()).unwrap();
    bytes[8 + header_len + start] = 0;
    let damaged = folder.path().join("old.safetensors");
    std::fs::write(&damaged, &bytes).unwrap();
    let error = nextword_model::weights::load(&old.config, &damaged, &flex());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("invalid value -8"), "{error}");
}

/// Matrices of a GGUF file replace those of a model, and go out as they came in.
#[test]
fn gguf_blocks_survive_a_model_folder_bit_for_bit() {
    let config = &configs()[0];
    let config = ModelConfig {
        d_model: 96,
        d_ff: Some(64),
        ..config.clone()
    };
    let folder = tempfile::tempdir().unwrap();
    for (format, block_bytes) in [
        (BlockFormat::Q8_0, 34),
        (BlockFormat::Q4_0, 18),
        (BlockFormat::Q4_1, 20),
    ] {
        let mut model = config.init(&flex(), 12).unwrap();
        let blocks = |[d_in, d_out]: [usize; 2]| -> Vec<u8> {
            let byte = |i: usize| match i % block_bytes {
                0 | 2 => i as u8,
                1 => 0x20,
                3 if format == BlockFormat::Q4_1 => 0x9c,
                _ => (i * 131 / 7) as u8,
            };
            (0..d_in / 32 * d_out * block_bytes).map(byte).collect()
        };
        let shapes = [
            ("token_embedding.weight", [96, 65]),
            ("blocks.1.attention.query.weight", [96, 96]),
            ("blocks.0.feed_forward.down.weight", [64, 96]),
        ];
        for (name, shape) in shapes {
            let matrix = QuantizedMatrix::from_gguf(shape, format, &blocks(shape)).unwrap();
            assert!(model.set_quantized(name, matrix.clone()), "{name}");
            assert!(!model.set_quantized("blocks.0.feed_forward.up.weight", matrix));
        }
        let path = folder.path().join("mixed");
        let _ = std::fs::remove_dir_all(&path);
        ModelDir::save(&path, &model, "{}", &ModelCard::default()).unwrap();
        let saved = ModelDir::open(&path).unwrap();
        let file = TensorFile::open(&saved.weights_path()).unwrap();
        for (name, shape) in shapes {
            let read = nextword_model::weights::WeightSource::quantized_matrix(&file, name, shape)
                .unwrap();
            assert_eq!(read.unwrap().to_gguf().unwrap(), blocks(shape), "{name}");
        }
        let ids = &batch(1, 4, 65, 6).inputs;
        let loaded = saved.load(&flex()).unwrap();
        assert_eq!(loaded.bits(), Some(format.bits()));
        assert_eq!(logits(&loaded, ids), logits(&model, ids));
    }
}

/// Runs quantize, generate and eval --against; unsupported uses give an error.
#[test]
fn quantized_models_run_but_do_not_train() {
    let dir = TestDir::new();
    dir.write("tiny.toml", TINY);
    let train = dir.run(&["train", "tiny.toml", "--quiet", "--set", "train.steps=3"]);
    assert!(train.status.success(), "{}", stderr(&train));
    let run = "runs/tiny";
    for bits in ["8", "4"] {
        let out = format!("small{bits}");
        let quantized = dir.run(&["quantize", run, "--bits", bits, "--out", &out]);
        assert!(quantized.status.success(), "{}", stderr(&quantized));
        let text = dir.run(&["generate", &out, "a", "-m", "5", "--seed", "1"]);
        assert!(text.status.success(), "{}", stderr(&text));
        dir.write("text.txt", "abc abc abc cab cab");
        let eval = dir.run(&["eval", &out, "text.txt", "--against", run, "--json"]);
        assert!(eval.status.success(), "{}", stderr(&eval));
        let eval: serde_json::Value = serde_json::from_slice(&eval.stdout).unwrap();
        let loss = |value: &serde_json::Value| value["loss"]["nats_per_token"].as_f64().unwrap();
        let (rounded, original) = (loss(&eval), loss(&eval["against"]));
        assert!(
            (rounded - original).abs() < 0.1 * original,
            "{rounded} and {original}"
        );
        assert!((rounded - original).abs() > 0.0);
        let requantized = dir.run(&["quantize", &out, "--out", "again"]);
        assert_eq!(requantized.status.code(), Some(2));
        assert!(
            stderr(&requantized).contains("already quantized"),
            "{}",
            stderr(&requantized)
        );
        let config =
            format!("name = \"more\"\nstart_from = \"{out}\"\n[data]\nbuiltin = \"stories\"\n");
        dir.write("more.toml", &config);
        let train = dir.run(&["train", "more.toml", "--quiet"]);
        assert!(!train.status.success());
        assert!(
            stderr(&train).contains("cannot be trained"),
            "{}",
            stderr(&train)
        );
    }
}
