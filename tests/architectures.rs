//! Encoders, prefix models and encoder-decoders: `PyTorch`'s results, from fixtures that
//! `scripts/make_architecture_reference.py` writes, and properties of the models.

use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use nextword_data::{BatchMask, SampleSegment, SourceBatch, TokenBatch};
use nextword_eval::{batch_context, batch_tokens};
use nextword_model::{
    Bits, ForwardContext, ModelCard, ModelConfig, ModelDir, Transformer, weights,
};
use nextword_train::forward_backward;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::util::{Tolerance, assert_close, devices, flex, root};

/// The tolerance of each element of the committed models.
const TOLERANCE: Tolerance = Tolerance::new(1e-4, 1e-6);

/// Larger models, which `NEXTWORD_ARCHITECTURES` may name, add more terms: the rounding of the largest of them is
/// left where they cancel.
fn tolerance(expected: &[f32]) -> Tolerance {
    if std::env::var_os("NEXTWORD_ARCHITECTURES").is_none() {
        return TOLERANCE;
    }
    let largest = expected.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    Tolerance::new(1e-4, 1e-6 + 1e-5 * largest)
}

const CASES: [&str; 4] = ["bert", "bart", "translator", "prefix"];

#[derive(Deserialize)]
struct Inputs {
    batch: usize,
    seq: usize,
    inputs: Vec<u32>,
    targets: Vec<u32>,
    lengths: Option<Vec<usize>>,
    prefixes: Option<Vec<usize>>,
    source: Option<Source>,
}

#[derive(Clone, Deserialize)]
pub(crate) struct Source {
    seq: usize,
    inputs: Vec<u32>,
    lengths: Vec<usize>,
}

impl Inputs {
    fn into_batch(self) -> TokenBatch {
        let segment = |prefix| {
            let len = self.seq;
            vec![SampleSegment { len, prefix }]
        };
        let mask = match (self.lengths, self.prefixes) {
            (Some(lengths), _) => BatchMask::Bidirectional(lengths),
            (None, Some(prefixes)) => {
                BatchMask::Segments(prefixes.into_iter().map(segment).collect())
            }
            (None, None) => BatchMask::Causal,
        };
        TokenBatch {
            batch: self.batch,
            seq: self.seq,
            inputs: self.inputs,
            targets: self.targets,
            mask,
            source: self.source.map(SourceBatch::from),
        }
    }
}

impl From<Source> for SourceBatch {
    fn from(source: Source) -> Self {
        Self {
            seq: source.seq,
            inputs: source.inputs,
            lengths: source.lengths,
        }
    }
}

/// The folder of one model. `NEXTWORD_ARCHITECTURES` names another folder of models, of random shapes.
fn folder(name: &str) -> PathBuf {
    let custom = std::env::var_os("NEXTWORD_ARCHITECTURES").map(PathBuf::from);
    let folder = custom.unwrap_or_else(|| root().join("tests/fixtures/architectures"));
    folder.join(name)
}

fn json<T: DeserializeOwned>(name: &str, file: &str) -> T {
    serde_json::from_slice(&fs::read(folder(name).join(file)).unwrap()).unwrap()
}

pub(crate) fn load(name: &str, device: &Device) -> (Transformer, TokenBatch) {
    let config: ModelConfig = json(name, "config.json");
    let path = folder(name).join("model.safetensors");
    let model = weights::load(&config, &path, device).unwrap();
    let batch = json::<Inputs>(name, "inputs.json").into_batch();
    (model, batch)
}

pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    weights::to_f32_vec(tensor.into_data())
}

/// Of all rows: padding of an encoder has logits without meaning.
fn without_padding(batch: &TokenBatch, logits: &[f32]) -> Vec<f32> {
    let vocab_size = logits.len() / (batch.batch * batch.seq);
    let rows = logits.chunks(batch.seq * vocab_size).enumerate();
    let real = |(row, logits): (usize, &[f32])| {
        let len = match &batch.mask {
            BatchMask::Bidirectional(lengths) => lengths[row],
            _ => batch.seq,
        };
        logits[..len * vocab_size].to_vec()
    };
    rows.flat_map(real).collect()
}

fn check(name: &str, device_name: &str, device: &Device) {
    let expected = weights::load_tensors(&folder(name).join("expected.safetensors")).unwrap();
    let (model, batch) = load(name, device);
    let mut ctx = batch_context(ForwardContext::inference(), &batch, device);
    let logits = values(model.forward(batch_tokens(&batch, device), &mut ctx));
    let label = format!("{name} on {device_name}");
    let expected_logits = without_padding(&batch, &expected["logits"].1);
    assert_close(
        &without_padding(&batch, &logits),
        &expected_logits,
        tolerance(&expected_logits),
        &format!("logits of {label}"),
    );
    // Recomputation runs the same operations: once is enough.
    let recomputes: &[bool] = if device_name == "flex" {
        &[false, true]
    } else {
        &[false]
    };
    for &recompute in recomputes {
        let batches = std::slice::from_ref(&batch);
        let (loss, gradients) = forward_backward(&model.clone().train(), batches, 0, 0, recompute);
        assert_close(
            &values(loss),
            &expected["loss"].1,
            TOLERANCE,
            &format!("loss of {label}"),
        );
        let mut seen = 2;
        for (parameter, gradient) in gradients.iter() {
            let label = format!("gradient of {parameter} of {label}, recompute {recompute}");
            let expected = &expected[&format!("grad.{parameter}")].1;
            assert_close(
                &values(gradient.clone()),
                expected,
                tolerance(expected),
                &label,
            );
            seen += 1;
        }
        assert_eq!(seen, expected.len(), "{label}: every tensor is compared");
    }
}

#[test]
fn each_architecture_matches_pytorch_in_logits_loss_and_gradients() {
    for (device_name, device) in devices() {
        for name in CASES {
            check(name, device_name, &device);
        }
    }
}

#[test]
fn model_folders_keep_every_architecture() {
    for name in CASES {
        let (model, batch) = load(name, &flex());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        let tokenizer = root().join("docs/models/letters/tokenizer.json");
        let tokenizer = fs::read_to_string(tokenizer).unwrap();
        ModelDir::save(&path, &model, &tokenizer, &ModelCard::default()).unwrap();
        let dir = ModelDir::open(&path).unwrap();
        assert_eq!(&dir.config, model.config());
        let loaded = dir.load(&flex()).unwrap();
        let logits = |model: &Transformer| {
            let mut ctx = batch_context(ForwardContext::inference(), &batch, &flex());
            values(model.forward(batch_tokens(&batch, &flex()), &mut ctx))
        };
        assert_eq!(logits(&loaded), logits(&model), "{name}");
        let counted: usize = weights::layout(model.config())
            .iter()
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum();
        assert_eq!(model.num_params(), counted, "{name}");
        assert_eq!(model.config().parameter_counts().total(), counted, "{name}");
    }
}

/// Imports an exported folder, to a folder beside it.
fn import_again(exported: &Path) -> ModelDir {
    let again = exported.with_extension("again");
    nextword_convert::import(exported, &again).unwrap();
    ModelDir::open(&again).unwrap()
}

/// The logits of a batch.
fn logits(model: &Transformer, batch: &TokenBatch) -> Vec<f32> {
    let mut ctx = batch_context(ForwardContext::inference(), batch, &flex());
    values(model.forward(batch_tokens(batch, &flex()), &mut ctx))
}

#[test]
fn bert_is_imported_and_exported() {
    let hf = folder("bert").join("hf");
    let (reference, batch) = load("bert", &flex());
    let scratch = tempfile::tempdir().unwrap();
    let (imported, exported) = (scratch.path().join("a"), scratch.path().join("b"));
    nextword_convert::import(&hf, &imported).unwrap();
    let dir = ModelDir::open(&imported).unwrap();
    let logits = |model: &Transformer| logits(model, &batch);
    let expected = logits(&reference);
    assert_eq!(logits(&dir.load(&flex()).unwrap()), expected);
    assert_eq!(dir.card.special.prefix(), [2]); // [CLS]

    let kind = nextword_convert::export_hf(&dir, weights::FloatType::F32, &exported).unwrap();
    assert_eq!(kind, "bert");
    let again = import_again(&exported);
    assert_eq!(logits(&again.load(&flex()).unwrap()), expected);

    // The same config with another kind of positions is refused by name.
    let text = fs::read_to_string(hf.join("config.json")).unwrap();
    let relative = text.replacen('{', r#"{"position_embedding_type": "relative_key","#, 1);
    let error = nextword_convert::read_config_text(&relative).unwrap_err();
    assert!(
        error.to_string().contains("position_embedding_type"),
        "{error}"
    );
    let error = nextword_convert::read_config_text(&text.replace("\"bert\"", "\"t5\""));
    assert!(error.unwrap_err().to_string().contains("t5"));
}

#[test]
fn bart_is_imported_and_exported() {
    let hf = folder("bart").join("hf");
    let (reference, batch) = load("bart", &flex());
    let scratch = tempfile::tempdir().unwrap();
    let (imported, exported) = (scratch.path().join("a"), scratch.path().join("b"));
    nextword_convert::import(&hf, &imported).unwrap();
    let dir = ModelDir::open(&imported).unwrap();
    let logits = |model: &Transformer| logits(model, &batch);
    let expected = logits(&reference);
    assert_eq!(logits(&dir.load(&flex()).unwrap()), expected);
    let special = &dir.card.special;
    assert_eq!(
        (special.prefix(), &special.suffix_ids[..]),
        (&[2][..], &[3][..])
    ); // [CLS], [SEP]
    assert_eq!(special.target_start_id, Some(2)); // decoder_start_token_id

    // A source is read with both, and a target begins with the declared token.
    let generator = nextword_generate::TextGenerator::open(&dir, &flex()).unwrap();
    let prompt = generator.encode_prompt("w5 w6", &nextword_generate::TextOptions::default());
    assert_eq!(prompt.unwrap().ids, [2, 5, 6, 3]);
    assert_eq!(generator.target_start_id(), 2);

    let kind = nextword_convert::export_hf(&dir, weights::FloatType::F32, &exported).unwrap();
    assert_eq!(kind, "bart");
    let again = import_again(&exported);
    assert_eq!(logits(&again.load(&flex()).unwrap()), expected);
    let exported = &again.card.special;
    assert_eq!(exported.target_start_id, special.target_start_id);
    assert_eq!(
        (exported.prefix(), &exported.suffix_ids),
        (special.prefix(), &special.suffix_ids)
    );

    // What the config cannot express is refused by name.
    let text = fs::read_to_string(hf.join("config.json")).unwrap();
    for (field, found, other) in [
        (
            "decoder_ffn_dim",
            "\"decoder_ffn_dim\": 20",
            "\"decoder_ffn_dim\": 24",
        ),
        (
            "is_encoder_decoder",
            "\"is_encoder_decoder\": true",
            "\"is_encoder_decoder\": false",
        ),
        ("normalize_before", "{", "{\"normalize_before\": true,"),
    ] {
        assert!(text.contains(found), "{field}");
        let error = nextword_convert::read_config_text(&text.replacen(found, other, 1));
        let error = error.unwrap_err().to_string();
        assert!(error.contains(field), "{error}");
    }
}

#[test]
fn quantized_models_of_every_architecture_are_close() {
    for name in CASES {
        let (model, batch) = load(name, &flex());
        let logits = |model: &Transformer| {
            let mut ctx = batch_context(ForwardContext::inference(), &batch, &flex());
            let logits = values(model.forward(batch_tokens(&batch, &flex()), &mut ctx));
            without_padding(&batch, &logits)
        };
        let exact = logits(&model);
        let rounded = logits(&model.clone().quantize(Bits::Int8));
        assert_ne!(rounded, exact, "{name}");
        assert_close(&rounded, &exact, Tolerance::new(0.1, 0.1), name);
    }
}
