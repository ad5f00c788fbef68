//! Conversations as training data: records, formatted by a chat template, encoded, fitted into sequences and split.

mod collected;
mod comparisons;
mod encoder;
mod evaluation;
mod fit;
mod mismatched;
mod prompts;
mod report;
mod rows;
mod source;
pub(crate) mod split;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use nextword_base::hash::sha256_hex;
use nextword_chat::{ChatError, Example, Message, Role, SampleEncoder};
use nextword_data::{DataConfig, Dataset, LoaderConfig, Samples, Tokenizer, Tokens, TrainOn};
use nextword_model::{DEFAULT_TEMPLATE, ModelTokens};

use self::collected::{Collected, Split};
use self::encoder::{encoder, texts};
pub use self::evaluation::ConversationSet;
pub use self::prompts::PromptCheck;
pub(crate) use self::report::list_places;
pub use self::report::{ConversationReport, LeftOut};
pub use self::rows::{RowReport, RowUse};
use self::source::{TemplateChoice, TemplateSource};
use crate::{PreferenceLoss, RunConfig, TrainError};

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
    /// What a run on preferences compares: samples 2i and 2i + 1 of each split are a pair.
    loss: Option<PreferenceLoss>,
    /// For each rated completion, whether it is good.
    pub(crate) ratings: Ratings,
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

/// For each rated completion of both splits, whether it is good; empty without ratings.
#[derive(Debug, Default)]
pub(crate) struct Ratings {
    pub(crate) train: Vec<bool>,
    pub(crate) validation: Vec<bool>,
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

        let mut collected = Collected::new(data, max_length, report);
        for record in records {
            match &config.preferences {
                None => collected.add_record(record, &encoder)?,
                Some(settings) => collected.add_comparison(record, &encoder, settings.loss)?,
            }
        }
        collected.note_eos_tokens(&*model.tokenizer);
        let loss = config.preferences.map(|settings| settings.loss);
        let Split {
            train,
            validation,
            examples,
            ratings,
            report,
        } = collected.split(data.split.validation, loss)?;
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
            loss,
            ratings,
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
        let samples = format!(
            "training samples {}, validation samples {}, template {}",
            self.train.content_hash(),
            self.validation.content_hash(),
            self.template_hash.as_deref().unwrap_or("none")
        );
        let Ratings { train, validation } = &self.ratings;
        if train.is_empty() {
            return samples;
        }
        let ratings = train.iter().chain(validation);
        let ratings: Vec<u8> = ratings.map(|is_good| u8::from(*is_good)).collect();
        format!("{samples}, ratings {}", sha256_hex(&ratings))
    }

    /// Describes the data for the model card.
    pub(crate) fn description(&self) -> String {
        let what = match self.loss {
            None => "conversations",
            Some(loss) if loss.is_pairwise() => "pairs of completions",
            Some(_) => "rated completions",
        };
        format!(
            "{}: {} training and {} validation {what}, {} trained tokens",
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

    /// What training sample `index` is in a run on preferences; `None` in a supervised run.
    pub fn role(&self, index: usize) -> Option<&'static str> {
        let is_first = index.is_multiple_of(2);
        Some(match self.loss? {
            loss if loss.is_pairwise() && is_first => "chosen",
            loss if loss.is_pairwise() => "rejected",
            _ if !is_first => "with another completion, to estimate the divergence",
            _ if self.ratings.train.get(index / 2) == Some(&true) => "good",
            _ => "bad",
        })
    }

    /// The samples of the validation split whose completions a model should generate: all of a supervised run, and the
    /// chosen or good ones of a run on preferences.
    pub(crate) fn wanted_validation(&self) -> Vec<usize> {
        let count = self.validation.len();
        match self.loss {
            None => (0..count).collect(),
            Some(loss) if loss.is_pairwise() => (0..count).step_by(2).collect(),
            Some(_) => {
                let good = self.ratings.validation.iter().enumerate();
                good.filter_map(|(pair, is_good)| is_good.then_some(2 * pair))
                    .collect()
            }
        }
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
