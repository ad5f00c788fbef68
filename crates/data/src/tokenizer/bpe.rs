//! Byte-level byte-pair encoding trained on the run's text, with GPT-2's byte alphabet and
//! pre-tokenization.

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, TokenizerBuilder};

use super::special::{Segment, SpecialNames, SpecialVocab};
use super::{HuggingFaceTokenizer, TokenizerConfig};
use crate::documents::{TextCuts, split_text};
use crate::error::DataError;

/// Approximate size of the texts passed to the trainer, which needs about 50 bytes of memory per byte
/// of one text.
const SEGMENT_BYTES: usize = 32 << 10;

/// Trains on the first `sample_bytes` of `texts`. Pairs that occur once are not merged, so a small
/// text gives fewer than `vocab_size` tokens. Memory grows with the number of distinct words in the
/// sample, not with its size.
pub(crate) fn train(
    texts: impl Iterator<Item = Result<String, DataError>> + Send,
    config: &TokenizerConfig,
    names: &SpecialNames,
) -> Result<HuggingFaceTokenizer, DataError> {
    let size = config
        .vocab_size
        .unwrap_or(TokenizerConfig::DEFAULT_BPE_VOCAB);
    let mut trainer = BpeTrainer::builder()
        .vocab_size(size.saturating_sub(names.count()))
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut failure = None;
    let texts = sample(
        texts,
        config.sample_bytes,
        SpecialVocab::new(names, 0),
        &mut failure,
    );
    let byte_level = ByteLevel::new(false, false, true);
    let json = super::checks::catch_panics("bpe", || {
        let mut tokenizer = TokenizerBuilder::<
            BPE,
            tokenizers::NormalizerWrapper,
            ByteLevel,
            ByteLevel,
            ByteLevel,
        >::new()
        .with_model(BPE::default())
        .with_pre_tokenizer(Some(byte_level))
        .with_decoder(Some(byte_level))
        .build()?;
        tokenizer.train(&mut trainer, texts)?;
        tokenizer.add_special_tokens(
            names
                .in_order()
                .map(|name| AddedToken::from(name.as_str(), true)),
        )?;
        tokenizer.to_string(false)
    });
    match failure {
        Some(failure) => Err(failure),
        None => Ok(HuggingFaceTokenizer::from_json(&json?, "bpe")?.with_names(names)),
    }
}

/// Returns the first `limit` bytes of `texts` in parts, without special tokens. An error ends the
/// sample and is stored in `failure`.
fn sample<'a>(
    mut texts: impl Iterator<Item = Result<String, DataError>> + Send + 'a,
    limit: u64,
    special: SpecialVocab,
    failure: &'a mut Option<DataError>,
) -> impl Iterator<Item = String> + Send + 'a {
    let mut remaining = limit;
    let mut pending = std::collections::VecDeque::new();
    std::iter::from_fn(move || {
        while pending.is_empty() && remaining > 0 {
            match texts.next()? {
                Err(error) => {
                    *failure = Some(error);
                    remaining = 0;
                }
                Ok(text) => {
                    remaining = remaining.saturating_sub(text.len() as u64);
                    for segment in special.split(&text) {
                        if let Segment::Text(text) = segment {
                            pending.extend(
                                split_text(text, SEGMENT_BYTES, TextCuts::Anywhere)
                                    .map(str::to_owned),
                            );
                        }
                    }
                }
            }
        }
        pending.pop_front()
    })
}
