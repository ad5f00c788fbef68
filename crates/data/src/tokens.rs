//! A stream of token ids, in memory or in a file.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::error::DataError;
use crate::shard::Shard;

/// Number of ids hashed at a time.
const HASH_CHUNK: usize = 16 << 10;

/// A stream of token ids with document boundaries. Cheap to clone.
///
/// # Example
///
/// ```
/// use nextword_data::Tokens;
///
/// let tokens = Tokens::from_documents([vec![1, 2, 3], vec![4, 5]]);
/// assert_eq!((tokens.len(), tokens.document_count()), (5, 2));
/// assert_eq!(tokens.document(1), 3..5);
///
/// let mut ids = Vec::new();
/// tokens.read(2..4, &mut ids)?; // across the boundary
/// assert_eq!(ids, [3, 4]);
/// # Ok::<(), nextword_data::DataError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Tokens {
    source: Arc<Source>,
}

#[derive(Debug)]
enum Source {
    Memory { ids: Vec<u32>, starts: Vec<usize> },
    Shard(Shard),
}

impl Default for Tokens {
    fn default() -> Self {
        Self::from_ids(Vec::new())
    }
}

impl Tokens {
    /// Creates a single in-memory document.
    pub fn from_ids(ids: Vec<u32>) -> Self {
        let starts = if ids.is_empty() { Vec::new() } else { vec![0] };
        Self {
            source: Arc::new(Source::Memory { ids, starts }),
        }
    }

    /// Concatenates documents in memory; empty documents are skipped.
    pub fn from_documents(documents: impl IntoIterator<Item = Vec<u32>>) -> Self {
        let (mut ids, mut starts) = (Vec::new(), Vec::new());
        for document in documents
            .into_iter()
            .filter(|document| !document.is_empty())
        {
            starts.push(ids.len());
            ids.extend(document);
        }
        Self::from_parts(ids, starts)
    }

    /// `starts` begins with 0 (if there are ids), is strictly increasing and below the number of ids.
    pub(crate) fn from_parts(ids: Vec<u32>, starts: Vec<usize>) -> Self {
        Self {
            source: Arc::new(Source::Memory { ids, starts }),
        }
    }

    /// Wraps an open token file.
    pub fn from_shard(shard: Shard) -> Self {
        Self {
            source: Arc::new(Source::Shard(shard)),
        }
    }

    /// Opens a token file in our format or in that of llm.c.
    ///
    /// # Errors
    /// See [`Shard::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DataError> {
        Ok(Self::from_shard(Shard::open(path)?))
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        match &*self.source {
            Source::Memory { ids, .. } => ids.len(),
            Source::Shard(shard) => shard.len(),
        }
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends the ids of `range` to `out`.
    ///
    /// # Errors
    /// [`DataError::Config`] if the range is out of bounds, [`DataError::Shard`] if the
    /// file contains an id outside its vocabulary.
    pub fn read(&self, range: Range<usize>, out: &mut Vec<u32>) -> Result<(), DataError> {
        match &*self.source {
            Source::Memory { ids, .. } => {
                let found = ids
                    .get(range.clone())
                    .ok_or_else(|| out_of_range(&range, ids.len()))?;
                out.extend_from_slice(found);
                Ok(())
            }
            Source::Shard(shard) => shard.read(range, out),
        }
    }

    /// Number of documents.
    pub fn document_count(&self) -> usize {
        match &*self.source {
            Source::Memory { starts, .. } => starts.len(),
            Source::Shard(shard) => shard.document_count(),
        }
    }

    /// Returns the token range of document `index`; empty if there is no such document.
    pub fn document(&self, index: usize) -> Range<usize> {
        let start = self.document_start(index).unwrap_or(self.len());
        start..self.document_start(index + 1).unwrap_or(self.len())
    }

    /// Iterates over the start of each document.
    pub fn document_starts(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.document_count()).filter_map(|index| self.document_start(index))
    }

    /// Returns the SHA-256 of the token count (u64), the ids (u32) and the document starts (u64), all
    /// little-endian, in hexadecimal. Equal tokens in memory and in a file have equal hashes. A file
    /// is read once in small chunks, without the vocabulary check of [`Tokens::read`].
    pub fn content_hash(&self) -> String {
        let mut hasher = Sha256::new();
        hasher.update((self.len() as u64).to_le_bytes());
        let (mut ids, mut bytes) = (Vec::new(), Vec::new());
        for first in (0..self.len()).step_by(HASH_CHUNK) {
            let range = first..(first + HASH_CHUNK).min(self.len());
            let chunk = match &*self.source {
                Source::Memory { ids, .. } => &ids[range],
                Source::Shard(shard) => {
                    ids.clear();
                    shard.read_unchecked(range, &mut ids);
                    &ids[..]
                }
            };
            bytes.clear();
            bytes.extend(chunk.iter().flat_map(|id| id.to_le_bytes()));
            hasher.update(&bytes);
        }
        let mut starts = self.document_starts().peekable();
        while starts.peek().is_some() {
            bytes.clear();
            let chunk = starts.by_ref().take(HASH_CHUNK);
            bytes.extend(chunk.flat_map(|start| (start as u64).to_le_bytes()));
            hasher.update(&bytes);
        }
        hex::encode(hasher.finalize())
    }

    fn document_start(&self, index: usize) -> Option<usize> {
        match &*self.source {
            Source::Memory { starts, .. } => starts.get(index).copied(),
            Source::Shard(shard) => shard.document_start(index),
        }
    }
}

pub(crate) fn out_of_range(range: &Range<usize>, count: usize) -> DataError {
    DataError::config(format!(
        "token range {}..{} is out of bounds; there are {count} tokens",
        range.start, range.end
    ))
}
