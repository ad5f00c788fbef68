//! What `start_from` may name.

use std::path::Path;

use burn::tensor::Device;
use nextword_convert::{find_base, is_gguf, open_gguf};
use nextword_model::{
    Adapter, AdapterDir, BaseModel, ModelCard, ModelDir, ModelError, Transformer, weights,
};

use crate::saved_model::saved_adapter;
use crate::{LoraSettings, RunConfig, TrainError};

/// The model in `start_from`, and the adapter if it names one.
pub(crate) struct Source {
    pub(crate) model: ModelDir,
    pub(crate) adapter: Option<AdapterDir>,
    /// The adapter that the run saved, if it is resumed.
    saved: Option<AdapterDir>,
}

/// What a `LoRA` run adapts.
#[derive(Clone, Debug)]
pub struct LoraBase {
    /// The base: a model folder or a GGUF file.
    pub model: ModelDir,
    /// Its name and the hashes by which it is recognized.
    pub description: BaseModel,
    /// The adapter whose training the run continues.
    pub(crate) adapter: Option<AdapterDir>,
    /// Number of parameters that the run trains.
    pub trained_parameters: usize,
}

/// Opens the model in `path`, which `start_from` of `config` names. Only a run with `[lora]` can start from a GGUF file.
pub(crate) fn open(path: &Path, config: &RunConfig) -> Result<Source, TrainError> {
    let saved = saved_adapter(config);
    if config.lora.is_some() && is_gguf(path) {
        return Ok(Source {
            model: open_gguf(path)?,
            adapter: None,
            saved,
        });
    }
    check_model_dir(path)?;
    if AdapterDir::is_adapter(path) {
        let adapter = AdapterDir::open(path)?;
        return Ok(Source {
            model: find_base(&adapter, None)?,
            adapter: Some(adapter),
            saved,
        });
    }
    let model = ModelDir::open(path)?;
    if config.lora.is_none() && weights::bits(&model.weights_path())?.is_some() {
        return Err(TrainError::run(
            path,
            "the weights of a quantized model cannot be trained; hint: add a table [lora] to train an adapter for it, \
             or set start_from to the unquantized model; a GGUF file becomes one with `nextword import FILE \
             --dequantize --out FOLDER`",
        ));
    }
    Ok(Source {
        model,
        adapter: None,
        saved,
    })
}

impl LoraBase {
    /// Checks the settings of `config` for `source`; `None` for a run that trains all weights. A run that starts from an
    /// adapter has its settings.
    pub(crate) fn of(config: &mut RunConfig, source: &Source) -> Result<Option<Self>, TrainError> {
        let Source { model, adapter, .. } = source;
        if let Some(adapter) = adapter {
            continue_adapter(config, adapter)?;
        }
        let Some(lora) = &config.lora else {
            return Ok(None);
        };
        let trained_parameters = match source.trained()? {
            Some(trained) => trained.parameters(),
            None => lora.check_model(&model.config)?,
        };
        let mut description = BaseModel::of(model)?;
        description.path_hint = hint(&model.path);
        Ok(Some(Self {
            trained_parameters,
            description,
            adapter: adapter.clone(),
            model: model.clone(),
        }))
    }

    /// The base with a new adapter, or with the one whose training continues.
    pub(crate) fn initial_model(
        &self,
        config: &RunConfig,
        device: &Device,
    ) -> Result<Transformer, TrainError> {
        match &self.adapter {
            Some(adapter) => self.with_adapter(adapter.load(&config.model)?, config, device),
            None => {
                let settings = config.lora.clone().unwrap_or_default().adapter_config();
                let base = self.load(config, device)?;
                Ok(base.with_new_adapter(&settings, config.seed)?)
            }
        }
    }

    /// The base with `adapter`, as `config` trains it.
    pub(crate) fn with_adapter(
        &self,
        adapter: Adapter,
        config: &RunConfig,
        device: &Device,
    ) -> Result<Transformer, TrainError> {
        let mut adapter = adapter;
        if let Some(lora) = &config.lora {
            adapter.config = lora.adapter_config();
        }
        Ok(self.load(config, device)?.with_adapter(&adapter)?)
    }

    /// The base with the dropout of `config`.
    fn load(&self, config: &RunConfig, device: &Device) -> Result<Transformer, TrainError> {
        let mut model = self.model.clone();
        model.config = config.model.clone();
        Ok(model.load(device)?)
    }

    /// Whether `other` is the same model, wherever it is.
    pub(crate) fn is(&self, other: &BaseModel) -> bool {
        let hashes = |base: &BaseModel| {
            [
                &base.weights_sha256,
                &base.config_sha256,
                &base.tokenizer_sha256,
            ]
            .map(String::clone)
        };
        hashes(&self.description) == hashes(other)
    }
}

impl Source {
    /// The metadata that the run takes over. A resumed run keeps that which it has: it may have started from an adapter,
    /// which it no longer needs.
    pub(crate) fn card(&self) -> &ModelCard {
        let adapter = self.saved.as_ref().or(self.adapter.as_ref());
        adapter.map_or(&self.model.card, |adapter| &adapter.card)
    }

    /// The adapter whose training continues, if there is one. Its modules and their ranks may be others than those that
    /// its settings give a new adapter.
    fn trained(&self) -> Result<Option<Adapter>, TrainError> {
        let config = &self.model.config;
        let saved = self.saved.as_ref().map(|saved| saved.load(config));
        if let Some(Ok(saved)) = saved {
            return Ok(Some(saved)); // Otherwise a resumed run reads its checkpoint.
        }
        let adapter = self.adapter.as_ref().map(|adapter| adapter.load(config));
        Ok(adapter.transpose()?)
    }
}

/// How an adapter names the model in `path`: relative to the working directory if it is in there, so that a project can
/// be moved.
fn hint(path: &Path) -> String {
    let inside = std::env::current_dir().ok().and_then(|working_dir| {
        let relative = path.strip_prefix(&working_dir).ok()?;
        Some(relative.to_path_buf()).filter(|path| !path.as_os_str().is_empty())
    });
    let hint = inside.unwrap_or_else(|| path.to_path_buf());
    hint.display().to_string()
}

/// Gives `config` the settings of `adapter`, except those that are not part of it, or checks that they agree. Settings at
/// their defaults count as left out.
fn continue_adapter(config: &mut RunConfig, adapter: &AdapterDir) -> Result<(), TrainError> {
    let stored = LoraSettings::new(adapter.config.clone());
    let Some(lora) = &mut config.lora else {
        config.lora = Some(stored);
        return Ok(());
    };
    let trained = LoraSettings {
        dropout: lora.dropout,
        plus_ratio: lora.plus_ratio,
        ..stored
    };
    let left_out = LoraSettings {
        dropout: lora.dropout,
        plus_ratio: lora.plus_ratio,
        ..LoraSettings::default()
    };
    if *lora == trained || *lora == left_out {
        *lora = trained;
        return Ok(());
    }
    Err(TrainError::config(
        "lora",
        format!(
            "differs from the settings of the adapter in start_from (rank {}, alpha {})",
            trained.rank, trained.alpha
        ),
        "leave out all of [lora] except dropout and plus_ratio to continue its training; to train another adapter on top \
         of it, merge it first with `nextword merge`",
    ))
}

/// Checks that `start_from` is a folder, which may still have no model.
pub(crate) fn check_model_dir(path: &Path) -> Result<(), ModelError> {
    let shown = path.display();
    let problem = if path.is_file() {
        format!(
            "is a file, but training starts from a model folder; hint: convert a GGUF file with `nextword import \
             {shown} --dequantize --out FOLDER`, and set start_from = \"FOLDER\", or add a table [lora] to train an \
             adapter of it"
        )
    } else if matches!(path.try_exists(), Ok(false)) {
        // The working directory may have been put before the name.
        match shown.to_string().split_once("hf:") {
            Some((_, name)) => format!(
                "does not exist; hint: start_from names a local folder: download and convert the model with \
                 `nextword import hf:{name} --out FOLDER`, and set start_from = \"FOLDER\""
            ),
            None => {
                "does not exist; hint: set start_from to a run folder, e.g. runs/NAME, or a model folder".to_string()
            }
        }
    } else {
        return Ok(());
    };
    Err(ModelError::Format {
        path: path.to_path_buf(),
        problem,
    })
}
