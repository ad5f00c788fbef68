//! The tokenizer of a model.

use std::sync::Arc;

use nextword_data::{Tokenizer, load_tokenizer_with_roles, parse_tokenizer_with_roles};
use nextword_model::{ModelCard, ModelDir};

use crate::GenerateError;

/// Opens the tokenizer of a model, with the special tokens that the model declares.
///
/// # Errors
/// As [`load_tokenizer_with_roles`].
///
/// ```
/// use nextword_generate::open_tokenizer;
/// use nextword_model::ModelDir;
///
/// let model = ModelDir::open("../../docs/models/letters".as_ref())?;
/// assert_eq!(open_tokenizer(&model)?.encode("One").ids.len(), 3); // one token is one character
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn open_tokenizer(model_dir: &ModelDir) -> Result<Arc<dyn Tokenizer>, GenerateError> {
    let roles = model_dir.card.special.roles();
    let path = model_dir.tokenizer_path();
    Ok(match model_dir.tokenizer_json() {
        Some(json) => parse_tokenizer_with_roles(json, &path.display().to_string(), roles)?,
        None => load_tokenizer_with_roles(path, roles)?,
    })
}

/// `tokenizer` with the EOS and padding tokens of `card`.
pub(super) fn with_roles(tokenizer: Arc<dyn Tokenizer>, card: &ModelCard) -> Arc<dyn Tokenizer> {
    let special = tokenizer.special_tokens();
    match card.special.roles() {
        Some((eos, pad)) if (eos, pad) != (special.eos, special.pad) => {
            tokenizer.with_roles(eos, pad)
        }
        _ => tokenizer,
    }
}

pub(super) fn check_vocab_size(
    tokenizer: &dyn Tokenizer,
    tokenizer_name: String,
    vocab_size: usize,
    model: String,
) -> Result<(), GenerateError> {
    let tokens = tokenizer.vocab_size();
    if tokens == vocab_size {
        return Ok(());
    }
    Err(GenerateError::WrongTokenizer {
        tokenizer: tokenizer_name,
        tokens,
        model,
        vocab_size,
    })
}
