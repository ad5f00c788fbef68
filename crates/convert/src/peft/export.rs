//! Export to a folder that PEFT and vLLM load.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use nextword_model::weights::{NamedTensors, is_in_block, save_tensors};
use nextword_model::{
    Adapter, AdapterDir, LowRank, ModelDir, write_atomically, write_chat_templates,
};

use super::config::CONFIG;
use super::import::TENSORS;
use super::keys::PREFIX;
use super::reader::TABLE;
use super::write_config::{self, Written};
use crate::error::join_some;
use crate::folder::check_adapter_destination;
use crate::json::to_pretty;
use crate::low_rank::{ForeignLowRank, combine};
use crate::mapping::{TensorMapping, tensor_mappings};
use crate::{ConvertError, hf};

/// The largest rank that vLLM loads unless it is told otherwise.
const VLLM_MAX_RANK: usize = 16;

/// The result of [`export_peft`](export).
#[derive(Clone, Debug)]
pub struct ExportedPeft {
    /// The `model_type` of the base model.
    pub model_type: &'static str,
    /// What other programs will not load, one sentence each.
    pub notes: Vec<String>,
}

/// Exports an adapter of the model `base` as a folder for PEFT, atomically: `adapter_config.json`,
/// `adapter_model.safetensors` in f32, a README.md and the chat templates.
///
/// Where the foreign matrix combines queries, keys and values, their updates become one: of the same rank if they share
/// A, otherwise of the sum of their ranks, block-diagonal.
///
/// # Errors
/// [`ConvertError::Inexpressible`] if no Hugging Face model type expresses the base;
/// [`ConvertError::InexpressibleAdapter`] for an adapter without low-rank updates, or with copies of some biases only;
/// errors from reading the adapter or writing the folder.
///
/// # Example
///
/// ```
/// use nextword_convert::{export_peft, import, import_peft};
/// use nextword_model::{AdapterDir, ModelDir};
///
/// let folder = tempfile::tempdir()?;
/// let path = |name: &str| folder.path().join(name);
/// let foreign = "../../tests/fixtures/peft/llama".as_ref();
/// import("../../tests/fixtures/hf/llama".as_ref(), &path("base"))?;
/// let base = ModelDir::open(&path("base"))?;
/// import_peft(foreign, &base, &path("adapter"))?;
/// let exported = export_peft(&AdapterDir::open(&path("adapter"))?, &base, &path("peft"))?;
/// assert_eq!((exported.model_type, exported.notes.len()), ("llama", 0));
/// let tensors = |folder: &std::path::Path| std::fs::read(folder.join("adapter_model.safetensors"));
/// assert_eq!(tensors(&path("peft"))?, tensors(foreign)?); // bit for bit
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn export(
    adapter_dir: &AdapterDir,
    base: &ModelDir,
    to: &Path,
) -> Result<ExportedPeft, ConvertError> {
    export_with_base_name(adapter_dir, base, &base_name(base, adapter_dir), to)
}

/// Like [`export_peft`](export), with the name or path under which PEFT finds the base model
/// (`base_model_name_or_path`): a repository of the Hugging Face Hub or a folder.
///
/// # Errors
/// Those of [`export_peft`](export).
pub fn export_with_base_name(
    adapter_dir: &AdapterDir,
    base: &ModelDir,
    base_name: &str,
    to: &Path,
) -> Result<ExportedPeft, ConvertError> {
    check_adapter_destination(to, &adapter_dir.path)?;
    adapter_dir.card.check_templates()?;
    let hf::HfModel { kind, config, .. } = hf::to_hf(&base.config)?;
    let adapter = adapter_dir.load(&base.config)?;
    let mappings = tensor_mappings(kind.names(), &config);
    let updates = updates(&adapter, &mappings)?;
    if updates.is_empty() {
        return Err(ConvertError::InexpressibleAdapter {
            format: "PEFT",
            problem: "it has no low-rank updates".to_string(),
        });
    }
    if base.config.has_encoder() && adapter.saved.contains_key(TABLE) {
        return Err(ConvertError::InexpressibleAdapter {
            format: "PEFT",
            problem: "it has a full copy of the token embedding, which is several modules of the base in `transformers`"
                .to_string(),
        });
    }
    let mut tensors = NamedTensors::new();
    for (module, (mapping, update)) in &updates {
        add_update(&mut tensors, module, mapping, update);
    }
    let copies = Copies::new(&adapter, &mappings);
    copies.add(&mut tensors, &adapter, &updates)?;
    let tied = copies
        .modules
        .iter()
        .find(|module| base.config.tied_head && mappings.iter().any(|m| is_table(m, module)));
    let mut modules_to_save = copies.modules.clone();
    if let Some(table) = tied {
        // PEFT copies a tied output layer on its own.
        let head = kind.head_name();
        let values = tensors[&format!("{PREFIX}{table}.weight")].clone();
        tensors.insert(format!("{PREFIX}{head}"), values);
        modules_to_save.insert(head.trim_end_matches(".weight").to_string());
    }
    let written = Written {
        config: &adapter.config,
        architecture: base.config.architecture,
        base: base_name.to_string(),
        updates: updates
            .iter()
            .map(|(module, (_, update))| (module.as_str(), update))
            .collect(),
        matrices: matrices(&mappings),
        bias: copies.bias_setting(&updates)?,
        has_conv1d: kind.name() == "gpt2",
        ties_weights: tied.is_some(),
        modules_to_save,
    };
    let notes = notes(&written);
    ModelDir::replace(to, |new| {
        save_tensors(&tensors, &new.join(TENSORS))?;
        let config = write_config::config(&written);
        write_atomically(&new.join(CONFIG), to_pretty(&config).as_bytes())?;
        let readme = write_config::readme(&written, &adapter_dir.card);
        write_atomically(&new.join("README.md"), readme.as_bytes())?;
        write_chat_templates(new, &adapter_dir.card.chat_templates)
    })?;
    Ok(ExportedPeft {
        model_type: kind.name(),
        notes,
    })
}

type Updates<'a> = BTreeMap<String, (&'a TensorMapping, ForeignLowRank)>;

/// The updates of the foreign modules, by name.
fn updates<'a>(
    adapter: &Adapter,
    mappings: &'a [TensorMapping],
) -> Result<Updates<'a>, ConvertError> {
    let mut updates = BTreeMap::new();
    for mapping in mappings {
        let parts: Vec<Option<&LowRank>> = mapping
            .ours
            .iter()
            .map(|(name, _)| adapter.modules.get(name.strip_suffix(".weight")?))
            .collect();
        if let Some(update) = combine(mapping, &parts)? {
            let module = mapping.name.trim_end_matches(".weight").to_string();
            updates.insert(module, (mapping, update));
        }
    }
    Ok(updates)
}

fn add_update(
    tensors: &mut NamedTensors,
    module: &str,
    mapping: &TensorMapping,
    update: &ForeignLowRank,
) {
    let mut add = |part: &str, shape: Vec<usize>, values: &[f32]| {
        let name = format!("{PREFIX}{module}.{part}");
        tensors.insert(name, (shape, values.to_vec()));
    };
    let rank = update.rank;
    add("lora_A.weight", vec![rank, mapping.d_in()], &update.a);
    add("lora_B.weight", mapping.factor_b(rank).shape, &update.b);
    if let Some(magnitude) = &update.magnitude {
        add("lora_magnitude_vector", vec![magnitude.len()], magnitude);
    }
}

/// Names of all matrices of the blocks.
fn matrices(mappings: &[TensorMapping]) -> Vec<&str> {
    let matrices = mappings
        .iter()
        .filter(|mapping| mapping.shape.len() == 2 && is_in_block(&mapping.ours[0].0));
    matrices
        .filter_map(|mapping| mapping.name.strip_suffix(".weight"))
        .collect()
}

fn is_table(mapping: &TensorMapping, module: &str) -> bool {
    mapping.ours[0].0 == TABLE && mapping.name.strip_suffix(".weight") == Some(module)
}

/// Full copies of foreign parameters.
struct Copies<'a> {
    /// Modules with a copy of all parameters.
    modules: BTreeSet<String>,
    /// Biases of other modules.
    biases: BTreeSet<&'a str>,
    mappings: BTreeMap<&'a str, &'a TensorMapping>,
}

impl<'a> Copies<'a> {
    fn new(adapter: &Adapter, mappings: &'a [TensorMapping]) -> Self {
        let is_saved = |mapping: &TensorMapping| {
            let mut ours = mapping.ours.iter();
            ours.any(|(name, _)| adapter.saved.contains_key(name))
        };
        let copied = mappings.iter().filter(|mapping| is_saved(mapping));
        let copied: Vec<&TensorMapping> = copied.collect();
        let weights = copied
            .iter()
            .filter_map(|mapping| mapping.name.strip_suffix(".weight"));
        let modules: BTreeSet<String> = weights.map(str::to_string).collect();
        let is_own = |name: &&str| {
            name.strip_suffix(".bias")
                .is_some_and(|m| !modules.contains(m))
        };
        let biases = copied
            .iter()
            .map(|mapping| mapping.name.as_str())
            .filter(is_own);
        Self {
            biases: biases.collect(),
            mappings: mappings.iter().map(|m| (m.name.as_str(), m)).collect(),
            modules,
        }
    }

    /// Adds the tensors. Biases that the base does not have are zeros.
    fn add(
        &self,
        tensors: &mut NamedTensors,
        adapter: &Adapter,
        updates: &Updates,
    ) -> Result<(), ConvertError> {
        for (name, mapping) in &self.mappings {
            let (module, kind) = name.rsplit_once('.').unwrap_or((name, ""));
            if !self.modules.contains(module) && !self.biases.contains(name) {
                continue;
            }
            let values = mapping.assemble(|ours, shape| match adapter.saved.get(ours) {
                Some(saved) => Ok(saved.values.clone()),
                None => Ok(vec![0.0; shape.iter().product()]),
            })?;
            let layer = if updates.contains_key(module) {
                ".base_layer"
            } else {
                ""
            };
            let name = format!("{PREFIX}{module}{layer}.{kind}");
            tensors.insert(name, (mapping.shape.clone(), values));
        }
        Ok(())
    }

    /// The setting `bias` that trains these biases.
    fn bias_setting(&self, updates: &Updates) -> Result<&'static str, ConvertError> {
        let all: BTreeSet<&str> = self
            .mappings
            .keys()
            .copied()
            .filter(|name| name.rsplit('.').next() == Some("bias"))
            .collect();
        let is_adapted = |name: &&str| {
            let module = name.strip_suffix(".bias");
            module.is_some_and(|module| updates.contains_key(module))
        };
        let adapted: BTreeSet<&str> = all.iter().copied().filter(is_adapted).collect();
        if self.biases.is_empty() {
            Ok("none")
        } else if self.biases == adapted {
            Ok("lora_only")
        } else if self.biases == all {
            Ok("all")
        } else {
            let biases: Vec<String> = self.biases.iter().map(|name| format!("`{name}`")).collect();
            Err(ConvertError::InexpressibleAdapter {
                format: "PEFT",
                problem: format!("it has copies of some biases only: {}", join_some(&biases)),
            })
        }
    }
}

/// The name of the base model for PEFT: that of its repository, if it is known.
fn base_name(base: &ModelDir, adapter_dir: &AdapterDir) -> String {
    match &base.card.origin {
        Some(origin) => origin.repository.clone(),
        None => adapter_dir.base.name.clone(),
    }
}

/// What vLLM will not load.
fn notes(written: &Written) -> Vec<String> {
    let mut notes = Vec::new();
    let rank = written.updates.iter().map(|(_, update)| update.rank).max();
    if let Some(rank) = rank.filter(|rank| *rank > VLLM_MAX_RANK) {
        notes.push(format!(
            "vLLM loads ranks up to {VLLM_MAX_RANK} unless it is started with --max-lora-rank {rank} or more"
        ));
    }
    if written.has_magnitudes() {
        notes.push("vLLM does not load adapters with DoRA".to_string());
    }
    if !written.modules_to_save.is_empty() {
        notes.push(
            "vLLM does not load adapters with full copies of modules (modules_to_save)".to_string(),
        );
    }
    if written.bias != "none" {
        notes.push("vLLM does not load adapters with trained biases".to_string());
    }
    notes
}
