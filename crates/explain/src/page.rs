//! The HTML page: one self-contained file, or a server's page that requests values on demand.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use crate::evaluate::Arrays;
use crate::explainer::Explanation;
use crate::history::TrainingHistory;
use crate::page_values::{pack, packed_len};
use crate::trace::count_values;
use crate::{ExplainError, Report, ReportOptions};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub use crate::page_values::{PackedTensor, PackedValues};

const HTML: &str = include_str!("assets/page.html");

/// The page's style sheet.
pub const CSS: &str = include_str!("assets/page.css");

/// The scripts, in the order of their dependencies.
const SCRIPTS: [&str; 18] = [
    include_str!("assets/dom.js"),
    include_str!("assets/compute.js"),
    include_str!("assets/derive.js"),
    include_str!("assets/pictures.js"),
    include_str!("assets/model_map.js"),
    include_str!("assets/source.js"),
    include_str!("assets/cells.js"),
    include_str!("assets/cards.js"),
    include_str!("assets/insights.js"),
    include_str!("assets/what_if.js"),
    include_str!("assets/adapter.js"),
    include_str!("assets/training.js"),
    include_str!("assets/encoder_decoder.js"),
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

/// Pages of long prompts stay below this number of bytes, if the weights alone do.
const MAX_PAGE_BYTES: usize = 4_900_000;

/// Bytes to reserve for scripts and for everything that grows with the prompt other than its values.
const RESERVED_BYTES: usize = 450_000;

/// Up to this number of values, a page has all of them, even beyond [`MAX_PAGE_BYTES`].
const SHORT_PROMPT_VALUES: usize = 150_000;

/// Decimal digits of the probabilities in a page.
const PROBABILITY_DIGITS: usize = 7;

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
    /// The tensors of the report, which itself has none then; `None` if the report has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packed_tensors: Option<BTreeMap<String, PackedTensor>>,
    /// The weights; `None` for larger models.
    pub weights: Option<BTreeMap<String, PackedValues>>,
    /// With the weights, the base model's values of the parameters that an adapter replaces, if there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_values: Option<BTreeMap<String, PackedValues>>,
    /// The text of every token, by id; empty for large vocabularies.
    pub vocabulary: Vec<String>,
}

impl Panel {
    /// Creates the panel of `explanation`, with the weights of a small model. For a long prompt, the panel
    /// omits values that the page can compute from the weights, or that it would be too large with.
    ///
    /// # Errors
    /// The errors of [`Explanation::report`].
    pub fn new(
        explanation: &Explanation<'_>,
        options: &ReportOptions,
    ) -> Result<Self, ExplainError> {
        let config = &explanation.trace.config;
        let parameters = config.parameter_counts().total();
        let has_weights = parameters <= MAX_EMBEDDED_WEIGHTS;
        let weights_len = if has_weights {
            packed_len(parameters)
        } else {
            0
        };
        let room = MAX_PAGE_BYTES.saturating_sub(weights_len + RESERVED_BYTES);
        let mut options = options.clone();
        let values = count_values(config, explanation.trace.lengths());
        if values > SHORT_PROMPT_VALUES && options.layers.is_none() {
            options.max_values = options.max_values.min(room / packed_len(1)).max(1);
        }
        let mut panel = match Self::without_weights(explanation, &options) {
            // Not even one tensor fits, but the page can compute all of them.
            Err(ExplainError::TooLarge { .. }) if has_weights => {
                options.max_values = usize::MAX;
                let mut all = Self::without_weights(explanation, &options)?;
                all.report.tensors.clear();
                all
            }
            panel => panel?,
        };
        panel.packed_tensors = Some(pack(std::mem::take(&mut panel.report.tensors)));
        if has_weights {
            panel.report.notes.retain(|note| !note.contains("--layer"));
            panel.weights = Some(pack_weights(explanation.explainer.weights()));
            let base = explanation.explainer.base_values();
            panel.base_values = base.filter(|base| !base.is_empty()).map(pack_weights);
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
            packed_tensors: None,
            weights: None,
            base_values: None,
            report,
        })
    }
}

fn pack_weights(weights: &Arrays) -> BTreeMap<String, PackedValues> {
    let packed = weights.iter().map(|(name, array)| {
        let values = array.data.iter().map(|x| *x as f32);
        (name.clone(), PackedValues::new(&array.shape, values))
    });
    packed.collect()
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
    let history = serde_json::to_string(&data.history).unwrap_or_default();
    let json = format!(
        "{{\"panes\":{},\"learning\":{history}}}",
        compact(&data.panels)
    );
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

/// The panels as JSON without repetitions: the weights of one model for both panels once, and the most likely
/// tokens as `[id, probability]` where the panel has the vocabulary.
fn compact(panels: &[Panel]) -> Value {
    let mut all = serde_json::to_value(panels).unwrap_or_default();
    for (number, panel) in panels.iter().enumerate() {
        let json = &mut all[number];
        let is_shared = number > 0 && panel.weights.is_some();
        if is_shared && panel.weights == panels[0].weights {
            json["weights"] = json!("shared");
        }
        if panel.vocabulary.is_empty() {
            continue;
        }
        let story = &mut json["story"];
        for key in ["next_words", "lens"] {
            for entry in story[key].as_array_mut().into_iter().flatten() {
                compact_tokens(&mut entry["top"]);
            }
        }
    }
    all
}

/// Replaces each token with its probability in nested lists by `[id, probability]`.
fn compact_tokens(value: &mut Value) {
    if let Some(list) = value.as_array_mut() {
        list.iter_mut().for_each(compact_tokens);
        return;
    }
    let probability = value["probability"].as_f64().unwrap_or_default();
    let digits = PROBABILITY_DIGITS - 1;
    let rounded: f64 = format!("{probability:.digits$e}")
        .parse()
        .unwrap_or(probability);
    *value = json!([value["id"], rounded]);
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
