//! From a configuration to everything that a run works with.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use nextword_data::{Dataset, EvalWindows, Loader, LoaderConfig, Tokenizer};
use nextword_model::{DeviceName, ModelConfig, Record, Transformer, weights};

use crate::{RunConfig, TrainError};

/// What a run works with, made from its configuration.
pub struct Ingredients {
    /// The configuration with what the data and a starting record decided filled in.
    pub config: RunConfig,
    /// Both splits and the tokenizer.
    pub dataset: Dataset,
    /// Where the model is.
    pub device: Device,
    /// Training batches.
    pub loader: Loader,
    /// Validation windows; `None` without a validation split.
    pub validation: Option<EvalWindows>,
}

/// Reads the data, opens the device and checks that everything fits. No weights are made yet.
///
/// # Errors
/// [`TrainError`] that names the first thing that does not fit.
pub fn prepare_run(mut config: RunConfig) -> Result<Ingredients, TrainError> {
    let started_from = take_from_record(&mut config)?;
    config.validate()?;
    let name: DeviceName = config.device.parse()?;
    let device = name.open()?;
    if !config.train.precision.is_supported(&device) {
        return Err(TrainError::config(
            "train.precision",
            format!("{name} has no bf16 products"),
            "use precision = \"f32\", or device = \"flex\"",
        ));
    }
    let dataset = Dataset::build(&config.data)?;
    if let Some(tokenizer) = started_from {
        check_tokenizer(&config, tokenizer.as_ref(), dataset.tokenizer.as_ref())?;
    }
    fit_vocabulary(&mut config, dataset.tokenizer.as_ref())?;
    check_parameters(&config)?;
    let padding = dataset.tokenizer.specials().padding();
    let context_length = config.model.context_length;
    let loader = Loader::new(
        dataset.train.clone(),
        LoaderConfig {
            context_length,
            batch_size: config.train.batch_size,
            accumulation: config.train.accumulation,
            order: config.data.order,
            packing: config.data.packing,
            seed: config.seed,
            padding,
        },
    )?;
    let validation = if dataset.validation.is_empty() {
        None
    } else {
        let packing = config.data.packing;
        let validation = dataset.validation.clone();
        let windows = EvalWindows::new(validation, context_length, packing, padding)?;
        Some(match config.validation.windows {
            0 => windows,
            limit => windows.limit(limit),
        })
    };
    Ok(Ingredients {
        config,
        dataset,
        device,
        loader,
        validation,
    })
}

impl Ingredients {
    /// The model with its first weights: random ones, or those of the starting record.
    ///
    /// # Errors
    /// [`TrainError::Model`] if the record's weights do not fit.
    pub fn first_model(&self) -> Result<Transformer, TrainError> {
        let config = &self.config;
        match &config.start_from {
            Some(record) => {
                let path = Record::open(record)?.weights_path();
                if weights::bits(&path)?.is_some() {
                    return Err(TrainError::run(
                        record,
                        "a quantized record cannot be trained; hint: start from the one that it was \
                         made from",
                    ));
                }
                Ok(weights::load(&config.model, &path, &self.device)?)
            }
            None => Ok(config.model.init(&self.device, config.seed)?),
        }
    }

    /// What the data is, in a form that tells whether it is still the same on a resume.
    pub fn data_fingerprint(&self) -> String {
        format!(
            "train {}, validation {}, vocabulary {}",
            self.dataset.train.content_hash(),
            self.dataset.validation.content_hash(),
            self.dataset.tokenizer.hash()
        )
    }

    /// What the data is, for people: its sources and how many tokens they gave.
    pub fn data_description(&self) -> String {
        let sources = self
            .dataset
            .card
            .as_ref()
            .map(|card| card.sources.join(", "));
        format!(
            "{}: {} training and {} validation tokens",
            sources.unwrap_or_else(|| "token files of another program".to_string()),
            self.dataset.train.len(),
            self.dataset.validation.len()
        )
    }

    /// What a reader should know before the run begins.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let slow = !self.config.train.precision.is_fast(&self.device);
        let slow = slow.then(|| {
            "this CPU has no bf16 instructions: train.precision = \"bf16\" rounds, and is not faster \
             than f32 here"
                .to_string()
        });
        let config = self.config.warnings.iter().cloned();
        config.chain(slow).chain(self.unknown_pieces()).collect()
    }

    fn unknown_pieces(&self) -> Option<String> {
        let unknown = &self.dataset.card.as_ref()?.unknown;
        let shown: Vec<_> = unknown
            .iter()
            .take(10)
            .map(|piece| format!("{piece:?}"))
            .collect();
        (!unknown.is_empty()).then(|| {
            format!(
                "the text has {} pieces that the tokenizer does not know, as {}; they are left out or \
                 replaced by the unknown token",
                unknown.len(),
                shown.join(", ")
            )
        })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> Arc<dyn Tokenizer> {
        Arc::clone(&self.dataset.tokenizer)
    }
}

/// Takes architecture and tokenizer of the record that the run starts from, if it does.
fn take_from_record(config: &mut RunConfig) -> Result<Option<Arc<dyn Tokenizer>>, TrainError> {
    let Some(path) = &config.start_from else {
        return Ok(None);
    };
    let path = record_in(path);
    let record = Record::open(&path)?;
    let dropout = config.model.dropout;
    let asked = ModelConfig {
        dropout: ModelConfig::default().dropout,
        ..config.model.clone()
    };
    let mut given = record.config.clone();
    given.dropout = asked.dropout;
    if asked != ModelConfig::default() && asked != given {
        return Err(TrainError::config(
            "model",
            "start_from takes the record's architecture, and [model] says another",
            "leave out all of [model] but its dropout",
        ));
    }
    config.model = record.config.clone();
    config.model.dropout = dropout;
    config.data.tokenizer.file = Some(record.tokenizer_path());
    config.start_from = Some(path);
    Ok(Some(nextword_data::load_tokenizer(
        record.tokenizer_path(),
    )?))
}

/// The record that is meant: a run's folder stands for its best one.
fn record_in(path: &Path) -> PathBuf {
    let records = ["best", "last"].map(|name| path.join(name));
    let is_run = path.join("run.toml").is_file();
    let found = records
        .into_iter()
        .find(|r| r.join("model.safetensors").is_file());
    found
        .filter(|_| is_run)
        .unwrap_or_else(|| path.to_path_buf())
}

/// Whether the data speaks the language of the record's weights.
fn check_tokenizer(
    config: &RunConfig,
    of_record: &dyn Tokenizer,
    of_data: &dyn Tokenizer,
) -> Result<(), TrainError> {
    if of_record.hash() == of_data.hash() {
        return Ok(());
    }
    let path = config.data.prepared.clone().unwrap_or_default();
    Err(TrainError::Damaged {
        path,
        problem: "this data was made with another tokenizer than the record of start_from; hint: \
                  prepare it with --tokenizer-file RECORD/tokenizer.json"
            .to_string(),
    })
}

/// Whether the model is of the size that the configuration states.
fn check_parameters(config: &RunConfig) -> Result<(), TrainError> {
    let found = config.model.counts().total();
    match config.expect_parameters {
        Some(expected) if expected != found => Err(TrainError::config(
            "expect_parameters",
            format!("the model has {found} parameters, not {expected}"),
            "correct the number or the model",
        )),
        _ => Ok(()),
    }
}

/// Fills in an open vocabulary size, or checks that the given one has room for the tokenizer's. Many
/// models pad theirs; ids that no token has are never targets.
fn fit_vocabulary(config: &mut RunConfig, tokenizer: &dyn Tokenizer) -> Result<(), TrainError> {
    let found = tokenizer.vocab_size();
    let asked = config.model.vocab_size;
    if asked == 0 {
        config.model.vocab_size = found;
    } else if asked < found {
        return Err(TrainError::config(
            "model.vocab_size",
            format!("the tokenizer has {found} tokens, the model {asked}"),
            format!("leave it out, or set it to {found} or more"),
        ));
    }
    Ok(config.model.validate()?)
}
