//! Export to a folder for `transformers`.

use std::collections::BTreeMap;
use std::path::Path;

use nextword_data::Tokenizer;
use nextword_model::weights::{FloatType, TensorFile, write_tensors};
use nextword_model::{ModelDir, ModelTokens, TokenSource, write_atomically, write_chat_templates};
use serde_json::{Map, Value, json};

use super::{bert, to_hf, values_or_zeros};
use crate::ConvertError;
use crate::folder::check_destination;
use crate::json::to_pretty;
use crate::mapping::{TensorMapping, tensor_mappings};
use crate::tokenizer_files::{self, around, without_added};

/// Exports the model folder `model_dir` as a Hugging Face folder, atomically: `config.json`,
/// `model.safetensors` with values of type `float` (dequantized), the tokenizer files and `generation_config.json`.
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
    model_dir.card.check_templates()?;
    let hf = to_hf(&model_dir.config)?;
    let (kind, mut config) = (hf.kind, hf.map);
    let special = &model_dir.card.special;
    let tokenizer = tokenizer_files::open(model_dir)?;
    let mut tokenizer_json = tokenizer_files::json(model_dir)?.into_owned();
    if lacks_unknown_token(&tokenizer_json) {
        tokenizer_json = tokenizer.to_json()?.into_bytes();
    }
    let tokenizer_json = with_tokens_around(tokenizer_json, special, &*tokenizer);
    check_weights(model_dir)?;
    let weights = model_dir.open_weights()?;
    let mappings: BTreeMap<String, TensorMapping> = tensor_mappings(kind.names(), &hf.config)
        .into_iter()
        .map(|mapping| (mapping.name.clone(), mapping))
        .collect();
    let mut shapes: Vec<_> = mappings
        .values()
        .map(|mapping| (mapping.name.clone(), mapping.shape.clone()))
        .collect();
    // What an import adds to other rows, and is part of them here.
    let zeros: BTreeMap<&str, usize> = mappings
        .values()
        .filter_map(|mapping| Some((mapping.added_row?, mapping.shape[1])))
        .collect();
    let zero_shapes = zeros.iter();
    let zero_shapes =
        zero_shapes.map(|(name, width)| ((*name).to_string(), vec![bert::TOKEN_TYPES, *width]));
    shapes.extend(zero_shapes);
    shapes.sort_unstable();

    let ids = special_ids(special, &*tokenizer);
    config.extend(ids.clone());
    if let Some(eos) = &special.config_eos_ids {
        config.insert("eos_token_id".into(), one_or_list(eos));
    }
    if hf.config.has_encoder() {
        let start = special.target_start(tokenizer.special_tokens().eos);
        config.insert("decoder_start_token_id".into(), json!(start));
    }
    let mut generation = ids;
    generation.extend(special.sampling_settings.clone());
    let dtype = match float {
        FloatType::F32 => "float32",
        FloatType::F16 => "float16",
        FloatType::Bf16 => "bfloat16",
    };
    config.insert("torch_dtype".into(), json!(dtype));
    ModelDir::replace(to, |new| {
        let write = |name: &str, text: &str| write_atomically(&new.join(name), text.as_bytes());
        write("config.json", &to_pretty(&Value::Object(config)))?;
        write(
            "generation_config.json",
            &to_pretty(&Value::Object(generation)),
        )?;
        write_atomically(&new.join("tokenizer.json"), &tokenizer_json)?;
        let settings = tokenizer_config(model_dir, &*tokenizer);
        write("tokenizer_config.json", &to_pretty(&settings))?;
        write_chat_templates(new, &model_dir.card.chat_templates)?;
        write_tensors(&new.join("model.safetensors"), float, &shapes, |name| {
            if let Some(width) = zeros.get(name) {
                return Ok(vec![0.0; bert::TOKEN_TYPES * width]);
            }
            let Some(mapping) = mappings.get(name) else {
                return Err(ConvertError::source(
                    to,
                    format!("does not contain `{name}`"),
                ));
            };
            let values = mapping.assemble(|ours, shape| values_or_zeros(&*weights, ours, shape))?;
            if float == FloatType::F16 {
                crate::check_range(name, &values, crate::F16_MAX, "f16")?;
            }
            Ok(values)
        })
        .map(drop)
    })?;
    Ok(kind.name())
}

/// Lists what `transformers` does differently with the tokenizer of `model_dir`, one sentence each.
///
/// # Errors
/// Errors from reading the tokenizer.
///
/// ```
/// use nextword_convert::hf_differences;
/// use nextword_model::ModelDir;
///
/// let model = ModelDir::open("../../docs/models/letters".as_ref())?;
/// assert!(hf_differences(&model)?.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn differences(model_dir: &ModelDir) -> Result<Vec<String>, ConvertError> {
    let json = tokenizer_files::json(model_dir)?;
    let file: Value = serde_json::from_slice(&json).unwrap_or_default();
    let is_words = file["model"]["type"] == "WordLevel" && file["pre_tokenizer"]["type"] != "Split";
    // Without a note for characters: `export` writes those in another way.
    Ok(if is_words && names_absent_unknown_token(&file) {
        let note = "transformers ends with an error at a word that is not in the vocabulary, because the model has no unknown \
            token; nextword leaves such words out. Train with data.tokenizer.unk = \"<unk>\" for texts with other words";
        vec![note.to_string()]
    } else {
        Vec::new()
    })
}

/// Whether the unknown token of a word tokenizer is not in its vocabulary.
fn names_absent_unknown_token(file: &Value) -> bool {
    let model = &file["model"];
    let unknown = model["unk_token"].as_str().unwrap_or_default();
    model["vocab"][unknown].is_null()
}

/// Whether a character tokenizer names an unknown token that its vocabulary does not have, as those of
/// earlier versions: `transformers` rejects unknown characters then.
fn lacks_unknown_token(tokenizer_json: &[u8]) -> bool {
    let file: Value = serde_json::from_slice(tokenizer_json).unwrap_or_default();
    file["model"]["type"] == "WordLevel"
        && file["pre_tokenizer"]["type"] == "Split"
        && file["model"]["unk_token"].is_string()
        && names_absent_unknown_token(&file)
}

/// Makes `tokenizer.json` put the tokens of `special` around every text, and for imported models no others.
/// `transformers` does not follow the settings in `tokenizer_config.json` for every tokenizer class.
fn with_tokens_around(
    tokenizer_json: Vec<u8>,
    special: &ModelTokens,
    tokenizer: &dyn Tokenizer,
) -> Vec<u8> {
    let Ok(mut file) = serde_json::from_slice::<Value>(&tokenizer_json) else {
        return tokenizer_json;
    };
    let (prefix, suffix) = around(&file["post_processor"]);
    let is_complete = special.prefix_ids.is_some();
    let wanted = |declared: &[u32], found: &[u32]| -> Vec<u32> {
        let ids = if is_complete || found.is_empty() {
            declared
        } else {
            found
        };
        ids.to_vec()
    };
    let before = wanted(special.prefix(), &prefix);
    let after = wanted(&special.suffix_ids, &suffix);
    if (&before, &after) == (&prefix, &suffix) {
        return tokenizer_json;
    }
    let named = |ids: &[u32]| -> Vec<(u32, String)> {
        let named = ids
            .iter()
            .map(|id| Some((*id, tokenizer.id_to_token(*id)?)));
        named.collect::<Option<_>>().unwrap_or_default()
    };
    let (before, after) = (named(&before), named(&after));
    let text = |id: &str, type_id: u32| json!({"Sequence": {"id": id, "type_id": type_id}});
    let tokens = |list: &[(u32, String)]| -> Vec<Value> {
        let token = |(_, name): &(u32, String)| json!({"SpecialToken": {"id": name, "type_id": 0}});
        list.iter().map(token).collect()
    };
    let single = [tokens(&before), vec![text("A", 0)], tokens(&after)].concat();
    let pair = [
        tokens(&before),
        vec![text("A", 0), text("B", 1)],
        tokens(&after),
    ]
    .concat();
    let entry = |(id, name): &(u32, String)| {
        (
            name.clone(),
            json!({"id": name, "ids": [id], "tokens": [name]}),
        )
    };
    let entries: Map<String, Value> = before.iter().chain(&after).map(entry).collect();
    let template = json!({
        "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": entries,
    });
    let earlier = without_added(file["post_processor"].take());
    file["post_processor"] = if before.is_empty() && after.is_empty() {
        earlier
    } else if earlier.is_null() {
        template
    } else {
        json!({"type": "Sequence", "processors": [earlier, template]})
    };
    to_pretty(&file).into_bytes()
}

/// Checks that the weights match the config, before anything is written.
pub(crate) fn check_weights(model_dir: &ModelDir) -> Result<(), ConvertError> {
    if model_dir.tokenizer_json().is_some() {
        return Ok(()); // Of a file that is open, all weights were checked.
    }
    let path = model_dir.weights_path();
    let weights = TensorFile::open(&path)?;
    Ok(nextword_model::weights::compare(
        &model_dir.config,
        &path,
        &weights,
    )?)
}

/// The ids of `config.json` and `generation_config.json`.
fn special_ids(special: &ModelTokens, tokenizer: &dyn Tokenizer) -> Map<String, Value> {
    let by_name = tokenizer.special_tokens();
    let pad = match special.source {
        Some(_) => special.pad_id,
        None => by_name.pad,
    };
    let mut ids = Map::new();
    ids.insert("bos_token_id".into(), json!(special.bos_id));
    let eos = one_or_list(&special.stop_ids(by_name.eos));
    ids.insert("eos_token_id".into(), eos);
    ids.insert("pad_token_id".into(), json!(pad));
    ids
}

fn one_or_list(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [single] => json!(single),
        several => json!(several),
    }
}

fn tokenizer_config(model_dir: &ModelDir, tokenizer: &dyn Tokenizer) -> Value {
    let by_name = tokenizer.special_tokens();
    let special = &model_dir.card.special;
    let is_declared = special.source == Some(TokenSource::Declared);
    // Chat templates refer to these tokens by name, so keep the imported names, and those alone.
    let named = |name: &Option<String>, id: Option<u32>| {
        let from_id = || tokenizer.id_to_token(id.filter(|_| !is_declared)?);
        json!(name.clone().or_else(from_id))
    };
    let eos = by_name.eos.or(special.eos_ids.first().copied());
    let mut settings = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model_dir.config.context_length,
        "bos_token": named(&special.bos_token, special.bos_id),
        "eos_token": named(&special.eos_token, eos),
        "unk_token": named(&special.unk_token, by_name.unk),
        "pad_token": named(&special.pad_token, by_name.pad),
        "add_bos_token": !special.prefix().is_empty(), "add_eos_token": !special.suffix_ids.is_empty(),
        "clean_up_tokenization_spaces": false,
    });
    for (key, value) in &special.further_settings {
        settings[key.as_str()] = value.clone();
    }
    settings
}
