//! Loss over documents of text.

use nextword_data::{DataError, EvalWindows, Packing, TextChunk, Tokenizer, Tokens};
use nextword_model::{ModelTokens, Transformer};
use serde::{Deserialize, Serialize};

use crate::{EvalError, LossReport, evaluate};

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
    /// Bytes of text that the predicted tokens stand for. Special tokens and text that is not in the
    /// vocabulary count as 0 bytes.
    pub bytes: u64,
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
/// (4 bytes per token), the text is not. See also [`evaluate`].
///
/// # Errors
/// [`EvalError::WrongTokenizer`] if the tokenizer belongs to another model, [`EvalError::TooShort`]
/// if there are too few tokens, the first error of `chunks`, and those of [`evaluate`].
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
    let (tokens, vocab_size) = (tokenizer.vocab_size(), model.config().vocab_size);
    // A padded vocabulary is larger than the tokenizer's, never smaller.
    if tokens > vocab_size {
        return Err(EvalError::WrongTokenizer { tokens, vocab_size });
    }
    let eos = tokenizer.special_tokens().eos;
    let mut around = Around {
        prefix: Vec::new(),
        suffix: eos,
    };
    let mut packing = settings.packing;
    let is_imported = special.is_imported();
    if is_imported {
        around = Around {
            prefix: special.evaluation_prefix(eos),
            suffix: None,
        };
        packing = Packing::Documents;
    }
    let (documents, unknown, parts) = encode(tokenizer, &around, chunks)?;
    let tokens = documents.iter().map(Vec::len).sum();
    let unpredicted = around.prefix.len().max(1);
    let has_target = match packing {
        Packing::Packed => tokens >= 2,
        Packing::Documents => documents
            .iter()
            .any(|document| document.len() > unpredicted),
    };
    if !has_target {
        return Err(EvalError::TooShort { tokens });
    }
    let bytes = predicted_bytes(tokenizer, &documents, packing, unpredicted);
    let count = documents.len() as u64;
    let context_length = model.config().context_length;
    let tokens = Tokens::from_documents(documents);
    let padding = tokenizer.special_tokens().padding_id();
    let windows = if is_imported {
        EvalWindows::rolling(tokens, context_length, unpredicted, padding)?
    } else {
        EvalWindows::new(tokens, context_length, packing, padding)?
    };
    let loss = evaluate(model, &windows, settings.batch_size)?.with_bytes(bytes);
    Ok(TextReport {
        loss,
        documents: count,
        bytes,
        unknown,
        parts,
        counts_eos: around.suffix.is_some(),
        prefix: around.prefix,
    })
}

/// The tokens put around each document.
struct Around {
    prefix: Vec<u32>,
    suffix: Option<u32>,
}

/// The ids of each document that has any, the number of unknown characters or words, and that of all.
fn encode(
    tokenizer: &dyn Tokenizer,
    around: &Around,
    chunks: impl IntoIterator<Item = Result<TextChunk, DataError>>,
) -> Result<(Vec<Vec<u32>>, usize, usize), DataError> {
    let (mut unknown, mut parts) = (0, 0);
    let (mut documents, mut document) = (Vec::new(), Vec::new());
    for chunk in chunks {
        let chunk = chunk?;
        let encoding = tokenizer.try_encode(&chunk.text)?;
        unknown += encoding.unknown_count;
        parts += encoding.part_count();
        document.extend(encoding.ids);
        if chunk.is_last {
            if document.last().copied() != around.suffix {
                document.extend(around.suffix);
            }
            documents.push(std::mem::take(&mut document));
        }
    }
    documents.push(document); // the last document may have no last chunk
    documents.retain(|document: &Vec<u32>| !document.is_empty());
    for document in &mut documents {
        if !document.starts_with(&around.prefix) {
            document.splice(0..0, around.prefix.iter().copied());
        }
    }
    Ok((documents, unknown, parts))
}

/// Bytes of all predicted tokens: all except the first of the text (packed), or the first `unpredicted` of each
/// document.
fn predicted_bytes(
    tokenizer: &dyn Tokenizer,
    documents: &[Vec<u32>],
    packing: Packing,
    unpredicted: usize,
) -> u64 {
    let all: usize = documents
        .iter()
        .map(|document| byte_count(tokenizer, document))
        .sum();
    let (starting, unpredicted) = match packing {
        Packing::Packed => (&documents[..1], 1),
        Packing::Documents => (documents, unpredicted),
    };
    let first: usize = starting
        .iter()
        .map(|document| byte_count(tokenizer, &document[..unpredicted.min(document.len())]))
        .sum();
    all.saturating_sub(first) as u64
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
mod tests {
    use std::sync::Arc;

    use nextword_data::{TokenizerConfig, TokenizerKind, build_tokenizer};
    use nextword_model::TokenSource;

    use super::*;
    use crate::loss::tests::{model, naive};

    fn tokenizer(kind: TokenizerKind, text: &str) -> Arc<dyn Tokenizer> {
        let config = TokenizerConfig {
            kind,
            unk: String::new(),
            ..TokenizerConfig::default()
        };
        build_tokenizer(&config, std::iter::once(Ok(text.to_owned()))).unwrap()
    }

    fn documents(texts: &[&str]) -> Vec<Result<TextChunk, DataError>> {
        let chunk = |text: &&str| {
            Ok(TextChunk {
                text: (*text).to_owned(),
                is_first: true,
                is_last: true,
            })
        };
        texts.iter().map(chunk).collect()
    }

    fn evaluate_texts(tokenizer: &dyn Tokenizer, texts: &[&str], packing: Packing) -> TextReport {
        let settings = TextSettings {
            batch_size: 2,
            packing,
        };
        evaluate_text(
            &model(tokenizer.vocab_size()),
            tokenizer,
            &ModelTokens::default(),
            documents(texts),
            settings,
        )
        .unwrap()
    }

    #[test]
    fn bits_per_byte_equals_a_manual_computation() {
        let tokenizer = tokenizer(TokenizerKind::Char, "abcé ");
        let model = model(tokenizer.vocab_size());
        let report = evaluate_texts(&*tokenizer, &["é bac", "ab"], Packing::Documents);
        let nats: f64 = ["é bac<EOS>", "ab<EOS>"]
            .iter()
            .map(|t| naive(&model, &tokenizer.encode(t).ids))
            .sum();
        assert_eq!(
            (
                report.loss.tokens,
                report.documents,
                report.bytes,
                report.unknown
            ),
            (7, 2, 5, 0)
        );
        let expected = nats / std::f64::consts::LN_2 / 5.0;
        assert!((report.loss.bits_per_byte.unwrap() - expected).abs() < 1e-5);
    }

    #[test]
    fn packed_documents_omit_only_the_first_token() {
        let tokenizer = tokenizer(TokenizerKind::Char, "abcé ");
        let report = evaluate_texts(&*tokenizer, &["é bac", "ab"], Packing::Packed);
        assert_eq!((report.loss.tokens, report.bytes), (8, 6));
    }

    #[test]
    fn every_tokenizer_kind_counts_bytes_correctly() {
        let text = "the fox, the é fox 🦀";
        let first = [
            (TokenizerKind::Char, 1),
            (TokenizerKind::Byte, 1),
            (TokenizerKind::Word, 3),
        ];
        for (kind, first) in first {
            let report = evaluate_texts(&*tokenizer(kind, text), &[text], Packing::Packed);
            assert_eq!(report.bytes as usize, text.len() - first, "{kind:?}");
        }
    }

    #[test]
    fn chunks_are_joined_into_one_document() {
        let tokenizer = tokenizer(TokenizerKind::Char, "abc");
        let chunk = |text: &str, start, end| {
            Ok(TextChunk {
                text: text.to_owned(),
                is_first: start,
                is_last: end,
            })
        };
        let chunks = vec![
            chunk("ab", true, false),
            chunk("cab", false, false),
            chunk("", false, true),
        ];
        let model = model(tokenizer.vocab_size());
        let expected = evaluate_texts(&*tokenizer, &["abcab"], Packing::Documents);
        let settings = TextSettings {
            batch_size: 2,
            packing: Packing::Documents,
        };
        assert_eq!(
            evaluate_text(
                &model,
                &*tokenizer,
                &ModelTokens::default(),
                chunks,
                settings
            )
            .unwrap(),
            expected
        );
        assert_eq!(expected.loss.tokens, 5);
    }

    #[test]
    fn eos_is_not_appended_twice() {
        let tokenizer = tokenizer(TokenizerKind::Char, "abc");
        let with = evaluate_texts(&*tokenizer, &["ab<EOS>", "c<EOS>"], Packing::Packed);
        let without = evaluate_texts(&*tokenizer, &["ab", "c"], Packing::Packed);
        assert_eq!(
            (with.loss, with.documents),
            (without.loss, without.documents)
        );
        assert_eq!(with.loss.tokens, 4);
    }

    #[test]
    fn imported_models_read_each_text_after_their_first_token() {
        let tokenizer = tokenizer(TokenizerKind::Char, "<abcé ").with_roles(None, None);
        let model = model(tokenizer.vocab_size());
        let texts = ["é bac", "<ab"];
        let nats: f64 = ["<é bac", "<ab"]
            .iter()
            .map(|t| naive(&model, &tokenizer.encode(t).ids))
            .sum();
        for source in [TokenSource::Declared, TokenSource::Guessed] {
            let special = ModelTokens {
                bos_id: Some(tokenizer.encode("<").ids[0]),
                source: Some(source),
                ..ModelTokens::default()
            };
            let settings = TextSettings::default();
            let report =
                evaluate_text(&model, &*tokenizer, &special, documents(&texts), settings).unwrap();
            assert_eq!((report.loss.tokens, report.documents), (7, 2));
            assert_eq!((report.prefix.len(), report.counts_eos), (1, false));
            let found = report.loss.nats_per_token * 7.0;
            assert!((found - nats).abs() < 1e-4, "{found} {nats}");
        }
    }

    #[test]
    fn the_last_window_of_an_imported_model_has_left_context() {
        let tokenizer = tokenizer(TokenizerKind::Char, "<abc").with_roles(None, None);
        let model = model(tokenizer.vocab_size()); // a context of 8 tokens
        let text = "abcacbbaccabcabbcba"; // 19 targets: 8, 8 and 3
        let ids = tokenizer.encode(&format!("<{text}")).ids;
        let last = &ids[11..20];
        let nats = naive(&model, &ids[..9]) + naive(&model, &ids[8..17]) + naive(&model, last)
            - naive(&model, &last[..6]);
        let special = ModelTokens {
            bos_id: Some(ids[0]),
            source: Some(TokenSource::Declared),
            ..ModelTokens::default()
        };
        let settings = TextSettings::default();
        let report =
            evaluate_text(&model, &*tokenizer, &special, documents(&[text]), settings).unwrap();
        assert_eq!((report.loss.tokens, report.bytes), (19, 19));
        let found = report.loss.nats_per_token * 19.0;
        assert!((found - nats).abs() < 1e-4, "{found} {nats}");
    }

    #[test]
    fn all_unknown_characters_are_counted() {
        let report = evaluate_texts(
            &*tokenizer(TokenizerKind::Char, "abc"),
            &["aπbΩπ", "cπ"],
            Packing::Packed,
        );
        assert_eq!((report.unknown, report.parts), (4, 7));
    }

    #[test]
    fn invalid_texts_are_errors() {
        let tokenizer = tokenizer(TokenizerKind::Char, "abc");
        let fail = |model: &Transformer, texts, packing| {
            let settings = TextSettings {
                batch_size: 2,
                packing,
            };
            evaluate_text(
                model,
                &*tokenizer,
                &ModelTokens::default(),
                documents(texts),
                settings,
            )
            .unwrap_err()
            .to_string()
        };
        let own = model(tokenizer.vocab_size());
        for packing in [Packing::Packed, Packing::Documents] {
            assert!(fail(&own, &[], packing).starts_with("the text has 0 tokens"));
            assert!(fail(&own, &[""], packing).starts_with("the text has 1 token,"));
        }
        let message = fail(&model(3), &["abc"], Packing::Packed);
        assert!(
            message.starts_with("the tokenizer has 4 tokens, but the model has 3"),
            "{message}"
        );
    }
}
