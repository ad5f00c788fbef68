//! Import of a Hugging Face folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use nextword_data::{Tokenizer, load_tokenizer, parse_tokenizer};
use nextword_model::weights::{FloatType, layout, write_tensors};
use nextword_model::{ModelCard, ModelConfig, ModelDir};
use serde_json::Value;

use crate::chat_templates::ChatTemplates;
use crate::folder::{Tensors, check_destination, is_pickle, pickle_error};
use crate::hf::{self, ModelType, read_config};
use crate::mapping::{TensorMapping, tensor_mappings};
use crate::{ConvertError, json};

/// The result of an import.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The foreign `model_type`.
    pub model_type: &'static str,
    /// The architecture.
    pub config: ModelConfig,
    /// The model card, with the special tokens.
    pub card: ModelCard,
    /// Whether the model has a chat template.
    pub has_chat_template: bool,
}

/// Converts the Hugging Face folder `from` to the model folder `to`, atomically.
///
/// Weights become f32, which represents f16 and bf16 exactly. Only one tensor at a time is in memory.
///
/// # Errors
/// [`ConvertError::Field`] for an unsupported config field; [`ConvertError::Tensors`] with every
/// missing, unused or misshapen tensor; [`ConvertError::Source`] for invalid files, and for pickles,
/// which are never opened.
///
/// # Example
///
/// ```
/// use nextword_convert::import;
/// use nextword_model::{DeviceName, ModelDir};
///
/// let folder = tempfile::tempdir()?;
/// let to = folder.path().join("model");
/// let imported = import("../../tests/fixtures/hf/qwen3".as_ref(), &to)?;
/// assert!(imported.config.qk_norm); // Qwen3 normalizes queries and keys
/// let model = ModelDir::open(&to)?.load(&DeviceName::Flex.open()?)?;
/// assert_eq!(model.blocks.len(), imported.config.n_layers);
///
/// let error = import("Qwen/Qwen3-0.6B".as_ref(), &folder.path().join("other")).unwrap_err();
/// assert!(error.to_string().contains("models are not downloaded"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn import(from: &Path, to: &Path) -> Result<Imported, ConvertError> {
    if from.is_file() {
        return Err(ConvertError::source(from, not_a_folder(from)));
    }
    if !from.try_exists().map_err(ConvertError::io(from, "read"))? {
        let problem = "does not exist; hint: pass a local folder, models are not downloaded";
        return Err(ConvertError::source(from, problem));
    }
    check_destination(to, from)?;
    let (kind, config) = read_config(from)?;
    let tensors = Tensors::open(from)?;
    let sources = sources(from, kind, &config, &tensors)?;
    let tokenizer_path = from.join("tokenizer.json");
    let Some(mut tokenizer_json) = tokenizer_text(&tokenizer_path)? else {
        let problem = "does not exist; hint: save the model's tokenizer with `AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)`";
        return Err(ConvertError::source(&tokenizer_path, problem));
    };
    let mut tokenizer = load_tokenizer(&tokenizer_path)?;
    if tokenizer.vocab_size() > config.vocab_size
        && let Some(trimmed) = without_extra_added_tokens(&tokenizer_json, config.vocab_size)
    {
        tokenizer = parse_tokenizer(&trimmed, &tokenizer_path.display().to_string())?;
        tokenizer_json = trimmed;
    }
    let unused_ids = config
        .vocab_size
        .checked_sub(tokenizer.vocab_size())
        .ok_or_else(|| {
            let (tokens, rows) = (tokenizer.vocab_size(), config.vocab_size);
            let problem = format!(
                "has {tokens} tokens, but the model has only {rows}; hint: use the model's own tokenizer.json"
            );
            ConvertError::source(&tokenizer_path, problem)
        })?;
    let special = SpecialTokens::read(from, &*tokenizer, config.vocab_size)?;
    let settings = json::read_value(&from.join("tokenizer_config.json"))?.unwrap_or_default();
    let templates = ChatTemplates::read(from, &settings)?;
    let name = from.canonicalize().unwrap_or_else(|_| from.to_path_buf());
    let name = name
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or("imported");
    let card = ModelCard {
        name: name.to_string(),
        version: env!("CARGO_PKG_VERSION").to_string(),
        trained_on: format!(
            "imported from the Hugging Face folder `{name}` ({})",
            kind.name()
        ),
        parameters: config.parameter_counts().total() as u64,
        bos_id: special.bos,
        bos_token: special.bos_token,
        eos_token: special.eos_token,
        eos_ids: special.eos,
        unused_ids,
        ..ModelCard::default()
    };
    ModelDir::replace(to, |new| {
        ModelDir::write_small_files(new, &config, &tokenizer_json, &card)?;
        templates.write(new)?;
        let weights = new.join("model.safetensors");
        write_tensors(&weights, FloatType::F32, &layout(&config), |name| {
            let Some((foreign, mapping)) = sources.get(name) else {
                return Err(ConvertError::source(
                    from,
                    format!("does not contain `{name}`"),
                ));
            };
            Ok(mapping.extract(name, tensors.values(foreign)?))
        })
        .map(drop)
    })?;
    Ok(Imported {
        model_type: kind.name(),
        config,
        card,
        has_chat_template: templates.exists(),
    })
}

/// The error message for a file where a folder was expected.
fn not_a_folder(path: &Path) -> String {
    let name = path.file_name().and_then(|name| name.to_str());
    if is_pickle(path) {
        return pickle_error(name.unwrap_or("the file"));
    }
    let hint = match path.extension().and_then(|extension| extension.to_str()) {
        Some("gguf") => {
            "GGUF can be exported but not imported; hint: pass the Hugging Face folder that it was made from"
        }
        _ => "hint: pass the folder with config.json, model.safetensors and tokenizer.json",
    };
    format!("is a file; {hint}")
}

/// The tokenizer without added tokens whose ids are outside the vocabulary (Gemma 3's text models
/// still list the image token). `None` if there are no such tokens.
fn without_extra_added_tokens(tokenizer_json: &str, vocab_size: usize) -> Option<String> {
    let mut file: Value = serde_json::from_str(tokenizer_json).ok()?;
    let added = file["added_tokens"].as_array_mut()?;
    let before = added.len();
    added.retain(|token| {
        token["id"]
            .as_u64()
            .is_some_and(|id| id < vocab_size as u64)
    });
    (added.len() < before).then(|| file.to_string())
}

/// The tokenizer file's text. Invalid files are reported by the data crate.
fn tokenizer_text(path: &Path) -> Result<Option<String>, ConvertError> {
    if !path.is_file() {
        return Ok(None);
    }
    load_tokenizer(path)?; // Checks its size.
    let bytes = std::fs::read(path).map_err(ConvertError::io(path, "read"))?;
    let text = String::from_utf8(bytes);
    text.map(Some)
        .map_err(|_| ConvertError::source(path, "is not UTF-8 text"))
}

/// The source of each of our tensors. Compares every name and shape first.
fn sources(
    folder: &Path,
    kind: ModelType,
    config: &ModelConfig,
    tensors: &Tensors,
) -> Result<BTreeMap<String, (String, TensorMapping)>, ConvertError> {
    let mappings = tensor_mappings(kind.names(), config);
    let prefix = kind.prefix();
    let is_bare = !tensors.names().any(|name| name.starts_with(prefix));
    let mut problems = Vec::new();
    let mut used = BTreeSet::new();
    let mut sources = BTreeMap::new();
    for mapping in mappings {
        let bare = mapping.name.strip_prefix(prefix).filter(|_| is_bare);
        let mut name = bare.unwrap_or(&mapping.name).to_string();
        // Of two tied tensors, some programs save only the output layer's.
        let is_table = mapping.ours[0].0 == "token_embedding.weight";
        let head = kind.head_name();
        if is_table
            && config.tied_head
            && tensors.shape(&name).is_none()
            && tensors.shape(head).is_some()
        {
            name = head.to_string();
        }
        let expected = &mapping.shape;
        match tensors.shape(&name) {
            None => problems.push(format!("  missing: `{name}` {expected:?}")),
            Some(found) if found != expected => problems.push(format!(
                "  `{name}` has shape {found:?}, but config.json requires {expected:?}"
            )),
            Some(_) => problems.extend(tensors.check_float(&name)),
        }
        used.insert(name.clone());
        for (ours, _) in mapping.ours.clone() {
            sources.insert(ours, (name.clone(), mapping.clone()));
        }
    }
    for name in tensors.names() {
        if used.contains(name) || kind.is_buffer(name) {
            continue;
        }
        if config.tied_head && name == kind.head_name() {
            let table = sources
                .get("token_embedding.weight")
                .map(|(name, _)| name.as_str());
            if problems.is_empty() && !tensors_equal(tensors, name, table.unwrap_or(""))? {
                problems.push(format!(
                    "  `{name}` differs from the token embedding, but config.json ties them"
                ));
            }
            continue;
        }
        problems.push(format!("  unused: `{name}`"));
    }
    if problems.is_empty() {
        return Ok(sources);
    }
    Err(ConvertError::Tensors {
        path: folder.to_path_buf(),
        problems,
    })
}

fn tensors_equal(tensors: &Tensors, a: &str, b: &str) -> Result<bool, ConvertError> {
    Ok(tensors.check_float(a).is_none()
        && tensors.shape(a) == tensors.shape(b)
        && tensors.values(a)? == tensors.values(b)?)
}

/// Special tokens from the files beside the tokenizer.
#[derive(Default)]
struct SpecialTokens {
    bos: Option<u32>,
    eos: Vec<u32>,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

impl SpecialTokens {
    fn read(folder: &Path, tokenizer: &dyn Tokenizer, vocab: usize) -> Result<Self, ConvertError> {
        let read = |name: &str| json::read_value(&folder.join(name)).map(Option::unwrap_or_default);
        let (config, settings) = (read("config.json")?, read("tokenizer_config.json")?);
        let generation = read("generation_config.json")?;
        let tokenizer_json = read_large(&folder.join("tokenizer.json"));
        let ids = |value: &Value| -> Vec<u32> {
            let list = value
                .as_array()
                .map_or(std::slice::from_ref(value), Vec::as_slice);
            let ids = list.iter().filter_map(Value::as_u64);
            ids.filter(|id| (*id as usize) < vocab)
                .map(|id| id as u32)
                .collect()
        };
        let mut eos = ids(&generation["eos_token_id"]);
        if eos.is_empty() {
            eos = ids(&config["eos_token_id"]);
        }
        let text = |name: &Value| {
            let text = name.as_str().or_else(|| name["content"].as_str());
            text.map(str::to_owned)
        };
        let find = |name: &Value| {
            let name = &text(name)?;
            (0..tokenizer.vocab_size() as u32)
                .find(|id| tokenizer.id_to_token(*id).as_ref() == Some(name))
        };
        // The token that ends a chat turn is in the tokenizer's settings.
        eos.extend(find(&settings["eos_token"]));
        let tokenizer_eos = tokenizer.special_tokens().eos;
        eos.sort_unstable();
        eos.dedup();
        eos.retain(|id| Some(*id) != tokenizer_eos);
        let bos = find(&settings["bos_token"])
            .or_else(|| ids(&config["bos_token_id"]).first().copied())
            .filter(|_| prepends_bos(&settings, &tokenizer_json));
        Ok(Self {
            bos,
            eos,
            bos_token: text(&settings["bos_token"]),
            eos_token: text(&settings["eos_token"]),
        })
    }
}

/// Parses a JSON file of any size; null if it cannot be read or parsed.
fn read_large(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// Whether the tokenizer prepends BOS to every text, by its post-processor or its settings.
fn prepends_bos(settings: &Value, tokenizer: &Value) -> bool {
    let setting = settings["add_bos_token"].as_bool();
    setting.unwrap_or_else(|| hf::export::prepends_special_token(tokenizer))
}
