//! What a run takes over from the model in `start_from`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nextword_data::{
    Tokenizer, TokenizerConfig, load_tokenizer_with_roles, parse_tokenizer_with_roles,
};
use nextword_model::{ModelCard, ModelConfig, ModelDir};

use crate::start_from::{self, LoraBase};
use crate::{RunConfig, TrainError};

/// What a run takes over from the model in `start_from`, besides architecture and weights.
pub(super) struct SourceModel {
    pub(super) tokenizer: Arc<dyn Tokenizer>,
    pub(super) card: ModelCard,
    pub(super) lora: Option<LoraBase>,
}

impl SourceModel {
    /// The tokenizer of a model that is one file.
    pub(super) fn given_tokenizer(&self) -> Option<Arc<dyn Tokenizer>> {
        self.lora.as_ref()?.model.tokenizer_json()?;
        Some(Arc::clone(&self.tokenizer))
    }
}

/// Applies architecture and tokenizer of the model in `start_from`, if there is one.
/// Its prompt template too, unless the configuration has one.
pub(super) fn apply_base_model(config: &mut RunConfig) -> Result<Option<SourceModel>, TrainError> {
    let Some(path) = &config.start_from else {
        return Ok(None);
    };
    let path = resolve_model_dir(path);
    let source = start_from::open(&path, config)?;
    let card = source.card().clone();
    card.check_templates()?;
    let lora = LoraBase::of(config, &source)?;
    let base = source.model;
    let dropout = config.model.dropout;
    let requested = ModelConfig {
        dropout: ModelConfig::default().dropout,
        ..config.model.clone()
    };
    let mut expected = base.config.clone();
    expected.dropout = requested.dropout;
    if requested != ModelConfig::default() && requested != expected {
        return Err(TrainError::config(
            "model",
            "differs from the architecture of the model in start_from",
            model_hint(&requested, &expected),
        ));
    }
    config.model = base.config.clone();
    config.model.dropout = dropout;
    let roles = card.special.roles();
    let tokenizer = open_tokenizer(&base, roles)?;
    if let Some(file) = &config.data.tokenizer.file
        && nextword_data::load_tokenizer(file)?.hash() != tokenizer.hash()
    {
        return Err(TrainError::config(
            "data.tokenizer.file",
            "is another tokenizer than that of the model in start_from",
            "remove data.tokenizer.file",
        ));
    }
    let is_folder = base.tokenizer_json().is_none();
    config.data.tokenizer.file = Some(base.tokenizer_path());
    config.start_from = Some(path);
    let eos = tokenizer.special_tokens().eos;
    let eos = eos
        .and_then(|id| tokenizer.id_to_token(id))
        .unwrap_or_default();
    if roles.is_some() && config.data.tokenizer.eos == TokenizerConfig::DEFAULT_EOS {
        // Documents end with the token that the model declares.
        config.data.tokenizer.eos = eos;
    } else if !is_folder
        && ![TokenizerConfig::DEFAULT_EOS, &eos].contains(&&*config.data.tokenizer.eos)
    {
        return Err(TrainError::config(
            "data.tokenizer.eos",
            format!(
                "`{}` is not the EOS token of the GGUF file, `{eos}`",
                config.data.tokenizer.eos
            ),
            "remove it, or convert the file with `nextword import` to choose another token",
        ));
    }
    let template = &mut config.samples.prompt_template;
    if template.is_none() {
        template.clone_from(&card.prompt_template);
    }
    Ok(Some(SourceModel {
        tokenizer,
        card,
        lora,
    }))
}

/// The tokenizer of a model, with the given EOS and padding tokens.
fn open_tokenizer(
    model: &ModelDir,
    roles: Option<(Option<u32>, Option<u32>)>,
) -> Result<Arc<dyn Tokenizer>, TrainError> {
    let path = model.tokenizer_path();
    Ok(match model.tokenizer_json() {
        Some(json) => parse_tokenizer_with_roles(json, &path.display().to_string(), roles)?,
        None => load_tokenizer_with_roles(path, roles)?,
    })
}

/// How to correct a `[model]` that differs from that of the model in `start_from`.
fn model_hint(requested: &ModelConfig, expected: &ModelConfig) -> String {
    let length = requested.context_length;
    let is_default = length == ModelConfig::default().context_length;
    if is_default || length > expected.context_length {
        return "leave out all of [model] except dropout".to_string();
    }
    format!(
        "leave out all of [model] except dropout; train.sequence_length = {length} trains on sequences of that \
         length"
    )
}

/// Resolves a run folder to its best or last model folder; other paths stay the same.
///
/// ```
/// use std::path::Path;
///
/// let model = Path::new("models/mine"); // Not a run folder.
/// assert_eq!(nextword_train::resolve_model_dir(model), model);
/// ```
pub fn resolve_model_dir(path: &Path) -> PathBuf {
    let candidates = ["best", "last"].map(|name| path.join(name));
    let is_run = path.join("run.toml").is_file();
    let has_weights = |folder: &PathBuf| {
        let mut files = ["model.safetensors", "adapter.safetensors"].into_iter();
        files.any(|file| folder.join(file).is_file())
    };
    let found = candidates.into_iter().find(has_weights);
    found
        .filter(|_| is_run)
        .unwrap_or_else(|| path.to_path_buf())
}
