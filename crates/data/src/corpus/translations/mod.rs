//! English sentences with their Spanish translations, from a seeded grammar.

mod sentence;
#[cfg(test)]
mod tests;
mod words;

use std::collections::HashSet;

use crate::rng::{CounterRng, stream};

/// The two pairs of `StatQuest`'s encoder-decoder Transformer (Josh Starmer's example).
pub const STATQUEST_PAIRS: [(&str, &str); 2] = [("let's go", "vamos"), ("to go", "ir")];

/// Sentences that are drawn in a row without a new one before the corpus ends: the grammar has millions.
const MAX_REPEATS: usize = 10_000;

/// `count` distinct English sentences with their Spanish translations. The first ones do not depend on `count`.
///
/// Word-by-word copying fails: articles, adjectives and verbs agree in gender, number and person, adjectives follow
/// their noun, pronouns are left out, negation and "to be" are built in another way, and persons as objects get the
/// preposition "a". Both languages are words separated by spaces, in lower case except for "I".
///
/// # Example
///
/// ```
/// use nextword_data::Translations;
///
/// let pairs: Vec<(String, String)> = Translations::new(42, 100).iter().collect();
/// assert_eq!(pairs.len(), 100);
/// assert_eq!(pairs[..10], Translations::new(42, 10).iter().collect::<Vec<_>>());
/// assert!(pairs.iter().any(|(english, spanish)| english.contains("does not") && spanish.contains("no ")));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translations {
    seed: u64,
    count: usize,
}

impl Translations {
    /// The first `count` sentences of `seed`.
    pub fn new(seed: u64, count: usize) -> Self {
        Self { seed, count }
    }

    /// Iterates over the sentences: source and target.
    pub fn iter(&self) -> impl Iterator<Item = (String, String)> + Send + use<> {
        let Self { seed, count } = *self;
        let mut known = HashSet::new();
        let drawn = (0_u64..).map(move |index| {
            let rng = CounterRng::with_stream(seed, stream::TRANSLATIONS + index);
            let both = sentence::sample(&mut rng.sequence());
            (both.english.join(" "), both.spanish.join(" "))
        });
        let mut repeats = 0;
        drawn
            .map(move |pair| {
                let is_new = known.insert(pair.0.clone());
                repeats = if is_new { 0 } else { repeats + 1 };
                (pair, is_new, repeats)
            })
            .take_while(|(.., repeats)| *repeats < MAX_REPEATS)
            .filter_map(|(pair, is_new, _)| is_new.then_some(pair))
            .take(count)
    }

    /// Name of this corpus in the description of a run's data.
    pub fn name(&self) -> String {
        format!(
            "builtin translation, seed {}, {} sentence{}",
            self.seed,
            self.count,
            if self.count == 1 { "" } else { "s" }
        )
    }
}
