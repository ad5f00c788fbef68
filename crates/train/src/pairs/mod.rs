//! Pairs of source and target as training data: formatted, encoded, fitted into sequences and split.

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::sync::Arc;

use nextword_base::count;
use nextword_data::{
    Dataset, LENGTH_MULTIPLE, LossOn, Pair, SampleLayout, Samples, SamplesBuilder, Tokenizer,
    TokenizerConfig, Tokens, special_token,
};
use nextword_model::ModelTokens;
use serde::Serialize;

use crate::conversations::list_places;
use crate::conversations::split::{content_key, select_validation};
use crate::task::Task;
use crate::{RunConfig, TrainError};

/// Where the source belongs in the prompt template.
const PLACEHOLDER: &str = "{prompt}";

/// Maximum number of examples in a report.
const MAX_EXAMPLES: usize = 5;

/// The pairs of a run: both splits as samples, and how they came about.
///
/// A sample is the prompt that `generate` makes of the source, then the target with the EOS token. Models with an
/// encoder have a start token between them.
#[derive(Debug)]
#[non_exhaustive]
pub struct Pairs {
    /// Samples for training.
    pub train: Samples,
    /// Samples for validation; empty if `data.split.validation` is 0. None of them has the source of a sample for
    /// training.
    pub validation: Samples,
    /// What became of the pairs.
    pub report: PairReport,
    /// The tokenizer.
    pub tokenizer: Arc<dyn Tokenizer>,
    /// The samples for validation, of which the targets alone are trained.
    pub(crate) held_out: Samples,
    /// The source of the first pair.
    pub(crate) first_source: String,
    /// The names of the sources.
    sources: String,
}

/// What became of the pairs of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PairReport {
    /// Number of pairs for training.
    pub train: usize,
    /// Number of pairs for validation.
    pub validation: usize,
    /// How sources are formatted, with `{prompt}` in their place.
    pub prompt_template: String,
    /// The text of the token that ends a target.
    pub eos_token: String,
    /// Number of pairs that do not fit into a sequence.
    pub too_long: usize,
    /// Where the first of them are.
    pub too_long_places: Vec<String>,
    /// Text that is not in the vocabulary: the first examples.
    pub unknown: Vec<String>,
}

impl PairReport {
    /// What a run warns about.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> = self.too_long_line().into_iter().collect();
        if !self.unknown.is_empty() {
            let examples: Vec<_> = self
                .unknown
                .iter()
                .map(|text| format!("{text:?}"))
                .collect();
            warnings.push(format!(
                "the pairs have text that is not in the vocabulary, such as {}; hint: use a tokenizer that knows it",
                examples.join(", ")
            ));
        }
        warnings
    }

    /// A sentence about pairs that were left out, for people.
    pub fn too_long_line(&self) -> Option<String> {
        (self.too_long > 0).then(|| {
            format!(
                "{} left out, longer than a sequence ({}); hint: increase train.sequence_length or \
                 model.context_length",
                count(self.too_long as u64, "pair"),
                list_places(&self.too_long_places)
            )
        })
    }
}

/// What the encoding of pairs depends on.
pub(crate) struct PairFormat<'a> {
    pub(crate) layout: SampleLayout,
    /// Maximum number of inputs in a row.
    pub(crate) max_length: usize,
    pub(crate) tokenizer: &'a Arc<dyn Tokenizer>,
    pub(crate) special: &'a ModelTokens,
}

/// An encoded pair.
struct Encoded {
    /// Of the source alone.
    key: u64,
    ids: Vec<u32>,
    /// Number of ids before the target.
    target: usize,
}

impl Pairs {
    /// Reads the pairs of a run, if its task is to learn from them. Sequences become as short as the longest of them
    /// allows.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(crate) fn of_run(
        config: &mut RunConfig,
        task: Task,
        dataset: &Dataset,
        special: &ModelTokens,
    ) -> Result<Option<Self>, TrainError> {
        let Task::Pairs(layout) = task else {
            return Ok(None);
        };
        let format = PairFormat {
            layout,
            max_length: config.sequence_length(),
            tokenizer: &dataset.tokenizer,
            special,
        };
        let pairs = Self::read(config, &format)?;
        if config.train.sequence_length.is_none() {
            let longest = pairs.longest_row().next_multiple_of(LENGTH_MULTIPLE);
            config.train.sequence_length = Some(longest.min(format.max_length));
        }
        Ok(Some(pairs))
    }

    /// Reads and encodes the pairs of `config`, which gets the prompt template that formats sources.
    ///
    /// # Errors
    /// [`TrainError::Data`] for files that cannot be read; [`TrainError::Config`] for a tokenizer without EOS token, and
    /// if no pair fits into a sequence.
    fn read(config: &mut RunConfig, format: &PairFormat<'_>) -> Result<Self, TrainError> {
        let sources = config.data.pair_sources();
        let pairs = sources.read()?;
        let eos = format.eos()?;
        let template = format.template(config, eos);
        let mut report = PairReport {
            prompt_template: template.clone(),
            eos_token: format.tokenizer.id_to_token(eos).unwrap_or_default(),
            ..PairReport::default()
        };
        let mut encoded = Vec::with_capacity(pairs.len());
        for pair in &pairs {
            let one = format.encode(pair, &template, eos, config.data.split.seed, &mut report)?;
            if format.row_length(&one) > format.max_length {
                report.too_long += 1;
                if report.too_long_places.len() < MAX_EXAMPLES {
                    report.too_long_places.push(pair.place.clone());
                }
            } else {
                encoded.push(one);
            }
        }
        let keys: Vec<u64> = encoded.iter().map(|pair| pair.key).collect();
        let selected = select_validation(&keys, config.data.split.validation);
        let mut builders: [SamplesBuilder; 2] = Default::default();
        let mut held_out = SamplesBuilder::default();
        for (pair, is_validation) in encoded.iter().zip(selected) {
            let side = usize::from(is_validation);
            let start = match config.data.loss_on {
                LossOn::Target => pair.target,
                LossOn::Both => 1,
            };
            let trained = start..pair.ids.len();
            builders[side].push(&pair.ids, std::slice::from_ref(&trained))?;
            if is_validation {
                let target = pair.target..pair.ids.len();
                held_out.push(&pair.ids, std::slice::from_ref(&target))?;
            }
        }
        let [train, validation] = builders.map(|b| b.finish().with_layout(format.layout));
        let held_out = held_out.finish().with_layout(format.layout);
        (report.train, report.validation) = (train.len(), validation.len());
        if train.is_empty() {
            return Err(nothing_left(&report));
        }
        config.samples.prompt_template = Some(template);
        Ok(Self {
            train,
            validation,
            report,
            tokenizer: Arc::clone(format.tokenizer),
            held_out,
            first_source: pairs
                .into_iter()
                .next()
                .map(|pair| pair.source)
                .unwrap_or_default(),
            sources: sources.name(),
        })
    }

    /// Identifies the samples and their trained tokens.
    pub(crate) fn fingerprint(&self) -> String {
        format!(
            "training pairs {}, validation pairs {}",
            self.train.content_hash(),
            self.validation.content_hash()
        )
    }

    /// Describes the data for the model card.
    pub(crate) fn description(&self) -> String {
        format!(
            "{}: {} training and {} validation pairs, {} trained tokens",
            self.sources,
            self.report.train,
            self.report.validation,
            self.train.trained_count()
        )
    }

    /// The longest row of both splits.
    fn longest_row(&self) -> usize {
        self.train.longest_row().max(self.validation.longest_row())
    }
}

impl PairFormat<'_> {
    /// The token that ends a target.
    fn eos(&self) -> Result<u32, TrainError> {
        let eos = self.special.end_id(self.tokenizer.special_tokens().eos);
        eos.ok_or_else(|| {
            TrainError::config(
                "data.tokenizer.eos",
                "the tokenizer has no EOS token, which ends a target",
                "set it to \"<EOS>\", or to a special token of the tokenizer's file",
            )
        })
    }

    /// The prompt template of `config`; without one, the source followed by the separator or, where an encoder reads it
    /// and where the tokenizer has no separator, the EOS token.
    fn template(&self, config: &RunConfig, eos: u32) -> String {
        if let Some(template) = &config.samples.prompt_template {
            return template.clone();
        }
        let tokenizer = &**self.tokenizer;
        let configured = &config.data.tokenizer.sep;
        let names = [configured.as_str(), TokenizerConfig::DEFAULT_SEP];
        let separator = names
            .into_iter()
            .find(|name| !name.is_empty() && special_token(tokenizer, name).is_some())
            .filter(|_| self.layout != SampleLayout::EncoderDecoder);
        let eos = || tokenizer.id_to_token(eos).unwrap_or_default();
        format!(
            "{PLACEHOLDER}{}",
            separator.map_or_else(eos, str::to_string)
        )
    }

    fn encode(
        &self,
        pair: &Pair,
        template: &str,
        eos: u32,
        seed: u64,
        report: &mut PairReport,
    ) -> Result<Encoded, TrainError> {
        let prompt = template.replace(PLACEHOLDER, &pair.source);
        let source = self.tokenizer.try_encode(&prompt)?;
        let target = self.tokenizer.try_encode_ordinary(&pair.target)?;
        for text in source.unknown.iter().chain(&target.unknown) {
            if report.unknown.len() < MAX_EXAMPLES && !report.unknown.contains(text) {
                report.unknown.push(text.clone());
            }
        }
        let mut ids = self.special.with_prefix(source.ids);
        let key = content_key(seed, [ids.clone()]);
        if self.layout == SampleLayout::EncoderDecoder {
            ids.push(self.special.target_start(Some(eos)).unwrap_or(eos));
        }
        let start = ids.len();
        ids.extend(target.ids);
        ids.push(eos);
        Ok(Encoded {
            key,
            ids,
            target: start,
        })
    }

    /// The number of inputs of a row, as [`Samples::row_length`] counts them.
    fn row_length(&self, pair: &Encoded) -> usize {
        let len = pair.ids.len();
        match self.layout {
            SampleLayout::EncoderDecoder => (pair.target - 1).max(len - pair.target),
            SampleLayout::Sequence | SampleLayout::Prefix => len - 1,
        }
    }
}

/// The dataset of a run on pairs: without tokens, since samples take their place. A tokenizer that is trained reads the
/// text of both sides; that of a model that is one file is `given`.
pub(crate) fn dataset_without_tokens(
    config: &RunConfig,
    given: Option<Arc<dyn Tokenizer>>,
) -> Result<Dataset, TrainError> {
    let tokenizer = match given {
        Some(tokenizer) => tokenizer,
        None => {
            let is_built = config.data.tokenizer.file.is_none();
            let sources = config.data.pair_sources();
            let pairs = if is_built {
                sources.read()?
            } else {
                Vec::new()
            };
            let texts = pairs
                .into_iter()
                .flat_map(|pair| [pair.source, pair.target]);
            nextword_data::build_tokenizer(&config.data.tokenizer, texts.map(Ok))?
        }
    };
    Ok(Dataset {
        train: Tokens::default(),
        validation: Tokens::default(),
        tokenizer,
        card: None,
    })
}

fn nothing_left(report: &PairReport) -> TrainError {
    let problem = report
        .too_long_line()
        .unwrap_or_else(|| "there are no pairs".to_string());
    TrainError::config(
        "data.pairs",
        format!("nothing is left to train on: {problem}"),
        "give more pairs",
    )
}
