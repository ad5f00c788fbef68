//! The `[data]` table of a run's config.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use crate::documents::{Format, SourceConfig};
use crate::error::DataError;
use crate::masked_config::MaskedConfig;
use crate::pairs::{LossOn, PairSources, is_pairs_name};
use crate::tokenizer::TokenizerConfig;
use crate::window::{Order, Packing, without_samples};

/// Built-in corpora.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Builtin {
    /// Short English stories from a seeded grammar.
    Stories,
    /// The two documents of `StatQuest`'s decoder-only example.
    Statquest,
    /// Conversations about short stories ([`StoryChats`](crate::StoryChats)).
    #[serde(rename = "stories_chat")]
    StoriesChat,
    /// The same conversations, each with a wrong last reply to compare with the right one
    /// ([`StoryChats::wrong_reply`](crate::StoryChats::wrong_reply)).
    #[serde(rename = "stories_preferences")]
    StoriesPreferences,
}

/// Which messages of a conversation are trained: their tokens are targets of the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainOn {
    /// All messages of the assistant, each with the token that ends it.
    #[default]
    Assistant,
    /// The last message of the assistant.
    LastAssistant,
    /// All tokens after the first: those of the user and of the template too.
    All,
}

/// What happens to a conversation that is longer than a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TooLong {
    /// Its leading messages are kept, up to the last message of the assistant that fits whole.
    #[default]
    Turns,
    /// It is an error.
    Error,
    /// Its tokens are cut off at the end of the sequence, within a message or not.
    Truncate,
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
/// Exactly one of `path`/`paths`, `builtin`, `prepared`, `conversations` and `pairs` is given.
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
    /// A built-in corpus: `stories`, `statquest`, `stories_chat` or `stories_preferences`.
    pub builtin: Option<Builtin>,
    /// Seed of the built-in stories and of the conversations about them.
    pub seed: u64,
    /// Number of built-in stories or conversations.
    pub documents: usize,
    /// A folder that `prepare` wrote, or one with nanoGPT's or llm.c's `train.bin` and `val.bin`.
    pub prepared: Option<PathBuf>,
    /// Files with conversations, or folders of them: a path or a list of paths.
    #[serde(deserialize_with = "paths", skip_serializing_if = "Vec::is_empty")]
    pub conversations: Vec<PathBuf>,
    /// Which messages of the conversations are trained: `assistant`, `last_assistant` or `all`.
    #[serde(skip_serializing_if = "is_default")]
    pub train_on: TrainOn,
    /// The chat template that turns conversations into text: `chatml`, `plain` or a file. Without it, that of the
    /// model in `start_from`, or `plain` where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<PathBuf>,
    /// The token that ends a message of the assistant, where the chat template has another one than those that end
    /// completions of the model in `start_from`. It then ends completions of the trained model too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eos_token: Option<String>,
    /// What happens to a conversation that is longer than a sequence: `turns`, `error` or `truncate`.
    #[serde(skip_serializing_if = "is_default")]
    pub too_long: TooLong,
    /// Pairs of a source and a target: `.tsv` or `.jsonl` files, as a path or a list of paths (see
    /// [`PairSources`]), or `translation` or `statquest` for built-in ones.
    #[serde(deserialize_with = "paths", skip_serializing_if = "Vec::is_empty")]
    pub pairs: Vec<PathBuf>,
    /// Which tokens of a pair are trained: `target` or `both`.
    #[serde(skip_serializing_if = "is_default")]
    pub loss_on: LossOn,
    /// How tokens are masked for an encoder; without it, as in BERT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masked: Option<MaskedConfig>,
    /// How text is tokenized. A `prepared` folder with a `tokenizer.json` uses that file instead.
    pub tokenizer: TokenizerConfig,
    /// The split into training and validation; a `prepared` folder has its own.
    pub split: SplitConfig,
    /// `random` (with replacement) or `epoch` (each window once per epoch, reshuffled every epoch).
    pub order: Order,
    /// `packed` (windows cross document boundaries) or `documents` (windows end at document
    /// boundaries and are padded). Conversations have a row each, or share rows with `samples`.
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
            conversations: Vec::new(),
            train_on: TrainOn::default(),
            chat_template: None,
            eos_token: None,
            too_long: TooLong::default(),
            pairs: Vec::new(),
            loss_on: LossOn::default(),
            masked: None,
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
        let sources = [
            from_text,
            self.builtin.is_some(),
            self.prepared.is_some(),
            !self.conversations.is_empty(),
            self.has_pairs(),
        ];
        match sources.iter().filter(|&&is_set| is_set).count() {
            0 => {
                return Err(DataError::config(
                    "no data source is set; hint: set one of `path`, `builtin` (\"stories\") and `prepared` under [data], or \
                     `conversations` to train on dialogues, or `pairs` on sources with targets",
                ));
            }
            1 => {}
            _ => {
                return Err(DataError::config(
                    "more than one of `path`/`paths`, `builtin`, `prepared`, `conversations` and `pairs` is set under [data]; hint: keep only one",
                ));
            }
        }
        self.split.validate()?;
        let has_sentences = self.pairs.iter().any(|path| is_pairs_name(path));
        let has_stories = !matches!(self.builtin, None | Some(Builtin::Statquest));
        if self.documents == 0 && (has_sentences || has_stories) {
            return Err(DataError::config(
                "documents = 0 would generate an empty corpus; hint: remove the key to use the default",
            ));
        }
        self.validate_conversation_keys()?;
        if self.loss_on != LossOn::default() && !self.has_pairs() {
            return Err(DataError::config(
                "data.loss_on is set, but the data has no pairs; hint: set data.pairs, or remove data.loss_on",
            ));
        }
        if let Some(masked) = &self.masked {
            masked.validate()?;
        }
        if self.separator.as_deref() == Some("") {
            return Err(DataError::config(
                "separator is empty; hint: remove the key to read each file as one document",
            ));
        }
        crate::tokenizer::check_config(&self.tokenizer)
    }

    /// Rejects settings of conversations beside other data.
    fn validate_conversation_keys(&self) -> Result<(), DataError> {
        let keys = [
            ("train_on", !is_default(&self.train_on)),
            ("chat_template", self.chat_template.is_some()),
            ("eos_token", self.eos_token.is_some()),
            ("too_long", !is_default(&self.too_long)),
        ];
        if self.packing == Packing::Samples && !self.has_conversations() {
            return Err(without_samples());
        }
        match keys.iter().find(|(_, is_set)| *is_set) {
            Some((key, _)) if !self.has_conversations() => Err(DataError::config(format!(
                "data.{key} is set, but the data has no conversations; hint: set data.conversations, or remove \
                 data.{key}"
            ))),
            _ => Ok(()),
        }
    }

    /// Whether the data are conversations, of which only some tokens are trained.
    ///
    /// ```
    /// use nextword_data::{Builtin, DataConfig};
    ///
    /// let mut config = DataConfig { builtin: Some(Builtin::StoriesChat), ..DataConfig::default() };
    /// assert!(config.has_conversations());
    /// config.builtin = Some(Builtin::Stories);
    /// assert!(!config.has_conversations());
    /// ```
    pub fn has_conversations(&self) -> bool {
        let is_chat =
            |builtin| matches!(builtin, Builtin::StoriesChat | Builtin::StoriesPreferences);
        !self.conversations.is_empty() || self.builtin.is_some_and(is_chat)
    }

    /// Whether the data are pairs of a source and a target.
    ///
    /// ```
    /// use nextword_data::DataConfig;
    ///
    /// let config = DataConfig { pairs: vec!["translation".into()], ..DataConfig::default() };
    /// assert!(config.has_pairs() && !config.has_conversations());
    /// ```
    pub fn has_pairs(&self) -> bool {
        !self.pairs.is_empty()
    }

    /// Returns the sources of pairs.
    pub fn pair_sources(&self) -> PairSources {
        PairSources {
            paths: self.pairs.clone(),
            seed: self.seed,
            sentences: self.documents,
        }
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

    /// Resolves relative paths (`path`, `paths`, `prepared`, `conversations`, `pairs`, `chat_template` and
    /// `tokenizer.file`) against `base`: the
    /// folder of the config file or the current directory. `-` (standard input) is left as it is.
    pub fn resolve_paths(&mut self, base: &Path) {
        let paths = self
            .path
            .iter_mut()
            .chain(&mut self.paths)
            .chain(&mut self.prepared)
            .chain(&mut self.conversations);
        let template = self.chat_template.iter_mut();
        let template = template.filter(|name| !is_template_name(name));
        for path in paths.chain(&mut self.tokenizer.file).chain(template) {
            if path.is_relative() && path.as_os_str() != "-" {
                *path = base.join(&path);
            }
        }
        crate::pairs::resolve_paths(&mut self.pairs, base);
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Whether a chat template is named, and not a file.
///
/// ```
/// use nextword_data::is_template_name;
///
/// assert!(is_template_name("chatml".as_ref()) && is_template_name("plain".as_ref()));
/// assert!(!is_template_name("templates/plain".as_ref()));
/// ```
pub fn is_template_name(template: &Path) -> bool {
    ["chatml", "plain"]
        .iter()
        .any(|name| template.as_os_str() == *name)
}

/// Reads a path or a list of paths.
fn paths<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
    one_or_several(deserializer, "a path or a list of paths")
}

/// Reads a value of a configuration, or a list of them.
///
/// # Errors
/// An error with the text `expected` for anything else.
///
/// ```
/// use nextword_data::one_or_several;
/// use serde_json::json;
///
/// let read = |value| one_or_several::<_, u32>(value, "a number or a list of numbers");
/// assert_eq!(read(json!(3))?, [3]);
/// assert_eq!(read(json!([3, 4]))?, [3, 4]);
/// assert_eq!(read(json!("x")).unwrap_err().to_string(), "a number or a list of numbers");
/// # Ok::<(), serde_json::Error>(())
/// ```
pub fn one_or_several<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
    expected: &'static str,
) -> Result<Vec<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Values<T> {
        One(T),
        Several(Vec<T>),
    }
    match Values::deserialize(deserializer) {
        Ok(Values::One(value)) => Ok(vec![value]),
        Ok(Values::Several(values)) => Ok(values),
        Err(_) => Err(serde::de::Error::custom(expected)),
    }
}
