//! Pairs as the data of a run.

use nextword_data::Samples;

use super::model_parts::model_tokens;
use super::source_model::{SourceModel, apply_base_model};
use crate::conversations::Conversations;
use crate::pairs::{Pairs, dataset_without_tokens};
use crate::task::Task;
use crate::tokenizer_choice::use_declared_eos;
use crate::{RunConfig, TrainError};

/// Reads and encodes the pairs of `config` as [`prepare_run`](crate::prepare_run) does, without opening its device.
/// `None` if the configuration has other data.
///
/// # Errors
/// [`TrainError`] with the first problem found.
///
/// ```
/// use nextword_train::{RunConfig, prepare_pairs};
///
/// let mut config = RunConfig::default();
/// config.data.pairs = vec!["statquest".into()];
/// config.data.split.validation = 0.0;
/// let pairs = prepare_pairs(config)?.expect("the configuration has pairs");
/// let sample = pairs.train.sample(0)?;
/// assert_eq!(pairs.tokenizer.decode_with_special_tokens(&sample.ids), "let's go<SEP>vamos<EOS>");
/// # Ok::<(), nextword_train::TrainError>(())
/// ```
pub fn prepare_pairs(mut config: RunConfig) -> Result<Option<Pairs>, TrainError> {
    if config.start_from.is_none() {
        use_declared_eos(&mut config.data.tokenizer);
    }
    let source = apply_base_model(&mut config)?;
    let task = Task::of(&config)?;
    task.complete(&mut config);
    config.validate()?;
    config.validate_sequence_length()?;
    config.data.validate()?;
    if !config.data.has_pairs() {
        return Ok(None);
    }
    let given = source.as_ref().and_then(SourceModel::given_tokenizer);
    let dataset = dataset_without_tokens(&config, given)?;
    let model = model_tokens(&config, source, &dataset)?;
    Pairs::of_run(&mut config, task, &dataset, &model.special)
}

/// The samples for training and for validation, which take the place of tokens.
pub(super) fn samples_of<'a>(
    conversations: Option<&'a Conversations>,
    pairs: Option<&'a Pairs>,
) -> Option<(&'a Samples, &'a Samples)> {
    let of_conversations = conversations.map(|read| (&read.train, &read.validation));
    of_conversations.or(pairs.map(|read| (&read.train, &read.validation)))
}
