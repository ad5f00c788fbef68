//! Short English stories from a seeded grammar.

use super::grammar::{Cast, expand};
use super::plots::{ENDINGS, OPENINGS, PLOTS};
use crate::rng::{CounterRng, stream};

/// `count` stories, each a pure function of the seed and its index, independent of `count`. Plot,
/// cast and wording are sampled for each story, from more than 10^12 possible stories.
///
/// # Example
///
/// ```
/// use nextword_data::Stories;
///
/// let stories = Stories::new(42, 1000);
/// assert_eq!(stories.story(7), Stories::new(42, 8).story(7)); // independent of the count
/// assert_ne!(stories.story(7), Stories::new(43, 8).story(7));
/// assert_eq!(stories.iter().count(), 1000);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stories {
    seed: u64,
    count: usize,
}

impl Stories {
    /// Creates the first `count` stories of `seed`.
    pub fn new(seed: u64, count: usize) -> Self {
        Self { seed, count }
    }

    /// Returns story `index`: plain text of a few short paragraphs, without an EOS token.
    pub fn story(&self, index: usize) -> String {
        let mut random =
            CounterRng::with_stream(self.seed, stream::STORIES + index as u64).sequence();
        let cast = Cast::sample(&mut random);
        let opening = OPENINGS[random.below(OPENINGS.len())];
        let plot = PLOTS[random.below(PLOTS.len())];
        let ending = ENDINGS[random.below(ENDINGS.len())];
        let mut story = String::with_capacity(1024);
        for pattern in [opening].iter().chain(plot).chain([&ending]) {
            expand(pattern, &cast, &mut random, &mut story);
        }
        story
    }

    /// Iterates over all stories in order.
    pub fn iter(&self) -> impl Iterator<Item = String> + Send + use<> {
        let stories = *self;
        (0..stories.count).map(move |index| stories.story(index))
    }

    /// Name of this corpus in the dataset card.
    pub(crate) fn name(&self) -> String {
        format!(
            "builtin stories, seed {}, {} document{}",
            self.seed,
            self.count,
            if self.count == 1 { "" } else { "s" }
        )
    }
}
