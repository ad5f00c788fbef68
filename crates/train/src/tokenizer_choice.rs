//! What a configuration leaves open about its tokenizer: the EOS token of a file, whether there is a token
//! for unknown text, and the size of the vocabulary; and whether data and model have the same one.

use std::path::Path;

use nextword_data::{Dataset, Tokenizer, TokenizerConfig, load_tokenizer_with_roles};
use nextword_model::{ModelConfig, ModelDir};

use crate::{RunConfig, TrainError};

/// Sets the EOS token of a tokenizer file to the one that the model in the file's folder declares, unless the
/// configuration chooses one. `tokenizer.json` itself does not say which of its tokens ends a document.
///
/// ```
/// use nextword_data::TokenizerConfig;
/// use nextword_train::use_declared_eos;
///
/// let mut config = TokenizerConfig::from_file("no/such/model/tokenizer.json");
/// use_declared_eos(&mut config);
/// assert_eq!(config.eos, TokenizerConfig::DEFAULT_EOS); // No model: the file's tokens decide.
/// ```
pub fn use_declared_eos(config: &mut TokenizerConfig) {
    if let Some(file) = &config.file
        && config.eos == TokenizerConfig::DEFAULT_EOS
        && let Some(eos) = declared_eos(file)
    {
        config.eos = eos;
    }
}

/// The EOS token that ends a document, if `file` is the tokenizer of a model that declares it; "" if it
/// declares that none does.
fn declared_eos(file: &Path) -> Option<String> {
    let model = ModelDir::open(file.parent()?).ok()?;
    let roles = model.card.special.roles()?;
    let tokenizer = load_tokenizer_with_roles(file, Some(roles)).ok()?;
    let name = roles.0.and_then(|id| tokenizer.id_to_token(id));
    Some(name.unwrap_or_default())
}

/// Builds the dataset of `config`. A configuration whose sizes are those of a tokenizer without a token for
/// unknown text, as all were in version 0.1, keeps that tokenizer.
pub(crate) fn build_dataset(config: &mut RunConfig) -> Result<Dataset, TrainError> {
    let dataset = Dataset::build(&config.data)?;
    let Some(key) = key_without_unknown(config, &dataset) else {
        return Ok(dataset);
    };
    config.data.tokenizer.unk.clear();
    config.warnings.push(format!(
        "the tokenizer has no token for unknown text, since {key} is that of a vocabulary without one; hint: set \
         data.tokenizer.unk = \"\" to keep it so, or correct {key} to have that token"
    ));
    Ok(Dataset::build(&config.data)?)
}

/// The key that is right for a vocabulary without the default unknown token, and wrong with it.
fn key_without_unknown(config: &RunConfig, dataset: &Dataset) -> Option<&'static str> {
    let tokenizer = &config.data.tokenizer;
    let is_default = config.data.prepared.is_none()
        && config.start_from.is_none()
        && tokenizer.file.is_none()
        && tokenizer.unk == TokenizerConfig::DEFAULT_UNK;
    if !is_default {
        return None;
    }
    dataset.tokenizer.special_tokens().unk?;
    let size = dataset.tokenizer.vocab_size();
    let parameters = |vocab_size| {
        let model = ModelConfig {
            vocab_size,
            ..config.model.clone()
        };
        model.parameter_counts().total()
    };
    match (config.model.vocab_size, config.expect_parameters) {
        (0, Some(expected)) => (expected == parameters(size - 1) && expected != parameters(size))
            .then_some("expect_parameters"),
        (requested, _) => (requested > 0 && requested == size - 1).then_some("model.vocab_size"),
    }
}

/// Checks that the data was tokenized with the tokenizer of the model in `start_from`.
pub(crate) fn check_tokenizer(
    config: &RunConfig,
    base_tokenizer: &dyn Tokenizer,
    data_tokenizer: &dyn Tokenizer,
) -> Result<(), TrainError> {
    if base_tokenizer.hash() == data_tokenizer.hash() {
        return Ok(());
    }
    let path = config.data.prepared.clone().unwrap_or_default();
    Err(TrainError::Damaged {
        path,
        problem:
            "this data was prepared with a tokenizer other than that of the model in start_from; \
                  hint: prepare it with --tokenizer-file MODEL/tokenizer.json"
                .to_string(),
    })
}

/// Fills in a vocabulary size of 0, or checks that it is at least that of the tokenizer. Many models
/// pad their vocabulary; the extra ids are never targets.
pub(crate) fn resolve_vocab_size(
    config: &mut RunConfig,
    tokenizer: &dyn Tokenizer,
) -> Result<(), TrainError> {
    let found = tokenizer.vocab_size();
    let requested = config.model.vocab_size;
    if requested == 0 {
        config.model.vocab_size = found;
    } else if requested < found {
        return Err(TrainError::config(
            "model.vocab_size",
            format!("the tokenizer has {found} tokens, the model {requested}"),
            format!("leave it out, or set it to {found} or more"),
        ));
    }
    Ok(config.model.validate()?)
}
