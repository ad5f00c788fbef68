//! What requests may ask of a model, by its architecture.

use nextword_model::Architecture;

use crate::api_error::ApiError;
use crate::loaded_model::Model;

/// Rejects models that do not continue text.
pub(crate) fn check_architecture(model: &Model) -> Result<(), ApiError> {
    let architecture = model.config().architecture;
    if architecture.generates() {
        return Ok(());
    }
    Err(ApiError::invalid_field(
        "model",
        format!(
            "`{}` does not continue text, because its architecture is `{architecture}`; hint: use /v1/embeddings",
            model.name
        ),
    ))
}

/// Rejects scores of a prompt that the model does not predict.
pub(crate) fn check_echo(model: &Model, scores_prompt: bool) -> Result<(), ApiError> {
    let architecture = model.config().architecture;
    if !scores_prompt || architecture == Architecture::Decoder {
        return Ok(());
    }
    let message = format!(
        "`{}` does not predict its prompt, because its architecture is `{architecture}`; hint: remove `echo` or \
         `logprobs`",
        model.name
    );
    Err(ApiError::invalid_field("echo", message))
}

/// Checks that a source fits into the encoder: its end cannot be left out unnoticed.
pub(crate) fn check_source(param: &str, len: usize, context_length: usize) -> Result<(), ApiError> {
    if len <= context_length {
        return Ok(());
    }
    let message = format!(
        "the model's context is {context_length} tokens, but the prompt has {len}; hint: shorten the prompt"
    );
    Err(ApiError::context_length_exceeded(param, message))
}
