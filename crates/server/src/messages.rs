//! The `messages` of a chat request.

use nextword_chat::{Message, Role};
use serde_json::Value;

use crate::api_error::ApiError;

/// Maximum messages per conversation.
const MAX_MESSAGES: usize = 1024;

/// Parses the `messages` of a request.
pub(crate) fn parse_messages(value: Option<&Value>) -> Result<Vec<Message>, ApiError> {
    let messages_error = |message: String| ApiError::invalid_field("messages", message);
    let list = value
        .and_then(Value::as_array)
        .filter(|list| !list.is_empty());
    let list = list.ok_or_else(|| messages_error("`messages` must be a non-empty list".into()))?;
    if list.len() > MAX_MESSAGES {
        return Err(messages_error(format!(
            "`messages` may contain at most {MAX_MESSAGES} messages"
        )));
    }
    let parse = |(index, value): (usize, &Value)| {
        let role = value.get("role").and_then(Value::as_str);
        let role = role.and_then(|role| role.parse::<Role>().ok());
        let role = role.ok_or_else(|| {
            messages_error(format!(
                "`messages[{index}].role` must be system, developer, user or assistant"
            ))
        })?;
        let content = value.get("content").and_then(content_text).ok_or_else(|| {
            messages_error(format!(
                "`messages[{index}].content` must be a string or a list of text parts"
            ))
        })?;
        Ok(Message { role, content })
    };
    list.iter().enumerate().map(parse).collect()
}

/// The text of a message's `content`: a string or a list of text parts.
fn content_text(value: &Value) -> Option<String> {
    if let Some(text) = value.as_str() {
        return Some(text.to_owned());
    }
    let part_text = |part: &Value| {
        let is_text = part.get("type")?.as_str()? == "text";
        part.get("text")?
            .as_str()
            .filter(|_| is_text)
            .map(str::to_owned)
    };
    value.as_array()?.iter().map(part_text).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn malformed_messages_are_rejected() {
        for bad in [
            json!([]),
            json!("hi"),
            json!([{"role": "robot", "content": "x"}]),
            json!([{"role": "user"}]),
            json!([{"role": "user", "content": [{"type": "image_url"}]}]),
        ] {
            assert!(parse_messages(Some(&bad)).is_err(), "{bad}");
        }
        let parts = json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]);
        let messages = parse_messages(Some(&parts)).unwrap();
        assert_eq!(messages, [Message::user("ab")]);
    }
}
