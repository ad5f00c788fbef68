//! Samples: token ids of which only some are targets of the loss.

mod builder;
mod file;
mod layout;
mod order;
mod packing;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use memmap2::Mmap;
use sha2::{Digest, Sha256};

pub use self::builder::SamplesBuilder;
pub use self::layout::SampleLayout;
pub(crate) use self::order::SampleOrder;
use crate::batch::{IGNORE, TokenBatch, check_size};
use crate::batch_mask::{BatchMask, SampleSegment};
use crate::error::DataError;

/// Rows of a batch are padded to a multiple of this many tokens: few lengths mean few buffers of new sizes, and on a
/// GPU few programs.
pub const LENGTH_MULTIPLE: usize = 32;

/// Number of values hashed or written at a time.
const CHUNK: usize = 16 << 10;

/// Samples of a finetuning run: the ids of each one, and the spans of them that are trained. Cheap to clone.
///
/// All ids are in one list, and so are all spans, with the start of each sample in both (compressed sparse rows). The
/// ids are in memory or in a memory-mapped file (see [`write`](Self::write)).
///
/// # Example
///
/// ```
/// use nextword_data::SamplesBuilder;
///
/// let mut builder = SamplesBuilder::default();
/// builder.push(&[1, 5, 6, 7, 2], &[3..5])?; // of `<s> a question answer </s>`, the last two
/// builder.push(&[1, 8, 2], &[1..2, 2..3])?;
/// let samples = builder.finish();
/// assert_eq!((samples.len(), samples.token_count(), samples.trained_count()), (2, 8, 4));
/// let first = samples.sample(0)?;
/// assert_eq!(first.ids, [1, 5, 6, 7, 2]);
/// assert_eq!(first.trained, [3..5]);
/// # Ok::<(), nextword_data::DataError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Samples {
    tables: Arc<Tables>,
    ids: Arc<Ids>,
    layout: SampleLayout,
}

/// One sample.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sample {
    /// All tokens.
    pub ids: Vec<u32>,
    /// Positions of the tokens that are targets: ascending, disjoint, none of them empty or at position 0.
    pub trained: Vec<Range<usize>>,
}

/// Where samples and spans start. Checked when they are made or read from a file.
#[derive(Debug, Default)]
struct Tables {
    /// First id of each sample, and the number of ids.
    starts: Vec<u64>,
    /// First span of each sample, and the number of spans.
    span_starts: Vec<u64>,
    /// First position of each span in its sample, and the position after it.
    spans: Vec<[u32; 2]>,
}

#[derive(Debug)]
enum Ids {
    Memory(Vec<u32>),
    File {
        path: PathBuf,
        map: Mmap,
        /// Byte offset of the ids.
        offset: usize,
        vocab_size: usize,
    },
}

impl Samples {
    /// Number of samples.
    pub fn len(&self) -> usize {
        self.tables.starts.len().saturating_sub(1)
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of tokens in all samples.
    pub fn token_count(&self) -> usize {
        self.tables.starts.last().copied().unwrap_or(0) as usize
    }

    /// Number of tokens in sample `index`; 0 if there is no such sample.
    pub fn tokens_in(&self, index: usize) -> usize {
        self.id_range(index).len()
    }

    /// Number of trained tokens in all samples.
    pub fn trained_count(&self) -> usize {
        let spans = self.tables.spans.iter();
        spans.map(|[start, end]| (end - start) as usize).sum()
    }

    /// Number of trained tokens in sample `index`; 0 if there is no such sample.
    pub fn trained_in(&self, index: usize) -> usize {
        self.spans(index).map(|span| span.len()).sum()
    }

    /// Number of inputs that a batch needs for sample `index`: up to the last one whose next token is trained; in
    /// [`SampleLayout::EncoderDecoder`] those of the encoder or of the decoder, whichever are more.
    ///
    /// ```
    /// let mut builder = nextword_data::SamplesBuilder::default();
    /// builder.push(&[1, 5, 6, 2, 9], &[2..4])?; // The last input is 6, the last target 2.
    /// assert_eq!(builder.finish().row_length(0), 3);
    /// # Ok::<(), nextword_data::DataError>(())
    /// ```
    pub fn row_length(&self, index: usize) -> usize {
        if self.layout == SampleLayout::EncoderDecoder {
            return self.longer_part(index);
        }
        self.spans(index).next_back().map_or(0, |span| span.end - 1)
    }

    /// The largest [`row_length`](Self::row_length); 0 without samples.
    pub fn longest_row(&self) -> usize {
        let lengths = (0..self.len()).map(|index| self.row_length(index));
        lengths.max().unwrap_or(0)
    }

    /// Reads sample `index`.
    ///
    /// # Errors
    /// [`DataError::Config`] if there is no such sample; [`DataError::Shard`] if the file contains an id outside its
    /// vocabulary.
    pub fn sample(&self, index: usize) -> Result<Sample, DataError> {
        if index >= self.len() {
            return Err(DataError::config(format!(
                "there is no sample {index}: there are {}",
                self.len()
            )));
        }
        let range = self.id_range(index);
        let mut ids = Vec::with_capacity(range.len());
        self.ids.read(range, &mut ids)?;
        Ok(Sample {
            ids,
            trained: self.spans(index).collect(),
        })
    }

    /// The samples `indices` as rows of one batch, in this order. All are padded with `padding_id` to the longest of
    /// them, rounded up to a multiple of 32 but at most to `max_length`. Targets that are not trained are
    /// [`IGNORE`](crate::IGNORE).
    ///
    /// # Errors
    /// As [`sample`](Self::sample); [`DataError::Config`] for a batch of more than 2^28 tokens.
    ///
    /// ```
    /// use nextword_data::{IGNORE, SamplesBuilder};
    ///
    /// let mut builder = SamplesBuilder::default();
    /// builder.push(&[1, 5, 6, 2], &[2..4])?;
    /// builder.push(&[1, 7, 2], &[2..3])?;
    /// let batch = builder.finish().batch(&[0, 1], 4, 0)?;
    /// assert_eq!(batch.inputs, [1, 5, 6, 0, /* second row */ 1, 7, 0, 0]);
    /// assert_eq!(batch.targets, [IGNORE, 6, 2, IGNORE, /* second row */ IGNORE, 2, IGNORE, IGNORE]);
    /// # Ok::<(), nextword_data::DataError>(())
    /// ```
    pub fn batch(
        &self,
        indices: &[usize],
        max_length: usize,
        padding_id: u32,
    ) -> Result<TokenBatch, DataError> {
        let lengths = indices.iter().map(|index| self.row_length(*index));
        let longest = lengths.max().unwrap_or(0);
        let rows: Vec<Vec<usize>> = indices.iter().map(|index| vec![*index]).collect();
        self.rows(&rows, padded_length(longest, max_length), padding_id)
    }

    /// Rows of `seq` tokens, each with the samples of these indices, whose row lengths are not more than that together.
    /// If a row has several samples, each of them is a segment of the mask. If none has, the mask is the causal one.
    pub(crate) fn rows(
        &self,
        rows: &[Vec<usize>],
        seq: usize,
        padding_id: u32,
    ) -> Result<TokenBatch, DataError> {
        check_size(rows.len(), seq)?;
        if self.layout == SampleLayout::EncoderDecoder {
            return self.rows_with_source(rows, seq, padding_id);
        }
        let mut batch = TokenBatch::with_capacity(rows.len(), seq);
        let mut segments = Vec::with_capacity(rows.len());
        for row in rows {
            let mut in_row = Vec::with_capacity(row.len());
            for index in row {
                let sample = self.sample(*index)?;
                push_sample(&mut batch, &sample);
                in_row.push(SampleSegment {
                    len: self.row_length(*index),
                    prefix: self.layout.prefix(&sample),
                });
            }
            batch.end_row(padding_id);
            segments.push(in_row);
        }
        if self.layout == SampleLayout::Prefix || rows.iter().any(|row| row.len() > 1) {
            batch.mask = BatchMask::Segments(segments);
        }
        Ok(batch)
    }

    /// Returns the SHA-256 of the samples in hexadecimal: of the numbers of samples, spans and ids, then of the starts
    /// of both (u64), the spans and the ids (u32), all little-endian. Equal samples in memory and in a file have equal
    /// hashes.
    pub fn content_hash(&self) -> String {
        let mut hasher = Sha256::new();
        self.for_each_chunk(|bytes| {
            hasher.update(bytes);
            Ok::<(), std::convert::Infallible>(())
        })
        .unwrap_or_else(|never| match never {});
        hex::encode(hasher.finalize())
    }

    /// Calls `visit` with the bytes of which [`content_hash`](Self::content_hash) is the hash.
    fn for_each_chunk<E>(&self, mut visit: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let tables = &self.tables;
        let counts = [self.len(), tables.spans.len(), self.token_count()];
        let counts = counts.map(|count| (count as u64).to_le_bytes());
        visit(&counts.concat())?;
        for table in [&tables.starts, &tables.span_starts] {
            for chunk in table.chunks(CHUNK) {
                let bytes: Vec<u8> = chunk.iter().flat_map(|at| at.to_le_bytes()).collect();
                visit(&bytes)?;
            }
        }
        for chunk in tables.spans.chunks(CHUNK) {
            let spans = chunk.iter().flatten();
            let bytes: Vec<u8> = spans.flat_map(|at| at.to_le_bytes()).collect();
            visit(&bytes)?;
        }
        let count = self.token_count();
        let mut ids = Vec::new();
        for first in (0..count).step_by(CHUNK) {
            ids.clear();
            let range = first..(first + CHUNK).min(count);
            self.ids.read_unchecked(range, &mut ids);
            let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            visit(&bytes)?;
        }
        Ok(())
    }

    fn id_range(&self, index: usize) -> Range<usize> {
        range_of(&self.tables.starts, index)
    }

    /// The spans of sample `index`.
    fn spans(&self, index: usize) -> impl DoubleEndedIterator<Item = Range<usize>> + '_ {
        let spans = &self.tables.spans[range_of(&self.tables.span_starts, index)];
        spans
            .iter()
            .map(|[start, end]| *start as usize..*end as usize)
    }
}

impl Default for Samples {
    /// No samples.
    fn default() -> Self {
        SamplesBuilder::default().finish()
    }
}

/// Appends one sample to the last row. Its inputs end before the last trained token, and only trained tokens are
/// targets.
fn push_sample(batch: &mut TokenBatch, sample: &Sample) {
    let start = batch.targets.len();
    let end = sample.trained.last().map_or(0, |span| span.end);
    batch.push_tokens(&sample.ids[..end]);
    let row = &mut batch.targets[start..];
    let mut first = 0;
    for span in &sample.trained {
        row[first..span.start - 1].fill(IGNORE);
        first = span.end - 1;
    }
}

/// Checks that there are samples and that all of them fit into `context_length` tokens.
pub(crate) fn check_samples(
    samples: &Samples,
    split: &str,
    context_length: usize,
) -> Result<(), DataError> {
    let longest = samples.longest_row();
    if longest == 0 {
        return Err(DataError::config(format!(
            "the {split} data has no samples; hint: give more of them"
        )));
    }
    if longest > context_length {
        return Err(DataError::config(format!(
            "a sample of the {split} data needs a row of {longest} tokens, but sequences have {context_length}; hint: \
             shorten it, or increase train.sequence_length"
        )));
    }
    Ok(())
}

/// The length of rows whose longest has `longest` tokens.
pub(crate) fn padded_length(longest: usize, max_length: usize) -> usize {
    longest
        .next_multiple_of(LENGTH_MULTIPLE)
        .min(max_length)
        .max(longest)
}

/// Entry `index` of a table of starts, up to the next one; empty if there is no such entry.
fn range_of(starts: &[u64], index: usize) -> Range<usize> {
    match starts.get(index..).and_then(|rest| rest.get(..2)) {
        Some(bounds) => bounds[0] as usize..bounds[1] as usize,
        None => 0..0,
    }
}

impl Ids {
    fn read(&self, range: Range<usize>, out: &mut Vec<u32>) -> Result<(), DataError> {
        let first = range.start;
        self.read_unchecked(range, out);
        let Self::File {
            path, vocab_size, ..
        } = self
        else {
            return Ok(());
        };
        match out.iter().position(|id| *id as usize >= *vocab_size) {
            None => Ok(()),
            Some(at) => Err(DataError::shard(
                path,
                format!(
                    "token {} has id {}, but the vocabulary has {vocab_size}; hint: the file is damaged, write it \
                     again",
                    first + at,
                    out[at]
                ),
            )),
        }
    }

    /// Appends the ids of `range`, which is within the checked tables.
    fn read_unchecked(&self, range: Range<usize>, out: &mut Vec<u32>) {
        match self {
            Self::Memory(ids) => out.extend_from_slice(&ids[range]),
            Self::File { map, offset, .. } => {
                let bytes = &map[offset + 4 * range.start..offset + 4 * range.end];
                let ids = bytes.chunks_exact(4);
                out.extend(ids.map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])));
            }
        }
    }
}
