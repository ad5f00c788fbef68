//! What a configuration leaves open about its tokenizer: the EOS token of a file, and whether there is a
//! token for unknown text.

use std::path::Path;

use nextword_data::{Dataset, TokenizerConfig, load_tokenizer_with_roles};
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
        (requested, _) => (requested == size - 1).then_some("model.vocab_size"),
    }
}
