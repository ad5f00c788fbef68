//! From a configuration to everything that a run works with.

use std::sync::Arc;

use burn::tensor::Device;
use nextword_data::{Dataset, EvalWindows, Loader, LoaderConfig, Tokenizer};
use nextword_model::{DeviceName, Record, Transformer};

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
    if let Some(path) = &config.start_from {
        let record = Record::open(path)?;
        let dropout = config.model.dropout;
        config.model = record.config.clone();
        config.model.dropout = dropout;
        config.data.tokenizer.file = Some(record.tokenizer_path());
    }
    config.validate()?;
    let name: DeviceName = config.device.parse()?;
    let device = name.open()?;
    let dataset = Dataset::build(&config.data)?;
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
            Some(path) => {
                let path = Record::open(path)?.weights_path();
                Ok(nextword_model::weights::load(
                    &config.model,
                    &path,
                    &self.device,
                )?)
            }
            None => Ok(config.model.init(&self.device, config.seed)?),
        }
    }

    /// What the data is, in a form that tells whether it is still the same on a resume.
    pub fn data_fingerprint(&self) -> String {
        format!(
            "train {} tokens, validation {} tokens, vocabulary {}",
            self.dataset.train.len(),
            self.dataset.validation.len(),
            self.dataset.tokenizer.hash()
        )
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> Arc<dyn Tokenizer> {
        Arc::clone(&self.dataset.tokenizer)
    }
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

/// Fills in an open vocabulary size, or checks that the given one is large enough.
fn fit_vocabulary(config: &mut RunConfig, tokenizer: &dyn Tokenizer) -> Result<(), TrainError> {
    let found = tokenizer.vocab_size();
    let asked = config.model.vocab_size;
    if asked == 0 {
        config.model.vocab_size = found;
    } else if asked < found {
        return Err(TrainError::config(
            "model.vocab_size",
            format!("the tokenizer has {found} tokens, the model only {asked}"),
            format!("set it to {found}, or to 0 for the tokenizer's size"),
        ));
    }
    Ok(config.model.validate()?)
}
