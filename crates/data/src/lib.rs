//! Turns text into batches of token ids.
//!
//! ```text
//! sources (.txt, .jsonl, folders, standard input, built-in corpora)
//!   -> documents   chunks of text in bounded memory             documents
//!   -> tokenizer   text <-> ids, saved as tokenizer.json         tokenizer
//!   -> tokens      in memory, or memory-mapped files             tokens, shard, prepare
//!   -> windows     which tokens come next, from (seed, index)    window, permutation
//!   -> samples     or: ids of which only some are trained         samples
//!   -> batches     rows of inputs and targets                    loader, batch, evaluation
//! ```
//!
//! A [`Dataset`] holds the tokens of both splits and their tokenizer. [`Dataset::build`] creates it
//! from a run's [`DataConfig`], either directly from text or from a folder that [`prepare`] wrote.
//! [`Loader`] returns training batches by step, [`EvalWindows`] covers a whole split once. This
//! crate does not depend on a tensor library: ids are `u32`, and everything random is a pure
//! function of integers ([`CounterRng`]).
//!
//! # Example
//!
//! ```
//! use nextword_data::{Builtin, DataConfig, Dataset, Loader, LoaderConfig, Order, Packing};
//!
//! // Twenty stories, one token per character, a tenth of them for validation.
//! let config = DataConfig { builtin: Some(Builtin::Stories), documents: 20, ..DataConfig::default() };
//! let dataset = Dataset::build(&config)?;
//!
//! let loader = Loader::new(dataset.train.clone(), LoaderConfig {
//!     context_length: 32,
//!     batch_size: 4,
//!     grad_accum_steps: 1,
//!     order: Order::Random,
//!     packing: Packing::Packed,
//!     seed: 1,
//!     padding_id: dataset.tokenizer.special_tokens().padding_id(),
//! })?;
//! let batch = loader.batch(0, 0)?; // step 0: ids, `[4, 32]`, and the ids that follow them
//! assert_eq!(batch.inputs.len(), 4 * 32);
//! assert_eq!(batch.inputs[1..32], batch.targets[..31]);
//! # Ok::<(), nextword_data::DataError>(())
//! ```

mod atomic;
mod baselines;
mod batch;
mod batch_mask;
mod config;
mod corpus;
mod dataset;
mod documents;
mod encode;
mod error;
mod evaluation;
mod loader;
mod masked;
mod masked_config;
mod notes;
mod pairs;
mod permutation;
mod prefetch;
mod prepare;
mod rng;
mod samples;
mod shard;
mod shard_writer;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod tokenizer;
mod tokens;
mod window;

pub use baselines::Baselines;
pub use batch::{IGNORE, SourceBatch, TokenBatch};
pub use batch_mask::{BatchMask, SampleSegment};
pub use config::{
    Builtin, DataConfig, SplitBy, SplitConfig, TooLong, TrainOn, is_template_name, one_or_several,
};
pub use corpus::{STATQUEST, STATQUEST_PAIRS, Stories, StoryChat, StoryChats, Translations};
pub use dataset::Dataset;
pub use documents::{Format, SourceConfig, Sources, TextChunk, TextCuts};
pub use error::{DataError, ErrorClass};
pub use evaluation::EvalWindows;
pub use loader::{Loader, LoaderConfig};
pub use masked::MaskedTokens;
pub use masked_config::MaskedConfig;
pub use notes::{unknown_note, whole_documents_note};
pub use pairs::{LossOn, Pair, PairSources, is_pairs_name};
pub use prefetch::Prefetch;
pub use prepare::{DatasetCard, Phase, PreparedDataset, Progress, prepare};
pub use rng::{CounterRng, RandomSequence};
pub use samples::{LENGTH_MULTIPLE, Sample, SampleLayout, Samples, SamplesBuilder};
pub use shard::Shard;
pub use shard_writer::ShardWriter;
pub use tokenizer::{
    ByteTokenizer, CharTokenizer, DecodeRules, DecodeStream, Encoding, HuggingFaceTokenizer,
    SpecialTokens, Tokenizer, TokenizerConfig, TokenizerKind, WordTokenizer, build_tokenizer,
    byte_to_char, is_eos_name, load_tokenizer, load_tokenizer_with_roles, mask_token,
    parse_tokenizer, parse_tokenizer_with_roles, special_token,
};
pub use tokens::Tokens;
pub use window::{Order, Packing, first_window_targets};
