//! The page: one file that needs no connection, the same from the command line and from a server.

use std::collections::BTreeMap;

use crate::explainer::Explanation;
use crate::learning::Learning;
use crate::{ExplainError, Story, StoryOptions};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;

const HTML: &str = include_str!("assets/page.html");
const CSS: &str = include_str!("assets/page.css");
/// In the order in which they build on each other.
const JS: [&str; 4] = [
    include_str!("assets/compute.js"),
    include_str!("assets/derive.js"),
    include_str!("assets/cards.js"),
    include_str!("assets/page.js"),
];

/// Models up to this many parameters travel in the page, which can then compute by itself.
pub const WEIGHTS_LIMIT: usize = 1_000_000;

/// Vocabularies up to this many tokens travel in the page.
const VOCABULARY_LIMIT: usize = 20_000;

/// All that a page shows.
#[derive(Clone, Debug, Serialize)]
pub struct Data {
    /// One story, or two side by side.
    pub panes: Vec<Pane>,
    /// What was kept while the model learned, step by step.
    pub learning: Option<Learning>,
}

/// One story with what the page needs to compute by itself.
#[derive(Clone, Debug, Serialize)]
pub struct Pane {
    /// The story.
    pub story: Story,
    /// The weights, little-endian f32 in base64; `None` for larger models.
    pub weights: Option<BTreeMap<String, Weight>>,
    /// Every token's text, by id; empty for large vocabularies.
    pub vocabulary: Vec<String>,
}

/// A weight in the page.
#[derive(Clone, Debug, Serialize)]
pub struct Weight {
    /// Length of each axis.
    pub shape: Vec<usize>,
    /// The numbers.
    pub base64: String,
}

impl Pane {
    /// The pane of `explanation`.
    ///
    /// # Errors
    /// As [`Explanation::story`].
    pub fn of(explanation: &Explanation<'_>, options: &StoryOptions) -> Result<Self, ExplainError> {
        let story = explanation.story(options)?;
        let explainer = explanation.explainer;
        let small = story.model.parameters <= WEIGHTS_LIMIT;
        let weights = small.then(|| {
            let all = explainer.weights().iter();
            all.map(|(name, array)| {
                let bytes: Vec<u8> = array
                    .data
                    .iter()
                    .flat_map(|x| (*x as f32).to_le_bytes())
                    .collect();
                let weight = Weight {
                    shape: array.shape.clone(),
                    base64: BASE64_STANDARD.encode(bytes),
                };
                (name.clone(), weight)
            })
            .collect()
        });
        let vocab_size = story.config.vocab_size;
        let listed = if vocab_size <= VOCABULARY_LIMIT {
            vocab_size as u32
        } else {
            0
        };
        Ok(Self {
            vocabulary: (0..listed).map(|id| explainer.text(id)).collect(),
            weights,
            story,
        })
    }
}

/// The page as one HTML file with everything in it.
pub fn render(data: &Data) -> String {
    // Stories hold numbers and strings only, which JSON can always express. `<` must not end the
    // script that the data stand in.
    let json = serde_json::to_string(data).unwrap_or_default();
    let json = json.replace('<', "\\u003c");
    HTML.replace("/*CSS*/", CSS)
        .replace("/*JS*/", &JS.join("\n"))
        .replace("/*DATA*/", &json)
}
