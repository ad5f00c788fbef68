//! Import of a Hugging Face folder, or of a GGUF file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use nextword_data::{load_tokenizer, parse_tokenizer};
use nextword_model::weights::{FloatType, layout, write_tensors};
use nextword_model::{ModelCard, ModelConfig, ModelDir, ModelOrigin, TokenSource};
use serde_json::Value;

use crate::folder::{Tensors, check_destination, is_pickle, pickle_error};
use crate::hf::{ModelType, bert, read_config};
use crate::imported::{ImportOptions, Imported};
use crate::mapping::{TensorMapping, tensor_mappings};
use crate::{ConvertError, chat_templates, gguf, is_gguf, json, special_tokens};

/// Converts the Hugging Face folder or the GGUF file `from` to the model folder `to`, atomically.
///
/// Weights become f32, which represents f16 and bf16 exactly; quantized ones are dequantized. Only one tensor at a time
/// is in memory.
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
/// assert!(error.to_string().contains("hf:OWNER/NAME"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn import(from: &Path, to: &Path) -> Result<Imported, ConvertError> {
    import_with(from, to, &ImportOptions::default())
}

/// Converts like [`import`], with `options`.
///
/// # Errors
/// As [`import`].
pub fn import_with(
    from: &Path,
    to: &Path,
    options: &ImportOptions,
) -> Result<Imported, ConvertError> {
    if is_gguf(from) {
        return gguf::import::import(from, to, options);
    }
    let origin = options.origin.as_ref();
    if from.is_file() {
        return Err(ConvertError::source(from, not_a_folder(from)));
    }
    if !from.try_exists().map_err(ConvertError::io(from, "read"))? {
        let problem = "does not exist; hint: pass a local folder, or hf:OWNER/NAME for a model on the Hugging Face Hub";
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
    let file: Value = serde_json::from_str(&tokenizer_json).unwrap_or_default();
    let (special, eos_outside_vocabulary) =
        special_tokens::read(from, kind, &*tokenizer, &file, config.vocab_size)?;
    let is_guess = special.source == Some(TokenSource::Guessed);
    let guessed = special.document_eos_id.filter(|_| is_guess);
    let guessed_eos = guessed.and_then(|id| tokenizer.id_to_token(id));
    let settings = json::read_value(&from.join("tokenizer_config.json"))?.unwrap_or_default();
    let templates = chat_templates::read(from, &settings)?;
    let (name, source) = name_and_source(from, origin);
    let card = ModelCard {
        name,
        version: env!("CARGO_PKG_VERSION").to_string(),
        trained_on: format!("{source} ({})", kind.name()),
        origin: origin.cloned(),
        parameters: config.parameter_counts().total() as u64,
        special,
        chat_templates: templates,
        unused_ids,
        ..ModelCard::default()
    };
    ModelDir::replace(to, |new| {
        ModelDir::write_small_files(new, &config, &tokenizer_json, &card)?;
        let weights = new.join("model.safetensors");
        write_tensors(&weights, FloatType::F32, &layout(&config), |name| {
            let Some((foreign, mapping)) = sources.get(name) else {
                return Err(ConvertError::source(
                    from,
                    format!("does not contain `{name}`"),
                ));
            };
            if mapping.is_optional() && tensors.shape(foreign).is_none() {
                return Ok(vec![0.0; mapping.shape.iter().product()]);
            }
            let mut values = mapping.extract(name, tensors.values(foreign)?);
            if let Some(added) = mapping.added_row {
                let row = tensors.values(added)?;
                let width = mapping.shape[1];
                for (i, value) in values.iter_mut().enumerate() {
                    *value += row[i % width];
                }
            }
            Ok(values)
        })
        .map(drop)
    })?;
    Ok(Imported {
        model_type: kind.name(),
        has_chat_template: !card.chat_templates.is_empty(),
        config,
        card,
        guessed_eos,
        eos_outside_vocabulary,
    })
}

/// The name of the model in `from`, and where it is from.
fn name_and_source(from: &Path, origin: Option<&ModelOrigin>) -> (String, String) {
    if let Some(origin) = origin {
        return (origin.name().to_string(), format!("imported from {origin}"));
    }
    let folder = from.canonicalize().unwrap_or_else(|_| from.to_path_buf());
    let name = folder.file_name().and_then(|name| name.to_str());
    let name = name.unwrap_or("imported");
    let source = format!("imported from the Hugging Face folder `{name}`");
    (name.to_string(), source)
}

/// Checks what can be checked of an [`import`] before the weights are in the folder `from`: its configuration, its
/// tokenizer, and that `to` may be written.
///
/// # Errors
/// As [`import`].
pub fn check_settings(from: &Path, to: &Path) -> Result<(), ConvertError> {
    check_destination(to, from)?;
    read_config(from)?;
    load_tokenizer(from.join("tokenizer.json"))?;
    Ok(())
}

/// The error message for a file where a folder was expected.
fn not_a_folder(path: &Path) -> String {
    let name = path.file_name().and_then(|name| name.to_str());
    if is_pickle(path) {
        return pickle_error(name.unwrap_or("the file"));
    }
    "is a file, but not a GGUF file; hint: pass the folder with config.json, model.safetensors and tokenizer.json"
        .to_string()
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
        if tensors.shape(&name).is_none()
            && let Some(earlier) = bert::earlier_name(&name)
            && tensors.shape(&earlier).is_some()
        {
            name = earlier;
        }
        let expected = &mapping.shape;
        if let Some(added) = mapping.added_row {
            problems.extend(added_row_problem(tensors, added, expected[1]));
            used.insert(added.to_string());
        }
        match tensors.shape(&name) {
            None if mapping.is_optional() => {}
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
        if config.tied_head && (name == kind.head_name() || kind.is_copy_of_table(name)) {
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

/// Why the first row of `name` cannot be added to rows of this width.
fn added_row_problem(tensors: &Tensors, name: &str, width: usize) -> Option<String> {
    match tensors.shape(name) {
        Some([rows, found]) if *rows > 0 && *found == width => tensors.check_float(name),
        _ => Some(format!(
            "  missing, or not of the shape [_, {width}]: `{name}`"
        )),
    }
}

fn tensors_equal(tensors: &Tensors, a: &str, b: &str) -> Result<bool, ConvertError> {
    Ok(tensors.check_float(a).is_none()
        && tensors.shape(a) == tensors.shape(b)
        && tensors.values(a)? == tensors.values(b)?)
}
