//! The records of a run's conversations, and the chat template that formats them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use nextword_chat::{
    BuiltinTemplate, Conversation, Example, Message, Preference, RecordCounts, RecordFormat,
    RecordSource, SourcedRecord, read_records,
};
use nextword_data::{Builtin, DataConfig, StoryChats};
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
    let is_compared = config.builtin == Some(Builtin::StoriesPreferences);
    let format = if is_compared {
        RecordFormat::Preference
    } else {
        RecordFormat::OpenAi
    };
    let path = PathBuf::from(name(config));
    let records: Vec<_> = chats
        .iter()
        .enumerate()
        .filter_map(|(index, chat)| {
            let messages = messages(chat.exchanges);
            let example = if is_compared {
                let wrong = |question: &str| chats.wrong_reply(index, question);
                Example::Preference(preference(messages, wrong)?)
            } else {
                Example::Conversation(Conversation::new(messages))
            };
            let source = RecordSource {
                path: path.clone(),
                number: index as u64 + 1,
                is_list: true,
            };
            Some(SourcedRecord {
                source,
                format,
                example,
            })
        })
        .collect();
    let mut counts = RecordCounts::default();
    counts.formats.insert(format, records.len());
    Ok((records, counts))
}

fn messages(exchanges: Vec<(String, String)>) -> Vec<Message> {
    let exchanges = exchanges.into_iter();
    exchanges
        .flat_map(|(user, reply)| [Message::user(user), Message::assistant(reply)])
        .collect()
}

/// Compares the last message with a wrong one to the same question, which is the last paragraph before it.
fn preference(
    mut messages: Vec<Message>,
    wrong: impl Fn(&str) -> Option<String>,
) -> Option<Preference> {
    let chosen = messages.pop()?;
    let asked = messages.last()?.text();
    let rejected = wrong(asked.rsplit("\n\n").next()?)?;
    Some(Preference {
        prompt: messages,
        chosen: vec![chosen],
        rejected: vec![Message::assistant(rejected)],
        tools: None,
    })
}

/// The texts of an example, without those of a template.
pub(super) fn texts(example: &Example) -> Vec<String> {
    match example {
        Example::Conversation(conversation) => {
            conversation.messages.iter().map(Message::text).collect()
        }
        Example::Completion { prompt, completion } => vec![prompt.clone(), completion.clone()],
        Example::Text(text) => vec![text.clone()],
        Example::Preference(preference) => {
            let Preference {
                prompt,
                chosen,
                rejected,
                ..
            } = preference;
            let messages = prompt.iter().chain(chosen).chain(rejected);
            messages.map(Message::text).collect()
        }
        Example::Rated(rated) => {
            let messages = rated.prompt.iter().chain(&rated.completion);
            messages.map(Message::text).collect()
        }
        _ => Vec::new(),
    }
}

/// A description of the files that the records come from.
pub(super) fn name(config: &DataConfig) -> String {
    if config.conversations.is_empty() {
        let name = StoryChats::new(config.seed, config.documents).name();
        return match config.builtin {
            Some(Builtin::StoriesPreferences) => {
                name.replace("stories_chat", "stories_preferences")
            }
            _ => name,
        };
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
