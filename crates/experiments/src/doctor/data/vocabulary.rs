//! Checks of tokens.

use nextword_data::{DataError, Dataset, Tokens};

use super::{Finding, FindingKind, agree};
use crate::ExperimentError;

/// Vocabularies from this size on were trained on text, and most of their tokens should occur.
const LARGE_VOCABULARY: usize = 1000;

/// The share of a large vocabulary that should occur, if the text is long enough for it.
const MIN_USED: f64 = 0.5;

/// Training tokens per entry of the vocabulary from which on all of it could occur.
const TOKENS_PER_ENTRY: usize = 20;

/// Tokens per byte above which a large vocabulary does not fit the text; 0.2 to 0.35 are usual.
const MAX_TOKENS_PER_BYTE: f64 = 0.6;

/// Tokens that are read at a time.
const CHUNK: usize = 1 << 16;

/// How often each token occurs in the training split.
pub(super) struct TokenCounts(Vec<u64>);

impl TokenCounts {
    /// Number of tokens that occur.
    pub(super) fn used(&self) -> usize {
        self.0.iter().filter(|count| **count > 0).count()
    }
}

/// Counts the tokens of the training split.
pub(super) fn count_tokens(dataset: &Dataset) -> Result<TokenCounts, ExperimentError> {
    let mut counts = vec![0; dataset.tokenizer.vocab_size()];
    for_each_token(&dataset.train, &mut |id| {
        if let Some(count) = counts.get_mut(id as usize) {
            *count += 1;
        }
    })?;
    Ok(TokenCounts(counts))
}

/// Calls `visit` with each token.
pub(super) fn for_each_token(
    tokens: &Tokens,
    visit: &mut dyn FnMut(u32),
) -> Result<(), ExperimentError> {
    let mut ids = Vec::new();
    for start in (0..tokens.len()).step_by(CHUNK) {
        ids.clear();
        let range = start..(start + CHUNK).min(tokens.len());
        let read: Result<(), DataError> = tokens.read(range, &mut ids);
        read.map_err(nextword_train::TrainError::from)?;
        ids.iter().copied().for_each(&mut *visit);
    }
    Ok(())
}

/// Checks how the vocabulary fits the text of `bytes` bytes.
pub(super) fn check(dataset: &Dataset, counts: &TokenCounts, bytes: u64) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(unknown(dataset));
    let (vocab, used) = (counts.0.len(), counts.used());
    if vocab < LARGE_VOCABULARY {
        return findings;
    }
    let could_occur = vocab.min(dataset.train.len() / TOKENS_PER_ENTRY).max(1);
    if (used as f64) < MIN_USED * could_occur as f64 {
        let unused = counts.0.iter().position(|count| *count == 0);
        let example = unused.and_then(|id| dataset.tokenizer.token_text(id as u32));
        findings.push(Finding::new(
            FindingKind::UnusedTokens,
            (vocab - used) as u64,
            format!(
                "of {vocab} tokens of the vocabulary never {}, so that {} random",
                agree((vocab - used) as u64, "occurs", "occur"),
                agree(
                    (vocab - used) as u64,
                    "its embedding stays",
                    "their embeddings stay"
                )
            ),
            &example.unwrap_or_default().escape_debug().to_string(),
            "use a smaller vocabulary that is trained on this text: data.tokenizer.kind = \"bpe\"",
        ));
    }
    let tokens = (dataset.train.len() + dataset.validation.len()) as f64;
    if bytes > 0 && tokens / bytes as f64 > MAX_TOKENS_PER_BYTE {
        findings.push(Finding::new(
            FindingKind::TokensPerByte,
            tokens as u64,
            format!(
                "tokens for {bytes} bytes: {:.2} per byte, so that the tokenizer was not made for this text",
                tokens / bytes as f64
            ),
            "",
            "use a tokenizer for this language or kind of text, or train one: data.tokenizer.kind = \"bpe\"",
        ));
    }
    findings
}

fn unknown(dataset: &Dataset) -> Option<Finding> {
    let card = dataset
        .card
        .as_ref()
        .filter(|card| card.unknown_count > 0)?;
    let parts = card.part_count.max(1);
    Some(Finding::new(
        FindingKind::UnknownText,
        card.unknown_count,
        format!(
            "of {parts} parts of the text {} not in the vocabulary",
            agree(card.unknown_count, "is", "are")
        ),
        &card.unknown.join(" ").escape_debug().to_string(),
        "use a tokenizer that knows them; bytes and BPE know every text",
    ))
}
