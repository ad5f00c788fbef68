//! Text to token files, with bounded memory.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::atomic::{self, Ready};
use crate::config::{DataConfig, SplitBy, SplitConfig};
use crate::documents::Sources;
use crate::encode::{Totals, check_split, encode_documents, is_validation, train_count};
use crate::error::DataError;
use crate::shard_writer::ShardWriter;
use crate::tokenizer::{Tokenizer, build_tokenizer};

/// Files of a prepared folder.
pub(crate) const CARD: &str = "dataset.json";
pub(crate) const TOKENIZER: &str = "tokenizer.json";
pub(crate) const TRAIN: &str = "train.bin";
pub(crate) const VALIDATION: &str = "validation.bin";

/// No card of this program has more bytes.
const MAX_CARD: u64 = 16 << 20;

/// What is known about a dataset: `dataset.json` in a prepared folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetCard {
    /// Version of this file's format.
    pub version: u32,
    /// What was read: file names, or the built-in corpus with its seed.
    pub sources: Vec<String>,
    /// Bytes of text.
    pub bytes: u64,
    /// Number of documents.
    pub documents: u64,
    /// Tokens for training.
    pub train_tokens: u64,
    /// Tokens for validation.
    pub validation_tokens: u64,
    /// How they were divided.
    pub split: SplitConfig,
    /// Number of ids.
    pub vocab_size: usize,
    /// [`Tokenizer::hash`] of the tokenizer.
    pub tokenizer_hash: String,
    /// Pieces of text that the vocabulary does not have (a given tokenizer's, or a cut one's).
    pub unknown: Vec<String>,
}

impl DatasetCard {
    /// The version that this program writes and reads.
    pub const VERSION: u32 = 1;

    pub(crate) fn new(
        sources: &Sources,
        tokenizer: &dyn Tokenizer,
        split: SplitConfig,
        totals: Totals,
        tokens: (u64, u64),
    ) -> Self {
        Self {
            version: Self::VERSION,
            sources: sources.names(),
            bytes: totals.bytes,
            documents: totals.documents,
            train_tokens: tokens.0,
            validation_tokens: tokens.1,
            split,
            vocab_size: tokenizer.vocab_size(),
            tokenizer_hash: tokenizer.hash(),
            unknown: totals.unknown,
        }
    }
}

/// What [`prepare`] wrote.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The folder.
    pub folder: PathBuf,
    /// Counts and the split.
    pub card: DatasetCard,
    /// The tokenizer that is in the folder.
    pub tokenizer: Arc<dyn Tokenizer>,
}

/// What [`prepare`] is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Reading the text for the tokenizer's vocabulary.
    Vocabulary,
    /// Turning the text into ids.
    Tokens,
}

/// How far [`prepare`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// Bytes of text that were read in this phase.
    pub bytes: u64,
    /// Bytes that there are; `None` for a built-in corpus.
    pub total_bytes: Option<u64>,
    /// Tokens that were written.
    pub tokens: u64,
}

/// Turns the text of `config` into token files in `folder` (made if it is not there): `train.bin`,
/// `validation.bin`, `tokenizer.json` and, last, `dataset.json`.
///
/// The text is streamed: memory does not grow with it (`bpe` is trained on its first
/// `sample_bytes`), and encoded by all cores. `progress` is called after each piece of text. Files
/// of the same names are replaced once all new ones are written: until then, and after an error
/// until then, the folder is as it was, or gone if it was made for this. A folder without
/// `dataset.json` is not complete and is not opened.
///
/// # Errors
/// What is wrong with the config or the text; [`DataError::Config`] if the folder has files but no
/// `dataset.json` of this program, since they may be somebody's own; [`DataError::Write`] if the
/// disk is full or the folder cannot be written.
pub fn prepare(
    config: &DataConfig,
    folder: impl AsRef<Path>,
    mut progress: impl FnMut(Progress) + Send,
) -> Result<Prepared, DataError> {
    let folder = folder.as_ref();
    let sources = Sources::from_config(config)?;
    let total_bytes = sources.total_bytes();
    check_free(folder)?;
    // Dropped last: a folder can be taken away once the temporary files in it are.
    let made = MadeFolders::make(folder)?;

    let mut bytes = 0;
    let texts = sources.texts().inspect(|text| {
        bytes += text.as_ref().map_or(0, String::len) as u64;
        progress(Progress {
            phase: Phase::Vocabulary,
            bytes,
            total_bytes,
            tokens: 0,
        });
    });
    let tokenizer = build_tokenizer(&config.tokenizer, texts)?;
    let json = tokenizer.to_json()?;
    let vocabulary = Ready::write(folder.join(TOKENIZER), json.as_bytes())?;

    let mut writers = Writers::create(folder, &*tokenizer)?;
    let totals = encode_documents(&sources, &config.tokenizer, &*tokenizer, |part| {
        writers.push(
            is_validation(&config.split, part.document),
            part.start,
            part.ids,
        )?;
        progress(Progress {
            phase: Phase::Tokens,
            bytes: part.bytes,
            total_bytes,
            tokens: writers.len(),
        });
        Ok(())
    })?;
    let (train, validation, tokens) = writers.seal(folder, &config.split)?;
    let card = DatasetCard::new(&sources, &*tokenizer, config.split, totals, tokens);
    let json = serde_json::to_string_pretty(&card)
        .map_err(|error| DataError::config(error.to_string()))?;
    let complete = Ready::write(folder.join(CARD), json.as_bytes())?;
    // All is on the disk, and only names are still to be given.
    remove_card(folder)?;
    for file in [vocabulary, train, validation, complete] {
        file.put()?;
    }
    made.keep();
    Ok(Prepared {
        folder: folder.to_path_buf(),
        card,
        tokenizer,
    })
}

/// An error for a folder with files that may be somebody's own.
fn check_free(folder: &Path) -> Result<(), DataError> {
    let failed = |error| DataError::write(folder, error);
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        // What a killed run left behind is nobody's.
        if atomic::is_temporary(&name) {
            continue;
        }
        if has_card(folder) {
            return Ok(());
        }
        return Err(DataError::config(format!(
            "`{}` has files (such as `{}`) but no dataset.json of this program, so that they may be somebody's own; \
             hint: give a new folder",
            folder.display(),
            name.display()
        )));
    }
    Ok(())
}

/// Whether the folder's `dataset.json` is a card of this program, of whatever version.
fn has_card(folder: &Path) -> bool {
    let mut card = Vec::new();
    let read =
        File::open(folder.join(CARD)).and_then(|file| file.take(MAX_CARD).read_to_end(&mut card));
    read.is_ok()
        && serde_json::from_slice::<serde_json::Value>(&card).is_ok_and(|card| {
            card["version"].is_u64()
                && card["train_tokens"].is_u64()
                && card["tokenizer_hash"].is_string()
        })
}

/// Folders that were made for one run, the innermost first. Those that are empty at its end are
/// taken away unless they are kept.
struct MadeFolders(Vec<PathBuf>);

impl MadeFolders {
    fn make(folder: &Path) -> Result<Self, DataError> {
        let missing = folder
            .ancestors()
            .take_while(|path| !path.as_os_str().is_empty() && !path.exists());
        let made = Self(missing.map(Path::to_path_buf).collect());
        std::fs::create_dir_all(folder).map_err(|error| DataError::write(folder, error))?;
        Ok(made)
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        for folder in &self.0 {
            // One with files in it stays; so do those around it.
            if std::fs::remove_dir(folder).is_err() {
                return;
            }
        }
    }
}

/// Takes away the card of an earlier run, so that a stop between the new names leaves no folder
/// that opens.
fn remove_card(folder: &Path) -> Result<(), DataError> {
    let path = folder.join(CARD);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(DataError::write(&path, error))
        }
        _ => atomic::sync_folder_of(&path),
    }
}

/// Both token files in the making. Under a split by tail all ids go to the first, which is divided
/// at the end: only then is their number known.
struct Writers {
    train: ShardWriter,
    validation: ShardWriter,
}

impl Writers {
    fn create(folder: &Path, tokenizer: &dyn Tokenizer) -> Result<Self, DataError> {
        let hash = tokenizer.hash();
        let create = |name| ShardWriter::create(folder.join(name), tokenizer.vocab_size(), &hash);
        Ok(Self {
            train: create(TRAIN)?,
            validation: create(VALIDATION)?,
        })
    }

    fn push(&mut self, validation: bool, start: bool, ids: &[u32]) -> Result<(), DataError> {
        let writer = if validation {
            &mut self.validation
        } else {
            &mut self.train
        };
        if start {
            writer.start_document()?;
        }
        writer.push(ids)
    }

    fn len(&self) -> u64 {
        self.train.len() + self.validation.len()
    }

    /// Writes both files under temporary names; gives them with their numbers of tokens.
    fn seal(
        self,
        folder: &Path,
        split: &SplitConfig,
    ) -> Result<(Ready, Ready, (u64, u64)), DataError> {
        let all = self.len();
        let train = train_count(split, self.train.len());
        check_split(split, train, all - train)?;
        let (first, second) = if split.by == SplitBy::Tail {
            self.train.seal_split(train, folder.join(VALIDATION))?
        } else {
            (self.train.seal()?, self.validation.seal()?)
        };
        Ok((first, second, (train, all - train)))
    }
}
