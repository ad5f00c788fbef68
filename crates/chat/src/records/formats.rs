//! The formats of records, told apart by their keys.

use super::fields::{Parsed, has_field, shortened, string};
use super::messages::{self, is_empty};
use super::{DropReason, RecordFormat, preferences};
use crate::{Conversation, Example, Json, Message, Role};

/// Pairs of keys for a prompt and its completion.
const COMPLETION_KEYS: [(&str, &str); 5] = [
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("query", "response"),
    ("input", "output"),
];
/// Maximum number of keys that an error lists.
const MAX_LISTED: usize = 12;

/// Parses a record. The error is what is wrong with it, with the key and the fix.
pub(super) fn parse(record: Json) -> Result<Parsed, String> {
    let Json::Object(fields) = &record else {
        return Err(
            "the record is not an object; hint: write {\"messages\": [{\"role\": \"user\", \"content\": \"…\"}, …]}"
                .to_owned(),
        );
    };
    let has = |name: &str| has_field(&record, name);
    if has("chosen") || has("rejected") || has("preferred_output") || has("non_preferred_output") {
        return preferences::preference(&record);
    }
    if has("prompt") && has("completion") && has("label") {
        return preferences::rated(&record);
    }
    if has("messages") {
        return conversation(&record, "messages", RecordFormat::OpenAi);
    }
    for key in ["conversations", "conversation"] {
        if has(key) {
            return conversation(&record, key, RecordFormat::ShareGpt);
        }
    }
    if has("instruction") {
        return alpaca(&record);
    }
    for (prompt, completion) in COMPLETION_KEYS {
        if has(prompt) && has(completion) {
            return completed(&record, prompt, completion);
        }
    }
    if has("text") {
        let text = string(&record, "text")?;
        let text = match text.trim() {
            "" => Err(DropReason::EmptyMessage),
            _ => Ok(Example::Text(text.to_owned())),
        };
        return Ok(Parsed::new(RecordFormat::Text, text));
    }
    let names = fields.iter().take(MAX_LISTED);
    let names: Vec<String> = names
        .map(|(name, _)| format!("`{}`", shortened(name)))
        .collect();
    let names = if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    };
    Err(format!(
        "the keys ({names}) fit no known format; hint: use `messages`, `conversations`, `instruction` and `output`, \
         `prompt` and `completion`, or `text`"
    ))
}

/// The text of the field `name`, if it has one.
fn optional_string<'a>(record: &'a Json, name: &str) -> Result<Option<&'a str>, String> {
    if has_field(record, name) {
        string(record, name).map(Some)
    } else {
        Ok(None)
    }
}

/// A conversation in the list `key`.
fn conversation(record: &Json, key: &str, format: RecordFormat) -> Result<Parsed, String> {
    let (mut list, mut trained) = messages::list(record, key)?;
    if let Some(system) = optional_string(record, "system")?.filter(|text| !text.is_empty())
        && list
            .first()
            .is_none_or(|first| first.role() != Role::System)
    {
        list.insert(0, Message::system(system));
        trained.insert(0, false);
    }
    let conversation = Conversation {
        messages: list,
        tools: messages::tools(record)?,
        trained,
    };
    Ok(checked(format, conversation))
}

/// `instruction` and `output`, with the earlier pairs of `history`.
fn alpaca(record: &Json) -> Result<Parsed, String> {
    let output = if has_field(record, "output") {
        string(record, "output")?
    } else {
        string(record, "response")
            .map_err(|_| "`output` is missing; hint: add the wanted text as `output`".to_owned())?
    };
    let mut list = Vec::new();
    if let Some(system) = optional_string(record, "system")?.filter(|text| !text.is_empty()) {
        list.push(Message::system(system));
    }
    let history = record.get("history").filter(|history| !history.is_null());
    let history = history.map_or(Ok(&[][..]), pairs)?;
    messages::check_count(2 * history.len(), "history")?;
    for (at, pair) in history.iter().enumerate() {
        match pair.as_list() {
            Some([Json::String(user), Json::String(assistant)]) => {
                list.push(Message::user(user));
                list.push(Message::assistant(assistant));
            }
            _ => {
                return Err(format!(
                    "`history[{at}]` is not a pair of strings; hint: write [[\"question\", \"answer\"], …]"
                ));
            }
        }
    }
    let mut user = string(record, "instruction")?.to_owned();
    if let Some(input) = optional_string(record, "input")?.filter(|text| !text.is_empty()) {
        if !user.is_empty() {
            user.push_str("\n\n");
        }
        user.push_str(input);
    }
    list.push(Message::user(user));
    list.push(Message::assistant(output));
    let conversation = Conversation {
        tools: messages::tools(record)?,
        ..Conversation::new(list)
    };
    Ok(checked(RecordFormat::Alpaca, conversation))
}

fn pairs(history: &Json) -> Result<&[Json], String> {
    history.as_list().ok_or_else(|| {
        format!(
            "`history` is {}; hint: write [[\"question\", \"answer\"], …]",
            history.kind()
        )
    })
}

/// A prompt and a completion: texts, or lists of messages, of which those of the completion are trained.
fn completed(record: &Json, prompt: &str, completion: &str) -> Result<Parsed, String> {
    let format = RecordFormat::Completion;
    if record.get(prompt).and_then(Json::as_list).is_none() {
        let (prompt, completion) = (string(record, prompt)?, string(record, completion)?);
        let example = match completion.trim() {
            "" => Err(DropReason::EmptyAssistant),
            _ => Ok(Example::Completion {
                prompt: prompt.to_owned(),
                completion: completion.to_owned(),
            }),
        };
        return Ok(Parsed::new(format, example));
    }
    let (mut list, _) = messages::list(record, prompt)?;
    let mut trained = vec![false; list.len()];
    let (more, flags) = match record.get(completion) {
        Some(Json::String(text)) => (vec![Message::assistant(text)], vec![true]),
        _ => messages::list(record, completion)?,
    };
    list.extend(more);
    trained.extend(flags);
    let conversation = Conversation {
        messages: list,
        tools: messages::tools(record)?,
        trained,
    };
    Ok(checked(format, conversation))
}

/// A conversation, unless it cannot be trained.
fn checked(format: RecordFormat, mut conversation: Conversation) -> Parsed {
    let list = &mut conversation.messages;
    let last = list
        .iter()
        .rposition(|message| message.role() == Role::Assistant);
    let Some(last) = last else {
        return Parsed::new(format, Err(DropReason::NoAssistant));
    };
    let has_more = last + 1 < list.len();
    list.truncate(last + 1);
    conversation.trained.truncate(last + 1);
    let empty = conversation
        .messages
        .iter()
        .find(|message| is_empty(message));
    let problem = match empty.map(Message::role) {
        Some(Role::Assistant) => Some(DropReason::EmptyAssistant),
        Some(_) => Some(DropReason::EmptyMessage),
        None => {
            let is_trained = conversation.trained_messages().next().is_some();
            (!is_trained).then_some(DropReason::NothingTrained)
        }
    };
    match problem {
        Some(reason) => Parsed::new(format, Err(reason)),
        None => Parsed {
            format,
            example: Some(Example::Conversation(conversation)),
            dropped: has_more
                .then_some(DropReason::TrailingMessages)
                .into_iter()
                .collect(),
        },
    }
}
