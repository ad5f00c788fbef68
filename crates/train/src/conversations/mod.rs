//! Conversations as training data: records, formatted by a chat template, encoded, fitted into sequences and split.

mod encoder;
mod evaluation;
mod fit;
mod prompts;
mod report;
mod rows;
mod source;
pub(crate) mod split;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use nextword_base::hash::sha256_hex;
use nextword_chat::{ChatError, Example, Message, Role, SampleEncoder, TokenSample};
use nextword_data::{
    DataConfig, Dataset, LoaderConfig, Samples, SamplesBuilder, Tokenizer, Tokens, TooLong, TrainOn,
};
use nextword_model::{DEFAULT_TEMPLATE, ModelTokens};

use self::encoder::{encoder, texts};
pub use self::evaluation::ConversationSet;
use self::fit::{Fitted, Misfit, fit};
pub use self::prompts::PromptCheck;
pub use self::report::{ConversationReport, LeftOut};
pub use self::rows::{RowReport, RowUse};
use self::source::{TemplateChoice, TemplateSource};
use crate::{RunConfig, TrainError};

/// Maximum number of examples of unknown text.
const MAX_UNKNOWN: usize = 5;

/// The conversations of a run: both splits as samples, and how they came about.
#[derive(Debug)]
#[non_exhaustive]
pub struct Conversations {
    /// Samples for training.
    pub train: Samples,
    /// Samples for validation; empty if `data.split.validation` is 0.
    pub validation: Samples,
    /// What became of the records.
    pub report: ConversationReport,
    /// The tokenizer.
    pub tokenizer: Arc<dyn Tokenizer>,
    /// Turns conversations into ids, as the server does.
    pub encoder: SampleEncoder,
    /// The records that the samples of both splits were made of; none in a run, which needs only the samples.
    pub examples: Examples,
    /// How the samples are divided into batches.
    batches: LoaderConfig,
    /// Which messages are trained.
    train_on: TrainOn,
    /// The hash of the chat template.
    template_hash: Option<String>,
    /// The names of the sources.
    sources: String,
}

/// The records of both splits.
#[derive(Debug, Default)]
pub struct Examples {
    /// For each training sample, its record.
    pub train: Vec<Arc<Example>>,
    /// For each validation sample, its record.
    pub validation: Vec<Arc<Example>>,
    /// For each training sample, the numbers of ids before the assistant's trained messages.
    prompt_ends: Vec<Vec<usize>>,
}

/// What a model brings to the formatting of its conversations.
pub(crate) struct ChatModel<'a> {
    pub(crate) tokenizer: Arc<dyn Tokenizer>,
    /// The EOS tokens are completed by `data.eos_token`.
    pub(crate) special: &'a mut ModelTokens,
    /// The template in use becomes the usual one.
    pub(crate) templates: &'a mut BTreeMap<String, String>,
    pub(crate) prompt_template: Option<String>,
}

impl Conversations {
    /// Reads and encodes the conversations of `config`. `max_length` is the number of tokens in a sequence.
    pub(crate) fn read(
        config: &RunConfig,
        max_length: usize,
        model: ChatModel<'_>,
    ) -> Result<Self, TrainError> {
        let data = &config.data;
        let (records, counts) = source::records(data)?;
        let mut report = ConversationReport::of_records(&counts);
        let has_prompt_template = model.prompt_template.is_some();
        add_eos_token(data.eos_token.as_deref(), &*model.tokenizer, model.special)?;
        let begins_with_bos = !model.special.prefix().is_empty() && !texts(&model).bos.is_empty();
        let choice = TemplateChoice {
            of_model: model.templates,
            has_prompt_template,
            begins_with_bos,
        };
        let template = choice.template(data)?;
        if let Some(TemplateSource { text, .. }) = &template {
            let name = DEFAULT_TEMPLATE.to_string();
            model.templates.insert(name, text.clone());
        }
        report.template = template.as_ref().map(|template| template.name.clone());
        let encoder = encoder(data.train_on, template.as_ref(), &model)?;

        let mut eos_ids = BTreeSet::new();
        let mut collected = Collected::default();
        for record in records {
            let place = record.source.to_string();
            let encoded = encoder.encode(&record.example).map_err(|error| {
                let error = with_hint(error, &record.example);
                TrainError::conversation(&place, report.template.as_deref(), error)
            })?;
            collected.add(record.example, &encoded, data.split.seed);
            for sample in &encoded {
                let method = sample.method.as_str().to_string();
                *report.methods.entry(method).or_default() += 1;
                report.split_samples += usize::from(sample.is_split);
                note_unknown(sample, &mut report.unknown);
                let last = sample.turn_ends.iter().filter_map(|end| end.checked_sub(1));
                eos_ids.extend(last.filter_map(|at| sample.ids.get(at).copied()));
                collected.push(sample, max_length, data.too_long, &place, &mut report)?;
            }
        }
        let eos_ids = eos_ids.into_iter();
        report.eos_tokens = eos_ids
            .filter_map(|id| model.tokenizer.id_to_token(id))
            .collect();
        let (train, validation, examples) = collected.split(data.split.validation, &mut report)?;
        if train.is_empty() {
            return Err(nothing_left(&report));
        }
        Ok(Self {
            train,
            validation,
            report,
            tokenizer: model.tokenizer,
            encoder,
            examples,
            batches: LoaderConfig::default(),
            train_on: data.train_on,
            template_hash: template.map(|template| sha256_hex(template.text.as_bytes())),
            sources: source::name(data),
        })
    }

    /// Drops the records, of which a run would keep the texts in memory until it ends.
    pub(crate) fn without_examples(self) -> Self {
        Self {
            examples: Examples::default(),
            ..self
        }
    }

    /// Identifies the samples, their trained tokens and the template.
    pub(crate) fn fingerprint(&self) -> String {
        format!(
            "training samples {}, validation samples {}, template {}",
            self.train.content_hash(),
            self.validation.content_hash(),
            self.template_hash.as_deref().unwrap_or("none")
        )
    }

    /// Describes the data for the model card.
    pub(crate) fn description(&self) -> String {
        format!(
            "{}: {} training and {} validation conversations, {} trained tokens",
            self.sources,
            self.report.train,
            self.report.validation,
            self.train.trained_count()
        )
    }

    /// Says how the samples are divided into batches, which their lengths may influence.
    pub(crate) fn with_batches(self, batches: LoaderConfig) -> Self {
        Self { batches, ..self }
    }

    /// How the samples are divided into batches.
    pub(crate) fn batches(&self) -> LoaderConfig {
        self.batches
    }

    /// The longest row of both splits.
    pub(crate) fn longest_row(&self) -> usize {
        self.train.longest_row().max(self.validation.longest_row())
    }
}

/// The dataset of a run on conversations: without tokens, since samples take their place. A tokenizer that is trained
/// reads the text of all messages; that of a model that is one file is `given`.
pub(crate) fn dataset_without_tokens(
    config: &RunConfig,
    given: Option<Arc<dyn Tokenizer>>,
) -> Result<Dataset, TrainError> {
    let data = &config.data;
    let tokenizer = match given {
        Some(tokenizer) => tokenizer,
        None => build_tokenizer(data)?,
    };
    Ok(Dataset {
        train: Tokens::default(),
        validation: Tokens::default(),
        tokenizer,
        card: None,
    })
}

fn build_tokenizer(data: &DataConfig) -> Result<Arc<dyn Tokenizer>, TrainError> {
    let mut texts = Vec::new();
    if data.tokenizer.file.is_none() {
        let (records, _) = source::records(data)?;
        for record in &records {
            texts.extend(source::texts(&record.example));
        }
        let none = BTreeMap::new();
        if let Some(template) = TemplateChoice::of_new_model(&none).template(data)? {
            texts.push(template.text);
        }
    }
    let texts = texts.into_iter().map(Ok);
    Ok(nextword_data::build_tokenizer(&data.tokenizer, texts)?)
}

/// Adds to the error of a template that rejected `example` what it may need: many templates expect that the user begins.
fn with_hint(error: ChatError, example: &Example) -> ChatError {
    let Example::Conversation(conversation) = example else {
        return error;
    };
    let mut roles = conversation.messages.iter().map(Message::role);
    let first = roles.find(|role| !matches!(role, Role::System | Role::Developer));
    match error {
        ChatError::Rejected { problem } if first != Some(Role::User) => ChatError::Rejected {
            problem: format!(
                "{problem}; hint: the conversation does not begin with a message of the user, which many templates need; \
                 add one, or remove the record"
            ),
        },
        other => other,
    }
}

/// Adds the token that `data.eos_token` names to those that end a completion.
fn add_eos_token(
    name: Option<&str>,
    tokenizer: &dyn Tokenizer,
    special: &mut ModelTokens,
) -> Result<(), TrainError> {
    let Some(name) = name else { return Ok(()) };
    match tokenizer.encode(name).ids[..] {
        [id] => {
            if !special.eos_ids.contains(&id) {
                special.eos_ids.push(id);
            }
            Ok(())
        }
        _ => Err(TrainError::config(
            "data.eos_token",
            format!("{name:?} is not one token of the model's vocabulary"),
            "set it to the text of the token that ends a message of the assistant in the chat template",
        )),
    }
}

/// Keeps the first texts that are not in the vocabulary.
fn note_unknown(sample: &TokenSample, known: &mut Vec<String>) {
    for text in &sample.unknown.unknown {
        if known.len() < MAX_UNKNOWN && !known.contains(text) {
            known.push(text.clone());
        }
    }
}

fn nothing_left(report: &ConversationReport) -> TrainError {
    let reasons = report.left_out_lines();
    let problem = match reasons[..] {
        [] => "there are no conversations to train on".to_string(),
        _ => format!(
            "no conversation is left to train on: {}",
            reasons.join(", ")
        ),
    };
    TrainError::config(
        "data.conversations",
        problem,
        "check the records; `data.too_long = \"truncate\"` or a larger train.sequence_length keeps long ones",
    )
}

/// The samples of all records, before they are split.
#[derive(Default)]
struct Collected {
    records: Vec<EncodedRecord>,
}

/// A record, and those of its samples that can be trained.
struct EncodedRecord {
    example: Arc<Example>,
    key: u64,
    samples: Vec<Fitted>,
}

impl Collected {
    fn add(&mut self, example: Example, encoded: &[TokenSample], seed: u64) {
        let ids = encoded.iter().map(|sample| sample.ids.clone());
        self.records.push(EncodedRecord {
            example: Arc::new(example),
            key: split::content_key(seed, ids),
            samples: Vec::new(),
        });
    }

    /// Adds a sample to the last record, if it can be trained.
    fn push(
        &mut self,
        sample: &TokenSample,
        max_length: usize,
        too_long: TooLong,
        place: &str,
        report: &mut ConversationReport,
    ) -> Result<(), TrainError> {
        match fit(sample, max_length, too_long) {
            Ok(fitted) => {
                if fitted.is_cut {
                    report.leave_out("cut to fit into a sequence", place);
                }
                if let Some(record) = self.records.last_mut() {
                    record.samples.push(fitted);
                }
                Ok(())
            }
            Err(Misfit::TooLong) => {
                report.leave_out("with no trained message that fits into a sequence", place);
                Ok(())
            }
            Err(Misfit::Error) => Err(TrainError::config(
                "data.too_long",
                format!(
                    "{place}: the conversation has {} tokens, more than a sequence of {max_length}",
                    sample.ids.len()
                ),
                "shorten it, increase train.sequence_length, or set data.too_long = \"turns\"",
            )),
        }
    }

    /// Assigns the records to the splits.
    fn split(
        mut self,
        share: f64,
        report: &mut ConversationReport,
    ) -> Result<(Samples, Samples, Examples), TrainError> {
        self.records.retain(|record| !record.samples.is_empty());
        let keys: Vec<u64> = self.records.iter().map(|record| record.key).collect();
        let selected = split::select_validation(&keys, share);
        let mut builders = [SamplesBuilder::default(), SamplesBuilder::default()];
        let mut prompts = [Vec::new(), Vec::new()];
        let mut examples = Examples::default();
        for (record, is_validation) in self.records.iter().zip(selected) {
            let side = usize::from(is_validation);
            let (of_side, counted) = if is_validation {
                (&mut examples.validation, &mut report.validation)
            } else {
                (&mut examples.train, &mut report.train)
            };
            *counted += 1;
            for sample in &record.samples {
                builders[side].push(&sample.ids, &sample.trained)?;
                of_side.push(Arc::clone(&record.example));
                if !is_validation {
                    examples.prompt_ends.push(sample.prompt_ends.clone());
                }
            }
            if let Some(first) = record.samples.first() {
                let start = first.trained.first().map_or(0, |span| span.start);
                prompts[side].push(&first.ids[..start]);
            }
        }
        let [of_train, of_validation] = prompts;
        let known: HashSet<&[u32]> = of_train.into_iter().collect();
        let shared = of_validation.iter();
        report.shared_prompts = shared
            .filter(|prompt| !prompt.is_empty() && known.contains(*prompt))
            .count();
        let [train, validation] = builders.map(SamplesBuilder::finish);
        Ok((train, validation, examples))
    }
}
