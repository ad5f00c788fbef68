//! Special tokens and chat templates of the trained model.

use std::collections::BTreeMap;

use nextword_data::Dataset;
use nextword_model::ModelTokens;

use super::source_model::SourceModel;
use crate::saved_model::saved_card;
use crate::start_from::LoraBase;
use crate::tokenizer_choice::check_tokenizer;
use crate::{RunConfig, TrainError};

/// What a trained model takes over from the one in `start_from`, or gets from its tokenizer.
pub(super) struct ModelParts {
    pub(super) special: ModelTokens,
    pub(super) chat_templates: BTreeMap<String, String>,
    pub(super) lora: Option<LoraBase>,
}

pub(super) fn model_tokens(
    config: &RunConfig,
    source: Option<SourceModel>,
    dataset: &Dataset,
) -> Result<ModelParts, TrainError> {
    let roles = dataset.tokenizer.special_tokens();
    if let Some(SourceModel {
        tokenizer,
        card,
        lora,
    }) = source
    {
        check_tokenizer(config, tokenizer.as_ref(), dataset.tokenizer.as_ref())?;
        let mut special = card.special;
        if config.data.prepared.is_none() && roles.eos != tokenizer.special_tokens().eos {
            end_documents_with(&mut special, roles.eos);
        }
        return Ok(ModelParts {
            special,
            chat_templates: card.chat_templates,
            lora,
        });
    }
    let has_conversations = config.data.has_conversations();
    let saved = has_conversations.then(|| saved_card(config)).flatten();
    Ok(match saved {
        Some(card) => ModelParts {
            special: card.special,
            chat_templates: card.chat_templates,
            lora: None,
        },
        None => ModelParts {
            special: ModelTokens::trained(roles.eos, roles.pad),
            chat_templates: BTreeMap::new(),
            lora: None,
        },
    })
}

/// Sets the EOS token after each document to `eos`, which the run's configuration chooses instead of the
/// declared one. The model then ends its completions with that token too.
fn end_documents_with(special: &mut ModelTokens, eos: Option<u32>) {
    if special.source.is_some() {
        special.document_eos_id = eos;
        special.eos_token = None;
        let new = eos.filter(|id| !special.eos_ids.contains(id));
        special.eos_ids.extend(new);
    }
}
