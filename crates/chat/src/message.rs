//! The messages of a conversation.

use std::fmt;
use std::str::FromStr;

use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{ChatError, Json};

/// Names under which the reasoning of a message is passed; templates read the first.
const REASONING_FIELDS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// The author of a message. Serialized in lower case, as in `OpenAI`'s API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// Instructions of the application's author: `OpenAI`'s newer name for `system`.
    Developer,
    /// The person who talks to the model.
    User,
    /// The model.
    Assistant,
    /// The result of a tool that the model called.
    Tool,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 5] = [
        Self::System,
        Self::Developer,
        Self::User,
        Self::Assistant,
        Self::Tool,
    ];

    /// The name in templates and in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Developer => "developer",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = ChatError;

    /// Parses a role by its exact name.
    ///
    /// ```
    /// use nextword_chat::Role;
    ///
    /// assert_eq!("user".parse::<Role>()?, Role::User);
    /// assert!("robot".parse::<Role>().is_err());
    /// # Ok::<(), nextword_chat::ChatError>(())
    /// ```
    fn from_str(name: &str) -> Result<Self, ChatError> {
        let role = Self::ALL.into_iter().find(|role| role.as_str() == name);
        role.ok_or_else(|| ChatError::UnknownRole {
            role: name.chars().take(40).collect(),
        })
    }
}

/// One message of a conversation: a role, a content, and any further fields that a template may read
/// (`name`, `tool_calls`, `tool_call_id`, `reasoning_content`).
///
/// ```
/// use nextword_chat::{Message, Role};
///
/// let json = r#"{"role": "assistant", "content": null, "tool_calls": [{"id": "1"}]}"#;
/// let message: Message = serde_json::from_str(json)?;
/// assert_eq!((message.role(), message.text()), (Role::Assistant, String::new()));
/// assert_eq!(Message::user("Hi").text(), "Hi");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    role: Role,
    /// All fields in the order of the sender, role and content included.
    fields: Vec<(String, Json)>,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        let fields = vec![
            ("role".to_owned(), Json::from(role.as_str())),
            ("content".to_owned(), Json::String(content.into())),
        ];
        Self { role, fields }
    }

    /// A message with instructions for the whole conversation.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new(Role::System, content)
    }

    /// A message of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(Role::User, content)
    }

    /// A message of the model.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new(Role::Assistant, content)
    }

    /// A message as in `OpenAI`'s API. The content is a string or a list of text parts; only the assistant's
    /// may be absent or `null`.
    ///
    /// # Errors
    /// [`ChatError::UnknownRole`], or [`ChatError::Message`] for any other problem.
    pub fn from_json(json: Json) -> Result<Self, ChatError> {
        let invalid = |problem: &str| ChatError::Message {
            problem: problem.to_owned(),
        };
        let role = json.get("role").and_then(Json::as_str);
        let role: Role = role
            .ok_or_else(|| invalid("needs a `role`: system, developer, user, assistant or tool"))?
            .parse()?;
        match json.get("content").filter(|content| !content.is_null()) {
            None if role == Role::Assistant => {}
            None => {
                return Err(invalid(
                    "needs a `content`: only an assistant's may be absent",
                ));
            }
            Some(Json::String(_)) => {}
            Some(Json::List(parts)) => {
                if !parts.iter().all(is_text_part) {
                    return Err(invalid(
                        "has a `content` with a part that is not text; hint: send parts {\"type\": \"text\", \
                         \"text\": \"…\"}",
                    ));
                }
            }
            Some(_) => {
                return Err(invalid(
                    "needs a `content`: a string or a list of text parts",
                ));
            }
        }
        let calls = json.get("tool_calls").filter(|calls| !calls.is_null());
        if calls.is_some_and(|calls| calls.as_list().is_none()) {
            return Err(invalid("has `tool_calls` that are not a list"));
        }
        match json {
            Json::Object(fields) => Ok(Self { role, fields }),
            _ => Err(invalid("is not an object")),
        }
    }

    /// Who wrote the message.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The text of the message: its parts are joined, and it is empty without a content.
    pub fn text(&self) -> String {
        match self.field("content") {
            Some(Json::String(text)) => text.clone(),
            Some(Json::List(parts)) => parts
                .iter()
                .filter_map(|part| part.get("text")?.as_str())
                .collect(),
            _ => String::new(),
        }
    }

    /// Whether the content is a list of parts.
    pub(crate) fn has_parts(&self) -> bool {
        matches!(self.field("content"), Some(Json::List(_)))
    }

    /// The value of a field; `null` counts as absent.
    pub(crate) fn field(&self, name: &str) -> Option<&Json> {
        let mut fields = self.fields.iter();
        let found = fields.find(|(field, value)| field == name && !value.is_null());
        found.map(|(_, value)| value)
    }

    /// The message with `change` applied to all texts in its fields, except the role. The names of fields stay, but not
    /// the keys of objects in them, such as the arguments of a call.
    pub(crate) fn map_texts(&self, change: &mut dyn FnMut(&str) -> String) -> Self {
        let fields = self.fields.iter().map(|(name, value)| {
            let value = match name.as_str() {
                "role" => value.clone(),
                _ => value.map_texts(change),
            };
            (name.clone(), value)
        });
        Self {
            role: self.role,
            fields: fields.collect(),
        }
    }

    /// The message with another value of a field.
    pub(crate) fn with_field(&self, name: &str, value: Json) -> Self {
        let mut changed = self.clone();
        set(&mut changed.fields, name, value);
        changed
    }

    /// The fields for a template, prepared as transformers does: without those that are `null`, and with
    /// the reasoning under the names that templates read. Parts are joined unless `keep_parts` is set.
    pub(crate) fn template_fields(&self, keep_parts: bool) -> Vec<(String, Json)> {
        let mut fields = self.fields.clone();
        fields.retain(|(_, value)| !value.is_null());
        if !keep_parts && self.has_parts() {
            set(&mut fields, "content", Json::String(self.text()));
        }
        let reasoning = REASONING_FIELDS
            .iter()
            .find_map(|name| self.field(name).cloned());
        if let Some(reasoning) = reasoning {
            let thinking = self.field("thinking").unwrap_or(&reasoning).clone();
            fields.retain(|(name, _)| name != "thinking");
            fields.insert(0, ("thinking".to_owned(), thinking));
            set(&mut fields, "reasoning_content", reasoning);
        }
        fields
    }
}

/// Sets a field: in place if it exists, otherwise at the end.
pub(crate) fn set(fields: &mut Vec<(String, Json)>, name: &str, value: Json) {
    match fields.iter_mut().find(|(field, _)| field == name) {
        Some((_, earlier)) => *earlier = value,
        None => fields.push((name.to_owned(), value)),
    }
}

fn is_text_part(part: &Json) -> bool {
    let kind = part.get("type").and_then(Json::as_str);
    kind == Some("text") && part.get("text").and_then(Json::as_str).is_some()
}

impl Serialize for Message {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.fields.len()))?;
        for (name, value) in &self.fields {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Json::deserialize(deserializer)?;
        Self::from_json(json).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn messages_serialize_as_in_openai_requests() {
        for role in Role::ALL {
            let json = format!(r#"{{"role":"{role}","content":"x"}}"#);
            let message: Message = serde_json::from_str(&json).unwrap();
            assert_eq!(message, Message::new(role, "x"));
            assert_eq!(serde_json::to_string(&message).unwrap(), json);
            assert_eq!(role.to_string().parse::<Role>().unwrap(), role);
        }
    }

    #[test]
    fn unknown_roles_are_named_in_the_error() {
        let error = "Robot".parse::<Role>().unwrap_err();
        assert!(error.to_string().contains("\"Robot\""), "{error}");
        let error = "x".repeat(1000).parse::<Role>().unwrap_err();
        assert!(error.to_string().len() < 200, "{error}");
    }

    #[test]
    fn malformed_messages_are_rejected() {
        for bad in [
            "5",
            "[]",
            r#"{"content": "x"}"#,
            r#"{"role": "robot", "content": "x"}"#,
            r#"{"role": "user"}"#,
            r#"{"role": "user", "content": null}"#,
            r#"{"role": "tool", "content": null}"#,
            r#"{"role": "user", "content": 5}"#,
            r#"{"role": "user", "content": [{"type": "image_url"}]}"#,
            r#"{"role": "user", "content": ["x"]}"#,
            r#"{"role": "assistant", "tool_calls": 5}"#,
        ] {
            assert!(serde_json::from_str::<Message>(bad).is_err(), "{bad}");
        }
    }
}
