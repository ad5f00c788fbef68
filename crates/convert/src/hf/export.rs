//! A record into a folder that `transformers` loads.

use std::collections::BTreeMap;
use std::path::Path;

use nextword_data::{Tokenizer, load_tokenizer};
use nextword_model::weights::{FloatType, TensorFile, write_tensors};
use nextword_model::{Record, write_atomically};
use serde_json::{Map, Value, json};

use super::{express, values_or_zeros};
use crate::folder::check_place;
use crate::json::pretty;
use crate::parts::{Part, parts};
use crate::{ConvertError, json as files};

/// Writes `record` as a Hugging Face folder, whole or not at all: `config.json`,
/// `model.safetensors` with numbers of type `float`, the tokenizer's files and
/// `generation_config.json`. Gives the `model_type` that was chosen.
///
/// # Errors
/// [`ConvertError::Inexpressible`] with the fields of the config that no known type has; what is
/// wrong with the record's files or the place to write.
pub fn export(record: &Record, float: FloatType, to: &Path) -> Result<&'static str, ConvertError> {
    check_place(to, &record.path)?;
    let of = express(&record.config)?;
    let (kind, mut config) = (of.kind, of.map);
    let path = record.tokenizer_path();
    let tokenizer = load_tokenizer(&path)?;
    let mut tokenizer_json = std::fs::read(&path).map_err(ConvertError::io(&path, "read"))?;
    if let Some(bos) = record
        .card
        .bos_id
        .and_then(|id| Some((id, tokenizer.piece(id)?)))
    {
        tokenizer_json = putting_bos(tokenizer_json, &bos);
    }
    let weights = TensorFile::open(&record.weights_path())?;
    let parts: BTreeMap<String, Part> = parts(kind.names(), &of.config)
        .into_iter()
        .map(|part| (part.name.clone(), part))
        .collect();
    let shapes: Vec<_> = parts
        .values()
        .map(|p| (p.name.clone(), p.shape.clone()))
        .collect();
    check(record, &weights)?;

    let ids = special_ids(record, &*tokenizer);
    config.extend(ids.clone());
    let dtype = match float {
        FloatType::F32 => "float32",
        FloatType::F16 => "float16",
        FloatType::Bf16 => "bfloat16",
    };
    config.insert("torch_dtype".into(), json!(dtype));
    let template = files::text(&record.chat_template_path())?;
    Record::replace(to, |new| {
        let write = |name: &str, text: &str| write_atomically(&new.join(name), text.as_bytes());
        write("config.json", &pretty(&Value::Object(config)))?;
        write("generation_config.json", &pretty(&Value::Object(ids)))?;
        write_atomically(&new.join("tokenizer.json"), &tokenizer_json)?;
        let settings = tokenizer_config(record, &*tokenizer);
        write("tokenizer_config.json", &pretty(&settings))?;
        if let Some(template) = &template {
            write("chat_template.jinja", template)?;
        }
        write_tensors(&new.join("model.safetensors"), float, &shapes, |name| {
            let Some(part) = parts.get(name) else {
                return Err(ConvertError::source(to, format!("has no `{name}`")));
            };
            let values = part.join(|ours, shape| values_or_zeros(&weights, ours, shape))?;
            if float == FloatType::F16 {
                crate::check_size(name, &values, crate::F16_MAX, "f16")?;
            }
            Ok(values)
        })
    })?;
    Ok(kind.name())
}

/// A `tokenizer.json` that puts the token `bos` before every text: the settings beside it may ask for
/// that, but `transformers` does not follow them for every class of tokenizer.
fn putting_bos(tokenizer_json: Vec<u8>, (id, piece): &(u32, String)) -> Vec<u8> {
    let Ok(mut file) = serde_json::from_slice::<Value>(&tokenizer_json) else {
        return tokenizer_json;
    };
    if begins_with_special(&file) {
        return tokenizer_json;
    }
    let token = json!({"SpecialToken": {"id": piece, "type_id": 0}});
    let text = |id: &str, type_id: u32| json!({"Sequence": {"id": id, "type_id": type_id}});
    let template = json!({
        "type": "TemplateProcessing",
        "single": [token, text("A", 0)], "pair": [token, text("A", 0), text("B", 1)],
        "special_tokens": {piece: {"id": piece, "ids": [id], "tokens": [piece]}},
    });
    let before = file["post_processor"].take();
    file["post_processor"] = if before.is_null() {
        template
    } else {
        json!({"type": "Sequence", "processors": [before, template]})
    };
    pretty(&file).into_bytes()
}

/// Whether the tokenizer's post-processor puts a special token before every text.
pub(crate) fn begins_with_special(tokenizer: &Value) -> bool {
    let begins = |processor: &Value| !processor["single"][0]["SpecialToken"].is_null();
    let processor = &tokenizer["post_processor"];
    let list = processor["processors"].as_array();
    begins(processor) || list.into_iter().flatten().any(begins)
}

/// Compares the record's weights with its config before anything is written.
pub(crate) fn check(record: &Record, weights: &TensorFile) -> Result<(), ConvertError> {
    let path = record.weights_path();
    if nextword_model::weights::bits(&path)?.is_some() {
        let problem = "holds 8- or 4-bit weights; hint: export the record that they were made from";
        return Err(ConvertError::source(&path, problem));
    }
    Ok(nextword_model::weights::compare(
        &record.config,
        &path,
        weights,
    )?)
}

fn special_ids(record: &Record, tokenizer: &dyn Tokenizer) -> Map<String, Value> {
    let special = tokenizer.specials();
    let mut eos: Vec<u32> = special.eos.into_iter().collect();
    eos.extend(&record.card.eos_ids);
    let eos = match eos.as_slice() {
        [] => Value::Null,
        [one] => json!(one),
        several => json!(several),
    };
    let mut ids = Map::new();
    ids.insert("bos_token_id".into(), json!(record.card.bos_id));
    ids.insert("eos_token_id".into(), eos);
    ids.insert("pad_token_id".into(), json!(special.pad));
    ids
}

fn tokenizer_config(record: &Record, tokenizer: &dyn Tokenizer) -> Value {
    let special = tokenizer.specials();
    let piece = |id: Option<u32>| json!(id.and_then(|id| tokenizer.piece(id)));
    let card = &record.card;
    let end = special.eos.or(card.eos_ids.first().copied());
    // A chat template speaks of these by name: those that came in go out.
    let named =
        |name: &Option<String>, id| name.as_ref().map_or_else(|| piece(id), |name| json!(name));
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": record.config.context_length,
        "bos_token": named(&card.bos_token, card.bos_id), "eos_token": named(&card.eos_token, end),
        "unk_token": piece(special.unk), "pad_token": piece(special.pad),
        "add_bos_token": card.bos_id.is_some(), "clean_up_tokenization_spaces": false,
    })
}
