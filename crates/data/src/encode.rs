//! Documents to ids, piece by piece.

use crate::config::{SplitBy, SplitConfig};
use crate::documents::Sources;
use crate::error::DataError;
use crate::rng::{Random, stream};
use crate::tokenizer::{Encoding, Tokenizer};

/// The ids of one piece of a document.
#[derive(Debug)]
pub(crate) struct Part<'a> {
    /// Number of the document, from 0.
    pub(crate) document: u64,
    /// These are the first ids of the document.
    pub(crate) start: bool,
    /// At least one id if `start`.
    pub(crate) ids: &'a [u32],
    /// Bytes of text so far, this piece included.
    pub(crate) bytes: u64,
}

/// What was encoded.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    /// Documents, without those that gave no ids.
    pub(crate) documents: u64,
    /// Bytes of text.
    pub(crate) bytes: u64,
    /// Pieces of text that the vocabulary does not have.
    pub(crate) unknown: Vec<String>,
}

/// Hands the ids of all documents to `sink`, with the end token after each document that does not
/// already end in it.
pub(crate) fn encode_documents(
    sources: &Sources,
    tokenizer: &dyn Tokenizer,
    mut sink: impl FnMut(Part) -> Result<(), DataError>,
) -> Result<Totals, DataError> {
    let eos = tokenizer.specials().eos;
    let mut totals = Totals::default();
    let mut unknown = Encoding::default();
    let (mut start, mut last) = (true, None);
    for piece in sources.pieces() {
        let piece = piece?;
        let Encoding {
            mut ids,
            unknown: found,
        } = tokenizer.encode(&piece.text);
        for piece in &found {
            unknown.note_unknown(piece);
        }
        totals.bytes += piece.text.len() as u64;
        last = ids.last().copied().or(last);
        if piece.end && last != eos {
            ids.extend(eos);
        }
        if !ids.is_empty() {
            sink(Part {
                document: totals.documents,
                start,
                ids: &ids,
                bytes: totals.bytes,
            })?;
            start = false;
        }
        if piece.end {
            totals.documents += u64::from(!start);
            (start, last) = (true, None);
        }
    }
    totals.unknown = unknown.unknown;
    Ok(totals)
}

/// Whether document number `document` is for validation, under a split by documents.
pub(crate) fn is_validation(split: &SplitConfig, document: u64) -> bool {
    split.by == SplitBy::Documents
        && Random::new(split.seed, stream::SPLIT).f64(document) < split.validation
}

/// How many of `count` tokens are for training, under a split by tail: nanoGPT's `int(0.9 * n)`.
pub(crate) fn train_count(split: &SplitConfig, count: u64) -> u64 {
    match split.by {
        SplitBy::Tail => ((1.0 - split.validation) * count as f64) as u64,
        SplitBy::Documents => count,
    }
}

/// An error if a split that was asked for came out empty.
pub(crate) fn check_split(
    split: &SplitConfig,
    train: u64,
    validation: u64,
) -> Result<(), DataError> {
    let fix = match split.by {
        SplitBy::Tail => "give more text, or set split.validation = 0 to keep all for training",
        SplitBy::Documents => {
            "give more documents, another split.seed, split.by = \"tail\", or split.validation = 0 to keep all for \
             training"
        }
    };
    if train == 0 || (validation == 0 && split.validation > 0.0) {
        return Err(DataError::config(format!(
            "split.validation = {} leaves {train} tokens for training and {validation} for validation; hint: {fix}",
            split.validation
        )));
    }
    Ok(())
}
