//! The `[data]` table of a run's config.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::documents::{Format, SourceConfig};
use crate::error::DataError;
use crate::tokenizer::TokenizerConfig;
use crate::window::{Order, Packing};

/// Built-in corpora.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Builtin {
    /// Short English stories from a seeded grammar.
    Stories,
    /// The two documents of `StatQuest`'s decoder-only example.
    Statquest,
}

/// How documents or tokens are split into training and validation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SplitBy {
    /// The end of the token stream is used for validation, as in nanoGPT.
    #[default]
    Tail,
    /// Each document is assigned to one split as a whole, by a hash of its index and the seed.
    Documents,
}

/// The split into training and validation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SplitConfig {
    /// `tail` or `documents`.
    pub by: SplitBy,
    /// Fraction used for validation: at least 0 (none) and less than 1.
    pub validation: f64,
    /// Seed that selects the validation documents (`by = "documents"`).
    pub seed: u64,
}

impl Default for SplitConfig {
    fn default() -> Self {
        Self {
            by: SplitBy::Tail,
            validation: 0.1,
            seed: 0,
        }
    }
}

impl SplitConfig {
    pub(crate) fn validate(&self) -> Result<(), DataError> {
        if (0.0..1.0).contains(&self.validation) {
            return Ok(());
        }
        Err(DataError::config(format!(
            "split.validation = {} must be at least 0 and less than 1; hint: 0.1 uses a tenth for validation",
            self.validation
        )))
    }
}

/// Where the tokens come from and in which order they are read: a run config's `[data]` table.
///
/// Exactly one of `path`/`paths`, `builtin` and `prepared` is given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// One text source: a `.txt` or `.jsonl` file, a folder of them, or `-` for standard input.
    pub path: Option<PathBuf>,
    /// Several text sources, read in this order.
    pub paths: Vec<PathBuf>,
    /// File format; `auto` treats files ending in `.jsonl` as JSON lines.
    pub format: Format,
    /// Splits each text file into documents; without it a file is one document.
    pub separator: Option<String>,
    /// The field of a `.jsonl` line that contains the document.
    pub field: String,
    /// A built-in corpus: `stories` or `statquest`.
    pub builtin: Option<Builtin>,
    /// Seed of the built-in stories.
    pub seed: u64,
    /// Number of built-in stories.
    pub documents: usize,
    /// A folder that `prepare` wrote, or one with nanoGPT's or llm.c's `train.bin` and `val.bin`.
    pub prepared: Option<PathBuf>,
    /// How text is tokenized. A `prepared` folder with a `tokenizer.json` uses that file instead.
    pub tokenizer: TokenizerConfig,
    /// The split into training and validation; a `prepared` folder has its own.
    pub split: SplitConfig,
    /// `random` (with replacement) or `epoch` (each window once per epoch, reshuffled every epoch).
    pub order: Order,
    /// `packed` (windows cross document boundaries) or `documents` (windows end at document
    /// boundaries and are padded).
    pub packing: Packing,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            path: None,
            paths: Vec::new(),
            format: Format::Auto,
            separator: None,
            field: SourceConfig::DEFAULT_FIELD.to_owned(),
            builtin: None,
            seed: 0,
            documents: crate::corpus::DEFAULT_STORIES,
            prepared: None,
            tokenizer: TokenizerConfig::default(),
            split: SplitConfig::default(),
            order: Order::default(),
            packing: Packing::default(),
        }
    }
}

impl DataConfig {
    /// Checks the settings for consistency before any data is read.
    ///
    /// # Errors
    /// [`DataError::Config`] that names the keys and the fix.
    ///
    /// # Example
    ///
    /// ```
    /// use nextword_data::DataConfig;
    ///
    /// let error = DataConfig::default().validate().unwrap_err();
    /// assert!(error.to_string().contains("set one of `path`, `builtin` (\"stories\") and `prepared`"));
    /// ```
    pub fn validate(&self) -> Result<(), DataError> {
        let from_text = self.path.is_some() || !self.paths.is_empty();
        let sources = [from_text, self.builtin.is_some(), self.prepared.is_some()];
        match sources.iter().filter(|&&is_set| is_set).count() {
            0 => {
                return Err(DataError::config(
                    "no data source is set; hint: set one of `path`, `builtin` (\"stories\") and `prepared` under [data]",
                ));
            }
            1 => {}
            _ => {
                return Err(DataError::config(
                    "more than one of `path`/`paths`, `builtin` and `prepared` is set under [data]; hint: keep only one",
                ));
            }
        }
        self.split.validate()?;
        if self.builtin == Some(Builtin::Stories) && self.documents == 0 {
            return Err(DataError::config(
                "documents = 0 would generate an empty corpus; hint: remove the key to use the default",
            ));
        }
        if self.separator.as_deref() == Some("") {
            return Err(DataError::config(
                "separator is empty; hint: remove the key to read each file as one document",
            ));
        }
        crate::tokenizer::check_config(&self.tokenizer)
    }

    /// Returns the text source settings.
    pub fn source(&self) -> SourceConfig {
        SourceConfig {
            paths: self.path.iter().chain(&self.paths).cloned().collect(),
            format: self.format,
            separator: self.separator.clone(),
            field: self.field.clone(),
        }
    }

    /// Resolves relative paths (`path`, `paths`, `prepared` and `tokenizer.file`) against `base`: the
    /// folder of the config file or the current directory. `-` (standard input) is left as it is.
    pub fn resolve_paths(&mut self, base: &Path) {
        let paths = self
            .path
            .iter_mut()
            .chain(&mut self.paths)
            .chain(&mut self.prepared);
        for path in paths.chain(&mut self.tokenizer.file) {
            if path.is_relative() && path.as_os_str() != "-" {
                *path = base.join(&path);
            }
        }
    }
}
