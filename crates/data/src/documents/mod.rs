//! Documents from files, folders, standard input and the built-in corpora, with bounded memory.

mod cut;
mod files;
mod jsonl;
mod text;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub(crate) use self::cut::cut_text;
use self::files::SourceFile;
use crate::config::{Builtin, DataConfig};
use crate::corpus::{STATQUEST, Stories};
use crate::error::DataError;

/// A consecutive part of one document.
///
/// A long document comes in several pieces. Each ends before the first of a run of white space,
/// where no character, byte, word or byte-level BPE token runs across; so the pieces have the same
/// tokens as the whole. Only a stretch of 16 MiB without white space is cut elsewhere. (A given
/// `tokenizer.json` that puts a space before each text, as some `SentencePiece` ones do, adds that
/// one token a piece.)
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The text; only a last piece may be empty.
    pub text: String,
    /// It is the first of its document.
    pub start: bool,
    /// It is the last of its document.
    pub end: bool,
}

impl Piece {
    fn whole(text: String) -> Self {
        Self {
            text,
            start: true,
            end: true,
        }
    }
}

/// How a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// JSON lines if the name ends in `.jsonl`, else text.
    #[default]
    Auto,
    /// UTF-8 text.
    Text,
    /// One JSON object a line.
    Jsonl,
}

/// Text files and how documents are found in them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourceConfig {
    /// Files, folders (their `.txt` and `.jsonl` files, sorted, with subfolders), or `-` for
    /// standard input.
    pub paths: Vec<PathBuf>,
    /// How files are read.
    pub format: Format,
    /// Divides a text file into documents; it is in none of them, and documents of white space
    /// alone are left out. Without it a file is one document.
    pub separator: Option<String>,
    /// The field of a JSON line that holds the document.
    pub field: String,
}

impl SourceConfig {
    /// The field of a JSON line where the config names none.
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

/// Documents that can be read several times, each time the same.
#[derive(Debug)]
pub struct Sources {
    origin: Origin,
}

#[derive(Debug)]
enum Origin {
    Files {
        files: Vec<SourceFile>,
        config: SourceConfig,
    },
    Stories(Stories),
    Statquest,
}

impl Sources {
    /// Finds the files of `config`. Standard input is written to a temporary file, since a
    /// vocabulary is made before the text is encoded.
    ///
    /// Text is UTF-8; a byte-order mark is skipped, line ends stay as they are (`\r\n` too).
    ///
    /// # Errors
    /// [`DataError::Missing`], [`DataError::Read`], [`DataError::Empty`] (a folder without such
    /// files); what is wrong inside a file comes from [`Sources::pieces`].
    pub fn open(config: &SourceConfig) -> Result<Self, DataError> {
        if config.paths.is_empty() {
            return Err(DataError::config(
                "no text file is named; hint: give a path, or `-` for standard input",
            ));
        }
        let mut found = Vec::new();
        for path in &config.paths {
            files::find(path, config.format, &mut found)?;
        }
        Ok(Self {
            origin: Origin::Files {
                files: found,
                config: config.clone(),
            },
        })
    }

    /// The text of a run config: its files or its built-in corpus.
    ///
    /// # Errors
    /// As [`Sources::open`]; [`DataError::Config`] if the config has a prepared folder instead.
    pub fn from_config(config: &DataConfig) -> Result<Self, DataError> {
        config.validate()?;
        let origin = match config.builtin {
            Some(Builtin::Stories) => Origin::Stories(Stories::new(config.seed, config.documents)),
            Some(Builtin::Statquest) => Origin::Statquest,
            None if config.prepared.is_some() => {
                return Err(DataError::config(
                    "[data] names a prepared folder, not text; hint: set `path` to the text instead of `prepared`",
                ));
            }
            None => return Self::open(&config.source()),
        };
        Ok(Self { origin })
    }

    /// All documents in order, in pieces. It ends after an error.
    pub fn pieces(&self) -> Box<dyn Iterator<Item = Result<Piece, DataError>> + Send + '_> {
        match &self.origin {
            Origin::Files { files, config } => {
                Box::new(until_error(files.iter().flat_map(|file| {
                    if file.is_jsonl {
                        jsonl::pieces(file, &config.field)
                    } else {
                        text::pieces(file, config.separator.as_deref())
                    }
                })))
            }
            Origin::Stories(stories) => Box::new(stories.iter().map(Piece::whole).map(Ok)),
            Origin::Statquest => Box::new(
                STATQUEST
                    .iter()
                    .map(|text| Ok(Piece::whole((*text).to_owned()))),
            ),
        }
    }

    /// The texts of all pieces, for [`crate::build_tokenizer`].
    pub fn texts(&self) -> impl Iterator<Item = Result<String, DataError>> + Send + '_ {
        self.pieces().map(|piece| piece.map(|piece| piece.text))
    }

    /// Bytes of all files; `None` for a built-in corpus.
    pub fn total_bytes(&self) -> Option<u64> {
        match &self.origin {
            Origin::Files { files, .. } => Some(files.iter().map(|file| file.bytes).sum()),
            _ => None,
        }
    }

    /// What was read, for records: file names or the corpus with its seed.
    pub fn names(&self) -> Vec<String> {
        match &self.origin {
            Origin::Files { files, .. } => files
                .iter()
                .map(|file| file.name.display().to_string())
                .collect(),
            Origin::Stories(stories) => vec![stories.name()],
            Origin::Statquest => vec!["builtin statquest".to_owned()],
        }
    }
}

/// One document after the other has its pieces; an error is the last item.
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

/// The pieces of one file.
type FilePieces<'a> = Box<dyn Iterator<Item = Result<Piece, DataError>> + Send + 'a>;

/// A file that could not be opened, as its only item.
fn failed<'a>(error: DataError) -> FilePieces<'a> {
    Box::new(std::iter::once(Err(error)))
}
