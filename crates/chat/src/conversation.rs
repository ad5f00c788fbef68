//! What a model is trained on: conversations, prompts with completions, texts, and preferences.

use crate::{Json, Message, Role};

/// A conversation, and which of its messages are trained.
///
/// ```
/// use nextword_chat::{Conversation, Message};
///
/// let conversation = Conversation::new(vec![Message::user("Hi"), Message::assistant("Hello!")]);
/// assert_eq!(conversation.trained, [false, true]); // The assistant's messages.
/// assert_eq!(conversation.trained_messages().collect::<Vec<_>>(), [1]);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Conversation {
    /// The messages in order.
    pub messages: Vec<Message>,
    /// Descriptions of the tools that the model may call, as JSON schemas.
    pub tools: Option<Vec<Json>>,
    /// For each message, whether it is trained. Only the assistant's are, unless `weight` or `train` says
    /// otherwise.
    pub trained: Vec<bool>,
}

impl Conversation {
    /// A conversation without tools in which all of the assistant's messages are trained.
    pub fn new(messages: Vec<Message>) -> Self {
        let is_assistant = |message: &Message| message.role() == Role::Assistant;
        let trained = messages.iter().map(is_assistant).collect();
        Self {
            messages,
            tools: None,
            trained,
        }
    }

    /// The positions of the assistant's messages that are trained.
    pub fn trained_messages(&self) -> impl DoubleEndedIterator<Item = usize> + '_ {
        let flags = self.messages.iter().zip(&self.trained).enumerate();
        flags.filter_map(|(at, (message, is_trained))| {
            (*is_trained && message.role() == Role::Assistant).then_some(at)
        })
    }
}

/// Two completions of one prompt, of which one is preferred.
#[derive(Clone, Debug, PartialEq)]
pub struct Preference {
    /// The messages before both.
    pub prompt: Vec<Message>,
    /// The preferred messages, the first of which is the assistant's.
    pub chosen: Vec<Message>,
    /// The other messages.
    pub rejected: Vec<Message>,
    /// Descriptions of the tools that the model may call.
    pub tools: Option<Vec<Json>>,
}

/// One completion of a prompt that was rated as good or bad.
#[derive(Clone, Debug, PartialEq)]
pub struct RatedCompletion {
    /// The messages before the completion.
    pub prompt: Vec<Message>,
    /// The rated messages, the first of which is the assistant's.
    pub completion: Vec<Message>,
    /// Whether the completion is good.
    pub is_good: bool,
    /// Descriptions of the tools that the model may call.
    pub tools: Option<Vec<Json>>,
}

/// One record of a file with training data.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Example {
    /// Messages that a chat template formats.
    Conversation(Conversation),
    /// A prompt and its completion as texts: a conversation of two messages for a model with a chat template,
    /// otherwise text with the completion trained.
    Completion {
        /// The prompt.
        prompt: String,
        /// What is trained.
        completion: String,
    },
    /// A text, all of which is trained.
    Text(String),
    /// Two completions to compare. Not for supervised training.
    Preference(Preference),
    /// A completion with a rating. Not for supervised training.
    Rated(RatedCompletion),
}
