//! Import of a PEFT folder.

use std::collections::BTreeMap;
use std::path::Path;

use nextword_model::weights::TensorFile;
use nextword_model::{Adapter, AdapterDir, BaseModel, ModelCard, ModelDir, read_chat_templates};

use super::config::{CONFIG, PeftConfig};
use super::problems::Problems;
use super::reader::{Reader, Sorted};
use super::settings::settings;
use super::{embedding, saved};
use crate::folder::check_adapter_destination;
use crate::low_rank::split;
use crate::mapping::tensor_mappings;
use crate::{ConvertError, hf};

/// The name of the file with the tensors.
pub(super) const TENSORS: &str = "adapter_model.safetensors";

/// The result of [`import_peft`](import).
#[derive(Clone, Debug)]
pub struct ImportedAdapter {
    /// The `model_type` of the base model.
    pub model_type: &'static str,
    /// The adapter.
    pub adapter: Adapter,
    /// Its metadata, with the chat templates: the folder's own, or those of the base model.
    pub card: ModelCard,
}

/// Whether `path` is the folder of an adapter of PEFT: it has an `adapter_config.json`.
pub fn is_peft_folder(path: &Path) -> bool {
    path.join(CONFIG).is_file()
}

/// Converts the PEFT folder `from`, an adapter of the model `base`, to the adapter folder `to`, atomically.
///
/// An update of a matrix that combines queries, keys and values becomes one of each, which computes the same. Values
/// become f32, which represents f16 and bf16 exactly.
///
/// # Errors
/// [`ConvertError::Field`] for a setting of `adapter_config.json` that changes what the adapter computes and is not
/// supported; [`ConvertError::Adapter`] with every tensor that is missing, unknown, not finite, or of a shape that does
/// not fit the base; [`ConvertError::Inexpressible`] if no Hugging Face model type expresses the base;
/// [`ConvertError::Source`] for invalid files, and for pickles, which are never opened.
///
/// # Example
///
/// ```
/// use nextword_convert::{import, import_peft};
/// use nextword_model::{AdapterDir, ModelDir};
///
/// let folder = tempfile::tempdir()?;
/// let (base, to) = (folder.path().join("base"), folder.path().join("adapter"));
/// import("../../tests/fixtures/hf/gpt2".as_ref(), &base)?;
/// let base = ModelDir::open(&base)?;
/// let imported = import_peft("../../tests/fixtures/peft/gpt2".as_ref(), &base, &to)?;
/// assert_eq!(imported.adapter.modules.len(), base.config.n_layers * 6); // c_attn has query, key and value
/// assert_eq!(AdapterDir::open(&to)?.load(&base.config)?, imported.adapter);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn import(from: &Path, base: &ModelDir, to: &Path) -> Result<ImportedAdapter, ConvertError> {
    check_adapter_destination(to, from)?;
    let (model_type, adapter) = read(from, base)?;
    let mut templates = read_chat_templates(from)?;
    if templates.is_empty() {
        base.card.check_templates()?;
        templates.clone_from(&base.card.chat_templates);
    }
    let name = from.file_name().unwrap_or(from.as_os_str());
    let name = name.to_string_lossy().into_owned();
    let card = ModelCard {
        trained_on: format!("imported from the PEFT folder `{name}`"),
        name,
        version: env!("CARGO_PKG_VERSION").to_string(),
        parameters: adapter.parameters() as u64,
        special: base.card.special.clone(),
        chat_templates: templates,
        ..ModelCard::default()
    };
    AdapterDir::save(to, &adapter, &BaseModel::of(base)?, &card)?;
    Ok(ImportedAdapter {
        model_type,
        adapter,
        card,
    })
}

/// Reads the adapter in the folder `from`, and the model type of its base.
fn read(from: &Path, base: &ModelDir) -> Result<(&'static str, Adapter), ConvertError> {
    let config = PeftConfig::read(from)?;
    let path = from.join(TENSORS);
    if !path.is_file() {
        return Err(ConvertError::source(from, missing_tensors(from)));
    }
    let file = TensorFile::open(&path)?;
    let hf::HfModel {
        kind,
        config: hf_config,
        ..
    } = hf::to_hf(&base.config)?;
    let mappings = tensor_mappings(kind.names(), &hf_config).into_iter();
    let mut reader = Reader {
        file: &file,
        config: &config,
        mappings: mappings.map(|m| (m.name.clone(), m)).collect(),
        problems: Problems::default(),
    };
    let Sorted {
        updates,
        parameters,
    } = reader.sort();
    let mut adapter = Adapter::default();
    let head = kind.head_name().trim_end_matches(".weight");
    let mut outside = BTreeMap::new();
    for (module, update) in updates {
        if reader.is_outside_blocks(&module) || base.config.tied_head && module == head {
            if base.config.has_encoder() {
                // Embedding and output layer are several modules there, of which PEFT adapts one.
                reader.refuse_module(&module);
            } else {
                outside.insert(module, update);
            }
            continue;
        }
        if let Some((mapping, update)) = reader.read_update(&module, &update)? {
            adapter.modules.extend(split(&mapping, update));
        }
    }
    let sums = embedding::read(&mut reader, &outside, head, base)?;
    let names = saved::Names {
        head: kind.head_name(),
        ties_weights: config.ties_weights,
    };
    let Reader {
        mappings,
        mut problems,
        ..
    } = reader;
    adapter.saved = saved::read(
        &file,
        &mappings,
        &names,
        &base.config,
        &parameters,
        &mut problems,
    )?;
    for (name, sum) in sums {
        if adapter.saved.insert(name.clone(), sum).is_some() {
            problems.push(format!(
                "  the file has both a copy and an update of `{name}`"
            ));
        }
    }
    if adapter.modules.is_empty() && adapter.saved.is_empty() && problems.is_empty() {
        problems.push("  the file contains no tensors".to_string());
    }
    if !problems.is_empty() {
        let problems = problems.into_lines();
        return Err(ConvertError::Adapter { path, problems });
    }
    adapter.config = settings(&adapter, &config, &base.config);
    adapter.check(&base.config)?;
    Ok((kind.name(), adapter))
}

/// The problem with a folder that does not have the file with the tensors.
fn missing_tensors(from: &Path) -> String {
    if !from.join("adapter_model.bin").is_file() {
        return format!(
            "contains no {TENSORS}; hint: save the adapter with `model.save_pretrained(DIR)` of PEFT"
        );
    }
    let load = "torch.load('adapter_model.bin', map_location='cpu', weights_only=True)";
    format!(
        "`adapter_model.bin` is a pickle file, which can run code and is therefore never opened; hint: if you trust \
         it, convert it: python -c \"import torch, safetensors.torch; safetensors.torch.save_file({{k: \
         v.contiguous() for k, v in {load}.items()}}, '{TENSORS}')\""
    )
}
