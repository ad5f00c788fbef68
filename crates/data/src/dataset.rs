//! The dataset of a run: the tokens of both splits and their tokenizer.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::{DataConfig, SplitBy, SplitConfig};
use crate::documents::Sources;
use crate::encode::{check_split, encode_documents, is_validation, train_count};
use crate::error::DataError;
use crate::prepare::{CARD_FILE, DatasetCard, TOKENIZER_FILE, TRAIN_FILE, VALIDATION_FILE};
use crate::shard::{Shard, ShardFormat};
use crate::tokenizer::{Tokenizer, TokenizerConfig, build_tokenizer, load_tokenizer};
use crate::tokens::Tokens;

/// Maximum size of text to tokenize in memory.
const MAX_IN_MEMORY_BYTES: u64 = 1 << 30;

/// The token ids of both splits and the tokenizer that produced them.
///
/// # Example
///
/// ```
/// use nextword_data::{Builtin, DataConfig, Dataset, SplitConfig, TokenizerConfig};
///
/// let dataset = Dataset::build(&DataConfig {
///     builtin: Some(Builtin::Statquest),
///     tokenizer: TokenizerConfig::words().with_unk(""),
///     split: SplitConfig { validation: 0.0, ..SplitConfig::default() },
///     ..DataConfig::default()
/// })?;
/// assert_eq!(dataset.tokenizer.vocab_size(), 5); // what, is, statquest, awesome, <EOS>
/// assert_eq!(dataset.train.len(), 12);
/// assert!(dataset.validation.is_empty());
/// # Ok::<(), nextword_data::DataError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Dataset {
    /// Training tokens.
    pub train: Tokens,
    /// Validation tokens; empty if `split.validation` is 0.
    pub validation: Tokens,
    /// The tokenizer.
    pub tokenizer: Arc<dyn Tokenizer>,
    /// Sources and split; `None` for `.bin` files of nanoGPT or llm.c.
    pub card: Option<DatasetCard>,
}

impl Dataset {
    /// Builds the dataset of a run config: tokenizes its text or built-in corpus in memory, or opens
    /// its prepared folder.
    ///
    /// # Errors
    /// Errors of the config, the text, the tokenizer or the folder; [`DataError::Config`] for more
    /// than 1 GiB of text, which needs [`crate::prepare`].
    pub fn build(config: &DataConfig) -> Result<Self, DataError> {
        Self::build_from(config, None)
    }

    /// Like [`build`](Self::build), with an existing tokenizer instead of the one of `config`. A prepared folder has its
    /// own.
    ///
    /// # Errors
    /// The errors of [`build`](Self::build).
    ///
    /// ```
    /// use nextword_data::{Builtin, DataConfig, Dataset, TokenizerConfig};
    ///
    /// let config = DataConfig { builtin: Some(Builtin::Statquest), ..DataConfig::default() };
    /// let bytes = TokenizerConfig::bytes().build("")?;
    /// let dataset = Dataset::build_with_tokenizer(&config, bytes)?;
    /// assert_eq!(dataset.tokenizer.vocab_size(), 256 + 1); // All bytes and <EOS>.
    /// # Ok::<(), nextword_data::DataError>(())
    /// ```
    pub fn build_with_tokenizer(
        config: &DataConfig,
        tokenizer: Arc<dyn Tokenizer>,
    ) -> Result<Self, DataError> {
        Self::build_from(config, Some(tokenizer))
    }

    fn build_from(
        config: &DataConfig,
        tokenizer: Option<Arc<dyn Tokenizer>>,
    ) -> Result<Self, DataError> {
        config.validate()?;
        if let Some(folder) = &config.prepared {
            let mut settings = config.tokenizer.clone();
            settings.file = settings.file.filter(|_| tokenizer.is_none());
            return Self::open(folder, &settings);
        }
        let sources = Sources::from_config(config)?;
        if let Some(bytes) = sources
            .total_bytes()
            .filter(|&bytes| bytes > MAX_IN_MEMORY_BYTES)
        {
            return Err(DataError::config(format!(
                "the text has {bytes} bytes, more than the in-memory limit of {MAX_IN_MEMORY_BYTES}; hint: run `nextword \
                 prepare` and set data.prepared to its output folder instead of data.path"
            )));
        }
        let (tokenizer, name) = match tokenizer {
            Some(tokenizer) => (tokenizer, "given".to_string()),
            None => {
                let tokenizer = build_tokenizer(&config.tokenizer, sources.texts())?;
                (tokenizer, config.tokenizer.name())
            }
        };
        Self::tokenize(&sources, tokenizer, &name, config.split)
    }

    /// Tokenizes a text in memory, as one document. The last tenth of its tokens is the validation
    /// split.
    ///
    /// # Errors
    /// Errors of the tokenizer; [`DataError::Config`] if the text is too short for both splits.
    ///
    /// ```
    /// use nextword_data::{Dataset, TokenizerConfig};
    ///
    /// let dataset = Dataset::from_text("to be or not to be", &TokenizerConfig::words())?;
    /// assert_eq!(dataset.tokenizer.encode("be or not").ids, [1, 2, 3]);
    /// assert_eq!((dataset.train.len(), dataset.validation.len()), (6, 1)); // The last one is <EOS>.
    /// # Ok::<(), nextword_data::DataError>(())
    /// ```
    pub fn from_text(text: &str, tokenizer: &TokenizerConfig) -> Result<Self, DataError> {
        Self::from_documents([text], tokenizer, SplitConfig::default())
    }

    /// Tokenizes documents in memory. The EOS token follows each, unless the document ends with it.
    ///
    /// # Errors
    /// Errors of the tokenizer; [`DataError::Config`] if the text is too short for both splits.
    ///
    /// ```
    /// use nextword_data::{Dataset, SplitConfig, TokenizerConfig};
    ///
    /// let all = SplitConfig { validation: 0.0, ..SplitConfig::default() };
    /// let dataset = Dataset::from_documents(["to be", "or not"], &TokenizerConfig::words(), all)?;
    /// assert_eq!(dataset.train.document_count(), 2);
    /// assert!(dataset.validation.is_empty());
    /// # Ok::<(), nextword_data::DataError>(())
    /// ```
    pub fn from_documents(
        documents: impl IntoIterator<Item = impl Into<String>>,
        tokenizer: &TokenizerConfig,
        split: SplitConfig,
    ) -> Result<Self, DataError> {
        let sources = memory_sources(documents, split)?;
        let name = tokenizer.name();
        let tokenizer = build_tokenizer(tokenizer, sources.texts())?;
        Self::tokenize(&sources, tokenizer, &name, split)
    }

    /// Tokenizes documents in memory with an existing tokenizer, such as that of a model whose training
    /// continues. The EOS token follows each, unless the document ends with it.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] if the tokenizer cannot encode any part of the text;
    /// [`DataError::Config`] if the text is too short for both splits.
    ///
    /// ```
    /// use nextword_data::{Dataset, SplitConfig, TokenizerConfig};
    ///
    /// let first = Dataset::from_text("to be or not to be", &TokenizerConfig::words())?;
    /// let more = ["or be", "not to be"];
    /// let more = Dataset::with_tokenizer(more, first.tokenizer.clone(), SplitConfig::default())?;
    /// assert_eq!(more.train.len() + more.validation.len(), 7);
    /// # Ok::<(), nextword_data::DataError>(())
    /// ```
    pub fn with_tokenizer(
        documents: impl IntoIterator<Item = impl Into<String>>,
        tokenizer: Arc<dyn Tokenizer>,
        split: SplitConfig,
    ) -> Result<Self, DataError> {
        let sources = memory_sources(documents, split)?;
        Self::tokenize(&sources, tokenizer, "given", split)
    }

    /// Tokenizes a text file, or the `.txt` and `.jsonl` files of a folder. The last tenth of the
    /// tokens is the validation split. For other splits and formats see [`build`](Self::build).
    ///
    /// # Errors
    /// The errors of [`build`](Self::build).
    ///
    /// ```
    /// use nextword_data::{Dataset, TokenizerConfig};
    ///
    /// let file = std::env::temp_dir().join("nextword-from-file-example.txt");
    /// std::fs::write(&file, "to be or not to be").unwrap();
    /// let dataset = Dataset::from_file(&file, &TokenizerConfig::bytes())?;
    /// assert_eq!(dataset.tokenizer.vocab_size(), 256 + 1); // All bytes and <EOS>.
    /// # std::fs::remove_file(file).unwrap();
    /// # Ok::<(), nextword_data::DataError>(())
    /// ```
    pub fn from_file(
        path: impl AsRef<Path>,
        tokenizer: &TokenizerConfig,
    ) -> Result<Self, DataError> {
        Self::build(&DataConfig {
            path: Some(path.as_ref().to_path_buf()),
            tokenizer: tokenizer.clone(),
            ..DataConfig::default()
        })
    }

    fn tokenize(
        sources: &Sources,
        tokenizer: Arc<dyn Tokenizer>,
        name: &str,
        split: SplitConfig,
    ) -> Result<Self, DataError> {
        let mut splits = [SplitTokens::default(), SplitTokens::default()];
        let totals = encode_documents(sources, name, &*tokenizer, |chunk| {
            splits[usize::from(is_validation(&split, chunk.document))]
                .push(chunk.is_first, chunk.ids);
            Ok(())
        })?;
        let [mut train, mut validation] = splits;
        if split.by == SplitBy::Tail {
            validation = train.split_off(train_count(&split, train.ids.len() as u64) as usize);
        }
        let tokens = (train.ids.len() as u64, validation.ids.len() as u64);
        check_split(&split, tokens.0, tokens.1)?;
        let card = Some(DatasetCard::new(
            sources,
            &*tokenizer,
            split,
            totals,
            tokens,
        ));
        Ok(Self {
            train: train.into_tokens(),
            validation: validation.into_tokens(),
            tokenizer,
            card,
        })
    }

    /// Opens a folder that [`crate::prepare`] wrote, or a folder with nanoGPT or llm.c `.bin` files:
    /// one with "train" in its name and optionally one with "val", tokenized by `tokenizer.file`.
    ///
    /// # Errors
    /// [`DataError::Missing`] and [`DataError::Read`]; [`DataError::Config`] if the folder is
    /// incomplete; [`DataError::Shard`] and [`DataError::Tokenizer`] if files are damaged or do not
    /// belong together.
    pub fn open(folder: impl AsRef<Path>, tokenizer: &TokenizerConfig) -> Result<Self, DataError> {
        let folder = folder.as_ref();
        match std::fs::read(folder.join(CARD_FILE)) {
            Ok(card) => Self::open_prepared(folder, &card),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Self::open_external(folder, tokenizer)
            }
            Err(error) => Err(DataError::read(&folder.join(CARD_FILE), error)),
        }
    }

    fn open_prepared(folder: &Path, card: &[u8]) -> Result<Self, DataError> {
        let path = folder.join(CARD_FILE);
        let card: DatasetCard = serde_json::from_slice(card).map_err(|error| {
            DataError::shard(
                &path,
                format!(
                    "is not a valid dataset card ({error}); hint: prepare the data into a new folder"
                ),
            )
        })?;
        if card.version != DatasetCard::VERSION {
            let reason = format!(
                "has version {}, but this program reads version {}; hint: prepare the data again",
                card.version,
                DatasetCard::VERSION
            );
            return Err(DataError::shard(&path, reason));
        }
        let tokenizer = load_tokenizer(folder.join(TOKENIZER_FILE))?;
        let hash = tokenizer.hash();
        let open = |name, count| open_prepared_shard(&folder.join(name), count, &hash);
        let (train, validation) = (
            open(TRAIN_FILE, card.train_tokens)?,
            open(VALIDATION_FILE, card.validation_tokens)?,
        );
        Ok(Self {
            train,
            validation,
            tokenizer,
            card: Some(card),
        })
    }

    fn open_external(folder: &Path, tokenizer: &TokenizerConfig) -> Result<Self, DataError> {
        let bins = bin_files(folder)?;
        let Some(train) = find_unique(folder, &bins, "train", None)? else {
            return Err(DataError::config(format!(
                "`{}` is not a prepared folder: it has neither a dataset.json nor a .bin file with \"train\" in its name; \
                 hint: create one with `nextword prepare`",
                folder.display()
            )));
        };
        let validation = find_unique(folder, &bins, "val", Some(train))?;
        let tokenizer = match (&tokenizer.file, folder.join(TOKENIZER_FILE)) {
            (Some(_), _) => build_tokenizer(tokenizer, std::iter::empty())?,
            (None, local) if local.exists() => load_tokenizer(local)?,
            (None, _) => {
                return Err(DataError::config(format!(
                    "`{}` has token files of another program but no tokenizer.json; hint: set data.tokenizer.file to the \
                     tokenizer that produced them, or convert a character model's meta.pkl with \
                     scripts/nanogpt_to_hf.py",
                    folder.display()
                )));
            }
        };
        let open = |path: &PathBuf| open_external_shard(path, tokenizer.vocab_size());
        Ok(Self {
            train: open(train)?,
            validation: validation.map(open).transpose()?.unwrap_or_default(),
            tokenizer,
            card: None,
        })
    }
}

/// Checks `split` and that there is any text.
fn memory_sources(
    documents: impl IntoIterator<Item = impl Into<String>>,
    split: SplitConfig,
) -> Result<Sources, DataError> {
    split.validate()?;
    let sources = Sources::from_documents(documents);
    if sources.total_bytes() == Some(0) {
        return Err(DataError::config("the text is empty"));
    }
    Ok(sources)
}

/// The ids of one split and the start of each document.
#[derive(Default)]
struct SplitTokens {
    ids: Vec<u32>,
    starts: Vec<usize>,
}

impl SplitTokens {
    fn push(&mut self, is_first: bool, ids: &[u32]) {
        if is_first {
            self.starts.push(self.ids.len());
        }
        self.ids.extend_from_slice(ids);
    }

    /// Splits off the ids from index `at` on; the tail starts with a document boundary.
    fn split_off(&mut self, at: usize) -> Self {
        let ids = self.ids.split_off(at);
        let later = self
            .starts
            .split_off(self.starts.partition_point(|&start| start < at));
        let mut starts: Vec<usize> = later.into_iter().map(|start| start - at).collect();
        if !ids.is_empty() && starts.first() != Some(&0) {
            starts.insert(0, 0);
        }
        Self { ids, starts }
    }

    fn into_tokens(self) -> Tokens {
        Tokens::from_parts(self.ids, self.starts)
    }
}

fn open_prepared_shard(path: &Path, count: u64, hash: &str) -> Result<Tokens, DataError> {
    let shard = Shard::open(path)?;
    if shard.vocab_hash() != Some(hash) {
        return Err(DataError::shard(
            path,
            "was made with a different tokenizer than tokenizer.json; hint: prepare the data again",
        ));
    }
    if shard.len() as u64 != count {
        let reason = format!(
            "has {} tokens, but dataset.json says {count}; hint: prepare the data again",
            shard.len()
        );
        return Err(DataError::shard(path, reason));
    }
    Ok(Tokens::from_shard(shard))
}

/// Opens an llm.c file if it has that header, otherwise a nanoGPT file. Rejects our own format:
/// without `dataset.json` the folder is incomplete, and its tokenizer may differ.
fn open_external_shard(path: &PathBuf, vocab_size: usize) -> Result<Tokens, DataError> {
    let shard = match Shard::detect_format(path)? {
        ShardFormat::Nextword => {
            return Err(DataError::shard(
                path,
                "has no dataset.json in its folder, so the folder is incomplete; hint: prepare the data into a \
                 new folder",
            ));
        }
        ShardFormat::LlmC => Shard::open(path)?,
        ShardFormat::Raw => Shard::open_raw_u16(path)?,
    };
    Ok(Tokens::from_shard(shard.with_vocab_size(vocab_size)))
}

fn bin_files(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let failed = |error| DataError::read(folder, error);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "bin") {
            found.push(path);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Returns the only file except `excluded` with `word` in its name. Several matches are ambiguous
/// and therefore an error.
fn find_unique<'a>(
    folder: &Path,
    files: &'a [PathBuf],
    word: &str,
    excluded: Option<&PathBuf>,
) -> Result<Option<&'a PathBuf>, DataError> {
    let name = |path: &PathBuf| {
        path.file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    };
    let mut matching = files
        .iter()
        .filter(|path| Some(*path) != excluded && name(path).contains(word));
    match (matching.next(), matching.next()) {
        (Some(one), Some(two)) => Err(DataError::config(format!(
            "`{}` has several .bin files with {word:?} in their names, `{}` and `{}`; hint: keep only one of them in the \
             folder",
            folder.display(),
            name(one),
            name(two)
        ))),
        (one, _) => Ok(one),
    }
}
