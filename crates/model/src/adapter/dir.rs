//! The adapter folder: a saved adapter.
//!
//! It contains `adapter.json` (settings, modules and base model), `adapter.safetensors` (`NAME.lora_a`,
//! `NAME.lora_b` and `NAME.lora_magnitude` of each module, and full copies of parameters under their own
//! names), `card.json`, and the chat templates that the adapter was trained with.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use nextword_base::hash::FileHash;
use safetensors::tensor::Dtype;
use serde::{Deserialize, Serialize};

use super::check::rank_problem;
use super::config::copyable_parameters;
use super::{Adapter, BaseModel, SavedTensor, linear_modules};
use crate::chat_templates::write_chat_templates;
use crate::model_card::read_card;
use crate::small_files::{read_json, to_json};
use crate::weights::{TensorFile, TensorSpec, Values, write_file};
use crate::{LoraConfig, LowRank, ModelCard, ModelConfig, ModelDir, ModelError, write_atomically};

const SETTINGS: &str = "adapter.json";
const TENSORS: &str = "adapter.safetensors";

/// The version of the format that this version writes, and the newest that it reads.
const FORMAT: u32 = 1;

/// An adapter folder and its small files. The tensors stay on disk until [`load`](Self::load).
///
/// # Example
///
/// ```
/// use burn::tensor::Device;
/// use nextword_model::{AdapterDir, BaseModel, LoraConfig, ModelCard, ModelDir};
///
/// let base = ModelDir::open("../../docs/models/statquest".as_ref())?;
/// let config = LoraConfig { rank: 1, ..LoraConfig::default() };
/// let model = base.load(&Device::flex())?.with_new_adapter(&config, 7)?;
/// let adapter = model.adapter().unwrap();
///
/// let parent = tempfile::tempdir()?;
/// let path = parent.path().join("adapter");
/// AdapterDir::save(&path, &adapter, &BaseModel::of(&base)?, &ModelCard::default())?;
/// let saved = AdapterDir::open(&path)?;
/// saved.base.check(&base)?;
/// assert_eq!(saved.load(&base.config)?, adapter);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct AdapterDir {
    /// The path of the folder.
    pub path: PathBuf,
    /// The settings that the adapter was made with.
    pub config: LoraConfig,
    /// The model that it was trained on.
    pub base: BaseModel,
    /// The metadata, with the chat templates.
    pub card: ModelCard,
    modules: Vec<ModuleEntry>,
    saved: Vec<String>,
}

/// The contents of `adapter.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Settings {
    format: u32,
    lora: LoraConfig,
    base: BaseModel,
    modules: Vec<ModuleEntry>,
    /// Parameters of which there are full copies.
    #[serde(default)]
    saved: Vec<String>,
}

/// An adapted module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct ModuleEntry {
    name: String,
    rank: usize,
    scale: f32,
}

impl AdapterDir {
    /// Whether `path` is an adapter folder: it has an `adapter.json`.
    pub fn is_adapter(path: &Path) -> bool {
        path.join(SETTINGS).is_file()
    }

    /// Reads the small files of the adapter folder at `path`.
    ///
    /// # Errors
    /// [`ModelError::Io`] or [`ModelError::Format`] if it is not a valid adapter folder.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let file = path.join(SETTINGS);
        let Format { format } = read_json(&file)?;
        let error = |problem: String| ModelError::Format {
            path: file.clone(),
            problem,
        };
        if !(1..=FORMAT).contains(&format) {
            return Err(error(format!(
                "has format {format}, and this version reads format {FORMAT}; hint: use a newer version"
            )));
        }
        let settings: Settings = read_json(&file)?;
        settings.lora.validate().map_err(|e| error(e.to_string()))?;
        let mut names = BTreeSet::new();
        if let Some(module) = settings.modules.iter().find(|m| !names.insert(&m.name)) {
            return Err(error(format!("lists the module `{}` twice", module.name)));
        }
        let card = read_card(path)?;
        Ok(Self {
            path: path.to_path_buf(),
            config: settings.lora,
            base: settings.base,
            card,
            modules: settings.modules,
            saved: settings.saved,
        })
    }

    /// Whether it only adds low-rank updates to its base, so that rows of a batch can share the base's products (see
    /// [`Transformer::row_adapter`](crate::Transformer::row_adapter)).
    pub fn is_low_rank(&self) -> bool {
        !self.config.use_dora && self.saved.is_empty()
    }

    /// The path of the tensors.
    pub fn tensors_path(&self) -> PathBuf {
        self.path.join(TENSORS)
    }

    /// Reads the adapter, which is first compared with the configuration of its base model, name by name.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] with every tensor that is missing, unexpected or of the wrong shape;
    /// [`ModelError::Format`] with a module that the model does not have, a rank or scale that is not possible, or a
    /// tensor that contains NaN or infinity; [`ModelError::Io`].
    pub fn load(&self, config: &ModelConfig) -> Result<Adapter, ModelError> {
        let path = self.tensors_path();
        let file = TensorFile::open(&path)?;
        let shapes = self.module_shapes(config)?;
        let saved = self.compare(&shapes, config, &file)?;
        let read = |name: &str| {
            let values = file.values(name)?;
            if values.iter().all(|value| value.is_finite()) {
                return Ok(values);
            }
            Err(ModelError::Format {
                path: path.clone(),
                problem: format!(
                    "`{name}` contains NaN or infinity; hint: the training diverged, or the file is damaged"
                ),
            })
        };
        let mut adapter = Adapter {
            config: self.config.clone(),
            ..Adapter::default()
        };
        for (entry, [d_in, d_out]) in &shapes {
            let ModuleEntry { name, rank, scale } = (*entry).clone();
            let magnitude = self
                .config
                .use_dora
                .then(|| format!("{name}.lora_magnitude"));
            let module = LowRank {
                a: read(&format!("{name}.lora_a"))?,
                b: read(&format!("{name}.lora_b"))?,
                rank,
                d_in: *d_in,
                d_out: *d_out,
                scale,
                magnitude: magnitude.map(|name| read(&name)).transpose()?,
            };
            adapter.modules.insert(name, module);
        }
        for (name, shape) in saved {
            let values = read(&name)?;
            adapter.saved.insert(name, SavedTensor { shape, values });
        }
        Ok(adapter)
    }

    /// The modules with the shapes of their layers in `config`.
    fn module_shapes(
        &self,
        config: &ModelConfig,
    ) -> Result<Vec<(&ModuleEntry, [usize; 2])>, ModelError> {
        let shapes: BTreeMap<_, _> = linear_modules(config).into_iter().collect();
        let shape_of = |module| {
            let ModuleEntry { name, rank, scale }: &ModuleEntry = module;
            let error = |problem: String| ModelError::Format {
                path: self.path.join(SETTINGS),
                problem: format!(
                    "`{name}`: {problem}; hint: use the adapter with its base model, {}",
                    self.base.name
                ),
            };
            let shape = shapes.get(name);
            let shape = *shape.ok_or_else(|| error("the model has no such linear layer".into()))?;
            if let Some(problem) = rank_problem(*rank, shape) {
                return Err(error(problem));
            }
            if !scale.is_finite() {
                return Err(error(format!("the scale is {scale}")));
            }
            Ok((module, shape))
        };
        self.modules.iter().map(shape_of).collect()
    }

    /// Compares names, shapes and types in `file` with the modules. Returns names and shapes of the full copies.
    fn compare(
        &self,
        modules: &[(&ModuleEntry, [usize; 2])],
        config: &ModelConfig,
        file: &TensorFile,
    ) -> Result<BTreeMap<String, Vec<usize>>, ModelError> {
        let mut problems = Vec::new();
        let mut expected: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (module, [d_in, d_out]) in modules {
            let ModuleEntry { name, rank, .. } = module;
            expected.insert(format!("{name}.lora_a"), vec![*d_in, *rank]);
            expected.insert(format!("{name}.lora_b"), vec![*rank, *d_out]);
            if self.config.use_dora {
                expected.insert(format!("{name}.lora_magnitude"), vec![*d_out]);
            }
        }
        let copyable = copyable_parameters(config);
        let mut saved = BTreeMap::new();
        for name in &self.saved {
            match copyable.get(name) {
                Some(shape) => drop(saved.insert(name.clone(), shape.clone())),
                None => problems.push(format!(
                    "  not a parameter of which an adapter can have a copy: `{name}`"
                )),
            }
        }
        expected.extend(saved.clone());
        for (name, shape) in &expected {
            match file.shape(name) {
                None => problems.push(format!("  missing: `{name}` {shape:?}")),
                Some(found) if found != shape => problems.push(format!(
                    "  `{name}` has shape {found:?} instead of {shape:?}"
                )),
                Some(_) => problems.extend(file.check_float(name)),
            }
        }
        let unexpected = file.names().filter(|name| !expected.contains_key(*name));
        problems.extend(unexpected.map(|name| format!("  unexpected: `{name}`")));
        if expected.is_empty() {
            problems.push("  the adapter is empty".to_string());
        }
        if problems.is_empty() {
            return Ok(saved);
        }
        Err(ModelError::Mismatch {
            path: self.tensors_path(),
            problems,
        })
    }

    /// Writes an adapter folder to `path` atomically: to a folder beside it, then renamed. An earlier
    /// folder is replaced.
    ///
    /// # Errors
    /// [`ModelError::Io`] if it cannot be written; an earlier folder is then unchanged, except as
    /// [`ModelDir::replace`] says.
    pub fn save(
        path: &Path,
        adapter: &Adapter,
        base: &BaseModel,
        card: &ModelCard,
    ) -> Result<(), ModelError> {
        ModelDir::replace(path, |new| {
            Self::write(new, adapter, base, card)?;
            Ok(())
        })
    }

    /// Writes the files of an adapter into the folder `path`, which is created if necessary. Returns the hash of the
    /// tensors.
    ///
    /// # Errors
    /// [`ModelError::Io`] if a file cannot be written.
    pub fn write(
        path: &Path,
        adapter: &Adapter,
        base: &BaseModel,
        card: &ModelCard,
    ) -> Result<FileHash, ModelError> {
        fs::create_dir_all(path).map_err(|source| ModelError::Io {
            path: path.to_path_buf(),
            action: "create",
            source,
        })?;
        card.check_templates()?;
        let modules = adapter.modules.iter().map(|(name, module)| ModuleEntry {
            name: name.clone(),
            rank: module.rank,
            scale: module.scale,
        });
        let settings = Settings {
            format: FORMAT,
            lora: adapter.config.clone(),
            base: base.clone(),
            modules: modules.collect(),
            saved: adapter.saved.keys().cloned().collect(),
        };
        write_atomically(&path.join("card.json"), &to_json(card))?;
        write_chat_templates(path, &card.chat_templates)?;
        let hash = write_tensors(&path.join(TENSORS), adapter)?;
        write_atomically(&path.join(SETTINGS), &to_json(&settings))?;
        Ok(hash)
    }
}

/// The field that all versions of `adapter.json` have.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// Writes the tensors of `adapter` to `path` atomically.
fn write_tensors(path: &Path, adapter: &Adapter) -> Result<FileHash, ModelError> {
    let mut tensors: BTreeMap<String, (Vec<usize>, &[f32])> = BTreeMap::new();
    for (name, module) in &adapter.modules {
        let LowRank {
            d_in, d_out, rank, ..
        } = *module;
        let mut add = |part: &str, shape: Vec<usize>, values| {
            tensors.insert(format!("{name}.{part}"), (shape, values));
        };
        add("lora_a", vec![d_in, rank], &module.a[..]);
        add("lora_b", vec![rank, d_out], &module.b[..]);
        if let Some(magnitude) = &module.magnitude {
            add("lora_magnitude", vec![d_out], &magnitude[..]);
        }
    }
    for (name, saved) in &adapter.saved {
        tensors.insert(name.clone(), (saved.shape.clone(), &saved.values[..]));
    }
    let specs = tensors
        .iter()
        .map(|(name, (shape, _))| TensorSpec::new(name, Dtype::F32, shape.clone()));
    write_file(path, specs.collect(), |name| {
        Ok(Values::Floats(Cow::Borrowed(tensors[name].1)))
    })
}
