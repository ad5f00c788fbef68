//! Loading `tokenizer.json` files from any source.

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use nextword_base::git_lfs;
use serde_json::Value;

use super::special::SpecialNames;
use super::{
    ByteTokenizer, CharTokenizer, HuggingFaceTokenizer, Tokenizer, TokenizerConfig, TokenizerKind,
    WordTokenizer,
};
use crate::error::DataError;

/// Maximum file size; the largest files in use have about 35 MB.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Which EOS token to use for a file.
#[derive(Clone, Copy)]
enum EosChoice<'a> {
    /// The EOS token of the file.
    FromFile,
    /// These EOS and padding tokens.
    Ids(Option<u32>, Option<u32>),
    /// This token, or none for "".
    Named(&'a str),
}

/// Reads a `tokenizer.json`.
///
/// A file written by one of our own tokenizers is loaded as that tokenizer, any other file with the
/// `tokenizers` crate. The roles of special tokens are detected by name.
///
/// # Errors
/// [`DataError::Missing`], [`DataError::Read`]; [`DataError::Tokenizer`] if the file is larger than
/// 64 MiB or is not a tokenizer. Malformed files never cause a panic.
pub fn load_tokenizer(path: impl AsRef<Path>) -> Result<Arc<dyn Tokenizer>, DataError> {
    load(path.as_ref(), EosChoice::FromFile)
}

/// Like [`load_tokenizer`], with the EOS token that ends a document and the padding token of the model that
/// the file belongs to. `None` if the model does not declare them: then they are detected by name.
///
/// # Errors
/// As [`load_tokenizer`].
pub fn load_tokenizer_with_roles(
    path: impl AsRef<Path>,
    roles: Option<(Option<u32>, Option<u32>)>,
) -> Result<Arc<dyn Tokenizer>, DataError> {
    let roles = roles.map_or(EosChoice::FromFile, |(eos, pad)| EosChoice::Ids(eos, pad));
    load(path.as_ref(), roles)
}

/// Parses the text of a `tokenizer.json`; `name` identifies it in errors.
///
/// # Errors
/// [`DataError::Tokenizer`] if it is not a tokenizer.
///
/// # Example
///
/// ```
/// use nextword_data::{TokenizerConfig, build_tokenizer, parse_tokenizer};
///
/// let words = build_tokenizer(&TokenizerConfig::default(), [Ok("abc".to_owned())].into_iter())?;
/// let same = parse_tokenizer(&words.to_json()?, "tokenizer.json")?;
/// assert_eq!(same.hash(), words.hash());
/// assert!(parse_tokenizer("[]", "tokenizer.json").is_err());
/// # Ok::<(), nextword_data::DataError>(())
/// ```
pub fn parse_tokenizer(json: &str, name: &str) -> Result<Arc<dyn Tokenizer>, DataError> {
    parse(json, name, EosChoice::FromFile)
}

/// Like [`parse_tokenizer`], with roles as [`load_tokenizer_with_roles`] has them.
///
/// # Errors
/// As [`parse_tokenizer`].
pub fn parse_tokenizer_with_roles(
    json: &str,
    name: &str,
    roles: Option<(Option<u32>, Option<u32>)>,
) -> Result<Arc<dyn Tokenizer>, DataError> {
    let roles = roles.map_or(EosChoice::FromFile, |(eos, pad)| EosChoice::Ids(eos, pad));
    parse(json, name, roles)
}

/// Like [`load_tokenizer`], with the EOS token of a config; the default selects that of the file.
pub(crate) fn load_with_eos(path: &Path, eos: &str) -> Result<Arc<dyn Tokenizer>, DataError> {
    load(
        path,
        if eos == TokenizerConfig::DEFAULT_EOS {
            EosChoice::FromFile
        } else {
            EosChoice::Named(eos)
        },
    )
}

/// Checks tokenizer settings for consistency before any text is read.
pub(crate) fn check_config(config: &TokenizerConfig) -> Result<(), DataError> {
    if config.file.is_some() {
        return Ok(());
    }
    let min_size = 256 + SpecialNames::from_config(config)?.count();
    match (config.kind, config.vocab_size) {
        (TokenizerKind::Bpe, Some(size)) if size < min_size => Err(DataError::config(format!(
            "tokenizer.vocab_size = {size} is less than the minimum of {min_size} for bpe (256 bytes and the special \
             tokens); hint: set it to 512 or more"
        ))),
        (TokenizerKind::Bpe, _) if config.sample_bytes == 0 => Err(DataError::config(
            "tokenizer.sample_bytes = 0 leaves no text to train bpe on; hint: remove the key",
        )),
        (TokenizerKind::Char | TokenizerKind::Byte, Some(_)) => Err(DataError::config(
            "tokenizer.vocab_size does not apply to char and byte tokenizers; hint: remove the key, or set \
             tokenizer.kind = \"bpe\"",
        )),
        _ => Ok(()),
    }
}

fn load(path: &Path, eos: EosChoice) -> Result<Arc<dyn Tokenizer>, DataError> {
    let name = path.display().to_string();
    let file = std::fs::File::open(path).map_err(|error| DataError::read(path, error))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| DataError::read(path, error))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(DataError::tokenizer(
            name,
            "is larger than 64 MiB, the limit for a tokenizer.json",
        ));
    }
    if git_lfs::is_pointer(&bytes) {
        return Err(DataError::tokenizer(name, git_lfs::POINTER_PROBLEM));
    }
    let text = String::from_utf8(bytes).map_err(|_| {
        DataError::tokenizer(
            &name,
            "is not UTF-8 text; hint: use a Hugging Face tokenizer.json",
        )
    })?;
    parse(&text, &name, eos)
}

fn parse(json: &str, name: &str, eos: EosChoice) -> Result<Arc<dyn Tokenizer>, DataError> {
    let file: Value = serde_json::from_str(json).map_err(|error| {
        DataError::tokenizer(
            name,
            format!("is not JSON ({error}); hint: use a Hugging Face tokenizer.json"),
        )
    })?;
    if let Some(builtin) = detect_builtin(&file) {
        let eos_name = builtin
            .special_tokens()
            .eos
            .and_then(|id| builtin.id_to_token(id));
        match eos {
            EosChoice::FromFile => return Ok(builtin),
            EosChoice::Ids(eos, pad) => return Ok(builtin.with_roles(eos, pad)),
            EosChoice::Named(eos)
                if eos_name.as_deref() == Some(eos) || (eos.is_empty() && eos_name.is_none()) =>
            {
                return Ok(builtin);
            }
            EosChoice::Named(_) => {}
        }
    }
    let mut other = HuggingFaceTokenizer::from_value(&file, json, name)?;
    Ok(match eos {
        EosChoice::FromFile => Arc::new(other),
        EosChoice::Ids(eos, pad) => {
            other.set_roles(eos, pad);
            Arc::new(other)
        }
        EosChoice::Named(eos) => Arc::new(other.with_eos(eos, name)?),
    })
}

/// Returns our own tokenizer if it would write exactly this file.
fn detect_builtin(file: &Value) -> Option<Arc<dyn Tokenizer>> {
    match (
        file["model"]["type"].as_str()?,
        file["pre_tokenizer"]["type"].as_str()?,
    ) {
        ("WordLevel" | "BPE", "Split") => CharTokenizer::try_from_json(file),
        ("WordLevel", "WhitespaceSplit") => WordTokenizer::try_from_json(file),
        ("BPE", "ByteLevel") => ByteTokenizer::try_from_json(file),
        _ => None,
    }
}
