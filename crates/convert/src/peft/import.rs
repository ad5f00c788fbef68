//! Import of a PEFT folder.

use std::collections::BTreeMap;
use std::path::Path;

use nextword_model::weights::TensorFile;
use nextword_model::{Adapter, AdapterDir, BaseModel, ModelCard, ModelDir, read_chat_templates};

use super::config::{CONFIG, PeftConfig};
use super::keys::{self, Key};
use super::problems::{Kind, Problems};
use super::saved;
use super::settings::settings;
use crate::folder::check_adapter_destination;
use crate::low_rank::{ForeignLowRank, split};
use crate::mapping::{TensorMapping, tensor_mappings};
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
    for (module, update) in updates {
        if let Some((mapping, update)) = reader.read_update(&module, &update)? {
            adapter.modules.extend(split(&mapping, update));
        }
    }
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

/// The names of the tensors of an update.
#[derive(Debug, Default)]
struct Update {
    a: Option<String>,
    b: Option<String>,
    magnitude: Option<String>,
}

/// The tensors of a file by what they belong to: a module, or a parameter of which they are a copy.
#[derive(Debug, Default)]
struct Sorted {
    updates: BTreeMap<String, Update>,
    parameters: BTreeMap<String, String>,
}

struct Reader<'a> {
    file: &'a TensorFile,
    config: &'a PeftConfig,
    /// By the names of parameters in the base model.
    mappings: BTreeMap<String, TensorMapping>,
    problems: Problems,
}

impl Reader<'_> {
    /// Sorts the tensors by their names.
    fn sort(&mut self) -> Sorted {
        let mut sorted = Sorted::default();
        for name in self.file.names() {
            if let Some(problem) = self.file.check_float(name) {
                self.problems.push(problem);
            }
            let updates = &mut sorted.updates;
            let earlier = match keys::parse(name) {
                Ok(Key::A(module)) => replace(&mut updates.entry(module).or_default().a, name),
                Ok(Key::B(module)) => replace(&mut updates.entry(module).or_default().b, name),
                Ok(Key::Magnitude(module)) => {
                    replace(&mut updates.entry(module).or_default().magnitude, name)
                }
                Ok(Key::Parameter(parameter)) => {
                    sorted.parameters.insert(parameter, name.to_string())
                }
                Err(problem) => {
                    self.problems.push(format!("  `{name}` {problem}"));
                    None
                }
            };
            if let Some(earlier) = earlier {
                self.problems
                    .push(format!("  `{earlier}` and `{name}` are the same tensor"));
            }
        }
        sorted
    }

    /// Reads the update of `module`. `None` if it has a problem.
    fn read_update(
        &mut self,
        module: &str,
        names: &Update,
    ) -> Result<Option<(TensorMapping, ForeignLowRank)>, ConvertError> {
        let Some(mapping) = self.matrix(module) else {
            return Ok(None);
        };
        let (Some(a), Some(b)) = (&names.a, &names.b) else {
            let missing = if names.a.is_none() {
                "lora_A"
            } else {
                "lora_B"
            };
            self.problems.push(format!(
                "  missing: `{}{module}.{missing}.weight`",
                keys::PREFIX
            ));
            return Ok(None);
        };
        let magnitude = names.magnitude.as_ref();
        if magnitude.is_some() != self.config.use_dora {
            let name = format!("{}{module}.lora_magnitude_vector", keys::PREFIX);
            self.problems.push(match magnitude {
                Some(_) => format!("  unused: `{name}`, since {CONFIG} does not set use_dora"),
                None => format!("  missing: `{name}`, since {CONFIG} sets use_dora"),
            });
        }
        let rank = self.check_rank(module, &mapping, a);
        self.check_shape(a, &[rank, mapping.d_in()]);
        self.check_shape(b, &mapping.factor_b(rank).shape);
        if let Some(magnitude) = magnitude {
            self.check_shape(magnitude, &mapping.output_vector().shape);
        }
        if !self.problems.is_empty() {
            return Ok(None); // Nothing is read from a file with problems.
        }
        let update = ForeignLowRank {
            rank,
            scale: self.config.scale(module, rank),
            a: self.file.values(a)?,
            b: self.file.values(b)?,
            magnitude: magnitude.map(|name| self.file.values(name)).transpose()?,
        };
        for (name, values) in [(a, &update.a), (b, &update.b)] {
            self.check_finite(name, values);
        }
        if let (Some(name), Some(values)) = (magnitude, &update.magnitude) {
            self.check_finite(name, values);
        }
        Ok(Some((mapping, update)))
    }

    /// The matrix that is the weight of `module`.
    fn matrix(&mut self, module: &str) -> Option<TensorMapping> {
        let mapping = self.mappings.get(&format!("{module}.weight"));
        let (ours, shape) = mapping
            .map(|mapping| mapping.ours[0].clone())
            .unwrap_or_default();
        if shape.len() == 2 && ours.starts_with("blocks.") {
            return mapping.cloned();
        }
        let line = if mapping.is_some() {
            format!(
                "  `{module}` is adapted, but nextword supports only adapters of attention and feed-forward; hint: \
                 merge the adapter with PEFT"
            )
        } else {
            format!("  `{module}` is adapted, but the base model has no such module")
        };
        self.problems.push_kind(Kind::Module, line);
        None
    }

    /// The rank of the factor `a` of `module`; 0 if it is not a matrix.
    fn check_rank(&mut self, module: &str, mapping: &TensorMapping, a: &str) -> usize {
        let rank = match self.file.shape(a) {
            Some([rank, _]) => *rank,
            _ => 0,
        };
        // The smallest of the matrices that are combined.
        let sizes = mapping.ours.iter().filter_map(|(_, shape)| shape.get(1));
        let limit = sizes.fold(mapping.d_in(), |limit, d_out| limit.min(*d_out));
        let limit = limit * mapping.ours.len(); // Independent updates are stacked.
        if rank == 0 || rank > limit {
            let line = format!("  `{a}` has rank {rank}, which is not between 1 and {limit}");
            self.problems.push_kind(Kind::Rank, line);
        }
        let expected = self.config.rank(module);
        if (expected - rank as f64).abs() > 0.0 {
            let line =
                format!("  `{a}` has rank {rank}, but {CONFIG} gives `{module}` rank {expected}");
            self.problems.push_kind(Kind::Rank, line);
        }
        rank
    }

    fn check_shape(&mut self, name: &str, expected: &[usize]) {
        let found = self.file.shape(name).unwrap_or_default();
        if found != expected {
            let line =
                format!("  `{name}` has shape {found:?}, but the base model requires {expected:?}");
            self.problems.push_kind(Kind::Shape, line);
        }
    }

    fn check_finite(&mut self, name: &str, values: &[f32]) {
        if !values.iter().all(|value| value.is_finite()) {
            let line = format!("  `{name}` contains NaN or infinity");
            self.problems.push_kind(Kind::NotFinite, line);
        }
    }
}

fn replace(entry: &mut Option<String>, name: &str) -> Option<String> {
    entry.replace(name.to_string())
}
