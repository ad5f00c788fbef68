//! Reading `tokenizer.json`, which may come from anywhere.

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::special::SpecialNames;
use super::{
    ByteTokenizer, CharTokenizer, HuggingFaceTokenizer, Tokenizer, TokenizerConfig, TokenizerKind,
    WordTokenizer,
};
use crate::error::DataError;

/// Larger files are refused; the largest in use have about 35 MB.
const MAX_BYTES: u64 = 64 << 20;

/// Which end token a file is read with.
#[derive(Clone, Copy)]
enum Eos<'a> {
    /// The file's own.
    Own,
    /// This one, or none for "".
    Named(&'a str),
}

/// Reads a `tokenizer.json`.
///
/// A file that one of our own tokenizers wrote gives that tokenizer, any other the `tokenizers`
/// crate's. The roles of special tokens are recognised by their names.
///
/// # Errors
/// [`DataError::Missing`], [`DataError::Read`]; [`DataError::Tokenizer`] if the file is larger than
/// 64 MiB or is not a tokenizer. No file makes it panic.
pub fn load_tokenizer(path: impl AsRef<Path>) -> Result<Arc<dyn Tokenizer>, DataError> {
    load(path.as_ref(), Eos::Own)
}

/// Reads a tokenizer from the text of a `tokenizer.json`; `place` names it in errors.
///
/// # Errors
/// [`DataError::Tokenizer`] if it is not a tokenizer.
pub fn parse_tokenizer(json: &str, place: &str) -> Result<Arc<dyn Tokenizer>, DataError> {
    parse(json, place, Eos::Own)
}

/// As [`load_tokenizer`], with the end token of a config: the default means the file's own.
pub(crate) fn load_with_eos(path: &Path, eos: &str) -> Result<Arc<dyn Tokenizer>, DataError> {
    load(
        path,
        if eos == TokenizerConfig::DEFAULT_EOS {
            Eos::Own
        } else {
            Eos::Named(eos)
        },
    )
}

/// Checks the settings of a tokenizer against each other, before any text is read.
pub(crate) fn check_config(config: &TokenizerConfig) -> Result<(), DataError> {
    if config.file.is_some() {
        return Ok(());
    }
    let least = 256 + SpecialNames::from_config(config)?.count();
    match (config.kind, config.vocab_size) {
        (TokenizerKind::Bpe, Some(size)) if size < least => Err(DataError::config(format!(
            "tokenizer.vocab_size = {size} is less than the {least} that bpe starts with (256 bytes and the special \
             tokens); hint: set it to 512 or more"
        ))),
        (TokenizerKind::Bpe, _) if config.sample_bytes == 0 => Err(DataError::config(
            "tokenizer.sample_bytes = 0 leaves bpe no text to learn from; hint: leave it out",
        )),
        (TokenizerKind::Char | TokenizerKind::Byte, Some(_)) => Err(DataError::config(
            "tokenizer.vocab_size is set, but char and byte have a vocabulary of their own; hint: leave it out, \
             or set tokenizer.kind = \"bpe\"",
        )),
        _ => Ok(()),
    }
}

fn load(path: &Path, eos: Eos) -> Result<Arc<dyn Tokenizer>, DataError> {
    let place = path.display().to_string();
    let file = std::fs::File::open(path).map_err(|error| DataError::read(path, error))?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| DataError::read(path, error))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(DataError::tokenizer(
            place,
            "is larger than 64 MiB, which no tokenizer.json needs",
        ));
    }
    let text = String::from_utf8(bytes).map_err(|_| {
        DataError::tokenizer(
            &place,
            "is not UTF-8 text; hint: give a Hugging Face tokenizer.json",
        )
    })?;
    parse(&text, &place, eos)
}

fn parse(json: &str, place: &str, eos: Eos) -> Result<Arc<dyn Tokenizer>, DataError> {
    let file: Value = serde_json::from_str(json).map_err(|error| {
        DataError::tokenizer(
            place,
            format!("is not JSON ({error}); hint: give a Hugging Face tokenizer.json"),
        )
    })?;
    if let Some(own) = recognise(&file) {
        let has = own.specials().eos.and_then(|id| own.piece(id));
        match eos {
            Eos::Own => return Ok(own),
            Eos::Named(name)
                if has.as_deref() == Some(name) || (name.is_empty() && has.is_none()) =>
            {
                return Ok(own);
            }
            Eos::Named(_) => {}
        }
    }
    let other = HuggingFaceTokenizer::from_value(&file, json, place)?;
    Ok(match eos {
        Eos::Own => Arc::new(other),
        Eos::Named(name) => Arc::new(other.with_eos(name, place)?),
    })
}

/// Our own tokenizer that would write exactly this file.
fn recognise(file: &Value) -> Option<Arc<dyn Tokenizer>> {
    match (
        file["model"]["type"].as_str()?,
        file["pre_tokenizer"]["type"].as_str()?,
    ) {
        ("WordLevel", "Split") => CharTokenizer::recognise(file),
        ("WordLevel", "WhitespaceSplit") => WordTokenizer::recognise(file),
        ("BPE", "ByteLevel") => ByteTokenizer::recognise(file),
        _ => None,
    }
}
