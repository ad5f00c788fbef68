//! The card of a model or an adapter: its origin, its training and its special tokens.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::chat_templates::{TemplateProblem, read_chat_templates};
use crate::small_files::read_json;
use crate::{ModelError, ModelOrigin, ModelTokens};

/// Metadata of a model: its origin, its training and its special tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelCard {
    /// The run's name.
    pub name: String,
    /// The version of nextword that wrote the model folder.
    pub version: String,
    /// A description of the training data.
    pub trained_on: String,
    /// The repository that the model was downloaded from. Models that were trained, or imported from a folder,
    /// have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<ModelOrigin>,
    /// The run's seed.
    pub seed: u64,
    /// Optimizer steps taken.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Number of parameters.
    pub parameters: u64,
    /// The last training loss, nats per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_loss: Option<f64>,
    /// The validation loss of these weights, nats per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
    /// How prompts are formatted; `{prompt}` is replaced by the user's text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_template: Option<String>,
    /// The special tokens.
    #[serde(flatten)]
    pub special: ModelTokens,
    /// The Jinja templates that turn chat messages into a prompt, by name; the usual one is
    /// [`DEFAULT_TEMPLATE`](crate::DEFAULT_TEMPLATE). They are not part of `card.json` but files of their own (see
    /// [`ModelDir::chat_template_path`](crate::ModelDir::chat_template_path)).
    #[serde(skip)]
    pub chat_templates: BTreeMap<String, String>,
    /// Why the chat templates could not be read. The model still generates text, but it cannot be saved,
    /// because the copy would lack them (see [`check_templates`](Self::check_templates)).
    #[serde(skip)]
    pub template_problem: Option<TemplateProblem>,
    /// The SHA-256 of the weights that these weights are the rounded form of, in hexadecimal digits: an adapter of that
    /// model can be used with this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub made_from: Option<String>,
    /// Of a model into which an adapter was merged: the norm of its update, relative to that of the weights that it
    /// changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub merged_change: Option<f64>,
    /// The text that the search for quantized weights was given ([`InputSquares`](crate::InputSquares)).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibrated_on: Option<String>,
    /// Number of ids at the end of the model's vocabulary that its tokenizer does not have. Many
    /// models pad their vocabulary to a round number.
    #[serde(skip_serializing_if = "is_zero")]
    pub unused_ids: usize,
}

impl ModelCard {
    /// Checks that all chat templates of the model could be read, before they are copied.
    ///
    /// # Errors
    /// [`ModelError::Format`] with the file that could not be read.
    pub fn check_templates(&self) -> Result<(), ModelError> {
        let problem = self.template_problem.as_ref();
        problem.map_or(Ok(()), |problem| Err(problem.to_error()))
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // Serde's signature.
fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// Reads the card of the model or adapter in `folder`, with its chat templates; one without a card is valid.
pub(crate) fn read_card(folder: &Path) -> Result<ModelCard, ModelError> {
    let file = folder.join("card.json");
    let mut card = ModelCard::default();
    if file.exists() {
        card = read_json(&file)?;
    }
    match read_chat_templates(folder) {
        Ok(templates) => card.chat_templates = templates,
        Err(error) => card.template_problem = Some(error.into()),
    }
    Ok(card)
}
