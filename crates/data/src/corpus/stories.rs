//! Short English stories from a seeded grammar.

use super::grammar::{Cast, expand};
use super::plots::{ENDINGS, OPENINGS, PLOTS};
use crate::rng::{Random, stream};

/// `count` stories, each a pure function of the seed and its number: more of them, or another
/// part, leaves the others as they are. A plot, a cast and the wording are drawn for each, from
/// more than 10^12 different stories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stories {
    seed: u64,
    count: usize,
}

impl Stories {
    /// The first `count` stories of `seed`.
    pub fn new(seed: u64, count: usize) -> Self {
        Self { seed, count }
    }

    /// Story number `index`: plain text of a few short paragraphs, without an end token.
    pub fn story(&self, index: usize) -> String {
        let mut random = Random::new(self.seed, stream::STORIES + index as u64).sequence();
        let cast = Cast::draw(&mut random);
        let opening = OPENINGS[random.below(OPENINGS.len())];
        let plot = PLOTS[random.below(PLOTS.len())];
        let ending = ENDINGS[random.below(ENDINGS.len())];
        let mut story = String::with_capacity(1024);
        for pattern in [opening].iter().chain(plot).chain([&ending]) {
            expand(pattern, &cast, &mut random, &mut story);
        }
        story
    }

    /// All stories in order.
    pub fn iter(&self) -> impl Iterator<Item = String> + Send + use<> {
        let stories = *self;
        (0..stories.count).map(move |index| stories.story(index))
    }

    /// What records call this corpus.
    pub(crate) fn name(&self) -> String {
        format!(
            "builtin stories, seed {}, {} documents",
            self.seed, self.count
        )
    }
}
