//! Streaming writer for token files.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use nextword_base::atomic::{AtomicFile, PendingFile, parent_folder};
use nextword_base::hash::hash_reader;

use crate::atomic;
use crate::error::DataError;
use crate::shard::{HEADER_LEN, MAGIC, VERSION, header_checksum, table_offset};

/// Number of ids converted at a time.
const CHUNK_IDS: usize = 64 << 10;

/// Writes a token file in bounded memory. Data goes to a temporary file in the same folder, which is
/// renamed by [`ShardWriter::finish`] and deleted if the writer is dropped before that.
///
/// # Example
///
/// ```
/// use nextword_data::{Shard, ShardWriter};
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("train.bin");
/// let vocabulary = "0".repeat(64); // `Tokenizer::hash` of a real vocabulary
/// let mut writer = ShardWriter::create(&path, 50257, &vocabulary)?;
/// writer.start_document()?;
/// writer.push(&[15496, 995])?;
/// writer.finish()?;
///
/// let shard = Shard::open(&path)?; // memory-mapped
/// shard.verify()?;
/// assert_eq!((shard.len(), shard.vocab_size(), shard.document_count()), (2, 50257, 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ShardWriter {
    path: PathBuf,
    ids: BufWriter<AtomicFile>,
    /// The document table, in a separate file until all ids are written.
    starts: BufWriter<File>,
    vocab_size: usize,
    vocab_hash: [u8; 32],
    count: u64,
    documents: u64,
}

impl ShardWriter {
    /// Creates a file for ids below `vocab_size`, of the vocabulary with this hash
    /// ([`crate::Tokenizer::hash`]). Ids are stored in 2 bytes if all fit, otherwise in 4.
    ///
    /// # Errors
    /// [`DataError::Write`] if the folder is not writable, [`DataError::Config`] for a hash that
    /// is not 64 hexadecimal digits.
    pub fn create(
        path: impl AsRef<Path>,
        vocab_size: usize,
        vocab_hash: &str,
    ) -> Result<Self, DataError> {
        let path = path.as_ref().to_path_buf();
        let mut vocab_hash_bytes = [0; 32];
        hex::decode_to_slice(vocab_hash, &mut vocab_hash_bytes).map_err(|_| {
            DataError::config(format!("{vocab_hash:?} is not a hexadecimal SHA-256"))
        })?;
        let failed = |error| DataError::write(&path, error);
        let file = AtomicFile::create(&path).map_err(failed)?;
        let starts = tempfile::tempfile_in(parent_folder(&path)).map_err(failed)?;
        let mut ids = BufWriter::with_capacity(1 << 20, file);
        ids.write_all(&[0; HEADER_LEN]).map_err(failed)?;
        let starts = BufWriter::new(starts);
        Ok(Self {
            path,
            ids,
            starts,
            vocab_size,
            vocab_hash: vocab_hash_bytes,
            count: 0,
            documents: 0,
        })
    }

    /// Number of ids so far.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Whether there are no ids yet.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Starts a document at the next id. Call it only if at least one id follows.
    ///
    /// # Errors
    /// [`DataError::Write`].
    pub fn start_document(&mut self) -> Result<(), DataError> {
        self.documents += 1;
        let written = self.starts.write_all(&self.count.to_le_bytes());
        written.map_err(|error| DataError::write(&self.path, error))
    }

    /// Appends ids.
    ///
    /// # Errors
    /// [`DataError::Write`]; [`DataError::Shard`] for an id outside the vocabulary.
    pub fn push(&mut self, ids: &[u32]) -> Result<(), DataError> {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            let reason = format!(
                "id {id} is not below the vocabulary size {}",
                self.vocab_size
            );
            return Err(DataError::shard(&self.path, reason));
        }
        let narrow = self.width() == 2;
        for chunk in ids.chunks(CHUNK_IDS) {
            let bytes: Vec<u8> = if narrow {
                chunk
                    .iter()
                    .flat_map(|&id| (id as u16).to_le_bytes())
                    .collect()
            } else {
                chunk.iter().flat_map(|id| id.to_le_bytes()).collect()
            };
            self.ids
                .write_all(&bytes)
                .map_err(|error| DataError::write(&self.path, error))?;
        }
        self.count += ids.len() as u64;
        Ok(())
    }

    /// Completes the file and renames it to its final path.
    ///
    /// # Errors
    /// [`DataError::Write`].
    pub fn finish(self) -> Result<(), DataError> {
        atomic::commit(self.finalize()?)
    }

    /// Completes the file under its temporary name.
    pub(crate) fn finalize(mut self) -> Result<PendingFile, DataError> {
        let path = self.path.clone();
        let failed = |error| DataError::write(&path, error);
        self.write_table_and_header().map_err(failed)?;
        let file = self.ids.into_inner();
        let file = file.map_err(|error| failed(error.into_error()))?;
        file.finish().map_err(failed)
    }

    /// Writes the first `head_len` ids to this file and the rest to a file at `tail`. The tail always
    /// starts with a document boundary.
    ///
    /// # Errors
    /// [`DataError::Write`].
    pub fn finish_split(self, head_len: u64, tail: impl AsRef<Path>) -> Result<(), DataError> {
        let (first, tail) = self.finalize_split(head_len, tail)?;
        atomic::commit(tail)?;
        atomic::commit(first)
    }

    /// Like [`Self::finish_split`], but leaves both files under their temporary names.
    pub(crate) fn finalize_split(
        mut self,
        head_len: u64,
        tail: impl AsRef<Path>,
    ) -> Result<(PendingFile, PendingFile), DataError> {
        let head_len = head_len.min(self.count);
        let mut other = Self::create(tail, self.vocab_size, &hex::encode(self.vocab_hash))?;
        let path = self.path.clone();
        let failed = |error| DataError::write(&path, error);
        self.ids.flush().map_err(failed)?;
        let starts = self.starts_from(head_len).map_err(failed)?;
        self.copy_tail(head_len, starts, &mut other)?;
        let other = other.finalize()?;
        self.truncate(head_len).map_err(failed)?;
        Ok((self.finalize()?, other))
    }

    fn width(&self) -> u64 {
        if self.vocab_size <= 1 << 16 { 2 } else { 4 }
    }

    /// Returns the number of documents that start before id `head_len`, and a reader of the document
    /// table positioned after them.
    fn starts_from(&mut self, head_len: u64) -> std::io::Result<(u64, BufReader<File>)> {
        self.starts.flush()?;
        let mut file = self.starts.get_ref().try_clone()?;
        file.seek(SeekFrom::Start(0))?;
        let mut reader = BufReader::new(file);
        let mut entry = [0; 8];
        for index in 0..self.documents {
            reader.read_exact(&mut entry)?;
            if u64::from_le_bytes(entry) >= head_len {
                reader.seek(SeekFrom::Start(8 * index))?;
                return Ok((index, reader));
            }
        }
        Ok((self.documents, reader))
    }

    /// Copies the ids from `head_len` on, and their document starts, to `other`.
    fn copy_tail(
        &mut self,
        head_len: u64,
        starts: (u64, BufReader<File>),
        other: &mut Self,
    ) -> Result<(), DataError> {
        let path = self.path.clone();
        let failed = |error| DataError::write(&path, error);
        let (first, mut starts) = starts;
        let mut entry = [0; 8];
        for index in first..self.documents {
            starts.read_exact(&mut entry).map_err(failed)?;
            let start = u64::from_le_bytes(entry) - head_len;
            if index == first && start > 0 {
                other.start_document()?; // the rest of a document that started in the head
            }
            other
                .starts
                .write_all(&start.to_le_bytes())
                .map_err(failed)?;
            other.documents += 1;
        }
        if first == self.documents && head_len < self.count {
            other.start_document()?;
        }
        self.copy_ids(head_len, other)
    }

    fn copy_ids(&mut self, head_len: u64, other: &mut Self) -> Result<(), DataError> {
        let path = self.path.clone();
        let failed = |error| DataError::write(&path, error);
        let width = self.width();
        let file = self.ids.get_mut();
        file.seek(SeekFrom::Start(HEADER_LEN as u64 + head_len * width))
            .map_err(failed)?;
        let copied = std::io::copy(&mut BufReader::with_capacity(1 << 20, file), &mut other.ids);
        other.count += copied.map_err(failed)? / width;
        Ok(())
    }

    /// Removes the ids from `head_len` on.
    fn truncate(&mut self, head_len: u64) -> std::io::Result<()> {
        let (documents, _) = self.starts_from(head_len)?;
        let end = HEADER_LEN as u64 + head_len * self.width();
        self.ids.get_ref().file().set_len(end)?;
        self.ids.seek(SeekFrom::Start(end))?;
        self.starts.get_ref().set_len(8 * documents)?;
        self.starts.seek(SeekFrom::Start(8 * documents))?;
        (self.count, self.documents) = (head_len, documents);
        Ok(())
    }

    /// Appends the document table and fills in the header.
    fn write_table_and_header(&mut self) -> std::io::Result<()> {
        let end = HEADER_LEN as u64 + self.count * self.width();
        let table = table_offset(self.width(), self.count).unwrap_or(end);
        self.ids.write_all(&[0; 8][..(table - end) as usize])?;
        let (_, mut starts) = self.starts_from(0)?;
        std::io::copy(&mut starts, &mut self.ids)?;
        self.ids.flush()?;
        let content_hash = self.content_hash()?;
        let header = self.header(&content_hash);
        self.ids.seek(SeekFrom::Start(0))?;
        self.ids.write_all(&header)?;
        self.ids.flush()
    }

    /// Returns the SHA-256 of the data, read back from the file.
    fn content_hash(&mut self) -> std::io::Result<[u8; 32]> {
        let file = self.ids.get_mut();
        file.seek(SeekFrom::Start(HEADER_LEN as u64))?;
        Ok(hash_reader(file)?.sha256)
    }

    fn header(&self, content_hash: &[u8; 32]) -> Vec<u8> {
        let mut header = Vec::with_capacity(HEADER_LEN);
        header.extend(MAGIC);
        header.extend(VERSION.to_le_bytes());
        header.extend((self.width() as u32).to_le_bytes());
        for value in [self.vocab_size as u64, self.count, self.documents] {
            header.extend(value.to_le_bytes());
        }
        header.extend(self.vocab_hash);
        header.extend(content_hash);
        header.extend(header_checksum(&header));
        header
    }
}
