//! Encodes text into token files in bounded memory.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nextword_base::atomic::{PendingFile, is_temporary, parent_folder, sync_folder};
use nextword_base::grouped;
use serde::{Deserialize, Serialize};

use crate::atomic;
use crate::config::{DataConfig, SplitBy, SplitConfig};
use crate::documents::Sources;
use crate::encode::{EncodeTotals, check_split, encode_documents, is_validation, train_count};
use crate::error::DataError;
use crate::shard_writer::ShardWriter;
use crate::tokenizer::{Tokenizer, build_tokenizer};

/// File names in a prepared folder.
pub(crate) const CARD_FILE: &str = "dataset.json";
pub(crate) const TOKENIZER_FILE: &str = "tokenizer.json";
pub(crate) const TRAIN_FILE: &str = "train.bin";
pub(crate) const VALIDATION_FILE: &str = "validation.bin";

/// Maximum size of a dataset card.
const MAX_CARD_BYTES: u64 = 16 << 20;

/// Metadata of a dataset: `dataset.json` in a prepared folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetCard {
    /// Format version.
    pub version: u32,
    /// Names of the source files, or the built-in corpus and its seed.
    pub sources: Vec<String>,
    /// Bytes of text.
    pub bytes: u64,
    /// Number of documents.
    pub documents: u64,
    /// Number of training tokens.
    pub train_tokens: u64,
    /// Number of validation tokens.
    pub validation_tokens: u64,
    /// How the data was split.
    pub split: SplitConfig,
    /// Vocabulary size.
    pub vocab_size: usize,
    /// [`Tokenizer::hash`] of the tokenizer.
    pub tokenizer_hash: String,
    /// Distinct parts of the text that are not in the vocabulary (possible with an existing tokenizer,
    /// or a truncated vocabulary), at most [`crate::Encoding::MAX_UNKNOWN`].
    pub unknown: Vec<String>,
    /// Number of all parts of the text that are not in the vocabulary, repeated ones included; 0 in a
    /// folder of an earlier version.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unknown_count: u64,
    /// Number of all parts of the text: characters, words or tokens; 0 in a folder of an earlier
    /// version.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub part_count: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes a reference.
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl DatasetCard {
    /// The version that this program reads and writes.
    pub const VERSION: u32 = 1;

    /// Reads the card of the dataset in `folder`; `None` if there is none that this program can read.
    ///
    /// ```
    /// assert_eq!(nextword_data::DatasetCard::open("no/such/folder"), None);
    /// ```
    pub fn open(folder: impl AsRef<Path>) -> Option<Self> {
        let mut card = Vec::new();
        let file = File::open(folder.as_ref().join(CARD_FILE)).ok()?;
        file.take(MAX_CARD_BYTES).read_to_end(&mut card).ok()?;
        serde_json::from_slice(&card).ok()
    }

    pub(crate) fn new(
        sources: &Sources,
        tokenizer: &dyn Tokenizer,
        split: SplitConfig,
        totals: EncodeTotals,
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
            unknown: totals.unknown.unknown,
            unknown_count: totals.unknown.unknown_count as u64,
            part_count: totals.parts,
        }
    }

    /// How much of the text is not in the vocabulary: `61,745 of 202,651 (30.5 %)`.
    ///
    /// ```
    /// use nextword_data::{Dataset, SplitConfig, TokenizerConfig};
    ///
    /// let words = TokenizerConfig { vocab_size: Some(3), ..TokenizerConfig::words() };
    /// let all = SplitConfig { validation: 0.0, ..SplitConfig::default() };
    /// let dataset = Dataset::from_documents(["to be or not to be"], &words, all)?;
    /// let card = dataset.card.as_ref().unwrap(); // <EOS>, <unk> and one word
    /// assert_eq!(card.unknown_share(), "4 of 6 parts of the text (66.7 %)");
    /// # Ok::<(), nextword_data::DataError>(())
    /// ```
    pub fn unknown_share(&self) -> String {
        if self.unknown_count == 0 {
            // An earlier version did not count them.
            return format!("{} or more parts of the text", self.unknown.len());
        }
        let share = 100.0 * self.unknown_count as f64 / self.part_count.max(1) as f64;
        format!(
            "{} of {} parts of the text ({share:.1} %)",
            grouped(self.unknown_count),
            grouped(self.part_count)
        )
    }
}

/// The result of [`prepare`].
#[derive(Debug, Clone)]
pub struct PreparedDataset {
    /// The output folder.
    pub folder: PathBuf,
    /// The dataset card that was written.
    pub card: DatasetCard,
    /// The tokenizer that was written.
    pub tokenizer: Arc<dyn Tokenizer>,
}

/// A phase of [`prepare`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Reading the text for the tokenizer's vocabulary.
    Vocabulary,
    /// Encoding the text.
    Tokens,
}

/// Progress of [`prepare`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The current phase.
    pub phase: Phase,
    /// Bytes of text read in this phase.
    pub bytes: u64,
    /// Total bytes of text; `None` for a built-in corpus.
    pub total_bytes: Option<u64>,
    /// Tokens written so far.
    pub tokens: u64,
}

/// Encodes the text of `config` into token files in `folder` (created if missing): `train.bin`,
/// `validation.bin`, `tokenizer.json` and, last, `dataset.json`.
///
/// The text is streamed in bounded memory (`bpe` is trained on the first `sample_bytes`) and encoded
/// on all cores. `progress` is called after each chunk of text. Existing files are replaced only
/// after all new files are written. If an error occurs before that, the folder is unchanged, or
/// removed if this call created it. A folder without `dataset.json` is incomplete and cannot be
/// opened.
///
/// # Errors
/// Errors of the config or the text; [`DataError::Config`] if the folder has files but no
/// `dataset.json` of this program, to protect unrelated files; [`DataError::Write`] if the disk is
/// full or the folder is not writable.
///
/// # Example
///
/// ```
/// use nextword_data::{Builtin, DataConfig, Dataset, TokenizerConfig, prepare};
///
/// let folder = tempfile::tempdir()?;
/// let config = DataConfig { builtin: Some(Builtin::Stories), documents: 10, ..DataConfig::default() };
/// let prepared = prepare(&config, folder.path(), |progress| {
///     assert!(progress.total_bytes.is_none()); // the size of a built-in corpus is not known in advance
/// })?;
/// assert_eq!(prepared.card.documents, 10);
///
/// let dataset = Dataset::open(folder.path(), &TokenizerConfig::default())?;
/// assert_eq!(dataset.train.len() as u64, prepared.card.train_tokens);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn prepare(
    config: &DataConfig,
    folder: impl AsRef<Path>,
    mut progress: impl FnMut(Progress) + Send,
) -> Result<PreparedDataset, DataError> {
    let folder = folder.as_ref();
    let sources = Sources::from_config(config)?;
    let total_bytes = sources.total_bytes();
    check_overwritable(folder)?;
    // Dropped last: a folder can be removed only after its temporary files.
    let created = CreatedFolders::create(folder)?;

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
    let vocabulary = atomic::write_pending(&folder.join(TOKENIZER_FILE), json.as_bytes())?;

    let mut writers = SplitWriters::create(folder, &*tokenizer)?;
    let totals = encode_documents(&sources, &config.tokenizer.name(), &*tokenizer, |chunk| {
        writers.push(
            is_validation(&config.split, chunk.document),
            chunk.is_first,
            chunk.ids,
        )?;
        progress(Progress {
            phase: Phase::Tokens,
            bytes: chunk.bytes,
            total_bytes,
            tokens: writers.len(),
        });
        Ok(())
    })?;
    let (train, validation, tokens) = writers.finalize(folder, &config.split)?;
    let card = DatasetCard::new(&sources, &*tokenizer, config.split, totals, tokens);
    let json = serde_json::to_string_pretty(&card)
        .map_err(|error| DataError::config(error.to_string()))?;
    let card_file = atomic::write_pending(&folder.join(CARD_FILE), json.as_bytes())?;
    // All data is on disk; only the renames remain.
    remove_card(folder)?;
    for file in [vocabulary, train, validation, card_file] {
        atomic::commit(file)?;
    }
    created.keep();
    Ok(PreparedDataset {
        folder: folder.to_path_buf(),
        card,
        tokenizer,
    })
}

/// Returns an error if the folder contains files that may be unrelated to this program.
fn check_overwritable(folder: &Path) -> Result<(), DataError> {
    let failed = |error| DataError::write(folder, error);
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        // Left over from a killed process.
        if is_temporary(&name) {
            continue;
        }
        if has_card(folder) {
            return Ok(());
        }
        return Err(DataError::config(format!(
            "`{}` has files (such as `{}`) but no dataset.json of this program, so they may be unrelated; \
             hint: use a new folder",
            folder.display(),
            name.display()
        )));
    }
    Ok(())
}

/// Whether the folder has a `dataset.json` of this program, of any version.
fn has_card(folder: &Path) -> bool {
    let mut card = Vec::new();
    let read = File::open(folder.join(CARD_FILE))
        .and_then(|file| file.take(MAX_CARD_BYTES).read_to_end(&mut card));
    read.is_ok()
        && serde_json::from_slice::<serde_json::Value>(&card).is_ok_and(|card| {
            card["version"].is_u64()
                && card["train_tokens"].is_u64()
                && card["tokenizer_hash"].is_string()
        })
}

/// Folders created by one call, innermost first. On drop the empty ones are removed, unless `keep`
/// was called.
struct CreatedFolders(Vec<PathBuf>);

impl CreatedFolders {
    fn create(folder: &Path) -> Result<Self, DataError> {
        let missing = folder
            .ancestors()
            .take_while(|path| !path.as_os_str().is_empty() && !path.exists());
        let created = Self(missing.map(Path::to_path_buf).collect());
        std::fs::create_dir_all(folder).map_err(|error| DataError::write(folder, error))?;
        Ok(created)
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for CreatedFolders {
    fn drop(&mut self) {
        for folder in &self.0 {
            // A non-empty folder stays, and so do its parents.
            if std::fs::remove_dir(folder).is_err() {
                return;
            }
        }
    }
}

/// Removes an existing card, so that a crash between the renames cannot leave an inconsistent folder
/// that opens.
fn remove_card(folder: &Path) -> Result<(), DataError> {
    let path = folder.join(CARD_FILE);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(DataError::write(&path, error))
        }
        _ => sync_folder(parent_folder(&path)).map_err(|error| DataError::write(&path, error)),
    }
}

/// Writers of both token files. When splitting by tail, all ids go to the first file, which is split
/// at the end, when the total count is known.
struct SplitWriters {
    train: ShardWriter,
    validation: ShardWriter,
}

impl SplitWriters {
    fn create(folder: &Path, tokenizer: &dyn Tokenizer) -> Result<Self, DataError> {
        let hash = tokenizer.hash();
        let create = |name| ShardWriter::create(folder.join(name), tokenizer.vocab_size(), &hash);
        Ok(Self {
            train: create(TRAIN_FILE)?,
            validation: create(VALIDATION_FILE)?,
        })
    }

    fn push(&mut self, is_validation: bool, is_first: bool, ids: &[u32]) -> Result<(), DataError> {
        let writer = if is_validation {
            &mut self.validation
        } else {
            &mut self.train
        };
        if is_first {
            writer.start_document()?;
        }
        writer.push(ids)
    }

    fn len(&self) -> u64 {
        self.train.len() + self.validation.len()
    }

    /// Completes both files under temporary names; also returns their token counts.
    fn finalize(
        self,
        folder: &Path,
        split: &SplitConfig,
    ) -> Result<(PendingFile, PendingFile, (u64, u64)), DataError> {
        let total = self.len();
        let train = train_count(split, self.train.len());
        check_split(split, train, total - train)?;
        let (first, second) = if split.by == SplitBy::Tail {
            self.train
                .finalize_split(train, folder.join(VALIDATION_FILE))?
        } else {
            (self.train.finalize()?, self.validation.finalize()?)
        };
        Ok((first, second, (train, total - train)))
    }
}
