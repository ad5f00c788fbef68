//! Whether a sample has the prompts that the server sends.

use nextword_chat::{Example, Json, Message, RenderOptions};
use nextword_data::TrainOn;

use super::Conversations;
use crate::TrainError;

/// The prompts of a sample, compared with those that `serve` sends to the model for the same messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PromptCheck {
    /// Number of trained messages, each of which follows a prompt.
    pub prompts: usize,
    /// Those whose prompt has the ids that the server sends.
    pub equal: usize,
    /// Number of ids of the last prompt.
    pub ids: usize,
}

impl Conversations {
    /// Compares the ids before each trained message of training sample `index` with those that the server sends.
    /// `None` for samples without prompts: texts, and runs that train all tokens.
    ///
    /// # Errors
    /// [`TrainError::Chat`] if the chat template rejects the messages; [`TrainError::Data`] if there is no such sample.
    pub fn check_prompts(&self, index: usize) -> Result<Option<PromptCheck>, TrainError> {
        let sample = self.train.sample(index)?;
        let example = self.examples.train.get(index).map(AsRef::as_ref);
        let prompts = match example {
            Some(Example::Conversation(conversation)) => {
                let tools = conversation.tools.as_deref();
                let trained = conversation.trained_messages();
                trained
                    .map(|at| self.prompt(&conversation.messages[..at], tools))
                    .collect::<Result<Vec<_>, _>>()?
            }
            Some(Example::Completion { prompt, .. }) => {
                vec![self.prompt(&[Message::user(prompt.as_str())], None)?]
            }
            _ => return Ok(None),
        };
        if self.train_on == TrainOn::All {
            return Ok(None);
        }
        let mut check = PromptCheck::default();
        for end in self.examples.prompt_ends.get(index).into_iter().flatten() {
            let before = sample.ids.get(..*end).unwrap_or_default();
            check.prompts += 1;
            check.equal += usize::from(prompts.iter().any(|prompt| prompt == before));
            check.ids = before.len();
        }
        Ok(Some(check))
    }

    fn prompt(&self, messages: &[Message], tools: Option<&[Json]>) -> Result<Vec<u32>, TrainError> {
        let options = RenderOptions {
            tools,
            ..RenderOptions::default()
        };
        Ok(self.encoder.prompt_ids(messages, &options)?)
    }
}
