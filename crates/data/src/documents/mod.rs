//! Documents from files, folders, standard input and the built-in corpora, with bounded memory.

mod files;
mod jsonl;
mod split_text;
mod text;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use self::files::SourceFile;
pub use self::split_text::TextCuts;
pub(crate) use self::split_text::split_text;
use crate::config::{Builtin, DataConfig};
use crate::corpus::{STATQUEST, Stories};
use crate::error::DataError;

/// A consecutive part of one document.
///
/// A long document is split into several chunks, where that cannot change its tokens (see
/// [`TextCuts`]): before white space for characters, bytes and words, before a space for byte-level
/// BPE with GPT-2's pattern or a known successor. With any other normalizer or pattern, which could see
/// over the cut, a document is one chunk, which takes memory in proportion to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextChunk {
    /// The text; only the last chunk of a document may be empty.
    pub text: String,
    /// Whether this is the first chunk of its document.
    pub is_first: bool,
    /// Whether this is the last chunk of its document.
    pub is_last: bool,
}

impl TextChunk {
    fn single(text: String) -> Self {
        Self {
            text,
            is_first: true,
            is_last: true,
        }
    }
}

/// File format of a text source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// JSON lines if the name ends in `.jsonl`, otherwise text.
    #[default]
    Auto,
    /// UTF-8 text.
    Text,
    /// One JSON object per line.
    Jsonl,
}

/// Text files and how they are divided into documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourceConfig {
    /// Files, folders (their `.txt` and `.jsonl` files, sorted, with subfolders), or `-` for
    /// standard input.
    pub paths: Vec<PathBuf>,
    /// File format.
    pub format: Format,
    /// Separates the documents of a text file. It is not part of them, and blank documents are
    /// skipped. Line ends in a separator also stand for those of Windows (`\r\n`), unless it is a
    /// single line end. Without a separator a file is one document.
    pub separator: Option<String>,
    /// The field of a JSON line that contains the document.
    pub field: String,
}

impl SourceConfig {
    /// Default field of a JSON line.
    pub const DEFAULT_FIELD: &'static str = "text";
}

impl Default for SourceConfig {
    fn default() -> Self {
        Self {
            paths: Vec::new(),
            format: Format::Auto,
            separator: None,
            field: Self::DEFAULT_FIELD.to_owned(),
        }
    }
}

/// A repeatable source of documents: every read returns the same text.
///
/// # Example
///
/// ```
/// use nextword_data::{SourceConfig, Sources};
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("poems.txt");
/// std::fs::write(&path, "one\n---\ntwo\n---\nthree")?;
/// let separator = Some("---\n".to_owned());
/// let sources = Sources::open(&SourceConfig { paths: vec![path], separator, ..Default::default() })?;
/// let texts = sources.texts().collect::<Result<Vec<_>, _>>()?;
/// assert_eq!(texts, ["one\n", "two\n", "three"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Sources {
    source: TextSource,
}

#[derive(Debug)]
enum TextSource {
    Files {
        files: Vec<SourceFile>,
        config: SourceConfig,
    },
    Memory(Vec<String>),
    Stories(Stories),
    Statquest,
}

impl Sources {
    /// Finds the files of `config`. Standard input is copied to a temporary file, since the text is
    /// read once for the vocabulary and once for encoding.
    ///
    /// Text is UTF-8; a byte-order mark is skipped, line endings are preserved (including `\r\n`).
    ///
    /// # Errors
    /// [`DataError::Missing`], [`DataError::Read`], [`DataError::Empty`] (a folder without text
    /// files); errors inside a file are returned by [`Sources::chunks`].
    pub fn open(config: &SourceConfig) -> Result<Self, DataError> {
        if config.paths.is_empty() {
            return Err(DataError::config(
                "no text file given; hint: give a path, or `-` for standard input",
            ));
        }
        let mut found = Vec::new();
        for path in &config.paths {
            files::find_files(path, config.format, &mut found)?;
        }
        Ok(Self {
            source: TextSource::Files {
                files: found,
                config: config.clone(),
            },
        })
    }

    /// Uses texts in memory, each of which is one document.
    ///
    /// ```
    /// use nextword_data::Sources;
    ///
    /// let sources = Sources::from_documents(["to be", "or not"]);
    /// let texts: Result<Vec<String>, _> = sources.texts().collect();
    /// assert_eq!(texts?, ["to be", "or not"]);
    /// # Ok::<(), nextword_data::DataError>(())
    /// ```
    pub fn from_documents(documents: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let documents = documents.into_iter().map(Into::into).collect();
        Self {
            source: TextSource::Memory(documents),
        }
    }

    /// Opens the text of a run config: its files or its built-in corpus.
    ///
    /// # Errors
    /// See [`Sources::open`]; [`DataError::Config`] if the config has a prepared folder instead.
    pub fn from_config(config: &DataConfig) -> Result<Self, DataError> {
        config.validate()?;
        let source = match config.builtin {
            Some(Builtin::Stories) => {
                TextSource::Stories(Stories::new(config.seed, config.documents))
            }
            Some(Builtin::Statquest) => TextSource::Statquest,
            _ if config.has_conversations() => {
                return Err(DataError::config(
                    "[data] refers to conversations, not to text; hint: set `path` to text, or builtin = \"stories\"",
                ));
            }
            _ if config.has_pairs() => {
                return Err(DataError::config(
                    "[data] refers to pairs, not to text; hint: set `path` to text, or builtin = \"stories\"",
                ));
            }
            None if config.prepared.is_some() => {
                return Err(DataError::config(
                    "[data] refers to a prepared folder, not to text; hint: set `path` to the text instead of `prepared`",
                ));
            }
            _ => return Self::open(&config.source()),
        };
        Ok(Self { source })
    }

    /// Iterates over all documents in order, in chunks. Ends after the first error.
    ///
    /// Long documents are cut as for [`TextCuts::Anywhere`]: to encode them, use
    /// [`chunks_for`](Self::chunks_for).
    pub fn chunks(&self) -> Box<dyn Iterator<Item = Result<TextChunk, DataError>> + Send + '_> {
        self.chunks_for(TextCuts::Anywhere)
    }

    /// Like [`chunks`](Self::chunks), with long documents cut only where the tokenizer allows it.
    pub fn chunks_for(
        &self,
        cuts: TextCuts,
    ) -> Box<dyn Iterator<Item = Result<TextChunk, DataError>> + Send + '_> {
        match &self.source {
            TextSource::Files { files, config } => {
                Box::new(until_error(files.iter().flat_map(move |file| {
                    if file.is_jsonl {
                        jsonl::chunks(file, &config.field, cuts)
                    } else {
                        text::chunks(file, config.separator.as_deref(), cuts)
                    }
                })))
            }
            TextSource::Memory(documents) => Box::new(
                documents
                    .iter()
                    .flat_map(move |text| memory_chunks(text, cuts))
                    .map(Ok),
            ),
            TextSource::Stories(stories) => Box::new(stories.iter().map(TextChunk::single).map(Ok)),
            TextSource::Statquest => Box::new(
                STATQUEST
                    .iter()
                    .map(|text| Ok(TextChunk::single((*text).to_owned()))),
            ),
        }
    }

    /// Iterates over the text of all chunks, for [`crate::build_tokenizer`].
    pub fn texts(&self) -> impl Iterator<Item = Result<String, DataError>> + Send + '_ {
        self.chunks().map(|chunk| chunk.map(|chunk| chunk.text))
    }

    /// Total size of all texts in bytes; `None` for a built-in corpus.
    pub fn total_bytes(&self) -> Option<u64> {
        match &self.source {
            TextSource::Memory(documents) => {
                Some(documents.iter().map(|text| text.len() as u64).sum())
            }
            TextSource::Files { files, .. } => Some(files.iter().map(|file| file.bytes).sum()),
            _ => None,
        }
    }

    /// Names for the dataset card: file names, or the corpus and its seed.
    pub fn names(&self) -> Vec<String> {
        match &self.source {
            TextSource::Files { files, .. } => files
                .iter()
                .map(|file| file.name.display().to_string())
                .collect(),
            TextSource::Memory(_) => vec!["text in memory".to_owned()],
            TextSource::Stories(stories) => vec![stories.name()],
            TextSource::Statquest => vec!["builtin statquest".to_owned()],
        }
    }
}

/// The chunks of one document; none if it is empty.
fn memory_chunks(text: &str, cuts: TextCuts) -> impl Iterator<Item = TextChunk> + Send + '_ {
    let mut chunks = split_text(text, text::CHUNK_BYTES, cuts).peekable();
    let mut is_first = true;
    std::iter::from_fn(move || {
        let text = chunks.next()?.to_owned();
        Some(TextChunk {
            text,
            is_first: std::mem::replace(&mut is_first, false),
            is_last: chunks.peek().is_none(),
        })
    })
}

/// Ends `items` after the first error.
fn until_error<T>(
    mut items: impl Iterator<Item = Result<T, DataError>>,
) -> impl Iterator<Item = Result<T, DataError>> {
    let mut failed = false;
    std::iter::from_fn(move || {
        if failed {
            return None;
        }
        let item = items.next();
        failed = matches!(item, Some(Err(_)));
        item
    })
}

/// Chunks of one file.
type FileChunks<'a> = Box<dyn Iterator<Item = Result<TextChunk, DataError>> + Send + 'a>;

/// An iterator with `error` as its only item.
fn failed<'a>(error: DataError) -> FileChunks<'a> {
    Box::new(std::iter::once(Err(error)))
}
