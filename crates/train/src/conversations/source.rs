//! The records of a run's conversations, and the chat template that formats them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use nextword_chat::{
    BuiltinTemplate, Conversation, Example, Message, RecordCounts, RecordFormat, RecordSource,
    SourcedRecord, read_records,
};
use nextword_data::{DataConfig, StoryChats};
use nextword_model::DEFAULT_TEMPLATE;

use crate::TrainError;

/// Reads the records of `config`, or generates those of the built-in corpus.
pub(super) fn records(
    config: &DataConfig,
) -> Result<(Vec<SourcedRecord>, RecordCounts), TrainError> {
    if !config.conversations.is_empty() {
        return Ok(read_records(&config.conversations)?);
    }
    let chats = StoryChats::new(config.seed, config.documents);
    let path = PathBuf::from(chats.name());
    let records: Vec<_> = chats
        .iter()
        .zip(1..)
        .map(|(chat, number)| {
            let exchanges = chat.exchanges.into_iter();
            let messages = exchanges
                .flat_map(|(user, reply)| [Message::user(user), Message::assistant(reply)]);
            SourcedRecord {
                source: RecordSource {
                    path: path.clone(),
                    number,
                    is_list: true,
                },
                format: RecordFormat::OpenAi,
                example: Example::Conversation(Conversation::new(messages.collect())),
            }
        })
        .collect();
    let mut counts = RecordCounts::default();
    counts.formats.insert(RecordFormat::OpenAi, records.len());
    Ok((records, counts))
}

/// The texts of an example, without those of a template.
pub(super) fn texts(example: &Example) -> Vec<String> {
    match example {
        Example::Conversation(conversation) => {
            conversation.messages.iter().map(Message::text).collect()
        }
        Example::Completion { prompt, completion } => vec![prompt.clone(), completion.clone()],
        Example::Text(text) => vec![text.clone()],
        _ => Vec::new(),
    }
}

/// A description of the files that the records come from.
pub(super) fn name(config: &DataConfig) -> String {
    if config.conversations.is_empty() {
        return StoryChats::new(config.seed, config.documents).name();
    }
    let paths = config.conversations.iter();
    let paths: Vec<_> = paths.map(|path| path.display().to_string()).collect();
    paths.join(", ")
}

/// A chat template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TemplateSource {
    /// Where it comes from.
    pub(super) name: String,
    /// Its file, if it has one.
    pub(super) path: Option<PathBuf>,
    /// The template itself.
    pub(super) text: String,
}

/// What the choice of a template depends on besides the configuration.
pub(super) struct TemplateChoice<'a> {
    /// The templates of the model.
    pub(super) of_model: &'a BTreeMap<String, String>,
    /// Whether the model formats prompts by a prompt template.
    pub(super) has_prompt_template: bool,
    /// Whether the BOS token is before every text of the model.
    pub(super) begins_with_bos: bool,
}

impl<'a> TemplateChoice<'a> {
    /// A model that is not trained yet; `none` is empty.
    pub(super) fn of_new_model(none: &'a BTreeMap<String, String>) -> Self {
        Self {
            of_model: none,
            has_prompt_template: false,
            begins_with_bos: false,
        }
    }

    /// The template of `config`, otherwise that of the model. A model that formats prompts by a prompt template keeps
    /// doing so; any other one gets the built-in template `plain`.
    pub(super) fn template(
        &self,
        config: &DataConfig,
    ) -> Result<Option<TemplateSource>, TrainError> {
        let builtin = |template: BuiltinTemplate| TemplateSource {
            name: format!("the built-in template \"{}\"", template.as_str()),
            path: None,
            text: template.source(self.begins_with_bos),
        };
        let named = config.chat_template.as_ref();
        let named = named.and_then(|name| name.to_str()?.parse::<BuiltinTemplate>().ok());
        match (&config.chat_template, self.of_model.get(DEFAULT_TEMPLATE)) {
            (Some(path), _) => Ok(Some(match named {
                Some(template) => builtin(template),
                None => TemplateSource {
                    name: path.display().to_string(),
                    path: Some(path.clone()),
                    text: fs::read_to_string(path).map_err(TrainError::io(path, "read"))?,
                },
            })),
            (None, Some(text)) => Ok(Some(TemplateSource {
                name: "the model's template".to_string(),
                path: None,
                text: text.clone(),
            })),
            (None, None) if self.has_prompt_template => Ok(None),
            (None, None) => Ok(Some(builtin(BuiltinTemplate::Plain))),
        }
    }
}
