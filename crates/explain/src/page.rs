//! The HTML page: one self-contained file, or a server's page that requests values on demand.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use crate::explainer::Explanation;
use crate::history::TrainingHistory;
use crate::{ExplainError, Report, ReportOptions};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use sha2::{Digest, Sha256};

const HTML: &str = include_str!("assets/page.html");

/// The page's style sheet.
pub const CSS: &str = include_str!("assets/page.css");

/// The scripts, in the order of their dependencies.
const SCRIPTS: [&str; 14] = [
    include_str!("assets/dom.js"),
    include_str!("assets/compute.js"),
    include_str!("assets/derive.js"),
    include_str!("assets/pictures.js"),
    include_str!("assets/source.js"),
    include_str!("assets/cells.js"),
    include_str!("assets/cards.js"),
    include_str!("assets/insights.js"),
    include_str!("assets/what_if.js"),
    include_str!("assets/history.js"),
    include_str!("assets/page.js"),
    include_str!("assets/why.js"),
    include_str!("assets/keys.js"),
    include_str!("assets/live.js"),
];

/// The page's script.
pub static JS: LazyLock<String> = LazyLock::new(|| SCRIPTS.join("\n"));

/// Pages embed the weights of models up to this many parameters, and can then compute without a server.
pub const MAX_EMBEDDED_WEIGHTS: usize = 1_000_000;

/// Pages embed vocabularies up to this many tokens.
const MAX_EMBEDDED_VOCABULARY: usize = 20_000;

/// Everything that a page shows.
#[derive(Clone, Debug, Serialize)]
pub struct PageData {
    /// One panel, or two side by side.
    #[serde(rename = "panes")]
    pub panels: Vec<Panel>,
    /// The snapshots over training, if there are any.
    #[serde(rename = "learning")]
    pub history: Option<TrainingHistory>,
}

/// One report, with the data that the page needs to compute without a server.
#[derive(Clone, Debug, Serialize)]
pub struct Panel {
    /// The report.
    #[serde(rename = "story")]
    pub report: Report,
    /// The weights, little-endian f32 in base64; `None` for larger models.
    pub weights: Option<BTreeMap<String, Weight>>,
    /// The text of every token, by id; empty for large vocabularies.
    pub vocabulary: Vec<String>,
}

/// A parameter in the page.
#[derive(Clone, Debug, Serialize)]
pub struct Weight {
    /// Length of each axis.
    pub shape: Vec<usize>,
    /// The values as little-endian f32 in base64.
    pub base64: String,
}

impl Panel {
    /// Creates the panel of `explanation`, with the weights of a small model.
    ///
    /// # Errors
    /// The errors of [`Explanation::report`].
    pub fn new(
        explanation: &Explanation<'_>,
        options: &ReportOptions,
    ) -> Result<Self, ExplainError> {
        let mut panel = Self::without_weights(explanation, options)?;
        if panel.report.model.parameters <= MAX_EMBEDDED_WEIGHTS {
            let all = explanation.explainer.weights().iter();
            let packed = all.map(|(name, array)| {
                let values = array.data.iter();
                let bytes: Vec<u8> = values.flat_map(|x| (*x as f32).to_le_bytes()).collect();
                let weight = Weight {
                    shape: array.shape.clone(),
                    base64: BASE64_STANDARD.encode(bytes),
                };
                (name.clone(), weight)
            });
            panel.weights = Some(packed.collect());
        }
        Ok(panel)
    }

    /// Creates the panel of `explanation` for a page that requests further values from a server.
    ///
    /// # Errors
    /// The errors of [`Explanation::report`].
    pub fn without_weights(
        explanation: &Explanation<'_>,
        options: &ReportOptions,
    ) -> Result<Self, ExplainError> {
        let report = explanation.report(options)?;
        let explainer = explanation.explainer;
        let vocab_size = report.config.vocab_size;
        let listed = if vocab_size <= MAX_EMBEDDED_VOCABULARY {
            vocab_size as u32
        } else {
            0
        };
        Ok(Self {
            vocabulary: (0..listed).map(|id| explainer.token_text(id)).collect(),
            weights: None,
            report,
        })
    }
}

/// Renders the page as one self-contained HTML file. Its content security policy allows only the
/// embedded script and style.
///
/// # Example
///
/// ```
/// # use nextword_explain::{Explainer, ReportOptions, page::{PageData, Panel, render}};
/// # use nextword_generate::{TextGenerator, TextOptions};
/// # let model = nextword_model::ModelDir::open("../../docs/models/statquest".as_ref())?;
/// # let generator = TextGenerator::open(&model, &burn::tensor::Device::flex())?;
/// let explainer = Explainer::new(generator);
/// let explanation = explainer.explain("what is statquest", &TextOptions::default())?;
/// let panel = Panel::new(&explanation, &ReportOptions::default())?;
/// assert!(panel.weights.is_some()); // small enough to compute edits without a server
/// let html = render(&PageData { panels: vec![panel], history: None });
/// assert!(html.contains("<title>") && html.contains("default-src 'none'")); // works offline
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn render(data: &PageData) -> String {
    // Reports contain numbers and strings only, so serialization cannot fail. An escaped `<` cannot end
    // the script element around the data.
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

/// Renders the page for a server, which must serve [`CSS`] as `/explain.css`, [`JS`] as `/explain.js`
/// and an icon as `/icon.svg`, and must handle `POST /explain`.
pub fn render_live() -> String {
    HTML.replace("<!--POLICY-->\n", "")
        .replace("data:,", "/icon.svg")
        .replace(
            "<!--CSS-->",
            "<link rel=\"stylesheet\" href=\"/explain.css\">",
        )
        .replace("<!--JS-->", "<script src=\"/explain.js\"></script>")
        .replace("/*DATA*/", "{\"live\":true}")
}
