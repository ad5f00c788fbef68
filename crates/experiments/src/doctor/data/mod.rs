//! Checks of the training data of a configuration.

mod bytes;
mod documents;
mod leakage;
mod near_duplicates;
mod splits;
#[cfg(test)]
mod tests;
mod vocabulary;

use nextword_base::count;
use nextword_data::{Dataset, Sources};
use nextword_train::{RunConfig, prepare_conversations, prepare_run, use_declared_eos};
use serde::{Deserialize, Serialize};

use super::finding::agree;
use super::{Finding, FindingKind};
use crate::ExperimentError;

/// Text that is read into memory, as for training from text.
const MAX_BYTES: u64 = 1 << 30;

/// What the data of a configuration is, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DataReport {
    /// Number of documents, or of conversations.
    pub documents: u64,
    /// Whether these are conversations.
    #[serde(default)]
    pub is_chat: bool,
    /// Bytes of text; 0 for prepared data and conversations.
    pub bytes: u64,
    /// Training tokens.
    pub train_tokens: u64,
    /// Validation tokens.
    pub validation_tokens: u64,
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Those of them that occur in the training split.
    pub used_tokens: usize,
    /// The findings, by kind.
    pub findings: Vec<Finding>,
    /// Checks that could not be made, with the reason.
    pub not_checked: Vec<String>,
}

/// Checks the data of `config`: bytes of the files, documents, tokens, and the split. The text is read into memory.
///
/// # Errors
/// [`ExperimentError::Train`] if the configuration is invalid. Data that cannot be read is a finding.
///
/// ```
/// use nextword_experiments::doctor::{FindingKind, check_data};
/// use nextword_train::RunConfig;
///
/// let folder = tempfile::tempdir()?;
/// let file = folder.path().join("text.txt");
/// std::fs::write(&file, format!("\u{feff}{}", "one line\r\nanother line\r\n".repeat(100)))?;
/// let mut config = RunConfig::default();
/// config.data.path = Some(file);
/// let report = check_data(&config)?;
/// let kinds: Vec<FindingKind> = report.findings.iter().map(|finding| finding.kind).collect();
/// assert!(kinds.starts_with(&[FindingKind::ByteOrderMark, FindingKind::CarriageReturns]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn check_data(config: &RunConfig) -> Result<DataReport, ExperimentError> {
    config
        .data
        .validate()
        .map_err(nextword_train::TrainError::from)?;
    let mut report = DataReport::default();
    if config.data.has_conversations() {
        check_conversations(config, &mut report);
        return Ok(report);
    }
    if config.data.has_pairs() {
        let reason = "pairs of source and target: there are no checks for them";
        report.not_checked.push(reason.to_string());
        return Ok(report);
    }
    if config.data.prepared.is_none() {
        check_texts(config, &mut report)?;
    } else {
        let reason =
            "the files and documents of prepared data: check the text that it was prepared from";
        report.not_checked.push(reason.to_string());
    }
    match dataset(config) {
        Ok(dataset) => check_tokens(config, &dataset, &mut report)?,
        Err(error) => report.add_unreadable(&error.to_string()),
    }
    report.findings.sort_by_key(|finding| finding.kind);
    Ok(report)
}

impl DataReport {
    fn add_unreadable(&mut self, error: &str) {
        let (problem, fix) = error.split_once("; hint: ").unwrap_or((error, "see above"));
        let explains = [
            FindingKind::InvalidUtf8,
            FindingKind::Nul,
            FindingKind::Unreadable,
        ];
        let is_explained = self
            .findings
            .iter()
            .any(|finding| explains.contains(&finding.kind));
        let reason = "tokens and split: the text cannot be read";
        if !self.not_checked.iter().any(|earlier| earlier == reason) {
            self.not_checked.push(reason.to_string());
        }
        if !is_explained {
            let finding = Finding::new(
                FindingKind::Unreadable,
                1,
                "the data cannot be read",
                problem,
                fix,
            );
            self.findings.push(finding);
        }
    }
}

/// The tokens as a run has them.
fn dataset(config: &RunConfig) -> Result<Dataset, ExperimentError> {
    if config.start_from.is_some() {
        return Ok(prepare_run(config.clone())?.dataset);
    }
    let mut data = config.data.clone();
    use_declared_eos(&mut data.tokenizer);
    let dataset = Dataset::build(&data).map_err(nextword_train::TrainError::from)?;
    Ok(dataset)
}

fn check_texts(config: &RunConfig, report: &mut DataReport) -> Result<(), ExperimentError> {
    let data = &config.data;
    let sources = match Sources::from_config(data) {
        Ok(sources) => sources,
        Err(error) => {
            report.add_unreadable(&error.to_string());
            return Ok(());
        }
    };
    if data.builtin.is_none() {
        report
            .findings
            .extend(bytes::check_files(&sources.names())?);
    }
    if sources.total_bytes().is_some_and(|bytes| bytes > MAX_BYTES) {
        let reason = "documents: the text has more than 1 GiB";
        report.not_checked.push(reason.to_string());
        return Ok(());
    }
    match documents::read(&sources) {
        Ok(documents) => {
            report.documents = documents.len() as u64;
            report.bytes = documents.iter().map(|text| text.len() as u64).sum();
            report.findings.extend(documents::check(&documents, data));
        }
        Err(_) => report
            .not_checked
            .push("documents: the text cannot be read".to_string()),
    }
    Ok(())
}

fn check_tokens(
    config: &RunConfig,
    dataset: &Dataset,
    report: &mut DataReport,
) -> Result<(), ExperimentError> {
    let counts = vocabulary::count_tokens(dataset)?;
    report.train_tokens = dataset.train.len() as u64;
    report.validation_tokens = dataset.validation.len() as u64;
    report.vocab_size = dataset.tokenizer.vocab_size();
    report.used_tokens = counts.used();
    report
        .findings
        .extend(vocabulary::check(dataset, &counts, report.bytes));
    report.findings.extend(splits::check(config, dataset)?);
    Ok(())
}

fn check_conversations(config: &RunConfig, report: &mut DataReport) {
    report.is_chat = true;
    let conversations = match prepare_conversations(config.clone()) {
        Ok(Some(conversations)) => conversations,
        Ok(None) => return,
        Err(error) => return report.add_unreadable(&error.to_string()),
    };
    let read = &conversations.report;
    report.documents = (read.train + read.validation) as u64;
    report.train_tokens = conversations.train.token_count() as u64;
    report.validation_tokens = conversations.validation.token_count() as u64;
    if read.too_long > 0 {
        let example = read.too_long_places.first();
        report.findings.push(Finding::new(
            FindingKind::LongConversations,
            read.too_long as u64,
            format!(
                "of {} do not fit into a sequence of {}, and are cut or left out",
                count(read.all_samples() as u64, "sample"),
                count(read.sequence_length as u64, "token")
            ),
            example.map_or("", String::as_str),
            read.length_hint(),
        ));
    }
    for (reason, left_out) in read.damaged() {
        let example = left_out.places.first().map_or("", String::as_str);
        report.findings.push(Finding::new(
            FindingKind::LeftOutConversations,
            left_out.count as u64,
            format!(
                "{} left out: {reason}",
                agree(
                    left_out.count as u64,
                    "conversation is",
                    "conversations are"
                )
            ),
            example,
            "correct them; `nextword preview CONFIG` shows them",
        ));
    }
    if read.shared_prompts > 0 {
        report.findings.push(Finding::new(
            FindingKind::Leakage,
            read.shared_prompts as u64,
            format!(
                "{} of the validation split {} also in the training split",
                agree(read.shared_prompts as u64, "prompt", "prompts"),
                agree(read.shared_prompts as u64, "is", "are")
            ),
            "",
            "remove repeated conversations",
        ));
    }
}
