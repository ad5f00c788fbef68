//! Loss over documents of text.

use nextword_data::{DataError, EvalWindows, Packing, TextChunk, Tokenizer, Tokens};
use nextword_model::{Architecture, ModelTokens, Transformer};
use serde::{Deserialize, Serialize};

use crate::loss::evaluate_with;
use crate::{EvalError, LossReport};

/// Settings for evaluating a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TextSettings {
    /// Windows per batch. Default 16.
    pub batch_size: usize,
    /// Whether windows may span several documents. Default: packed. For imported models they never do.
    pub packing: Packing,
}

impl Default for TextSettings {
    fn default() -> Self {
        Self {
            batch_size: 16,
            packing: Packing::Packed,
        }
    }
}

/// The result of evaluating a text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextReport {
    /// The loss, with bits per byte.
    pub loss: LossReport,
    /// Number of documents with at least one token.
    pub documents: u64,
    /// Bytes of text that the predicted tokens stand for: those of the text, in which special tokens count by
    /// their names and tokens that are put around a document not at all. Of a text (or of a part in which it is
    /// read) that is not completely in the vocabulary, the bytes that its tokens decode to; for imported models, only
    /// where the tokenizer drops text.
    pub bytes: u64,
    /// Bytes of the text that are not among [`bytes`](Self::bytes), and so not in bits per byte: those that are not in the
    /// vocabulary, and the names of special tokens in the same part of the text.
    #[serde(default)]
    pub uncounted_bytes: u64,
    /// Number of all characters or words that are not in the vocabulary, repeated ones included.
    pub unknown: usize,
    /// The tokens put before each document, whose probabilities are not counted. Only for imported models.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefix: Vec<u32>,
    /// Whether the EOS token after each document is counted. Not for imported models.
    #[serde(default)]
    pub counts_eos: bool,
    /// Number of all parts of the text: those with a token, and those that were dropped.
    #[serde(default)]
    pub parts: usize,
}

/// Computes the loss of `model` over documents. `special` are the special tokens of the model's card.
///
/// A model that nextword trained reads documents as in training: with the EOS token after each document that
/// does not already end with it, which is predicted too, and nothing before the first one. An imported model
/// reads each document by itself after [`ModelTokens::evaluation_prefix`], as in lm-evaluation-harness: every
/// token of the text is predicted, and no EOS token is added. The last window of a document longer than the
/// context includes as much left context as fits ([`EvalWindows::rolling`]).
///
/// `chunks` are the documents (see [`nextword_data::Sources::chunks`]). Their ids are kept in memory
/// (4 bytes per token), the text is not. See also
/// [`evaluate`](crate::evaluate) and [`evaluate_text_with`], which reports its progress.
///
/// # Errors
/// [`EvalError::WrongTokenizer`] if the tokenizer belongs to another model, [`EvalError::TooShort`]
/// if there are too few tokens, the first error of `chunks`, and those of [`evaluate`](crate::evaluate).
///
/// # Example
///
/// ```
/// use burn::tensor::Device;
/// use nextword_data::{TextChunk, load_tokenizer};
/// use nextword_eval::{TextSettings, evaluate_text};
/// use nextword_model::ModelDir;
///
/// let folder = ModelDir::open("../../docs/models/letters".as_ref())?;
/// let model = folder.load(&Device::flex())?;
/// let tokenizer = load_tokenizer(folder.tokenizer_path())?;
/// let loss = |text: &str| {
///     let chunk = TextChunk { text: text.to_owned(), is_first: true, is_last: true };
///     let special = &folder.card.special;
///     evaluate_text(&model, &*tokenizer, special, [Ok(chunk)], TextSettings::default())
/// };
/// let (english, shuffled) = (loss("The cat saw a bird.")?, loss("bTe hcat.a sr wa id")?);
/// assert_eq!(english.bytes, shuffled.bytes);
/// assert!(english.loss.nats_per_token < shuffled.loss.nats_per_token);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn evaluate_text(
    model: &Transformer,
    tokenizer: &dyn Tokenizer,
    special: &ModelTokens,
    chunks: impl IntoIterator<Item = Result<TextChunk, DataError>>,
    settings: TextSettings,
) -> Result<TextReport, EvalError> {
    evaluate_text_with(model, tokenizer, special, chunks, settings, &mut |_| {})
}

/// How much of an evaluation is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EvalProgress {
    /// The text is read: this number of tokens so far.
    Reading {
        /// Number of tokens.
        tokens: u64,
    },
    /// The loss is computed.
    Windows {
        /// Number of windows whose loss is computed.
        done: u64,
        /// Number of all windows.
        all: u64,
    },
    /// The lines of a task are evaluated.
    Items {
        /// Number of questions and texts so far.
        done: u64,
    },
}

/// As [`evaluate_text`]. `on_progress` is called after each part of the text that is read and after each batch.
///
/// # Errors
/// As [`evaluate_text`].
pub fn evaluate_text_with(
    model: &Transformer,
    tokenizer: &dyn Tokenizer,
    special: &ModelTokens,
    chunks: impl IntoIterator<Item = Result<TextChunk, DataError>>,
    settings: TextSettings,
    on_progress: &mut dyn FnMut(EvalProgress),
) -> Result<TextReport, EvalError> {
    let text = TextWindows::read(
        model,
        tokenizer,
        special,
        chunks,
        settings.packing,
        on_progress,
    )?;
    let all = text.windows.len() as u64;
    let mut on_batch = |done: usize| {
        let done = done as u64;
        on_progress(EvalProgress::Windows { done, all });
    };
    let loss = evaluate_with(model, &text.windows, settings.batch_size, &mut on_batch)?;
    Ok(text.report(loss))
}

/// The windows in which [`evaluate_text`] evaluates documents, of at most `context_length` tokens: to evaluate the same
/// text several times, such as during training.
///
/// # Errors
/// [`EvalError::TooShort`] if there are too few tokens, and the first error of `chunks`.
///
/// ```
/// use nextword_data::{Packing, TextChunk, TokenizerConfig};
/// use nextword_eval::text_windows;
/// use nextword_model::ModelTokens;
///
/// let tokenizer = TokenizerConfig::chars().build("to be or not")?;
/// let chunk = TextChunk { text: "to be or not".to_owned(), is_first: true, is_last: true };
/// let special = ModelTokens::default();
/// let windows = text_windows(&*tokenizer, &special, [Ok(chunk)], Packing::Packed, 8)?;
/// assert_eq!(windows.len(), 2); // 13 tokens with <EOS>, of which 12 are predicted
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn text_windows(
    tokenizer: &dyn Tokenizer,
    special: &ModelTokens,
    chunks: impl IntoIterator<Item = Result<TextChunk, DataError>>,
    packing: Packing,
    context_length: usize,
) -> Result<EvalWindows, EvalError> {
    let text = read(
        tokenizer,
        special,
        chunks,
        (packing, context_length),
        &mut |_| {},
    )?;
    Ok(text.windows)
}

/// Documents as windows: [`evaluate_text`] in two steps, so that several processes can share the windows.
///
/// ```
/// use burn::tensor::Device;
/// use nextword_data::{Packing, TextChunk, load_tokenizer};
/// use nextword_eval::{TextSettings, TextWindows, evaluate, evaluate_text};
/// use nextword_model::ModelDir;
///
/// let folder = ModelDir::open("../../docs/models/letters".as_ref())?;
/// let model = folder.load(&Device::flex())?;
/// let tokenizer = load_tokenizer(folder.tokenizer_path())?;
/// let (tokenizer, special) = (&*tokenizer, &folder.card.special);
/// let chunk = || TextChunk { text: "The cat saw a bird.".to_owned(), is_first: true, is_last: true };
/// let text = TextWindows::read(&model, tokenizer, special, [Ok(chunk())], Packing::Packed, &mut |_| {})?;
/// let loss = evaluate(&model, text.windows(), 16)?; // or `batch_losses` of some of the batches
/// let expected = evaluate_text(&model, tokenizer, special, [Ok(chunk())], TextSettings::default())?;
/// assert_eq!(text.report(loss), expected);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct TextWindows {
    windows: EvalWindows,
    around: Around,
    documents: u64,
    bytes: u64,
    uncounted_bytes: u64,
    unknown: usize,
    parts: usize,
}

/// Refuses models that give a text no probability, and tokenizers with more tokens than the model.
pub(crate) fn check_scorable(
    model: &Transformer,
    tokenizer: &dyn Tokenizer,
) -> Result<(), EvalError> {
    let scored = [Architecture::Decoder, Architecture::Prefix];
    model
        .config()
        .require(&scored, "compute the probability of a text")?;
    let (tokens, vocab_size) = (tokenizer.vocab_size(), model.config().vocab_size);
    // A padded vocabulary is larger than the tokenizer's, never smaller.
    if tokens > vocab_size {
        return Err(EvalError::WrongTokenizer { tokens, vocab_size });
    }
    Ok(())
}

impl TextWindows {
    /// Reads documents into windows that fit `model`, as [`evaluate_text_with`].
    ///
    /// # Errors
    /// As [`evaluate_text`].
    pub fn read(
        model: &Transformer,
        tokenizer: &dyn Tokenizer,
        special: &ModelTokens,
        chunks: impl IntoIterator<Item = Result<TextChunk, DataError>>,
        packing: Packing,
        on_progress: &mut dyn FnMut(EvalProgress),
    ) -> Result<Self, EvalError> {
        check_scorable(model, tokenizer)?;
        let shape = (packing, model.config().context_length);
        read(tokenizer, special, chunks, shape, on_progress)
    }

    /// The windows.
    pub fn windows(&self) -> &EvalWindows {
        &self.windows
    }

    /// The report of the text, from the loss over its windows.
    pub fn report(self, loss: LossReport) -> TextReport {
        TextReport {
            loss: loss.with_bytes(self.bytes),
            documents: self.documents,
            bytes: self.bytes,
            uncounted_bytes: self.uncounted_bytes,
            unknown: self.unknown,
            parts: self.parts,
            counts_eos: self.around.suffix.is_some(),
            prefix: self.around.prefix,
        }
    }
}

/// Reads documents into windows of `context_length` tokens.
fn read(
    tokenizer: &dyn Tokenizer,
    special: &ModelTokens,
    chunks: impl IntoIterator<Item = Result<TextChunk, DataError>>,
    (packing, context_length): (Packing, usize),
    on_progress: &mut dyn FnMut(EvalProgress),
) -> Result<TextWindows, EvalError> {
    let eos = tokenizer.special_tokens().eos;
    let mut around = Around {
        is_imported: false,
        prefix: Vec::new(),
        suffix: eos,
    };
    let mut packing = packing;
    let is_imported = special.is_imported();
    if is_imported {
        around = Around {
            is_imported,
            prefix: special.evaluation_prefix(eos),
            suffix: None,
        };
        packing = Packing::Documents;
    }
    let EncodedText {
        documents,
        byte_counts,
        uncounted_bytes,
        unknown,
        parts,
    } = encode(tokenizer, &around, chunks, on_progress)?;
    let tokens = documents.iter().map(Vec::len).sum();
    let unpredicted = around.prefix.len().max(1);
    let has_target = match packing {
        Packing::Packed => tokens >= 2,
        Packing::Documents | Packing::Samples => documents
            .iter()
            .any(|document| document.len() > unpredicted),
    };
    if !has_target {
        return Err(EvalError::TooShort { tokens });
    }
    let bytes = predicted_bytes(&byte_counts, packing);
    let count = documents.len() as u64;
    let tokens = Tokens::from_documents(documents);
    let padding = tokenizer.special_tokens().padding_id();
    let windows = if is_imported {
        EvalWindows::rolling(tokens, context_length, unpredicted, padding)?
    } else {
        EvalWindows::new(tokens, context_length, packing, padding)?
    };
    Ok(TextWindows {
        windows,
        around,
        documents: count,
        bytes,
        uncounted_bytes,
        unknown,
        parts,
    })
}

/// How each document is read: the tokens put around it, and whether for an imported model.
#[derive(Debug)]
struct Around {
    is_imported: bool,
    prefix: Vec<u32>,
    suffix: Option<u32>,
}

/// The documents that have any token.
struct EncodedText {
    /// The ids of each, with the tokens around it.
    documents: Vec<Vec<u32>>,
    byte_counts: Vec<ByteCount>,
    /// Bytes of the text that no document counts.
    uncounted_bytes: u64,
    /// Number of all characters or words that are not in the vocabulary.
    unknown: usize,
    /// Number of all parts of the text.
    parts: usize,
}

/// Bytes of the text of one document.
#[derive(Clone, Copy, Default)]
struct ByteCount {
    all: usize,
    /// Those of its first tokens, which are not predicted where nothing is before them.
    unpredicted: usize,
}

fn encode(
    tokenizer: &dyn Tokenizer,
    around: &Around,
    chunks: impl IntoIterator<Item = Result<TextChunk, DataError>>,
    on_progress: &mut dyn FnMut(EvalProgress),
) -> Result<EncodedText, DataError> {
    let mut tokens = 0;
    let (mut unknown, mut parts, mut uncounted_bytes) = (0, 0, 0);
    let (mut documents, mut document) = (Vec::new(), Vec::new());
    let mut bytes = ByteCount::default();
    for chunk in chunks {
        let chunk = chunk?;
        let encoding = tokenizer.try_encode(&chunk.text)?;
        unknown += encoding.unknown_count;
        parts += encoding.part_count();
        tokens += encoding.ids.len() as u64;
        on_progress(EvalProgress::Reading { tokens });
        // The decoded text lacks special tokens, the text has them, but also what is not in the vocabulary.
        let is_complete = if around.is_imported {
            // As lm-evaluation-harness does, which also counts what the unknown token stands for.
            encoding.dropped_count == 0
        } else {
            encoding.unknown_count == 0
        };
        let counted = if is_complete {
            chunk.text.len()
        } else {
            byte_count(tokenizer, &encoding.ids)
        };
        bytes.all += counted;
        uncounted_bytes += chunk.text.len().saturating_sub(counted) as u64;
        if document.is_empty() {
            let first = unpredicted_tokens(&encoding.ids, &around.prefix);
            bytes.unpredicted = if is_complete {
                leading_bytes(tokenizer, first, &chunk.text)
            } else {
                byte_count(tokenizer, first)
            };
        }
        document.extend(encoding.ids);
        if chunk.is_last {
            if document.last().copied() != around.suffix {
                document.extend(around.suffix);
            }
            documents.push((std::mem::take(&mut document), std::mem::take(&mut bytes)));
        }
    }
    documents.push((document, bytes)); // the last document may have no last chunk
    documents.retain(|(document, _)| !document.is_empty());
    let (mut documents, byte_counts): (Vec<Vec<u32>>, _) = documents.into_iter().unzip();
    for document in &mut documents {
        if !document.starts_with(&around.prefix) {
            document.splice(0..0, around.prefix.iter().copied());
        }
    }
    Ok(EncodedText {
        documents,
        byte_counts,
        uncounted_bytes,
        unknown,
        parts,
    })
}

/// The first of a document's `ids` that are not predicted: the prefix if the text itself begins with it, the first
/// token without a prefix.
fn unpredicted_tokens<'a>(ids: &'a [u32], prefix: &[u32]) -> &'a [u32] {
    let count = match prefix.len() {
        0 => ids.len().min(1),
        len if ids.starts_with(prefix) => len,
        _ => 0,
    };
    &ids[..count]
}

/// Bytes that the first tokens `ids` of `text` stand for. A special token is in the text by its name.
fn leading_bytes(tokenizer: &dyn Tokenizer, ids: &[u32], text: &str) -> usize {
    let mut rest = text;
    for id in ids {
        let decoded = byte_count(tokenizer, &[*id]);
        let name = tokenizer.id_to_token(*id).filter(|_| decoded == 0);
        let len = match name {
            Some(name) if rest.trim_start().starts_with(&name) => {
                rest.len() - rest.trim_start().len() + name.len()
            }
            _ => decoded,
        };
        rest = rest.get(len..).unwrap_or_default();
    }
    text.len() - rest.len()
}

/// Bytes of all predicted tokens: all except the first of the text (packed), or the first of each document.
fn predicted_bytes(byte_counts: &[ByteCount], packing: Packing) -> u64 {
    let all: usize = byte_counts.iter().map(|count| count.all).sum();
    let starting = match packing {
        Packing::Packed => &byte_counts[..1],
        Packing::Documents | Packing::Samples => byte_counts,
    };
    let unpredicted: usize = starting.iter().map(|count| count.unpredicted).sum();
    all.saturating_sub(unpredicted) as u64
}

/// Bytes of text that `ids` stand for: the sum over all tokens if the tokenizer provides the bytes of
/// each token, else the length of the decoded text. The unknown token stands for none.
pub(crate) fn byte_count(tokenizer: &dyn Tokenizer, ids: &[u32]) -> usize {
    let unknown = tokenizer.special_tokens().unk;
    let known = ids.iter().copied().filter(|id| Some(*id) != unknown);
    let lens = known
        .clone()
        .map(|id| tokenizer.token_bytes(id).map(|bytes| bytes.len()));
    lens.sum::<Option<usize>>()
        .unwrap_or_else(|| tokenizer.decode(&known.collect::<Vec<u32>>()).len())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
