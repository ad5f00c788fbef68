//! Tokenizers: text to ids and back, behind one trait.
//!
//! Each tokenizer writes itself as Hugging Face's `tokenizer.json`, and the file gives the same
//! ids in Python's `tokenizers`.

mod bpe;
mod byte;
mod char;
mod decode_stream;
mod huggingface;
mod json;
mod load;
mod special;
mod word;

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use self::byte::ByteTokenizer;
pub use self::char::CharTokenizer;
pub use self::decode_stream::DecodeStream;
pub use self::huggingface::HuggingFaceTokenizer;
pub(crate) use self::load::check_config;
pub use self::load::{load_tokenizer, parse_tokenizer};
pub use self::word::WordTokenizer;

use crate::error::DataError;

/// Ids of the tokens with a meaning of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpecialTokens {
    /// Ends a document or an answer.
    pub eos: Option<u32>,
    /// Stands for what the vocabulary cannot express.
    pub unk: Option<u32>,
    /// Fills rows that are shorter than the batch; never a target.
    pub pad: Option<u32>,
}

impl SpecialTokens {
    /// The id that fills inputs where no loss is taken: the padding token, else the end token,
    /// else 0 (a mask hides it in any case).
    pub fn padding_id(self) -> u32 {
        self.pad.or(self.eos).unwrap_or(0)
    }
}

/// A text in ids.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Encoding {
    /// Token ids, each below the tokenizer's `vocab_size`.
    pub ids: Vec<u32>,
    /// The distinct pieces of the text that the vocabulary does not have, in order of first
    /// appearance, at most [`Encoding::MAX_UNKNOWN`], each shortened to
    /// [`Encoding::MAX_UNKNOWN_CHARS`]. Each was replaced by the unknown token, or dropped where
    /// there is none.
    pub unknown: Vec<String>,
}

impl Encoding {
    /// Where the list of unknown pieces stops.
    pub const MAX_UNKNOWN: usize = 1000;

    /// Characters of an unknown text that are kept; "…" stands for the others.
    pub const MAX_UNKNOWN_CHARS: usize = 32;

    pub(crate) fn record_unknown(&mut self, text: &str) {
        if self.unknown.len() >= Self::MAX_UNKNOWN {
            return;
        }
        let text = match text.char_indices().nth(Self::MAX_UNKNOWN_CHARS) {
            // What ends in "…" may have been shortened before.
            Some((end, _)) if &text[end..] != "…" => Cow::Owned(format!("{}…", &text[..end])),
            _ => Cow::Borrowed(text),
        };
        if !self.unknown.iter().any(|known| *known == text) {
            self.unknown.push(text.into_owned());
        }
    }
}

/// Text to ids and back.
pub trait Tokenizer: Send + Sync + std::fmt::Debug {
    /// Number of ids: every id is below it.
    fn vocab_size(&self) -> usize;

    /// The special tokens.
    fn special_tokens(&self) -> SpecialTokens;

    /// Ids of `text`. Special tokens written in the text (`<EOS>`) become their ids; nothing is
    /// added at the beginning or the end.
    fn encode(&self, text: &str) -> Encoding;

    /// The vocabulary's entry for `id`, as it stands in `tokenizer.json` (where GPT-2 writes a
    /// space as `Ġ`). `None` for an id that is not in use.
    fn id_to_token(&self, id: u32) -> Option<String>;

    /// How one token is shown to a reader: its text, with bytes that are no whole character as
    /// `\xE2`. `None` for an id that is not in use.
    fn token_text(&self, id: u32) -> Option<String>;

    /// Text of `ids`. Special tokens and ids out of range are skipped; bytes that are not UTF-8
    /// become U+FFFD.
    fn decode(&self, ids: &[u32]) -> String;

    /// The bytes of one token, if decoding is joining the tokens' bytes; empty for special tokens.
    /// `None` where a token's text depends on its neighbours.
    fn token_bytes(&self, id: u32) -> Option<Vec<u8>>;

    /// The tokenizer in Hugging Face's `tokenizer.json` format.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] if it cannot be written as JSON.
    fn to_json(&self) -> Result<String, DataError>;

    /// SHA-256 of the vocabulary in id order, in hexadecimal: token files and records made with
    /// one vocabulary are not read with another.
    fn hash(&self) -> String {
        let mut hasher = Sha256::new();
        for id in 0..self.vocab_size() as u32 {
            let text = self.id_to_token(id).unwrap_or_default();
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        crate::hex::encode(&hasher.finalize())
    }
}

/// Which tokenizer is built from the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenizerKind {
    /// One token a character of the text, in sorted order.
    #[default]
    Char,
    /// One token a byte: 256 of them, whatever the text.
    Byte,
    /// One token a word between white space; decoding joins words with one space.
    Word,
    /// Byte-level byte-pair encoding, trained on the text (GPT-2's kind).
    Bpe,
}

/// The tokenizer of a run: one that is built from its text, or a given file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenizerConfig {
    /// `char`, `byte`, `word` or `bpe`; not used with `file`.
    pub kind: TokenizerKind,
    /// Size of the vocabulary, special tokens included. For `bpe` (default 4096) it is where
    /// training stops, for `word` the most frequent words are kept (default: all).
    pub vocab_size: Option<usize>,
    /// A `tokenizer.json` to use instead of building one.
    pub file: Option<PathBuf>,
    /// The token that ends documents and answers; empty for none. With `file`, the default stands
    /// for the file's own end token.
    pub eos: String,
    /// The token for what the vocabulary cannot express; empty for none (it is then left out and
    /// reported). Not used with `file`, nor by `byte` and `bpe`, which can express every text.
    pub unk: String,
    /// The token that fills short rows; empty for none. Its name must contain "pad". Not used
    /// with `file`.
    pub pad: String,
    /// How much text from the beginning of the sources `bpe` is trained on, in bytes.
    pub sample_bytes: u64,
}

impl TokenizerConfig {
    /// The end token where the config names none.
    pub const DEFAULT_EOS: &'static str = "<EOS>";
    /// The size of a trained BPE vocabulary where the config names none.
    pub const DEFAULT_BPE_VOCAB: usize = 4096;
}

impl Default for TokenizerConfig {
    fn default() -> Self {
        Self {
            kind: TokenizerKind::Char,
            vocab_size: None,
            file: None,
            eos: Self::DEFAULT_EOS.to_owned(),
            unk: String::new(),
            pad: String::new(),
            sample_bytes: 64 << 20,
        }
    }
}

/// The tokenizer that `config` describes: the given file, or one built from `texts`.
///
/// `texts` are consecutive pieces of the documents (see [`crate::Sources::chunks`]). `char` and
/// `word` read all of them with memory for the vocabulary only, `bpe` the first `sample_bytes`,
/// `byte` none. The same texts give the same tokenizer.
///
/// # Errors
/// The first error of `texts`; [`DataError::Config`] for settings that do not fit together;
/// [`DataError::Tokenizer`] if the file is not a tokenizer or training fails.
pub fn build_tokenizer(
    config: &TokenizerConfig,
    texts: impl Iterator<Item = Result<String, DataError>> + Send,
) -> Result<Arc<dyn Tokenizer>, DataError> {
    if let Some(file) = &config.file {
        return load::load_with_eos(file, &config.eos);
    }
    check_config(config)?;
    let mut names = special::SpecialNames::from_config(config)?;
    if matches!(config.kind, TokenizerKind::Byte | TokenizerKind::Bpe) {
        names.unk = None; // every text is bytes: nothing is unknown
    }
    Ok(match config.kind {
        TokenizerKind::Char => Arc::new(CharTokenizer::train(texts, &names)?),
        TokenizerKind::Byte => Arc::new(ByteTokenizer::new(&names)),
        TokenizerKind::Word => Arc::new(WordTokenizer::train(texts, config.vocab_size, &names)?),
        TokenizerKind::Bpe => Arc::new(bpe::train(texts, config, &names)?),
    })
}
