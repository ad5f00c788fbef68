//! How the training data of a run is divided into batches.

use nextword_data::{LoaderConfig, Tokenizer};

use crate::RunConfig;

/// The batches of `config`, whose sequence length is known.
pub(super) fn loader_config(config: &RunConfig, tokenizer: &dyn Tokenizer) -> LoaderConfig {
    LoaderConfig {
        context_length: config.sequence_length(),
        batch_size: config.train.batch_size,
        grad_accum_steps: config.train.accumulation,
        order: config.data.order,
        packing: config.data.packing,
        seed: config.seed,
        padding_id: tokenizer.special_tokens().padding_id(),
    }
}
