//! Claims about the crate as a whole.

mod damage;
mod order;
mod prepared;
mod sources;
mod stories;
mod tokenizers;

use crate::rng::{Random, RandomSequence};

/// A generator for one test.
pub(crate) fn random(seed: u64) -> RandomSequence {
    Random::new(seed, 99).sequence()
}

/// Random text: words, scripts of 1 to 4 bytes a character, white space, special tokens.
pub(crate) fn random_text(random: &mut RandomSequence) -> String {
    const PARTS: &[&str] = &[
        "a", "b", "the", " ", "  ", "\n", "\r\n", "\t", "don't", "é", "ß", "中文", "\u{3000}", "🙂", "👩‍👩‍👧", "1234", "...",
        "<EOS>", "<EO", "S>", "Ġ", "\u{FFFD}", "नि", "\u{200b}", "x_y",
    ];
    (0..random.below(40)).map(|_| PARTS[random.below(PARTS.len())]).collect()
}
