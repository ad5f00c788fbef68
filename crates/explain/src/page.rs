//! The page: one file that needs no connection, or a server's page that asks it for every number.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use crate::explainer::Explanation;
use crate::learning::Learning;
use crate::{ExplainError, Story, StoryOptions};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use sha2::{Digest, Sha256};

const HTML: &str = include_str!("assets/page.html");

/// The page's style.
pub const CSS: &str = include_str!("assets/page.css");

/// In the order in which they build on each other.
const PARTS: [&str; 14] = [
    include_str!("assets/dom.js"),
    include_str!("assets/compute.js"),
    include_str!("assets/derive.js"),
    include_str!("assets/pictures.js"),
    include_str!("assets/source.js"),
    include_str!("assets/cells.js"),
    include_str!("assets/cards.js"),
    include_str!("assets/insights.js"),
    include_str!("assets/what_if.js"),
    include_str!("assets/learning.js"),
    include_str!("assets/page.js"),
    include_str!("assets/why.js"),
    include_str!("assets/keys.js"),
    include_str!("assets/live.js"),
];

/// The page's script.
pub static JS: LazyLock<String> = LazyLock::new(|| PARTS.join("\n"));

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
    /// The pane of `explanation`, with the weights of a small model.
    ///
    /// # Errors
    /// As [`Explanation::story`].
    pub fn of(explanation: &Explanation<'_>, options: &StoryOptions) -> Result<Self, ExplainError> {
        let mut pane = Self::without_weights(explanation, options)?;
        if pane.story.model.parameters <= WEIGHTS_LIMIT {
            let all = explanation.explainer.weights().iter();
            let packed = all.map(|(name, array)| {
                let numbers = array.data.iter();
                let bytes: Vec<u8> = numbers.flat_map(|x| (*x as f32).to_le_bytes()).collect();
                let weight = Weight {
                    shape: array.shape.clone(),
                    base64: BASE64_STANDARD.encode(bytes),
                };
                (name.clone(), weight)
            });
            pane.weights = Some(packed.collect());
        }
        Ok(pane)
    }

    /// The pane of `explanation` for a page that asks whoever holds the weights.
    ///
    /// # Errors
    /// As [`Explanation::story`].
    pub fn without_weights(
        explanation: &Explanation<'_>,
        options: &StoryOptions,
    ) -> Result<Self, ExplainError> {
        let story = explanation.story(options)?;
        let explainer = explanation.explainer;
        let vocab_size = story.config.vocab_size;
        let listed = if vocab_size <= VOCABULARY_LIMIT {
            vocab_size as u32
        } else {
            0
        };
        Ok(Self {
            vocabulary: (0..listed).map(|id| explainer.text(id)).collect(),
            weights: None,
            story,
        })
    }
}

/// The page as one HTML file with everything in it, which may run what is in it and nothing else.
pub fn render(data: &Data) -> String {
    // Stories hold numbers and strings only, which JSON can always express. `<` must not end the
    // script that the data stand in.
    let json = serde_json::to_string(data).unwrap_or_default();
    let json = json.replace('<', "\\u003c");
    let hash = |text: &str| format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(text)));
    let policy = format!(
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src {}; \
         style-src {}; img-src data:\">",
        hash(&JS),
        hash(CSS)
    );
    HTML.replace("<!--POLICY-->", &policy)
        .replace("<!--CSS-->", &format!("<style>{CSS}</style>"))
        .replace("<!--JS-->", &format!("<script>{}</script>", *JS))
        .replace("/*DATA*/", &json)
}

/// The page of a server, which serves [`CSS`] as `/explain.css`, [`JS`] as `/explain.js` and an icon
/// as `/icon.svg`, and answers `POST /explain`.
pub fn live() -> String {
    HTML.replace("<!--POLICY-->\n", "")
        .replace("data:,", "/icon.svg")
        .replace(
            "<!--CSS-->",
            "<link rel=\"stylesheet\" href=\"/explain.css\">",
        )
        .replace("<!--JS-->", "<script src=\"/explain.js\"></script>")
        .replace("/*DATA*/", "{\"live\":true}")
}
