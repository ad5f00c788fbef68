//! Text in, batches of token ids out.
//!
//! ```text
//! sources (.txt, .jsonl, folders, standard input, built-in corpora)
//!   -> documents   pieces of text with bounded memory           documents
//!   -> tokenizer   text <-> ids, saved as tokenizer.json         tokenizer
//!   -> tokens      in memory, or memory-mapped files             tokens, shard, prepare
//!   -> windows     which tokens come next, from (seed, number)   window, permutation
//!   -> batches     rows of inputs and targets                    loader, batch, evaluation
//! ```
//!
//! A [`Dataset`] holds the tokens of both splits with their tokenizer: [`Dataset::build`] makes it
//! from a run's [`DataConfig`], straight from the text or from a folder that [`prepare`] wrote.
//! [`Loader`] gives training batches by number, [`EvalWindows`] goes over a whole split once.
//! Nothing here knows a tensor: ids are `u32`, and everything random is a pure function of
//! integers ([`Random`]).

mod atomic;
mod baselines;
mod batch;
mod config;
mod corpus;
mod dataset;
mod documents;
mod encode;
mod error;
mod evaluation;
mod hex;
mod loader;
mod permutation;
mod prefetch;
mod prepare;
mod rng;
mod shard;
mod shard_writer;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod tokenizer;
mod tokens;
mod window;

pub use baselines::Baselines;
pub use batch::{IGNORE, TokenBatch};
pub use config::{Builtin, DataConfig, SplitBy, SplitConfig};
pub use corpus::{STATQUEST, Stories};
pub use dataset::Dataset;
pub use documents::{Format, Piece, SourceConfig, Sources};
pub use error::{DataError, ErrorClass};
pub use evaluation::EvalWindows;
pub use loader::{Loader, LoaderConfig};
pub use prefetch::Prefetch;
pub use prepare::{DatasetCard, Phase, Prepared, Progress, prepare};
pub use rng::{Random, RandomSequence};
pub use shard::Shard;
pub use shard_writer::ShardWriter;
pub use tokenizer::{
    ByteTokenizer, CharTokenizer, DecodeStream, Encoding, HuggingFaceTokenizer, Specials,
    Tokenizer, TokenizerConfig, TokenizerKind, WordTokenizer, build_tokenizer, load_tokenizer,
    parse_tokenizer,
};
pub use tokens::Tokens;
pub use window::{Order, Packing};
