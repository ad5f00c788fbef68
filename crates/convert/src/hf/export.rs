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
    let tokenizer_json = std::fs::read(&path).map_err(ConvertError::io(&path, "read"))?;
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
            part.join(|ours, shape| values_or_zeros(&weights, ours, shape))
        })
    })?;
    Ok(kind.name())
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
    let end = special.eos.or(record.card.eos_ids.first().copied());
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": record.config.context_length,
        "bos_token": piece(record.card.bos_id), "eos_token": piece(end),
        "unk_token": piece(special.unk), "pad_token": piece(special.pad),
        "clean_up_tokenization_spaces": false,
    })
}
