//! The messages of a conversation.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ChatError;

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
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 4] = [Self::System, Self::Developer, Self::User, Self::Assistant];

    /// The name in templates and in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Developer => "developer",
            Self::User => "user",
            Self::Assistant => "assistant",
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

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who wrote the message.
    pub role: Role,
    /// The text of the message.
    pub content: String,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        let content = content.into();
        Self { role, content }
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
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn messages_serialize_as_in_openai_requests() {
        for role in Role::ALL {
            let json = serde_json::json!({"role": role.as_str(), "content": "x"});
            let message: Message = serde_json::from_value(json.clone()).unwrap();
            assert_eq!(message, Message::new(role, "x"));
            assert_eq!(serde_json::to_value(&message).unwrap(), json);
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
}
