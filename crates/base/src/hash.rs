//! SHA-256 of bytes, files and streams.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

/// Number of bytes that are read at a time.
const CHUNK: usize = 1 << 18;

/// Length and SHA-256 of a file or stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHash {
    /// Number of bytes.
    pub bytes: u64,
    /// The SHA-256 of the bytes.
    pub sha256: [u8; 32],
}

impl FileHash {
    /// The SHA-256 in hexadecimal.
    pub fn hex(&self) -> String {
        hex::encode(self.sha256)
    }
}

/// The SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// The SHA-256 of `bytes` in hexadecimal.
///
/// ```
/// let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// assert_eq!(nextword_base::hash::sha256_hex(b""), empty);
/// ```
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Reads `reader` to its end in small chunks.
///
/// # Errors
/// The error of `reader`.
pub fn hash_reader(reader: &mut impl Read) -> io::Result<FileHash> {
    let mut hash = HashingWriter::new(io::sink());
    let mut chunk = vec![0; CHUNK];
    loop {
        match reader.read(&mut chunk) {
            Ok(0) => return Ok(hash.finish().1),
            Ok(count) => hash.write_all(&chunk[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Reads the file at `path` in small chunks.
///
/// # Errors
/// If it cannot be read.
pub fn hash_file(path: &Path) -> io::Result<FileHash> {
    hash_reader(&mut File::open(path)?)
}

/// Hashes what is written to `inner`.
///
/// ```
/// use std::io::Write;
/// use nextword_base::hash::{HashingWriter, sha256_hex};
///
/// let mut out = HashingWriter::new(Vec::new());
/// out.write_all(b"some")?;
/// out.write_all(b"thing")?;
/// let (bytes, hash) = out.finish();
/// assert_eq!((hash.bytes, hash.hex()), (9, sha256_hex(&bytes)));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct HashingWriter<W> {
    inner: W,
    hasher: Sha256,
    bytes: u64,
}

impl<W: Write> HashingWriter<W> {
    /// Starts with no bytes.
    pub fn new(inner: W) -> Self {
        Self {
            inner,
            hasher: Sha256::new(),
            bytes: 0,
        }
    }

    /// Returns the writer, and the hash of everything that was written.
    pub fn finish(self) -> (W, FileHash) {
        let hash = FileHash {
            bytes: self.bytes,
            sha256: self.hasher.finalize().into(),
        };
        (self.inner, hash)
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn chunks_and_whole_have_the_same_hash() {
        let bytes: Vec<u8> = (0..2 * CHUNK + 7).map(|i| (i % 251) as u8).collect();
        let expected = FileHash {
            bytes: bytes.len() as u64,
            sha256: Sha256::digest(&bytes).into(),
        };
        assert_eq!(hash_reader(&mut bytes.as_slice()).unwrap(), expected);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        assert_eq!(hash_file(file.path()).unwrap(), expected);
        let mut out = HashingWriter::new(Vec::new());
        for chunk in bytes.chunks(1000) {
            out.write_all(chunk).unwrap();
        }
        assert_eq!(out.finish(), (bytes, expected));
    }

    #[test]
    fn bytes_that_were_not_written_are_not_hashed() {
        struct Half;
        impl Write for Half {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                Ok(bytes.len() / 2)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut out = HashingWriter::new(Half);
        assert_eq!(out.write(b"abcd").unwrap(), 2);
        assert_eq!(out.finish().1.hex(), sha256_hex(b"ab"));
    }

    #[test]
    fn a_folder_has_no_hash() {
        let folder = tempfile::tempdir().unwrap();
        assert!(hash_file(folder.path()).is_err());
    }
}
