//! Documents to ids, piece by piece.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::config::{SplitBy, SplitConfig};
use crate::documents::{Piece, Sources};
use crate::error::DataError;
use crate::rng::{Random, stream};
use crate::tokenizer::{Encoding, Tokenizer, TokenizerConfig};

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

/// Text that each core is given at a time, in bytes.
const SHARE: usize = 512 << 10;

/// Hands the ids of all documents to `sink`, with the end token after each document that does not
/// already end in it. All cores encode; the order is the documents', and memory does not grow with
/// them.
///
/// # Errors
/// Those of the text and of `sink`; [`DataError::Tokenizer`] if the tokenizer, which `config`
/// describes, has no id for anything in the text.
pub(crate) fn encode_documents(
    sources: &Sources,
    config: &TokenizerConfig,
    tokenizer: &dyn Tokenizer,
    mut sink: impl FnMut(Part) -> Result<(), DataError>,
) -> Result<Totals, DataError> {
    let eos = tokenizer.specials().eos;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut totals = Totals::default();
    let mut unknown = Encoding::default();
    let (mut start, mut last, mut expressed) = (true, None, false);
    let mut pieces = sources.pieces();
    loop {
        let batch = next_batch(&mut pieces, cores * SHARE)?;
        if batch.is_empty() {
            break;
        }
        for (piece, encoding) in batch.iter().zip(encode_all(tokenizer, &batch, cores)) {
            let Encoding {
                mut ids,
                unknown: found,
            } = encoding;
            for piece in &found {
                unknown.note_unknown(piece);
            }
            expressed |= !ids.is_empty();
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
    }
    match unknown.unknown.first() {
        Some(first) if !expressed => Err(no_ids(config, first)),
        _ => {
            totals.unknown = unknown.unknown;
            Ok(totals)
        }
    }
}

fn no_ids(config: &TokenizerConfig, first: &str) -> DataError {
    let place = match &config.file {
        Some(file) => file.display().to_string(),
        None => format!("{:?}", config.kind).to_lowercase(),
    };
    DataError::tokenizer(
        place,
        format!(
            "has no id for anything in the text, which begins with {first:?}, and no unknown token; hint: set \
             tokenizer.file to one that was made for such text, or leave it out"
        ),
    )
}

/// The next pieces, until they have `size` bytes or the text ends.
fn next_batch(
    pieces: &mut impl Iterator<Item = Result<Piece, DataError>>,
    size: usize,
) -> Result<Vec<Piece>, DataError> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while bytes < size {
        let Some(piece) = pieces.next().transpose()? else {
            break;
        };
        // An empty piece takes memory too.
        bytes += piece.text.len() + size_of::<Piece>();
        batch.push(piece);
    }
    Ok(batch)
}

/// Each piece in ids, in the order of the pieces. Threads take the next piece that is left.
fn encode_all(tokenizer: &dyn Tokenizer, pieces: &[Piece], threads: usize) -> Vec<Encoding> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some((at, piece)) = take(&next, pieces) {
            done.push((at, tokenizer.encode(&piece.text)));
        }
        done
    };
    let threads = threads.min(pieces.len());
    let mut done = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads)
            // Where the system gives no more threads, those that there are do the work.
            .map_while(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok())
            .collect();
        let mut done = work();
        for other in others {
            match other.join() {
                Ok(more) => done.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    });
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, encoding)| encoding).collect()
}

fn take<'a>(next: &AtomicUsize, pieces: &'a [Piece]) -> Option<(usize, &'a Piece)> {
    let at = next.fetch_add(1, Ordering::Relaxed);
    Some((at, pieces.get(at)?))
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
