//! The tokens of a run: both splits and their tokenizer.

use std::path::Path;
use std::sync::Arc;

use crate::config::DataConfig;
use crate::error::DataError;
use crate::prepare::DatasetCard;
use crate::tokenizer::{Tokenizer, TokenizerConfig};
use crate::tokens::Tokens;

/// Both splits in ids, with the tokenizer that made them.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// What the model learns from.
    pub train: Tokens,
    /// What it is measured on; empty if the split keeps none.
    pub validation: Tokens,
    /// Text to ids and back.
    pub tokenizer: Arc<dyn Tokenizer>,
    /// Where it comes from and how it was divided; `None` for another program's `.bin` files.
    pub card: Option<DatasetCard>,
}
