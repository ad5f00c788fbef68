//! Checks of the split into training and validation.

use nextword_data::{Dataset, Packing, SplitBy, Tokens};
use nextword_train::RunConfig;

use super::vocabulary::for_each_token;
use super::{Finding, FindingKind, agree, leakage};
use crate::ExperimentError;

/// Validation tokens below which the loss is too uncertain to compare runs.
const MIN_VALIDATION: usize = 1000;

/// The smallest share of validation tokens, if there are few.
const MIN_VALIDATION_SHARE: f64 = 0.005;

/// Nats by which byte frequencies may differ between the splits. The parts of one book differ by about 0.01, languages by more
/// than 0.1.
const MAX_DIVERGENCE: f64 = 0.08;

/// Fewer documents cannot be divided so that both splits have each kind of text.
const MIN_DOCUMENTS: usize = 10;

/// Checks the splits of `dataset`.
pub(super) fn check(
    config: &RunConfig,
    dataset: &Dataset,
) -> Result<Vec<Finding>, ExperimentError> {
    let mut findings = Vec::new();
    findings.extend(small_training(config, dataset));
    findings.extend(small_validation(dataset));
    findings.extend(long_documents(config, dataset));
    if dataset.validation.is_empty() {
        return Ok(findings);
    }
    let [train, validation] =
        [&dataset.train, &dataset.validation].map(|tokens| text(dataset, tokens));
    let (train, validation) = (train?, validation?);
    findings.extend(different(
        config,
        document_count(dataset),
        &train,
        &validation,
    ));
    findings.extend(leakage::check(&train, &validation));
    Ok(findings)
}

/// Documents in both splits; one that is divided between them counts twice.
fn document_count(dataset: &Dataset) -> usize {
    dataset.train.document_count() + dataset.validation.document_count()
}

/// The text of a split.
fn text(dataset: &Dataset, tokens: &Tokens) -> Result<String, ExperimentError> {
    let mut ids = Vec::with_capacity(tokens.len());
    for_each_token(tokens, &mut |id| ids.push(id))?;
    Ok(dataset.tokenizer.decode_with_special_tokens(&ids))
}

fn small_training(config: &RunConfig, dataset: &Dataset) -> Option<Finding> {
    let (tokens, length) = (dataset.train.len(), config.sequence_length());
    // A text that fits one sequence is memorized on purpose, as StatQuest's.
    let is_too_short = config.data.builtin.is_none() && tokens <= length;
    is_too_short.then(|| {
        Finding::new(
            FindingKind::SmallTraining,
            tokens as u64,
            format!(
                "{} not fill one sequence of {length}",
                agree(tokens as u64, "training token does", "training tokens do")
            ),
            "",
            "add text, or lower model.context_length",
        )
    })
}

fn small_validation(dataset: &Dataset) -> Option<Finding> {
    let (train, validation) = (dataset.train.len(), dataset.validation.len());
    let share = validation as f64 / (train + validation).max(1) as f64;
    let is_small = validation < MIN_VALIDATION && share < MIN_VALIDATION_SHARE;
    (validation > 0 && is_small).then(|| {
        Finding::new(
            FindingKind::SmallValidation,
            validation as u64,
            format!(
                "{} too few beside {train} training tokens to compare runs",
                agree(
                    validation as u64,
                    "validation token is",
                    "validation tokens are"
                )
            ),
            "",
            "raise data.split.validation to 0.05 or more",
        )
    })
}

fn long_documents(config: &RunConfig, dataset: &Dataset) -> Option<Finding> {
    if config.data.packing != Packing::Documents {
        return None;
    }
    let length = config.sequence_length();
    let tokens = &dataset.train;
    let lengths = (0..tokens.document_count()).map(|index| tokens.document(index).len());
    let long: Vec<usize> = lengths.filter(|document| *document > length + 1).collect();
    let longest = long.iter().max()?;
    Some(Finding::new(
        FindingKind::LongDocuments,
        long.len() as u64,
        format!(
            "{} longer than a sequence of {length} tokens, so that the end is read without the beginning",
            agree(long.len() as u64, "document is", "documents are")
        ),
        &format!("the longest has {longest} tokens"),
        "raise model.context_length, or split the documents",
    ))
}

/// Compares the frequencies of bytes.
fn different(
    config: &RunConfig,
    documents: usize,
    train: &str,
    validation: &str,
) -> Option<Finding> {
    if validation.len() < MIN_VALIDATION {
        return None;
    }
    let divergence = divergence(train.as_bytes(), validation.as_bytes());
    if divergence < MAX_DIVERGENCE {
        return None;
    }
    let example: String = validation.chars().take(60).collect();
    let fix = match config.data.split.by {
        SplitBy::Tail if documents < MIN_DOCUMENTS => {
            "add text of this kind to the training text, before its end, or set data.separator to divide the text into documents"
        }
        SplitBy::Tail => {
            "set data.split.by = \"documents\", so that each kind of text is in both splits"
        }
        SplitBy::Documents => {
            "check that documents of each kind are in both splits, or change data.split.seed"
        }
    };
    Some(Finding::new(
        FindingKind::DifferentSplits,
        validation.len() as u64,
        format!(
            "bytes of validation text are of another kind than the training text: byte frequencies differ by {divergence:.2} \
             nats"
        ),
        &example.escape_debug().to_string(),
        fix,
    ))
}

/// The Kullback-Leibler divergence of the byte frequencies of `validation` from those of `train`, without the part that
/// a small sample has by chance (its unused degrees of freedom, over twice its size).
fn divergence(train: &[u8], validation: &[u8]) -> f64 {
    let count = |bytes: &[u8]| {
        let mut counts = [0_u64; 256];
        for byte in bytes {
            counts[*byte as usize] += 1;
        }
        counts
    };
    let (expected, found) = (count(train), count(validation));
    let total = validation.len() as f64;
    let smoothed = train.len() as f64 + 128.0;
    let parts = found.iter().zip(&expected).filter(|(found, _)| **found > 0);
    let sum: f64 = parts
        .map(|(found, expected)| {
            let p = *found as f64 / total;
            p * (p * smoothed / (*expected as f64 + 0.5)).ln()
        })
        .sum();
    let used = found.iter().filter(|count| **count > 0).count() as f64;
    sum - (used - 1.0) / (2.0 * total)
}
