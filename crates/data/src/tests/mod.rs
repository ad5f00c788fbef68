//! Tests across modules.

mod adversarial_patterns;
mod batches;
mod corrupted_files;
mod decode_properties;
mod decode_streams;
mod edge_cases;
mod jsonl;
mod malformed_tokenizers;
mod malformed_vocabularies;
mod packed_samples;
mod prepared;
mod samples;
mod shards;
mod sources;
mod special_texts;
mod stories;
mod text_cuts;
mod text_growth;
mod tokenizers;
mod unknown_text;

use std::path::Path;

use crate::rng::{CounterRng, RandomSequence};
use crate::{DataError, Dataset, TokenizerConfig, Tokens};

/// Random generator of one test.
pub(crate) fn random(seed: u64) -> RandomSequence {
    CounterRng::with_stream(seed, 99).sequence()
}

/// Random text: words, scripts of 1 to 4 bytes per character, white space, special tokens.
pub(crate) fn random_text(random: &mut RandomSequence) -> String {
    const PARTS: &[&str] = &[
        "a",
        "b",
        "the",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "don't",
        "é",
        "ß",
        "中文",
        "\u{3000}",
        "🙂",
        "👩‍👩‍👧",
        "1234",
        "...",
        "<EOS>",
        "<EO",
        "S>",
        "Ġ",
        "\u{FFFD}",
        "नि",
        "\u{200b}",
        "x_y",
    ];
    (0..random.below(40))
        .map(|_| PARTS[random.below(PARTS.len())])
        .collect()
}

/// Returns all ids of a stream.
pub(crate) fn ids(tokens: &Tokens) -> Vec<u32> {
    let mut ids = Vec::new();
    tokens.read(0..tokens.len(), &mut ids).unwrap();
    ids
}

/// Opens a folder with the default tokenizer settings.
pub(crate) fn open(folder: &Path) -> Result<Dataset, DataError> {
    Dataset::open(folder, &TokenizerConfig::default())
}

/// Returns the sorted file names of a folder.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    names
}
