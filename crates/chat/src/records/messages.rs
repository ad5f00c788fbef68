//! Lists of messages: `role` and `content` as in `OpenAI`'s API, or `from` and `value` as in `ShareGPT`.

use super::fields::{has_field, shortened};
use crate::message::set;
use crate::{ChatError, Json, Message, Role};

/// Fields that say whether a message is trained. Templates do not see them.
const TRAINED_FIELDS: [&str; 2] = ["weight", "train"];

/// Maximum number of messages in a conversation. The work to find the trained parts of one grows with its square.
const MAX_MESSAGES: usize = 1000;

/// Checks the number of messages in the list `key`.
pub(super) fn check_count(count: usize, key: &str) -> Result<(), String> {
    if count > MAX_MESSAGES {
        return Err(format!(
            "`{key}` has {count} messages, more than {MAX_MESSAGES}; hint: divide the conversation"
        ));
    }
    Ok(())
}

/// The messages of the list `key`, and which of them are trained.
pub(super) fn list(record: &Json, key: &str) -> Result<(Vec<Message>, Vec<bool>), String> {
    let example = "hint: write [{\"role\": \"user\", \"content\": \"…\"}, …]";
    let list = match record.get(key) {
        Some(Json::List(list)) => list,
        Some(Json::Null) | None => return Err(format!("`{key}` is missing; {example}")),
        Some(other) => return Err(format!("`{key}` is {}; {example}", other.kind())),
    };
    check_count(list.len(), key)?;
    let mut messages = Vec::with_capacity(list.len());
    let mut trained = Vec::with_capacity(list.len());
    for (at, item) in list.iter().enumerate() {
        let place = format!("{key}[{at}]");
        let (message, is_trained) = message(item, &place)?;
        messages.push(message);
        trained.push(is_trained);
    }
    Ok((messages, trained))
}

/// One message, and whether it is trained. `place`: how it is called in errors, such as `messages[2]`.
pub(super) fn message(item: &Json, place: &str) -> Result<(Message, bool), String> {
    let Json::Object(fields) = item else {
        return Err(format!(
            "{place} is {}; hint: write {{\"role\": \"user\", \"content\": \"…\"}}",
            item.kind()
        ));
    };
    let flag = trained_flag(item, place)?;
    let message = if item.get("role").is_none() && item.get("from").is_some() {
        share_gpt(item, place)?
    } else {
        let mut fields = fields.clone();
        fields.retain(|(name, _)| !TRAINED_FIELDS.contains(&name.as_str()));
        open_ai(Json::Object(fields), place)?
    };
    let is_trained = message.role() == Role::Assistant && flag.unwrap_or(true);
    Ok((message, is_trained))
}

/// Whether the sender wants the message to be trained.
fn trained_flag(item: &Json, place: &str) -> Result<Option<bool>, String> {
    let invalid = |name: &str, expected: &str| {
        Err(format!(
            "{place}.{name} is not {expected}; hint: write {expected}, or remove the key"
        ))
    };
    match (item.get("train"), item.get("weight")) {
        (Some(Json::Bool(flag)), _) => Ok(Some(*flag)),
        (Some(Json::Null) | None, weight) => match weight {
            Some(Json::Integer(0)) => Ok(Some(false)),
            Some(Json::Integer(1)) => Ok(Some(true)),
            Some(Json::Float(weight)) if *weight == 0.0 || (*weight - 1.0).abs() < f64::EPSILON => {
                Ok(Some(*weight > 0.5))
            }
            Some(Json::Null) | None => Ok(None),
            Some(_) => invalid("weight", "0 or 1"),
        },
        (Some(_), _) => invalid("train", "true or false"),
    }
}

fn open_ai(item: Json, place: &str) -> Result<Message, String> {
    let role = item.get("role").and_then(Json::as_str).map(shortened);
    let name = item.get("name").and_then(Json::as_str).map(str::to_owned);
    // OpenAI's earlier name for the result of a tool.
    let item = match (role.as_deref(), item) {
        (Some("function"), Json::Object(mut fields)) => {
            set(&mut fields, "role", Json::from("tool"));
            if let Some(name) = name {
                set(&mut fields, "name", Json::String(name));
            }
            Json::Object(fields)
        }
        (_, item) => item,
    };
    Message::from_json(item).map_err(|error| match error {
        ChatError::UnknownRole { role } => unknown_role(place, "role", &role),
        ChatError::Message { problem } if problem.contains("hint") => format!("{place} {problem}"),
        ChatError::Message { problem } => {
            format!("{place} {problem}; hint: write {{\"role\": \"user\", \"content\": \"…\"}}")
        }
        other => format!("{place}: {other}"),
    })
}

fn unknown_role(place: &str, key: &str, role: &str) -> String {
    format!(
        "{place}.{key} is {role:?}; hint: use system, developer, user, assistant or tool (or human, gpt, observation)"
    )
}

fn share_gpt(item: &Json, place: &str) -> Result<Message, String> {
    let from = item.get("from").and_then(Json::as_str);
    let from = from
        .ok_or_else(|| format!("{place}.from is not a string; hint: use human, gpt or system"))?;
    let value = match item.get("value") {
        Some(Json::String(text)) => text.as_str(),
        Some(Json::Null) | None => {
            return Err(format!("{place}.value is missing; hint: add the text"));
        }
        Some(other) => {
            return Err(format!(
                "{place}.value is {}; hint: write a string",
                other.kind()
            ));
        }
    };
    let role = match from.to_ascii_lowercase().as_str() {
        "human" | "user" => Role::User,
        "gpt" | "assistant" | "bot" | "chatgpt" | "model" => Role::Assistant,
        "system" => Role::System,
        "observation" | "tool" | "function" | "function_response" | "tool_response" => Role::Tool,
        "function_call" | "tool_call" => return calls(value, place),
        _ => return Err(unknown_role(place, "from", &shortened(from))),
    };
    Ok(Message::new(role, value))
}

/// The assistant's message with the calls in `text`: an object with `name` and `arguments`, or a list of them.
fn calls(text: &str, place: &str) -> Result<Message, String> {
    let problem = || {
        format!(
            "{place}.value is not the JSON of a call; hint: write {{\"name\": \"…\", \"arguments\": {{…}}}}"
        )
    };
    let json: Json = serde_json::from_str(text).map_err(|_| problem())?;
    let list = match json {
        Json::List(list) if !list.is_empty() => list,
        Json::Object(_) => vec![json],
        _ => return Err(problem()),
    };
    let is_call = |call: &Json| call.get("name").and_then(Json::as_str).is_some();
    if !list.iter().all(is_call) {
        return Err(problem());
    }
    let call = |function: Json| {
        Json::Object(vec![
            ("type".to_owned(), Json::from("function")),
            ("function".to_owned(), function),
        ])
    };
    let message = Json::Object(vec![
        ("role".to_owned(), Json::from("assistant")),
        ("content".to_owned(), Json::from("")),
        (
            "tool_calls".to_owned(),
            Json::List(list.into_iter().map(call).collect()),
        ),
    ]);
    Message::from_json(message).map_err(|error| format!("{place}: {error}"))
}

/// The tools of a record: a list, or the JSON of one in a string.
pub(super) fn tools(record: &Json) -> Result<Option<Vec<Json>>, String> {
    let invalid = || {
        "`tools` is not a list of objects; hint: write [{\"type\": \"function\", \"function\": {…}}], or remove the key"
            .to_owned()
    };
    if !has_field(record, "tools") {
        return Ok(None);
    }
    let list = match record.get("tools") {
        Some(Json::String(text)) if text.trim().is_empty() => return Ok(None),
        Some(Json::String(text)) => serde_json::from_str(text).map_err(|_| invalid())?,
        Some(other) => other.clone(),
        None => return Ok(None),
    };
    match list {
        Json::List(list) if list.iter().all(|tool| matches!(tool, Json::Object(_))) => {
            Ok(Some(list).filter(|list| !list.is_empty()))
        }
        _ => Err(invalid()),
    }
}

/// Whether a message has nothing to say. A system message and the result of a tool may be empty.
pub(super) fn is_empty(message: &Message) -> bool {
    let has_text = !message.text().trim().is_empty();
    match message.role() {
        Role::System | Role::Developer | Role::Tool => false,
        Role::User => !has_text,
        Role::Assistant => {
            let has_calls = message.field("tool_calls").and_then(Json::as_list);
            let has_calls = has_calls.is_some_and(|calls| !calls.is_empty());
            !has_text && !has_calls
        }
    }
}
