//! The encoder of a run's conversations.

use nextword_chat::{ChatError, ChatTemplate, SampleEncoder, SampleTokens};
use nextword_data::TrainOn;
use nextword_model::{TokenTexts, TokenizerRoles};

use super::ChatModel;
use super::source::TemplateSource;
use crate::TrainError;

/// The encoder for `model`, which formats conversations with `template`, or prompts with the model's prompt template
/// if there is none. Its prompts are those of the server.
pub(super) fn encoder(
    train_on: TrainOn,
    template: Option<&TemplateSource>,
    model: &ChatModel<'_>,
) -> Result<SampleEncoder, TrainError> {
    let special = &*model.special;
    let by_name = model.tokenizer.special_tokens();
    let tokens = SampleTokens {
        prefix: special.prefix().to_vec(),
        start: special.start_id(by_name.eos).unwrap_or(0),
        eos: special.stop_ids(by_name.eos),
    };
    let encoder = SampleEncoder::new(model.tokenizer.clone(), tokens).with_train_on(train_on);
    match (template, &model.prompt_template) {
        (Some(source), _) => {
            let texts = texts(model);
            let template = ChatTemplate::from_source(&source.text, &texts.bos, &texts.eos);
            let template = template.map_err(|error| named(error, source))?;
            Ok(encoder.with_chat_template(template.with_tokens(texts.further())))
        }
        (None, Some(prompt_template)) => Ok(encoder.with_prompt_template(prompt_template)),
        (None, None) => Ok(encoder),
    }
}

/// `error` with the file or the name of the template.
fn named(error: ChatError, source: &TemplateSource) -> ChatError {
    match error {
        ChatError::Template { problem, .. } => ChatError::Template {
            path: source
                .path
                .clone()
                .unwrap_or_else(|| source.name.clone().into()),
            problem,
        },
        other => other,
    }
}

/// The texts of the model's special tokens for chat templates.
pub(super) fn texts(model: &ChatModel<'_>) -> TokenTexts {
    let by_name = model.tokenizer.special_tokens();
    let roles = TokenizerRoles {
        eos: by_name.eos,
        unk: by_name.unk,
        pad: by_name.pad,
    };
    TokenTexts::new(model.special, roles, |id| model.tokenizer.id_to_token(id))
}
