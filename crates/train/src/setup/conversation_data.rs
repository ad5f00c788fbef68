//! Conversations as the data of a run.

use std::sync::Arc;

use nextword_data::{DataConfig, Dataset, LENGTH_MULTIPLE};

use super::batches::loader_config;
use super::model_parts::{ModelParts, model_tokens};
use super::source_model::{SourceModel, apply_base_model};
use crate::conversations::{ChatModel, Conversations, dataset_without_tokens};
use crate::task::Task;
use crate::tokenizer_choice::use_declared_eos;
use crate::{RunConfig, TrainError};

/// Reads and encodes the conversations of `config` as [`prepare_run`](crate::prepare_run) does, without opening its device. `None`
/// if the configuration has other data.
///
/// # Errors
/// [`TrainError`] with the first problem found.
pub fn prepare_conversations(mut config: RunConfig) -> Result<Option<Conversations>, TrainError> {
    if config.start_from.is_none() {
        use_declared_eos(&mut config.data.tokenizer);
    }
    let source = apply_base_model(&mut config)?;
    Task::of(&config)?.complete(&mut config);
    config.validate()?;
    config.validate_sequence_length()?;
    config.data.validate()?;
    if !config.data.has_conversations() {
        return Ok(None);
    }
    let given = source.as_ref().and_then(SourceModel::given_tokenizer);
    let dataset = dataset_without_tokens(&config, given)?;
    let mut model = model_tokens(&config, source, &dataset)?;
    read_conversations(&mut config, &dataset, &mut model)
}

/// Reads the conversations of `config`, if it has any. Sequences become as short as the longest of them allows.
pub(super) fn read_conversations(
    config: &mut RunConfig,
    dataset: &Dataset,
    model: &mut ModelParts,
) -> Result<Option<Conversations>, TrainError> {
    if !config.data.has_conversations() {
        return Ok(None);
    }
    let max_length = config.sequence_length();
    let chat_model = ChatModel {
        tokenizer: Arc::clone(&dataset.tokenizer),
        special: &mut model.special,
        templates: &mut model.chat_templates,
        prompt_template: config.samples.prompt_template.clone(),
    };
    let conversations = Conversations::read(config, max_length, chat_model)?;
    if config.train.sequence_length.is_none() {
        let longest = conversations
            .longest_row()
            .next_multiple_of(LENGTH_MULTIPLE);
        config.train.sequence_length = Some(longest.min(max_length));
    }
    let batches = loader_config(config, &*dataset.tokenizer);
    Ok(Some(conversations.with_batches(batches)))
}

/// `config` for a dataset that is given: its own data is not read.
pub(super) fn without_conversations(mut config: RunConfig) -> RunConfig {
    if config.data.has_conversations() || config.data.has_pairs() {
        config.data = DataConfig {
            order: config.data.order,
            packing: config.data.packing,
            masked: config.data.masked,
            ..DataConfig::default()
        };
    }
    config
}
