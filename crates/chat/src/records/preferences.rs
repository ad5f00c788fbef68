//! Records that compare or rate completions.

use super::fields::{Parsed, has_field, string};
use super::messages;
use super::{DropReason, RecordFormat};
use crate::{Example, Json, Message, Preference, RatedCompletion, Role};

/// `chosen` and `rejected`, each a text, a message, or a list of messages; or `OpenAI`'s `preferred_output` and
/// `non_preferred_output`.
pub(super) fn preference(record: &Json) -> Result<Parsed, String> {
    let is_open_ai = !has_field(record, "chosen") && !has_field(record, "rejected");
    let (chosen_key, rejected_key) = if is_open_ai {
        ("preferred_output", "non_preferred_output")
    } else {
        ("chosen", "rejected")
    };
    let mut chosen = completion(record, chosen_key)?;
    let mut rejected = completion(record, rejected_key)?;
    let input = record.get("input").filter(|_| is_open_ai);
    let (prompt, tools) = match input {
        Some(input) => (
            messages::list(input, "messages")?.0,
            messages::tools(input)?,
        ),
        None => (prompt(record)?, messages::tools(record)?),
    };
    let prompt = match prompt {
        list if !list.is_empty() => {
            // Some data sets repeat the prompt in both.
            if chosen.starts_with(&list) && rejected.starts_with(&list) {
                chosen.drain(..list.len());
                rejected.drain(..list.len());
            }
            list
        }
        _ => {
            let pairs = chosen.iter().zip(&rejected);
            let same = pairs
                .take_while(|(chosen, rejected)| chosen == rejected)
                .count();
            rejected.drain(..same);
            chosen.drain(..same).collect()
        }
    };
    let format = RecordFormat::Preference;
    if chosen == rejected {
        return Ok(Parsed::new(format, Err(DropReason::EqualCompletions)));
    }
    for (key, list) in [(chosen_key, &chosen), (rejected_key, &rejected)] {
        check_completion(key, list)?;
    }
    if prompt.is_empty() {
        return Err(format!(
            "`{chosen_key}` and `{rejected_key}` have no message in common; hint: add the `prompt`"
        ));
    }
    let preference = Preference {
        prompt,
        chosen,
        rejected,
        tools,
    };
    Ok(Parsed::new(format, Ok(Example::Preference(preference))))
}

/// `prompt`, `completion` and `label`.
pub(super) fn rated(record: &Json) -> Result<Parsed, String> {
    let is_good = match record.get("label") {
        Some(Json::Bool(label)) => *label,
        Some(Json::Integer(label @ (0 | 1))) => *label == 1,
        _ => {
            return Err(
                "`label` is not true or false; hint: write true for a good completion".to_owned(),
            );
        }
    };
    let completion = completion(record, "completion")?;
    check_completion("completion", &completion)?;
    let rated = RatedCompletion {
        prompt: prompt(record)?,
        completion,
        is_good,
        tools: messages::tools(record)?,
    };
    Ok(Parsed::new(RecordFormat::Rated, Ok(Example::Rated(rated))))
}

/// The messages of a prompt: a text, or a list of messages. Empty without one.
fn prompt(record: &Json) -> Result<Vec<Message>, String> {
    for key in ["prompt", "conversations", "messages"] {
        match record.get(key) {
            Some(Json::List(_)) => return Ok(messages::list(record, key)?.0),
            Some(Json::Null) | None => {}
            Some(_) => return Ok(vec![Message::user(string(record, key)?)]),
        }
    }
    if has_field(record, "question") {
        Ok(vec![Message::user(string(record, "question")?)])
    } else {
        Ok(Vec::new())
    }
}

/// The messages of a completion.
fn completion(record: &Json, key: &str) -> Result<Vec<Message>, String> {
    match record.get(key) {
        Some(Json::List(_)) => Ok(messages::list(record, key)?.0),
        Some(message @ Json::Object(_)) => Ok(vec![messages::message(message, key)?.0]),
        _ => Ok(vec![Message::assistant(string(record, key)?)]),
    }
}

/// Checks that a completion begins with a message of the assistant.
fn check_completion(key: &str, list: &[Message]) -> Result<(), String> {
    match list.first().map(Message::role) {
        Some(Role::Assistant) => Ok(()),
        Some(role) => Err(format!(
            "`{key}` begins with a message of the role {role}; hint: begin it with one of the assistant"
        )),
        None => Err(format!(
            "`{key}` is empty; hint: add a message of the assistant"
        )),
    }
}
