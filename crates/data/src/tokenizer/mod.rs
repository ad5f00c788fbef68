//! Tokenizers: encode text to ids and decode ids to text, behind one trait.
//!
//! Every tokenizer can be saved in Hugging Face's `tokenizer.json` format; Python's `tokenizers`
//! gives the same ids for that file.

mod alphabet;
mod bpe;
mod byte;
mod char;
mod checks;
mod cuts;
mod decode_rules;
mod decode_stream;
mod encoding;
mod eos_names;
mod fragments;
mod huggingface;
mod json;
mod load;
mod regex;
mod special;
mod token_decoder;
mod word;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use self::alphabet::byte_to_char;
pub use self::byte::ByteTokenizer;
pub use self::char::CharTokenizer;
pub use self::decode_rules::DecodeRules;
pub use self::decode_stream::DecodeStream;
pub use self::encoding::Encoding;
pub use self::eos_names::is_eos_name;
pub use self::huggingface::HuggingFaceTokenizer;
pub(crate) use self::load::check_config;
pub use self::load::{
    load_tokenizer, load_tokenizer_with_roles, parse_tokenizer, parse_tokenizer_with_roles,
};
use self::special::is_mask_name;
pub use self::word::WordTokenizer;

use self::decode_rules::byte_of;
use crate::documents::TextCuts;
use crate::error::DataError;

/// Ids of the special tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpecialTokens {
    /// End of sequence: ends a document or a completion.
    pub eos: Option<u32>,
    /// Replaces text that is not in the vocabulary.
    pub unk: Option<u32>,
    /// Pads short rows of a batch; never a target.
    pub pad: Option<u32>,
}

impl SpecialTokens {
    /// Returns the id for padded inputs: the padding token, else the EOS token, else 0. The loss mask
    /// excludes these positions in any case.
    pub fn padding_id(self) -> u32 {
        self.pad.or(self.eos).unwrap_or(0)
    }
}

/// The id of the special token called `name`, if `tokenizer` has it.
///
/// ```
/// use nextword_data::{TokenizerConfig, special_token};
///
/// let tokenizer = TokenizerConfig::words().build("to be")?;
/// assert_eq!(special_token(&*tokenizer, "<EOS>"), Some(2));
/// assert_eq!(special_token(&*tokenizer, "be"), None); // an ordinary word
/// # Ok::<(), nextword_data::DataError>(())
/// ```
pub fn special_token(tokenizer: &dyn Tokenizer, name: &str) -> Option<u32> {
    let is_special = tokenizer.special_texts().iter().any(|text| text == name);
    match tokenizer.encode(name).ids[..] {
        [id] if is_special => Some(id),
        _ => None,
    }
}

/// The token that hides another one, by its name: `[MASK]`, `<mask>`.
///
/// ```
/// use nextword_data::{TokenizerConfig, mask_token};
///
/// let mut config = TokenizerConfig::words();
/// assert_eq!(mask_token(&*config.build("to be")?), None);
/// config.mask = "[MASK]".to_string();
/// assert_eq!(mask_token(&*config.build("to be")?), Some(4)); // after the words, <EOS> and <unk>
/// # Ok::<(), nextword_data::DataError>(())
/// ```
pub fn mask_token(tokenizer: &dyn Tokenizer) -> Option<u32> {
    let texts = tokenizer.special_texts();
    let mut masks = texts.iter().filter(|text| is_mask_name(text));
    masks.find_map(|name| special_token(tokenizer, name))
}

/// Encodes text to ids and decodes ids to text.
///
/// # Example
///
/// ```
/// use nextword_data::{TokenizerConfig, build_tokenizer};
///
/// let text = "hello <EOS>".to_owned();
/// let tokenizer = build_tokenizer(&TokenizerConfig::default(), [Ok(text)].into_iter())?;
/// assert_eq!(tokenizer.vocab_size(), 7); // space, e, h, l, o, <EOS>, <unk>
/// assert_eq!(tokenizer.encode("hole<EOS>").ids, [2, 4, 3, 1, 5]);
/// assert_eq!(tokenizer.decode(&[2, 4, 3, 1, 5]), "hole"); // without special tokens
/// let help = tokenizer.encode("help!");
/// assert_eq!((help.ids, help.unknown), (vec![2, 1, 3, 6, 6], vec!["p".into(), "!".into()]));
/// # Ok::<(), nextword_data::DataError>(())
/// ```
pub trait Tokenizer: Send + Sync + std::fmt::Debug {
    /// Vocabulary size: every id is below it.
    fn vocab_size(&self) -> usize;

    /// Returns the ids of the special tokens.
    fn special_tokens(&self) -> SpecialTokens;

    /// Encodes `text`. Special tokens in the text (`<EOS>`) become their ids; nothing is added at the
    /// start or the end.
    fn encode(&self, text: &str) -> Encoding;

    /// Encodes `text` as [`encode`](Self::encode) does, but fails where a pattern or a normalizer of a
    /// `tokenizer.json` would need too much work for the text, which `encode` then drops and reports as
    /// unknown.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`], which names the pattern.
    ///
    /// ```
    /// use nextword_data::TokenizerConfig;
    ///
    /// let tokenizer = TokenizerConfig::chars().build("hello")?;
    /// assert_eq!(tokenizer.try_encode("hole")?, tokenizer.encode("hole"));
    /// # Ok::<(), nextword_data::DataError>(())
    /// ```
    fn try_encode(&self, text: &str) -> Result<Encoding, DataError> {
        Ok(self.encode(text))
    }

    /// Encodes `text` as [`try_encode`](Self::try_encode) does, but without special tokens: their texts become the
    /// ids of ordinary tokens.
    ///
    /// # Errors
    /// As [`try_encode`](Self::try_encode).
    ///
    /// ```
    /// use nextword_data::TokenizerConfig;
    ///
    /// let tokenizer = TokenizerConfig::bytes().build("")?;
    /// assert_eq!(tokenizer.try_encode("a<EOS>")?.ids, [97, 256]);
    /// assert_eq!(tokenizer.try_encode_ordinary("a<EOS>")?.ids, [97, 60, 69, 79, 83, 62]);
    /// # Ok::<(), nextword_data::DataError>(())
    /// ```
    fn try_encode_ordinary(&self, text: &str) -> Result<Encoding, DataError> {
        self.try_encode(text)
    }

    /// Returns the texts that [`encode`](Self::encode) turns into special tokens, in any order.
    fn special_texts(&self) -> Vec<String> {
        Vec::new()
    }

    /// Encodes `text`, and returns the range of bytes of the text that each token stands for; `None`
    /// where it is not known.
    fn encode_with_ranges(&self, text: &str) -> (Encoding, Vec<Option<Range<usize>>>) {
        let encoding = self.encode(text);
        let ranges = vec![None; encoding.ids.len()];
        (encoding, ranges)
    }

    /// Returns where a long text can be cut so that its parts have the tokens of the whole text.
    fn text_cuts(&self) -> TextCuts {
        TextCuts::Nowhere
    }

    /// Returns the raw vocabulary entry of `id` as in `tokenizer.json` (GPT-2 writes a space as `Ġ`);
    /// `None` for an unused id.
    fn id_to_token(&self, id: u32) -> Option<String>;

    /// Returns the display text of one token, with incomplete characters as `\xE2`; `None` for an
    /// unused id.
    fn token_text(&self, id: u32) -> Option<String>;

    /// Decodes `ids`. Special tokens and ids out of range are skipped; invalid UTF-8 becomes U+FFFD.
    /// Character and word tokenizers show the unknown token by its name.
    fn decode(&self, ids: &[u32]) -> String;

    /// Decodes `ids`, special tokens included.
    fn decode_with_special_tokens(&self, ids: &[u32]) -> String {
        self.decode(ids)
    }

    /// Returns the bytes of one token if decoding concatenates token bytes; empty for special tokens.
    /// `None` if the text of a token depends on its neighbors.
    fn token_bytes(&self, id: u32) -> Option<Vec<u8>>;

    /// Returns the bytes that one token stands for by itself: its [bytes](Self::token_bytes), else those of its
    /// [text](Self::token_text), and one byte for a byte token (`<0x0A>`) of a tokenizer that decodes such tokens
    /// to bytes. Empty for special tokens; `None` for an unused id.
    ///
    /// ```
    /// use nextword_data::TokenizerConfig;
    ///
    /// let tokenizer = TokenizerConfig::words().build("to be")?;
    /// assert_eq!(tokenizer.token_bytes(0), None); // Decoding adds a space, except before the first word.
    /// assert_eq!(tokenizer.single_token_bytes(0), Some(b"to".to_vec()));
    /// # Ok::<(), nextword_data::DataError>(())
    /// ```
    fn single_token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        if let Some(bytes) = self.token_bytes(id) {
            return Some(bytes);
        }
        let text = self.token_text(id)?;
        let Some(entry) = self.decoded_token(id) else {
            return Some(Vec::new()); // A special token.
        };
        let falls_back = self
            .decode_rules()
            .is_some_and(|rules| rules.has_byte_fallback());
        let byte = byte_of(&entry).filter(|_| falls_back);
        Some(byte.map_or_else(|| text.into_bytes(), |byte| vec![byte]))
    }

    /// This tokenizer with another EOS and padding token, as a model declares them: `tokenizer.json` does not
    /// store these roles.
    ///
    /// ```
    /// use nextword_data::TokenizerConfig;
    ///
    /// let tokenizer = TokenizerConfig::words().build("to be")?;
    /// assert_eq!(tokenizer.special_tokens().eos, Some(2));
    /// let without = tokenizer.with_roles(None, None); // No token ends a document.
    /// assert_eq!(without.special_tokens().eos, None);
    /// assert_eq!(without.encode("to be <EOS>").ids, [0, 1, 2]);
    /// # Ok::<(), nextword_data::DataError>(())
    /// ```
    fn with_roles(&self, eos: Option<u32>, pad: Option<u32>) -> Arc<dyn Tokenizer>;

    /// Returns the vocabulary entry of `id` that [`decode_rules`](Self::decode_rules) are applied to;
    /// `None` for ids that decoding skips.
    fn decoded_token(&self, id: u32) -> Option<String> {
        self.id_to_token(id)
    }

    /// Returns the rules of [`decode`](Self::decode), which [`DecodeStream`] applies token by token.
    /// `None` if there are none: then it decodes all tokens at the end. By default, decoding
    /// concatenates bytes if tokens have [bytes](Self::token_bytes).
    fn decode_rules(&self) -> Option<DecodeRules> {
        self.token_bytes(0).map(|_| DecodeRules::bytes())
    }

    /// Serializes the tokenizer in Hugging Face's `tokenizer.json` format.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] if it cannot be serialized.
    fn to_json(&self) -> Result<String, DataError>;

    /// Returns the SHA-256 of the vocabulary in id order, in hexadecimal. It ties token files and model
    /// folders to their vocabulary.
    fn hash(&self) -> String {
        let mut hasher = Sha256::new();
        for id in 0..self.vocab_size() as u32 {
            let text = self.id_to_token(id).unwrap_or_default();
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        hex::encode(hasher.finalize())
    }
}

/// Kind of tokenizer to build from the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenizerKind {
    /// One token per distinct character of the text, in sorted order.
    #[default]
    Char,
    /// One token per byte: 256 tokens, independent of the text.
    Byte,
    /// One token per white-space separated word; decoding joins words with one space.
    Word,
    /// Byte-level byte-pair encoding as in GPT-2, trained on the text.
    Bpe,
}

/// The tokenizer of a run: built from its text, or an existing file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenizerConfig {
    /// `char`, `byte`, `word` or `bpe`; ignored with `file`.
    pub kind: TokenizerKind,
    /// Vocabulary size, including special tokens. `bpe` trains up to this size (default 4096), `word`
    /// keeps the most frequent words (default: all).
    pub vocab_size: Option<usize>,
    /// A `tokenizer.json` to use instead of building one.
    pub file: Option<PathBuf>,
    /// The EOS token, which ends documents and completions; empty for none. With `file`, the default
    /// selects the EOS token of the file.
    pub eos: String,
    /// The token for text that is not in the vocabulary, default `<unk>`; empty for none (such text is
    /// then dropped and reported). Ignored with `file`, and by `byte` and `bpe`, which can encode any
    /// text.
    pub unk: String,
    /// The token that pads short rows; empty for none. Its name must contain "pad". Ignored with
    /// `file`.
    pub pad: String,
    /// The token between source and target of a pair, such as `<SEP>`; empty for none. Its name must contain "sep",
    /// or be that of the EOS token. Runs on pairs set it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sep: String,
    /// The token that hides another one, such as `[MASK]`; empty for none. Its name must contain "mask". Runs that
    /// train an encoder set it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mask: String,
    /// Number of bytes at the start of the sources that `bpe` is trained on.
    pub sample_bytes: u64,
}

impl TokenizerConfig {
    /// The default EOS token.
    pub const DEFAULT_EOS: &'static str = "<EOS>";
    /// The default token for text that is not in the vocabulary.
    pub const DEFAULT_UNK: &'static str = "<unk>";
    /// The default token between source and target.
    pub const DEFAULT_SEP: &'static str = "<SEP>";
    /// The default mask token.
    pub const DEFAULT_MASK: &'static str = "[MASK]";
    /// The default size of a trained BPE vocabulary.
    pub const DEFAULT_BPE_VOCAB: usize = 4096;

    /// One token per distinct character of the text, an EOS token, and one for unknown characters.
    pub fn chars() -> Self {
        Self::of_kind(TokenizerKind::Char)
    }

    /// One token per byte, and an EOS token.
    pub fn bytes() -> Self {
        Self::of_kind(TokenizerKind::Byte)
    }

    /// One token per distinct word of the text, an EOS token, and one for unknown words.
    pub fn words() -> Self {
        Self::of_kind(TokenizerKind::Word)
    }

    /// Byte-level byte-pair encoding, trained on the text up to `vocab_size` tokens, of which one is
    /// the EOS token.
    pub fn bpe(vocab_size: usize) -> Self {
        Self {
            vocab_size: Some(vocab_size),
            ..Self::of_kind(TokenizerKind::Bpe)
        }
    }

    /// The tokenizer of a `tokenizer.json`.
    pub fn from_file(path: impl Into<PathBuf>) -> Self {
        Self {
            file: Some(path.into()),
            ..Self::default()
        }
    }

    /// A name for error messages: the file, or the kind.
    pub(crate) fn name(&self) -> String {
        match &self.file {
            Some(file) => file.display().to_string(),
            None => format!("{:?}", self.kind).to_lowercase(),
        }
    }

    /// Sets the token for text that is not in the vocabulary; "" drops such text.
    ///
    /// ```
    /// use nextword_data::TokenizerConfig;
    ///
    /// let tokenizer = TokenizerConfig::words().with_unk("").build("what is statquest")?;
    /// assert_eq!(tokenizer.vocab_size(), 4); // the words and <EOS>
    /// # Ok::<(), nextword_data::DataError>(())
    /// ```
    #[must_use]
    pub fn with_unk(self, unk: &str) -> Self {
        let unk = unk.to_owned();
        Self { unk, ..self }
    }

    fn of_kind(kind: TokenizerKind) -> Self {
        Self {
            kind,
            ..Self::default()
        }
    }

    /// Builds the tokenizer from a text in memory. [`build_tokenizer`] reads streamed text.
    ///
    /// # Errors
    /// The errors of [`build_tokenizer`].
    ///
    /// ```
    /// use nextword_data::TokenizerConfig;
    ///
    /// let tokenizer = TokenizerConfig::chars().build("hello")?;
    /// assert_eq!(tokenizer.vocab_size(), 6); // e, h, l, o, <EOS> and <unk>
    /// assert_eq!(tokenizer.decode(&tokenizer.encode("hole").ids), "hole");
    /// # Ok::<(), nextword_data::DataError>(())
    /// ```
    pub fn build(&self, text: &str) -> Result<Arc<dyn Tokenizer>, DataError> {
        build_tokenizer(self, std::iter::once(Ok(text.to_owned())))
    }
}

impl Default for TokenizerConfig {
    fn default() -> Self {
        Self {
            kind: TokenizerKind::Char,
            vocab_size: None,
            file: None,
            eos: Self::DEFAULT_EOS.to_owned(),
            unk: Self::DEFAULT_UNK.to_owned(),
            pad: String::new(),
            sep: String::new(),
            mask: String::new(),
            sample_bytes: 64 << 20,
        }
    }
}

/// Loads the tokenizer file of `config`, or builds a tokenizer from `texts`.
///
/// `texts` are consecutive chunks of the documents (see [`crate::Sources::chunks`]). `char` and
/// `word` read all of them in bounded memory, `bpe` reads the first `sample_bytes`, `byte` reads
/// none. The same texts give the same tokenizer.
///
/// # Errors
/// The first error of `texts`; [`DataError::Config`] for inconsistent settings;
/// [`DataError::Tokenizer`] if the file is not a tokenizer or training fails.
///
/// # Example
///
/// ```
/// use nextword_data::{Stories, TokenizerConfig, TokenizerKind, build_tokenizer};
///
/// let kind = TokenizerKind::Bpe;
/// let config = TokenizerConfig { kind, vocab_size: Some(400), ..TokenizerConfig::default() };
/// let tokenizer = build_tokenizer(&config, Stories::new(0, 20).iter().map(Ok))?;
/// assert_eq!(tokenizer.vocab_size(), 400);
///
/// let text = "Once upon a time — naïve";
/// let ids = tokenizer.encode(text).ids;
/// assert!(ids.len() < text.len()); // frequent pairs of bytes are one token
/// assert_eq!(tokenizer.decode(&ids), text);
/// # Ok::<(), nextword_data::DataError>(())
/// ```
pub fn build_tokenizer(
    config: &TokenizerConfig,
    texts: impl Iterator<Item = Result<String, DataError>> + Send,
) -> Result<Arc<dyn Tokenizer>, DataError> {
    if let Some(file) = &config.file {
        return load::load_with_eos(file, &config.eos);
    }
    check_config(config)?;
    let names = special::SpecialNames::from_config(config)?;
    Ok(match config.kind {
        TokenizerKind::Char => Arc::new(CharTokenizer::train(texts, &names)?),
        TokenizerKind::Byte => Arc::new(ByteTokenizer::new(&names)),
        TokenizerKind::Word => Arc::new(WordTokenizer::train(texts, config.vocab_size, &names)?),
        TokenizerKind::Bpe => Arc::new(bpe::train(texts, config, &names)?),
    })
}
