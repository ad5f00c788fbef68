//! Identities of contents: the hashes by which the Hub and its cache name files.

use std::io::{self, Sink, Write};

use nextword_base::hash::HashingWriter;
use sha1::{Digest, Sha1};

/// The hash of a file, as the Hub's `ETag` states it, in lower-case hexadecimal: SHA-256 for files in large file
/// storage, and git's SHA-1 for others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BlobId(String);

impl BlobId {
    /// Parses the value of the header `ETag` or `X-Linked-Etag`. `None` if it is not one of the two hashes.
    pub(crate) fn from_etag(etag: &str) -> Option<Self> {
        let etag = etag.strip_prefix("W/").unwrap_or(etag);
        let etag = etag.strip_prefix('"').unwrap_or(etag);
        let etag = etag.strip_suffix('"').unwrap_or(etag);
        let is_hash = matches!(etag.len(), 40 | 64) && is_lower_hex(etag);
        is_hash.then(|| Self(etag.to_string()))
    }

    /// The hash in hexadecimal.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The kind of hash.
    pub(crate) fn kind(&self) -> &'static str {
        if self.0.len() == 64 {
            "SHA-256"
        } else {
            "SHA-1"
        }
    }

    /// Starts the computation of this hash over a content of `size` bytes.
    pub(crate) fn hasher(&self, size: u64) -> BlobHasher {
        if self.0.len() == 64 {
            return BlobHasher::Sha256(HashingWriter::new(io::sink()));
        }
        // Git hashes a header with the length first.
        let header = format!("blob {size}\0");
        BlobHasher::GitSha1(Sha1::new_with_prefix(header))
    }
}

/// Whether `text` consists of the digits 0 to 9 and a to f.
pub(crate) fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The computation of a hash.
pub(crate) enum BlobHasher {
    GitSha1(Sha1),
    Sha256(HashingWriter<Sink>),
}

impl BlobHasher {
    /// Adds `bytes`.
    pub(crate) fn update(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::GitSha1(hasher) => hasher.update(bytes),
            Self::Sha256(writer) => writer.write_all(bytes)?,
        }
        Ok(())
    }

    /// The hash in hexadecimal.
    pub(crate) fn finish(self) -> String {
        match self {
            Self::GitSha1(hasher) => hex::encode(hasher.finalize()),
            Self::Sha256(writer) => writer.finish().1.hex(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_git_and_of_large_file_storage() {
        let hash = |etag: &str, text: &[u8]| {
            let mut hasher = BlobId::from_etag(etag).unwrap().hasher(text.len() as u64);
            text.chunks(2)
                .for_each(|chunk| hasher.update(chunk).unwrap());
            hasher.finish()
        };
        // `git hash-object` of an empty file, and of "hello\n".
        let (empty, hello) = (
            "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
            "ce013625030ba8dba906f756967f9e9ca394464a",
        );
        assert_eq!(hash(empty, b""), empty);
        assert_eq!(hash(hello, b"hello\n"), hello);
        let sha256 = nextword_base::hash::sha256_hex(b"hello\n");
        assert_eq!(hash(&sha256, b"hello\n"), sha256);
        assert_ne!(hash(hello, b"hello"), hello);
    }

    #[test]
    fn only_hashes_are_accepted_as_etags() {
        let (sha1, sha256) = ("0a".repeat(20), "0a".repeat(32));
        for etag in [&sha1, &sha256] {
            for form in [etag.clone(), format!("\"{etag}\""), format!("W/\"{etag}\"")] {
                assert_eq!(BlobId::from_etag(&form).unwrap().as_str(), etag);
            }
        }
        for etag in [
            String::new(),
            "\"\"".to_string(),
            "x".repeat(40),
            "0A".repeat(20),
            "0a".repeat(16),
            format!("../{}", "0a".repeat(30)),
            format!("{sha256}-gzip"),
        ] {
            assert_eq!(BlobId::from_etag(&etag), None, "{etag}");
        }
    }
}
