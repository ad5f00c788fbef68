//! Conversations to evaluate a model on, which is not trained.

use std::sync::Arc;

use nextword_data::{DataConfig, EvalWindows, LENGTH_MULTIPLE, Tokenizer};
use nextword_model::ModelCard;

use super::{ChatModel, Conversations};
use crate::{RunConfig, TrainError};

/// Conversations as a model reads them, to evaluate it.
#[derive(Debug)]
#[non_exhaustive]
pub struct ConversationSet {
    /// The conversations, all of them in [`Conversations::train`].
    pub conversations: Conversations,
    /// Windows with the trained tokens as targets.
    pub windows: EvalWindows,
    /// The ids that end a completion.
    pub eos: Vec<u32>,
}

impl ConversationSet {
    /// Reads the conversations of `data` and formats them for the model with `card` and `tokenizer`, as a run on them would
    /// ([`prepare_conversations`](crate::prepare_conversations)), without a split. `max_length` is the number of tokens in
    /// the model's context.
    ///
    /// # Errors
    /// [`TrainError`] with the first problem found.
    ///
    /// # Example
    ///
    /// ```
    /// use nextword_data::{Builtin, DataConfig, load_tokenizer};
    /// use nextword_model::ModelDir;
    /// use nextword_train::ConversationSet;
    ///
    /// let file = tempfile::NamedTempFile::new()?;
    /// std::fs::write(&file, r#"{"prompt": "One day", "completion": " a fox ran."}"#)?;
    /// let data = DataConfig { conversations: vec![file.path().into()], ..DataConfig::default() };
    /// let model = ModelDir::open("../../docs/models/letters".as_ref())?;
    /// let tokenizer = load_tokenizer(model.tokenizer_path())?;
    /// let set = ConversationSet::read(&data, &model.card, tokenizer, model.config.context_length)?;
    /// assert_eq!(set.conversations.train.trained_count(), " a fox ran.".len() + 1); // with EOS
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn read(
        data: &DataConfig,
        card: &ModelCard,
        tokenizer: Arc<dyn Tokenizer>,
        max_length: usize,
    ) -> Result<Self, TrainError> {
        data.validate()?;
        card.check_templates()?;
        let mut config = RunConfig {
            data: data.clone(),
            ..RunConfig::default()
        };
        config.data.split.validation = 0.0;
        let (mut special, mut templates) = (card.special.clone(), card.chat_templates.clone());
        let roles = tokenizer.special_tokens();
        let model = ChatModel {
            tokenizer,
            special: &mut special,
            templates: &mut templates,
            prompt_template: card.prompt_template.clone(),
        };
        let conversations = Conversations::read(&config, max_length, model)?;
        let length = conversations.longest_row();
        let length = length.next_multiple_of(LENGTH_MULTIPLE).min(max_length);
        let samples = conversations.train.clone();
        Ok(Self {
            windows: EvalWindows::from_samples(samples, length, roles.padding_id())?,
            eos: special.stop_ids(roles.eos),
            conversations,
        })
    }
}
