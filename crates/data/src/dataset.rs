//! The tokens of a run: both splits and their tokenizer.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::{DataConfig, SplitBy};
use crate::documents::Sources;
use crate::encode::{check_split, encode_documents, is_validation, train_count};
use crate::error::DataError;
use crate::prepare::{CARD, DatasetCard, TOKENIZER, TRAIN, VALIDATION};
use crate::shard::{Shard, ShardKind};
use crate::tokenizer::{Tokenizer, TokenizerConfig, build_tokenizer, load_tokenizer};
use crate::tokens::Tokens;

/// More text than this is not held in memory.
const MEMORY_LIMIT: u64 = 1 << 30;

/// Both splits in ids, with the tokenizer that made them.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// What the model learns from.
    pub train: Tokens,
    /// What it is measured on; empty if the split keeps none.
    pub validation: Tokens,
    /// Text to ids and back.
    pub tokenizer: Arc<dyn Tokenizer>,
    /// Where it comes from and how it was divided; `None` for another program's `.bin` files.
    pub card: Option<DatasetCard>,
}

impl Dataset {
    /// The data of a run config: its text or built-in corpus in memory, or its prepared folder.
    ///
    /// # Errors
    /// What is wrong with the config, the text, the tokenizer or the folder; [`DataError::Config`]
    /// for more than 1 GiB of text, which is for [`crate::prepare`].
    pub fn build(config: &DataConfig) -> Result<Self, DataError> {
        config.validate()?;
        if let Some(folder) = &config.prepared {
            return Self::open(folder, &config.tokenizer);
        }
        let sources = Sources::from_config(config)?;
        if let Some(bytes) = sources.total_bytes().filter(|&bytes| bytes > MEMORY_LIMIT) {
            return Err(DataError::config(format!(
                "the text has {bytes} bytes, more than the {MEMORY_LIMIT} that are held in memory; hint: run `nextword \
                 prepare`, then set `prepared` to its folder instead of `path`"
            )));
        }
        let tokenizer = build_tokenizer(&config.tokenizer, sources.texts())?;
        let mut sides = [Side::default(), Side::default()];
        let totals = encode_documents(&sources, &config.tokenizer, &*tokenizer, |part| {
            sides[usize::from(is_validation(&config.split, part.document))]
                .push(part.start, part.ids);
            Ok(())
        })?;
        let [mut train, mut validation] = sides;
        if config.split.by == SplitBy::Tail {
            validation =
                train.split_off(train_count(&config.split, train.ids.len() as u64) as usize);
        }
        let tokens = (train.ids.len() as u64, validation.ids.len() as u64);
        check_split(&config.split, tokens.0, tokens.1)?;
        let card = Some(DatasetCard::new(
            &sources,
            &*tokenizer,
            config.split,
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

    /// A folder that [`crate::prepare`] wrote; or one with a single `.bin` file of nanoGPT or llm.c
    /// with "train" in its name and one with "val", of the tokenizer in `tokenizer.file`.
    ///
    /// # Errors
    /// [`DataError::Missing`] and [`DataError::Read`]; [`DataError::Config`] if the folder is not
    /// complete; [`DataError::Shard`] and [`DataError::Tokenizer`] if files are damaged or are not
    /// of one another.
    pub fn open(folder: impl AsRef<Path>, tokenizer: &TokenizerConfig) -> Result<Self, DataError> {
        let folder = folder.as_ref();
        match std::fs::read(folder.join(CARD)) {
            Ok(card) => Self::open_own(folder, &card),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Self::open_foreign(folder, tokenizer)
            }
            Err(error) => Err(DataError::read(&folder.join(CARD), error)),
        }
    }

    fn open_own(folder: &Path, card: &[u8]) -> Result<Self, DataError> {
        let path = folder.join(CARD);
        let card: DatasetCard = serde_json::from_slice(card).map_err(|error| {
            DataError::shard(
                &path,
                format!(
                    "is not a dataset card ({error}); hint: prepare the data into a new folder"
                ),
            )
        })?;
        if card.version != DatasetCard::VERSION {
            let why = format!(
                "has version {}, this program reads {}; hint: prepare again",
                card.version,
                DatasetCard::VERSION
            );
            return Err(DataError::shard(&path, why));
        }
        let tokenizer = load_tokenizer(folder.join(TOKENIZER))?;
        let hash = tokenizer.hash();
        let open = |name, count| open_own_shard(&folder.join(name), count, &hash);
        let (train, validation) = (
            open(TRAIN, card.train_tokens)?,
            open(VALIDATION, card.validation_tokens)?,
        );
        Ok(Self {
            train,
            validation,
            tokenizer,
            card: Some(card),
        })
    }

    fn open_foreign(folder: &Path, tokenizer: &TokenizerConfig) -> Result<Self, DataError> {
        let bins = bin_files(folder)?;
        let Some(train) = only_with(folder, &bins, "train", None)? else {
            return Err(DataError::config(format!(
                "`{}` is not a prepared folder: it has no dataset.json and no .bin file with \"train\" in its name; \
                 hint: make one with `nextword prepare`",
                folder.display()
            )));
        };
        let validation = only_with(folder, &bins, "val", Some(train))?;
        let tokenizer = match (&tokenizer.file, folder.join(TOKENIZER)) {
            (Some(_), _) => build_tokenizer(tokenizer, std::iter::empty())?,
            (None, beside) if beside.exists() => load_tokenizer(beside)?,
            (None, _) => {
                return Err(DataError::config(format!(
                    "`{}` has token files of another program and no tokenizer.json; hint: set tokenizer.file to the \
                     tokenizer that made them",
                    folder.display()
                )));
            }
        };
        let open = |path: &PathBuf| open_foreign_shard(path, tokenizer.vocab_size());
        Ok(Self {
            train: open(train)?,
            validation: validation.map(open).transpose()?.unwrap_or_default(),
            tokenizer,
            card: None,
        })
    }
}

/// Ids of one split with the places where documents begin.
#[derive(Default)]
struct Side {
    ids: Vec<u32>,
    starts: Vec<usize>,
}

impl Side {
    fn push(&mut self, start: bool, ids: &[u32]) {
        if start {
            self.starts.push(self.ids.len());
        }
        self.ids.extend_from_slice(ids);
    }

    /// The ids from `at` on, which begin with a document of their own.
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

fn open_own_shard(path: &Path, count: u64, hash: &str) -> Result<Tokens, DataError> {
    let shard = Shard::open(path)?;
    if shard.vocab_hash() != Some(hash) {
        return Err(DataError::shard(
            path,
            "was made with another tokenizer than tokenizer.json; hint: prepare again",
        ));
    }
    if shard.len() as u64 != count {
        let why = format!(
            "has {} tokens, dataset.json says {count}; hint: prepare again",
            shard.len()
        );
        return Err(DataError::shard(path, why));
    }
    Ok(Tokens::from_shard(shard))
}

/// llm.c's file if it has its header, else nanoGPT's. One of ours is not taken: without its
/// `dataset.json` it is of a folder that was not finished, and its tokenizer may be another.
fn open_foreign_shard(path: &PathBuf, vocab_size: usize) -> Result<Tokens, DataError> {
    let shard = match Shard::kind(path)? {
        ShardKind::Own => {
            return Err(DataError::shard(
                path,
                "has no dataset.json beside it, so its folder is not complete; hint: prepare the data into a \
                 new folder",
            ));
        }
        ShardKind::LlmC => Shard::open(path)?,
        ShardKind::Raw => Shard::open_raw_u16(path)?,
    };
    Ok(Tokens::from_shard(shard.with_vocab_size(vocab_size)))
}

fn bin_files(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let failed = |error| DataError::read(folder, error);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|ending| ending == "bin") {
            found.push(path);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The one file with `word` in its name, not counting `other`; several are an error, since which of
/// them is meant is not known.
fn only_with<'a>(
    folder: &Path,
    files: &'a [PathBuf],
    word: &str,
    other: Option<&PathBuf>,
) -> Result<Option<&'a PathBuf>, DataError> {
    let name = |path: &PathBuf| {
        path.file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    };
    let mut having = files
        .iter()
        .filter(|path| Some(*path) != other && name(path).contains(word));
    match (having.next(), having.next()) {
        (Some(one), Some(two)) => Err(DataError::config(format!(
            "`{}` has several .bin files with {word:?} in their names, `{}` and `{}`; hint: keep one of them in the \
             folder",
            folder.display(),
            name(one),
            name(two)
        ))),
        (one, _) => Ok(one),
    }
}
