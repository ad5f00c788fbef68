//! Sample files: on-disk format and memory-mapped reading.
//!
//! All integers are little-endian:
//! ```text
//! 0    8   "NWSAMPL" and a zero byte
//! 8    8   version, 1
//! 16   8   vocabulary size
//! 24   32  SHA-256 of everything after the header
//! 56   8   first bytes of the SHA-256 of bytes 0..56
//! 64   24  numbers of samples, spans and ids, as u64
//! 88       first id of each sample and the number of ids, first span of each sample and the number of spans, as
//!          u64; the first position of each span and the position after it, then the ids, as u32
//! ```

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::Arc;

use nextword_base::atomic::AtomicFile;
use sha2::{Digest, Sha256};

use super::{Ids, SampleLayout, Samples, Tables};
use crate::error::DataError;
use crate::shard::{map_file, u64_at};

const MAGIC: &[u8; 8] = b"NWSAMPL\0";
const VERSION: u64 = 1;
const HEADER_LEN: usize = 64;
/// Offset of the header's checksum.
const CHECK: usize = 56;
/// Offset of the tables.
const TABLES: usize = HEADER_LEN + 24;

/// What to do about a damaged file.
const HINT: &str = "hint: the file is damaged, write it again";

impl Samples {
    /// Writes the samples to a file, which [`open`](Self::open) maps into memory. An earlier file is replaced
    /// atomically. `vocab_size` is that of the tokenizer.
    ///
    /// # Errors
    /// [`DataError::Write`].
    ///
    /// ```
    /// use nextword_data::{Samples, SamplesBuilder};
    ///
    /// let folder = tempfile::tempdir()?;
    /// let path = folder.path().join("samples.bin");
    /// let mut builder = SamplesBuilder::default();
    /// builder.push(&[1, 5, 6, 2], &[2..4])?;
    /// let samples = builder.finish();
    /// samples.write(&path, 7)?;
    /// let mapped = Samples::open(&path)?;
    /// mapped.verify()?;
    /// assert_eq!(mapped.sample(0)?, samples.sample(0)?);
    /// assert_eq!(mapped.content_hash(), samples.content_hash());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write(&self, path: impl AsRef<Path>, vocab_size: usize) -> Result<(), DataError> {
        let path = path.as_ref();
        let failed = |error| DataError::write(path, error);
        let file = AtomicFile::create(path).map_err(failed)?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        let header = self.header(vocab_size);
        file.write_all(&header).map_err(failed)?;
        self.for_each_chunk(|bytes| file.write_all(bytes))
            .map_err(failed)?;
        let file = file
            .into_inner()
            .map_err(|error| failed(error.into_error()))?;
        file.commit().map_err(failed)
    }

    /// Opens a file that [`write`](Self::write) made. The layout is not stored; set it with
    /// [`with_layout`](Self::with_layout). Checks header, sizes and tables; ids are checked when they are read.
    ///
    /// # Errors
    /// [`DataError::Missing`], [`DataError::Read`]; [`DataError::Shard`] if the file is damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DataError> {
        let path = path.as_ref();
        let failed = |error| DataError::read(path, error);
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() || metadata.len() < TABLES as u64 {
            return Err(DataError::shard(path, "is too short for a sample file"));
        }
        let map = map_file(&file).map_err(failed)?;
        let damaged = |reason| DataError::shard(path, reason);
        let (tables, offset) = parse(&map).map_err(damaged)?;
        Ok(Self {
            tables: Arc::new(tables),
            ids: Arc::new(Ids::File {
                path: path.to_path_buf(),
                vocab_size: u64_at(&map, 16) as usize,
                map,
                offset,
            }),
            layout: SampleLayout::default(),
        })
    }

    /// Compares the whole file with the checksum in its header. Samples in memory always pass.
    ///
    /// # Errors
    /// [`DataError::Shard`] if the checksums differ.
    pub fn verify(&self) -> Result<(), DataError> {
        match &*self.ids {
            Ids::File { path, map, .. }
                if Sha256::digest(&map[HEADER_LEN..])[..] != map[24..56] =>
            {
                let reason = format!("does not match the checksum in its header; {HINT}");
                Err(DataError::shard(path, reason))
            }
            _ => Ok(()),
        }
    }

    fn header(&self, vocab_size: usize) -> Vec<u8> {
        let mut header = MAGIC.to_vec();
        header.extend(VERSION.to_le_bytes());
        header.extend((vocab_size as u64).to_le_bytes());
        // The hash of the content is that of the bytes after the header.
        header.extend(hex::decode(self.content_hash()).unwrap_or_default());
        let check = Sha256::digest(&header);
        header.extend(&check[..HEADER_LEN - CHECK]);
        header
    }
}

/// Reads and checks the tables; also returns the offset of the ids.
fn parse(bytes: &[u8]) -> Result<(Tables, usize), String> {
    if bytes[..8] != MAGIC[..] {
        return Err("is not a sample file".to_owned());
    }
    if bytes[CHECK..HEADER_LEN] != Sha256::digest(&bytes[..CHECK])[..HEADER_LEN - CHECK] {
        return Err(format!("has a damaged header; {HINT}"));
    }
    let version = u64_at(bytes, 8);
    if version != VERSION {
        return Err(format!(
            "has version {version}, but this program reads version {VERSION}; hint: write it again"
        ));
    }
    let [samples, spans, ids] = [0, 8, 16].map(|at| u64_at(bytes, HEADER_LEN + at));
    let size = size(samples, spans, ids);
    if size != Some(bytes.len() as u64) {
        let size = size.map_or_else(|| "more".to_owned(), |size| size.to_string());
        return Err(format!(
            "has {} bytes, but its numbers of samples, spans and ids say {size}; {HINT}",
            bytes.len()
        ));
    }
    // The size of the file bounds all numbers from here on.
    let (samples, spans) = (samples as usize, spans as usize);
    let entry = |index: usize| u64_at(bytes, TABLES + 8 * index);
    let starts = (0..=samples).map(entry).collect();
    let span_starts = (0..=samples)
        .map(|index| entry(samples + 1 + index))
        .collect();
    let span_offset = TABLES + 16 * (samples + 1);
    let span = |index| {
        let both = u64_at(bytes, span_offset + 8 * index);
        [both as u32, (both >> 32) as u32]
    };
    let tables = Tables {
        starts,
        span_starts,
        spans: (0..spans).map(span).collect(),
    };
    check(&tables, ids)?;
    Ok((tables, span_offset + 8 * spans))
}

/// The size of a file with these numbers of samples, spans and ids.
fn size(samples: u64, spans: u64, ids: u64) -> Option<u64> {
    let tables = samples.checked_add(1)?.checked_mul(16)?;
    let tables = tables.checked_add(spans.checked_mul(8)?)?;
    tables
        .checked_add(ids.checked_mul(4)?)?
        .checked_add(TABLES as u64)
}

/// Checks that samples and spans follow each other, that each sample has a span, and that spans are within their
/// samples.
fn check(tables: &Tables, ids: u64) -> Result<(), String> {
    let spans = tables.spans.len() as u64;
    for (table, end) in [(&tables.starts, ids), (&tables.span_starts, spans)] {
        let ascends = table.windows(2).all(|pair| pair[0] < pair[1]);
        if table.first() != Some(&0) || table.last() != Some(&end) || !ascends {
            return Err(format!("has a damaged table of samples; {HINT}"));
        }
    }
    let bounds = tables.starts.windows(2).zip(tables.span_starts.windows(2));
    for (index, (ids, spans)) in bounds.enumerate() {
        let mut previous = 1;
        for [start, end] in &tables.spans[spans[0] as usize..spans[1] as usize] {
            if *start < previous || start >= end || u64::from(*end) > ids[1] - ids[0] {
                return Err(format!("has a damaged span in sample {index}; {HINT}"));
            }
            previous = *end;
        }
    }
    Ok(())
}
