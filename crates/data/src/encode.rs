//! Encoding documents to ids, chunk by chunk.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::config::{SplitBy, SplitConfig};
use crate::documents::{Sources, TextChunk};
use crate::error::DataError;
use crate::rng::{CounterRng, stream};
use crate::tokenizer::{Encoding, Tokenizer};

/// The ids of one chunk of a document.
#[derive(Debug)]
pub(crate) struct EncodedChunk<'a> {
    /// Document index, from 0.
    pub(crate) document: u64,
    /// Whether these are the first ids of the document.
    pub(crate) is_first: bool,
    /// The ids; not empty if `is_first`.
    pub(crate) ids: &'a [u32],
    /// Bytes of text so far, including this chunk.
    pub(crate) bytes: u64,
}

/// Totals over all encoded documents.
#[derive(Debug, Default)]
pub(crate) struct EncodeTotals {
    /// Number of documents, excluding those without ids.
    pub(crate) documents: u64,
    /// Bytes of text.
    pub(crate) bytes: u64,
    /// The parts of the text that are not in the vocabulary; its ids are empty.
    pub(crate) unknown: Encoding,
    /// Number of all parts of the text, EOS tokens that were appended not included.
    pub(crate) parts: u64,
}

/// Bytes of text per thread and batch.
const BYTES_PER_THREAD: usize = 512 << 10;

/// Encodes all documents and passes their ids to `sink` in document order. Appends the EOS token to
/// each document that does not already end with it. Uses all cores and bounded memory.
///
/// # Errors
/// Errors of the text and of `sink`; [`DataError::Tokenizer`] if the tokenizer, which the message
/// calls `name`, cannot encode any part of the text, or needs too much work for a part of it.
pub(crate) fn encode_documents(
    sources: &Sources,
    name: &str,
    tokenizer: &dyn Tokenizer,
    mut sink: impl FnMut(EncodedChunk) -> Result<(), DataError>,
) -> Result<EncodeTotals, DataError> {
    let eos = tokenizer.special_tokens().eos;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut totals = EncodeTotals::default();
    let (mut is_first, mut last, mut any_ids) = (true, None, false);
    let mut chunks = sources.chunks_for(tokenizer.text_cuts());
    loop {
        let batch = next_batch(&mut chunks, cores * BYTES_PER_THREAD)?;
        if batch.is_empty() {
            break;
        }
        for (chunk, encoding) in batch.iter().zip(encode_chunks(tokenizer, &batch, cores)) {
            let encoding = encoding?;
            totals.unknown.add_unknown(&encoding);
            totals.parts += encoding.part_count() as u64;
            let mut ids = encoding.ids;
            any_ids |= !ids.is_empty();
            totals.bytes += chunk.text.len() as u64;
            last = ids.last().copied().or(last);
            if chunk.is_last && last != eos {
                ids.extend(eos);
            }
            if !ids.is_empty() {
                sink(EncodedChunk {
                    document: totals.documents,
                    is_first,
                    ids: &ids,
                    bytes: totals.bytes,
                })?;
                is_first = false;
            }
            if chunk.is_last {
                totals.documents += u64::from(!is_first);
                (is_first, last) = (true, None);
            }
        }
    }
    match totals.unknown.unknown.first() {
        Some(first) if !any_ids => Err(no_ids_error(name, first)),
        _ => Ok(totals),
    }
}

fn no_ids_error(name: &str, first: &str) -> DataError {
    DataError::tokenizer(
        name,
        format!(
            "cannot encode any part of the text, which begins with {first:?}, and has no unknown token; hint: \
             set tokenizer.file to a tokenizer for this kind of text, or remove the key"
        ),
    )
}

/// Returns the next chunks, about `size` bytes in total; empty at the end of the text.
fn next_batch(
    chunks: &mut impl Iterator<Item = Result<TextChunk, DataError>>,
    size: usize,
) -> Result<Vec<TextChunk>, DataError> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while bytes < size {
        let Some(chunk) = chunks.next().transpose()? else {
            break;
        };
        // Empty chunks take memory too.
        bytes += chunk.text.len() + size_of::<TextChunk>();
        batch.push(chunk);
    }
    Ok(batch)
}

/// Encodes `chunks` in parallel; the result has the same order. Each thread takes the next chunk.
fn encode_chunks(
    tokenizer: &dyn Tokenizer,
    chunks: &[TextChunk],
    threads: usize,
) -> Vec<Result<Encoding, DataError>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some((index, chunk)) = take_next(&next, chunks) {
            done.push((index, tokenizer.try_encode(&chunk.text)));
        }
        done
    };
    let threads = threads.min(chunks.len());
    let mut done = std::thread::scope(|scope| {
        let workers: Vec<_> = (1..threads)
            // If a thread cannot be spawned, the existing ones do the work.
            .map_while(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok())
            .collect();
        let mut done = work();
        for worker in workers {
            match worker.join() {
                Ok(results) => done.extend(results),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    });
    done.sort_unstable_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, encoding)| encoding).collect()
}

fn take_next<'a>(next: &AtomicUsize, chunks: &'a [TextChunk]) -> Option<(usize, &'a TextChunk)> {
    let index = next.fetch_add(1, Ordering::Relaxed);
    Some((index, chunks.get(index)?))
}

/// Whether `document` belongs to the validation split, when splitting by documents.
pub(crate) fn is_validation(split: &SplitConfig, document: u64) -> bool {
    split.by == SplitBy::Documents
        && CounterRng::with_stream(split.seed, stream::SPLIT).uniform(document) < split.validation
}

/// Number of training tokens out of `count`. A tail split is nanoGPT's: `int(0.9 * n)`.
pub(crate) fn train_count(split: &SplitConfig, count: u64) -> u64 {
    match split.by {
        SplitBy::Tail => ((1.0 - split.validation) * count as f64) as u64,
        SplitBy::Documents => count,
    }
}

/// Returns an error if a requested split is empty.
pub(crate) fn check_split(
    split: &SplitConfig,
    train: u64,
    validation: u64,
) -> Result<(), DataError> {
    let hint = match split.by {
        _ if split.validation == 0.0 => "add text that the tokenizer has tokens for",
        SplitBy::Tail => {
            "add text, or set data.split.validation = 0 to use everything for training"
        }
        SplitBy::Documents => {
            "add documents, change data.split.seed, set data.split.by = \"tail\", or set data.split.validation = 0 to use \
             everything for training"
        }
    };
    if train == 0 || (validation == 0 && split.validation > 0.0) {
        return Err(DataError::config(format!(
            "split.validation = {} leaves {train} tokens for training and {validation} for validation; hint: {hint}",
            split.validation
        )));
    }
    Ok(())
}
