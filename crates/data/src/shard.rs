//! Token files: on-disk format and memory-mapped reading.
//!
//! Our format; all integers are little-endian:
//! ```text
//! 0    8   "NWSHARD" and a zero byte
//! 8    4   version, 1
//! 12   4   bytes per id: 2 or 4
//! 16   8   vocabulary size
//! 24   8   number of ids
//! 32   8   number of documents
//! 40   32  SHA-256 of the vocabulary (Tokenizer::hash)
//! 72   32  SHA-256 of everything after the header
//! 104  24  first bytes of the SHA-256 of bytes 0..104
//! 128      ids, zero padding to a multiple of 8, then the index of the first id of each document as u64
//! ```
//! Two external formats can also be read: llm.c (a header of 256 i32: magic 20240520, version 1,
//! count, then u16 ids; or magic 20240801, version 7, with u32 ids) and nanoGPT (u16 ids only).

use std::fs::File;
use std::io::Read as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use sha2::{Digest, Sha256};

use crate::error::DataError;
use crate::tokens::out_of_range;

pub(crate) const MAGIC: &[u8; 8] = b"NWSHARD\0";
pub(crate) const VERSION: u32 = 1;
pub(crate) const HEADER_LEN: usize = 128;
const LLM_C_HEADER_LEN: usize = 1024;
/// Magic number and version of llm.c files.
const LLM_C_U16: (u32, u32) = (20_240_520, 1);
const LLM_C_U32: (u32, u32) = (20_240_801, 7);

/// A token file, open for reading.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    map: Mmap,
    layout: Layout,
}

/// File format, detected from the first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShardFormat {
    Nextword,
    LlmC,
    /// No known header: raw ids.
    Raw,
}

/// Layout of a token file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Layout {
    /// Bytes per id.
    width: usize,
    /// Byte offset of the ids.
    ids: usize,
    count: usize,
    /// Byte offset of the document table.
    table: usize,
    /// Number of table entries; `None` without a table (the file is one document).
    documents: Option<usize>,
    vocab_size: usize,
    vocab_hash: Option<String>,
    content_hash: Option<[u8; 32]>,
}

impl Shard {
    /// Opens a token file in our format or in that of llm.c. Validates the header, sizes and document
    /// table; ids are validated when they are read.
    ///
    /// # Errors
    /// [`DataError::Missing`], [`DataError::Read`]; [`DataError::Shard`] if the file is damaged or
    /// has an unknown format.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DataError> {
        Self::open_as(path.as_ref(), |bytes| match bytes.get(..8) {
            Some(magic) if magic == MAGIC => parse_header(bytes),
            Some(_) => parse_llm_c_header(bytes),
            None => Err(format!(
                "has only {} bytes and is not a token file",
                bytes.len()
            )),
        })
    }

    /// Opens a nanoGPT file: raw u16 ids. Any file of even size would be valid, so this format is
    /// never guessed.
    ///
    /// # Errors
    /// [`DataError::Missing`], [`DataError::Read`]; [`DataError::Shard`] if it is empty or its size
    /// is odd.
    pub fn open_raw_u16(path: impl AsRef<Path>) -> Result<Self, DataError> {
        Self::open_as(path.as_ref(), |bytes| match bytes.len() {
            size if size % 2 == 1 => Err(format!(
                "has an odd size of {size} bytes, so it is not a file of u16 ids"
            )),
            size => Ok(Layout::without_document_table(2, 0, size / 2)),
        })
    }

    /// Detects the format of `path` from its first bytes only, so that damage elsewhere does not change
    /// the result.
    pub(crate) fn detect_format(path: &Path) -> Result<ShardFormat, DataError> {
        let failed = |error| DataError::read(path, error);
        let mut first = Vec::new();
        let file = File::open(path).map_err(failed)?;
        file.take(8).read_to_end(&mut first).map_err(failed)?;
        Ok(if first == MAGIC {
            ShardFormat::Nextword
        } else if [LLM_C_U16, LLM_C_U32]
            .map(|(magic, _)| magic)
            .contains(&u32_at(&first, 0))
        {
            ShardFormat::LlmC
        } else {
            ShardFormat::Raw
        })
    }

    /// Sets the vocabulary size; reading an id outside it is an error. Files in our format have the
    /// size in their header.
    pub fn with_vocab_size(mut self, vocab_size: usize) -> Self {
        self.layout.vocab_size = vocab_size;
        self
    }

    /// Number of ids.
    pub fn len(&self) -> usize {
        self.layout.count
    }

    /// Whether there are no ids.
    pub fn is_empty(&self) -> bool {
        self.layout.count == 0
    }

    /// Vocabulary size: every id is below it.
    pub fn vocab_size(&self) -> usize {
        self.layout.vocab_size
    }

    /// Hash of the tokenizer's vocabulary ([`crate::Tokenizer::hash`]); `None` for external formats.
    pub fn vocab_hash(&self) -> Option<&str> {
        self.layout.vocab_hash.as_deref()
    }

    /// Number of documents; 1 for external formats, which do not store boundaries.
    pub fn document_count(&self) -> usize {
        self.layout
            .documents
            .unwrap_or(usize::from(self.layout.count > 0))
    }

    /// Returns the start of document `index`.
    pub fn document_start(&self, index: usize) -> Option<usize> {
        match self.layout.documents {
            Some(documents) => (index < documents)
                .then(|| table_entry(&self.map, self.layout.table, index) as usize),
            None => (index == 0 && self.layout.count > 0).then_some(0),
        }
    }

    /// Appends the ids of `range` to `out`.
    ///
    /// # Errors
    /// [`DataError::Config`] if the range is out of bounds; [`DataError::Shard`] if an id is not
    /// below the vocabulary size.
    pub fn read(&self, range: Range<usize>, out: &mut Vec<u32>) -> Result<(), DataError> {
        let (count, vocab_size) = (self.layout.count, self.layout.vocab_size);
        if range.start > range.end || range.end > count {
            return Err(out_of_range(&range, count));
        }
        let first = out.len();
        self.read_unchecked(range.clone(), out);
        match out[first..]
            .iter()
            .position(|&id| id as usize >= vocab_size)
        {
            None => Ok(()),
            Some(index) => Err(DataError::shard(
                &self.path,
                format!(
                    "token {} has id {}, but the vocabulary has {vocab_size}; hint: the file is damaged or was made \
                     with a different tokenizer; prepare the data again",
                    range.start + index,
                    out[first + index]
                ),
            )),
        }
    }

    /// Appends the ids of `range`, which must be in bounds, without checking them against the
    /// vocabulary.
    pub(crate) fn read_unchecked(&self, range: Range<usize>, out: &mut Vec<u32>) {
        let Layout { width, ids, .. } = self.layout;
        let bytes = &self.map[ids + range.start * width..ids + range.end * width];
        if width == 2 {
            out.extend(
                bytes
                    .chunks_exact(2)
                    .map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))),
            );
        } else {
            out.extend(
                bytes
                    .chunks_exact(4)
                    .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            );
        }
    }

    /// Compares the whole file with the checksum in its header. External formats have no checksum and
    /// always pass.
    ///
    /// # Errors
    /// [`DataError::Shard`] if the checksums differ.
    pub fn verify(&self) -> Result<(), DataError> {
        match self.layout.content_hash {
            Some(expected) if Sha256::digest(&self.map[HEADER_LEN..])[..] != expected => {
                let reason = "does not match the checksum in its header; hint: the file is damaged, prepare the data again";
                Err(DataError::shard(&self.path, reason))
            }
            _ => Ok(()),
        }
    }

    fn open_as(
        path: &Path,
        layout: impl FnOnce(&[u8]) -> Result<Layout, String>,
    ) -> Result<Self, DataError> {
        let failed = |error| DataError::read(path, error);
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() || metadata.len() == 0 {
            return Err(DataError::shard(path, "is empty or is not a regular file"));
        }
        let map = map_file(&file).map_err(failed)?;
        let layout = layout(&map).map_err(|reason| DataError::shard(path, reason))?;
        Ok(Self {
            path: path.to_path_buf(),
            map,
            layout,
        })
    }
}

/// Maps a file for reading.
#[allow(unsafe_code)]
pub(crate) fn map_file(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the bytes must not change while they are mapped. Token files are only ever replaced as
    // a whole, by renaming a complete file over the path, which leaves the mapped file unchanged.
    // Every value read from the map is validated where it is used, so even a concurrent write by
    // another program yields wrong ids or an error, never an out-of-bounds access. (If another
    // program truncates the file while it is mapped, this process gets SIGBUS.)
    unsafe { Mmap::map(file) }
}

impl Layout {
    fn without_document_table(width: usize, ids: usize, count: usize) -> Self {
        let vocab_size = if width == 2 {
            1 << 16
        } else {
            u32::MAX as usize
        };
        Self {
            width,
            ids,
            count,
            table: 0,
            documents: None,
            vocab_size,
            vocab_hash: None,
            content_hash: None,
        }
    }
}

/// Returns the checksum of a header: the first bytes of its SHA-256.
pub(crate) fn header_checksum(header: &[u8]) -> [u8; 24] {
    let mut check = [0; 24];
    check.copy_from_slice(&Sha256::digest(&header[..104])[..24]);
    check
}

/// Returns the byte offset of the document table.
pub(crate) fn table_offset(width: u64, count: u64) -> Option<u64> {
    count
        .checked_mul(width)?
        .checked_add(HEADER_LEN as u64)?
        .checked_next_multiple_of(8)
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    bytes
        .get(offset..offset + 4)
        .map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from(u32_at(bytes, offset)) | u64::from(u32_at(bytes, offset + 4)) << 32
}

fn table_entry(bytes: &[u8], table: usize, index: usize) -> u64 {
    u64_at(bytes, table + 8 * index)
}

fn parse_header(bytes: &[u8]) -> Result<Layout, String> {
    let Some(header) = bytes.get(..HEADER_LEN) else {
        return Err(format!(
            "has {} bytes, but the header alone takes {HEADER_LEN}; hint: prepare the data again",
            bytes.len()
        ));
    };
    let (version, width) = (u32_at(header, 8), u32_at(header, 12));
    if version != VERSION {
        return Err(format!(
            "has version {version}, but this program reads version {VERSION}; hint: prepare the data again"
        ));
    }
    if header[104..] != header_checksum(header) || !matches!(width, 2 | 4) {
        return Err("has a damaged header; hint: prepare the data again".to_owned());
    }
    let (count, documents) = (u64_at(header, 24), u64_at(header, 32));
    let table = table_offset(u64::from(width), count);
    let size = table.and_then(|table| documents.checked_mul(8)?.checked_add(table));
    if size != Some(bytes.len() as u64) {
        let size = size.map_or_else(|| "more".to_owned(), |size| size.to_string());
        return Err(format!(
            "has {} bytes, but its header says {size}; hint: prepare the data again",
            bytes.len()
        ));
    }
    let mut content_hash = [0; 32];
    content_hash.copy_from_slice(&header[72..104]);
    let layout = Layout {
        width: width as usize,
        ids: HEADER_LEN,
        count: count as usize,
        table: table.unwrap_or(0) as usize,
        documents: Some(documents as usize),
        vocab_size: u64_at(header, 16) as usize,
        vocab_hash: Some(hex::encode(&header[40..72])),
        content_hash: Some(content_hash),
    };
    check_documents(bytes, &layout)?;
    Ok(layout)
}

/// Checks that document starts begin at 0, are strictly increasing and below the number of ids.
fn check_documents(bytes: &[u8], layout: &Layout) -> Result<(), String> {
    let documents = layout.documents.unwrap_or(0);
    let mut min_start = 0;
    for index in 0..documents {
        let found = table_entry(bytes, layout.table, index);
        if found < min_start || found >= layout.count as u64 || (index == 0 && found != 0) {
            return Err(format!(
                "has a damaged document table at entry {index}; hint: prepare the data again"
            ));
        }
        min_start = found + 1;
    }
    if documents == 0 && layout.count > 0 {
        return Err("has ids but no documents; hint: prepare the data again".to_owned());
    }
    Ok(())
}

fn parse_llm_c_header(bytes: &[u8]) -> Result<Layout, String> {
    let width = match (u32_at(bytes, 0), u32_at(bytes, 4)) {
        LLM_C_U16 => 2,
        LLM_C_U32 => 4,
        (magic, _) => {
            return Err(format!(
                "begins with {magic}, so it is neither a nextword nor an llm.c token file; hint: create one \
                 with `nextword prepare`"
            ));
        }
    };
    let count = u32_at(bytes, 8) as usize;
    let size = LLM_C_HEADER_LEN + count * width;
    if bytes.len() != size {
        return Err(format!(
            "has {} bytes, but its llm.c header says {size}",
            bytes.len()
        ));
    }
    Ok(Layout::without_document_table(
        width,
        LLM_C_HEADER_LEN,
        count,
    ))
}
