//! Collecting samples in memory.

use std::ops::Range;
use std::sync::Arc;

use super::{Ids, SampleLayout, Samples, Tables};
use crate::error::DataError;

/// Collects [`Samples`] in memory.
///
/// ```
/// let mut builder = nextword_data::SamplesBuilder::default();
/// assert!(builder.push(&[1, 2, 3], &[]).is_err()); // nothing to learn
/// builder.push(&[1, 2, 3], &[0..3])?; // The first token has none before it, so it is not trained.
/// assert_eq!(builder.finish().trained_count(), 2);
/// # Ok::<(), nextword_data::DataError>(())
/// ```
#[derive(Debug, Default)]
pub struct SamplesBuilder {
    ids: Vec<u32>,
    /// The end of each sample in `ids`.
    ends: Vec<u64>,
    spans: Vec<[u32; 2]>,
    /// The end of each sample in `spans`.
    span_ends: Vec<u64>,
}

impl SamplesBuilder {
    /// Number of samples so far.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are no samples yet.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Appends a sample. `trained` has the positions in `ids` of the tokens that are targets of the loss, ascending
    /// and disjoint. The first token has no token before it that could predict it: it is left out.
    ///
    /// # Errors
    /// [`DataError::Config`] for spans that overlap or are out of range, without a trained token, or for a sample of
    /// 2^32 tokens or more.
    pub fn push(&mut self, ids: &[u32], trained: &[Range<usize>]) -> Result<(), DataError> {
        let len = u32::try_from(ids.len())
            .map_err(|_| DataError::config("a sample has 2^32 tokens or more"))?;
        let (first_span, mut end) = (self.spans.len(), 0);
        for span in trained {
            if span.start < end || span.start > span.end || span.end > ids.len() {
                self.spans.truncate(first_span);
                return Err(DataError::config(format!(
                    "the trained span {}..{} of a sample with {len} tokens overlaps another one or is out of range",
                    span.start, span.end
                )));
            }
            end = span.end;
            let start = span.start.max(1);
            if start < span.end {
                self.spans.push([start as u32, span.end as u32]);
            }
        }
        if self.spans.len() == first_span {
            return Err(DataError::config(
                "a sample has no trained token; hint: leave it out",
            ));
        }
        self.ids.extend_from_slice(ids);
        self.ends.push(self.ids.len() as u64);
        self.span_ends.push(self.spans.len() as u64);
        Ok(())
    }

    /// The samples.
    pub fn finish(self) -> Samples {
        let starts = |ends: Vec<u64>| std::iter::once(0).chain(ends).collect();
        Samples {
            tables: Arc::new(Tables {
                starts: starts(self.ends),
                span_starts: starts(self.span_ends),
                spans: self.spans,
            }),
            ids: Arc::new(Ids::Memory(self.ids)),
            layout: SampleLayout::default(),
        }
    }
}
