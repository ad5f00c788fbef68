//! Export to a folder for `transformers`.

use std::collections::BTreeMap;
use std::path::Path;

use nextword_data::{Tokenizer, load_tokenizer};
use nextword_model::weights::{FloatType, TensorFile, write_tensors};
use nextword_model::{ModelDir, write_atomically};
use serde_json::{Map, Value, json};

use super::{to_hf, values_or_zeros};
use crate::ConvertError;
use crate::chat_templates::ChatTemplates;
use crate::folder::check_destination;
use crate::json::to_pretty;
use crate::mapping::{TensorMapping, tensor_mappings};

/// Exports the model folder `model_dir` as a Hugging Face folder, atomically: `config.json`,
/// `model.safetensors` with values of type `float`, the tokenizer files and `generation_config.json`.
/// Returns the chosen `model_type`.
///
/// # Errors
/// [`ConvertError::Inexpressible`] with the config fields that no model type supports; errors from
/// reading the model folder or writing the new one.
///
/// # Example
///
/// ```
/// use nextword_convert::{ConvertError, export_hf};
/// use nextword_model::{ModelDir, weights::FloatType};
///
/// let folder = tempfile::tempdir()?;
/// let model = ModelDir::open("../../docs/models/letters".as_ref())?;
/// export_hf(&model, FloatType::Bf16, &folder.path().join("letters"))?;
/// assert!(folder.path().join("letters/tokenizer_config.json").exists());
///
/// // No model type of transformers has sinusoidal positions and attention without an output matrix.
/// let model = ModelDir::open("../../docs/models/statquest".as_ref())?;
/// let error = export_hf(&model, FloatType::F32, &folder.path().join("statquest")).unwrap_err();
/// assert!(matches!(error, ConvertError::Inexpressible { .. }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn export(
    model_dir: &ModelDir,
    float: FloatType,
    to: &Path,
) -> Result<&'static str, ConvertError> {
    check_destination(to, &model_dir.path)?;
    let hf = to_hf(&model_dir.config)?;
    let (kind, mut config) = (hf.kind, hf.map);
    let path = model_dir.tokenizer_path();
    let tokenizer = load_tokenizer(&path)?;
    let mut tokenizer_json = std::fs::read(&path).map_err(ConvertError::io(&path, "read"))?;
    if lacks_unknown_token(&tokenizer_json) {
        tokenizer_json = tokenizer.to_json()?.into_bytes();
    }
    if let Some(bos) = model_dir
        .card
        .bos_id
        .and_then(|id| Some((id, tokenizer.id_to_token(id)?)))
    {
        tokenizer_json = with_bos(tokenizer_json, &bos);
    }
    let weights = TensorFile::open(&model_dir.weights_path())?;
    let mappings: BTreeMap<String, TensorMapping> = tensor_mappings(kind.names(), &hf.config)
        .into_iter()
        .map(|mapping| (mapping.name.clone(), mapping))
        .collect();
    let shapes: Vec<_> = mappings
        .values()
        .map(|mapping| (mapping.name.clone(), mapping.shape.clone()))
        .collect();
    check_weights(model_dir, &weights)?;

    let ids = special_ids(model_dir, &*tokenizer);
    config.extend(ids.clone());
    let dtype = match float {
        FloatType::F32 => "float32",
        FloatType::F16 => "float16",
        FloatType::Bf16 => "bfloat16",
    };
    config.insert("torch_dtype".into(), json!(dtype));
    let templates = ChatTemplates::read(&model_dir.path, &Value::Null)?;
    ModelDir::replace(to, |new| {
        let write = |name: &str, text: &str| write_atomically(&new.join(name), text.as_bytes());
        write("config.json", &to_pretty(&Value::Object(config)))?;
        write("generation_config.json", &to_pretty(&Value::Object(ids)))?;
        write_atomically(&new.join("tokenizer.json"), &tokenizer_json)?;
        let settings = tokenizer_config(model_dir, &*tokenizer);
        write("tokenizer_config.json", &to_pretty(&settings))?;
        templates.write(new)?;
        write_tensors(&new.join("model.safetensors"), float, &shapes, |name| {
            let Some(mapping) = mappings.get(name) else {
                return Err(ConvertError::source(
                    to,
                    format!("does not contain `{name}`"),
                ));
            };
            let values = mapping.assemble(|ours, shape| values_or_zeros(&weights, ours, shape))?;
            if float == FloatType::F16 {
                crate::check_range(name, &values, crate::F16_MAX, "f16")?;
            }
            Ok(values)
        })
        .map(drop)
    })?;
    Ok(kind.name())
}

/// Whether a character tokenizer names an unknown token that its vocabulary does not have, as those of
/// earlier versions: `transformers` rejects unknown characters then.
fn lacks_unknown_token(tokenizer_json: &[u8]) -> bool {
    let file: Value = serde_json::from_slice(tokenizer_json).unwrap_or_default();
    let model = &file["model"];
    let unknown = model["unk_token"].as_str();
    model["type"] == "WordLevel"
        && file["pre_tokenizer"]["type"] == "Split"
        && unknown.is_some_and(|unknown| model["vocab"][unknown].is_null())
}

/// Makes `tokenizer.json` prepend the token `bos` to every text. `transformers` does not follow the
/// setting in `tokenizer_config.json` for every tokenizer class.
fn with_bos(tokenizer_json: Vec<u8>, (id, bos): &(u32, String)) -> Vec<u8> {
    let Ok(mut file) = serde_json::from_slice::<Value>(&tokenizer_json) else {
        return tokenizer_json;
    };
    if prepends_special_token(&file) {
        return tokenizer_json;
    }
    let token = json!({"SpecialToken": {"id": bos, "type_id": 0}});
    let text = |id: &str, type_id: u32| json!({"Sequence": {"id": id, "type_id": type_id}});
    let template = json!({
        "type": "TemplateProcessing",
        "single": [token, text("A", 0)], "pair": [token, text("A", 0), text("B", 1)],
        "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}},
    });
    let before = file["post_processor"].take();
    file["post_processor"] = if before.is_null() {
        template
    } else {
        json!({"type": "Sequence", "processors": [before, template]})
    };
    to_pretty(&file).into_bytes()
}

/// Whether the tokenizer's post-processor prepends a special token to every text.
pub(crate) fn prepends_special_token(tokenizer: &Value) -> bool {
    let prepends = |processor: &Value| !processor["single"][0]["SpecialToken"].is_null();
    let processor = &tokenizer["post_processor"];
    let list = processor["processors"].as_array();
    prepends(processor) || list.into_iter().flatten().any(prepends)
}

/// Checks that the weights match the config, before anything is written.
pub(crate) fn check_weights(
    model_dir: &ModelDir,
    weights: &TensorFile,
) -> Result<(), ConvertError> {
    let path = model_dir.weights_path();
    if nextword_model::weights::bits(&path)?.is_some() {
        let problem = "contains quantized weights; hint: export the original model";
        return Err(ConvertError::source(&path, problem));
    }
    Ok(nextword_model::weights::compare(
        &model_dir.config,
        &path,
        weights,
    )?)
}

fn special_ids(model_dir: &ModelDir, tokenizer: &dyn Tokenizer) -> Map<String, Value> {
    let special = tokenizer.special_tokens();
    let mut eos: Vec<u32> = special.eos.into_iter().collect();
    eos.extend(&model_dir.card.eos_ids);
    let eos = match eos.as_slice() {
        [] => Value::Null,
        [single] => json!(single),
        several => json!(several),
    };
    let mut ids = Map::new();
    ids.insert("bos_token_id".into(), json!(model_dir.card.bos_id));
    ids.insert("eos_token_id".into(), eos);
    ids.insert("pad_token_id".into(), json!(special.pad));
    ids
}

fn tokenizer_config(model_dir: &ModelDir, tokenizer: &dyn Tokenizer) -> Value {
    let special = tokenizer.special_tokens();
    let token = |id: Option<u32>| json!(id.and_then(|id| tokenizer.id_to_token(id)));
    let card = &model_dir.card;
    let eos = special.eos.or(card.eos_ids.first().copied());
    // Chat templates refer to these tokens by name, so keep the imported names.
    let named =
        |name: &Option<String>, id| name.as_ref().map_or_else(|| token(id), |name| json!(name));
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model_dir.config.context_length,
        "bos_token": named(&card.bos_token, card.bos_id), "eos_token": named(&card.eos_token, eos),
        "unk_token": token(special.unk), "pad_token": token(special.pad),
        "add_bos_token": card.bos_id.is_some(), "clean_up_tokenization_spaces": false,
    })
}
