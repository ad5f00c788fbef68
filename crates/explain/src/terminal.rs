//! Renders a report as text for the terminal.

mod adapter;
mod predictions;
mod steps;

use crate::explainer::Explanation;
use crate::graph::Input;
use crate::insight::TokenProb;
use crate::report::{Report, TokenOrigin};

/// What to print, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// Width of the terminal in columns.
    pub width: usize,
    /// Whether to use colours.
    pub colours: bool,
    /// Number of decimals.
    pub decimals: usize,
    /// Whether to show the steps with their values, or only the predictions.
    pub steps: bool,
    /// The layers to show; `None`: all, or only the first if the output would be too long.
    pub layers: Option<Vec<usize>>,
    /// The heads to show; `None`: all.
    pub heads: Option<Vec<usize>>,
    /// The positions to show; `None`: all, or only the prompt's last if the output would be too long.
    pub positions: Option<Vec<usize>>,
    /// Number of most likely next tokens to list.
    pub top: usize,
    /// Whether to show the name of each tensor, by which `--why` finds its values.
    pub names: bool,
}

impl Default for View {
    fn default() -> Self {
        Self {
            width: 80,
            colours: false,
            decimals: 2,
            steps: true,
            layers: None,
            heads: None,
            positions: None,
            top: 5,
            names: false,
        }
    }
}

/// Maximum width of a token's text.
const LABEL_WIDTH: usize = 14;

/// Maximum vocabulary size for which logits are shown as a table.
const MAX_COLUMNS: usize = 8;

/// Marks a non-breaking space. It cannot occur in a token, since control characters are replaced.
const NO_BREAK: char = '\u{1}';

/// Maximum number of parts of a logit to list, largest first.
const MAX_PARTS: usize = 12;

/// Maximum number of lines with values, unless the user selects layers or positions.
const MAX_LINES: usize = 1_000;

/// Renders the full report. Parts that are too long are omitted, with a note on how to select them.
///
/// # Example
///
/// ```
/// # use nextword_explain::{Explainer, ReportOptions, terminal};
/// # use nextword_generate::{TextGenerator, TextOptions};
/// # let model = nextword_model::ModelDir::open("../../docs/models/statquest".as_ref())?;
/// # let generator = TextGenerator::open(&model, &burn::tensor::Device::flex())?;
/// let explainer = Explainer::new(generator);
/// let explanation = explainer.explain("what is statquest", &TextOptions::default())?;
/// let report = explanation.report(&ReportOptions::default())?;
/// let text = terminal::render(&explanation, &report, &terminal::View::default());
/// assert!(text.contains("attention scores") && text.contains("awesome"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn render(explanation: &Explanation<'_>, report: &Report, view: &View) -> String {
    let mut printer = Printer {
        explanation,
        report,
        view: view.clone(),
        token_width: 0,
        out: String::new(),
    };
    let longest = report
        .tokens
        .iter()
        .chain(&report.source)
        .map(|token| display_width(&printable(&token.text)))
        .max();
    printer.token_width = longest.unwrap_or(0).clamp(4, LABEL_WIDTH);
    printer.header();
    if view.steps {
        printer.narrow_view();
        printer.steps();
    }
    printer.predictions();
    printer.adapter();
    printer.logit_lens();
    printer.sampled_tokens();
    printer.gradient_step();
    printer.notes();
    printer.out
}

struct Printer<'a> {
    explanation: &'a Explanation<'a>,
    report: &'a Report,
    view: View,
    token_width: usize,
    out: String,
}

fn is_selected(list: Option<&Vec<usize>>, at: usize) -> bool {
    list.is_none_or(|list| list.contains(&at))
}

/// Replaces whitespace and control characters, so that no token can move the cursor.
fn printable(text: &str) -> String {
    let visible = |c: char| match c {
        '\n' => '↵',
        '\t' => '⇥',
        ' ' => '␣',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    text.chars().map(visible).collect()
}

/// Width of a text in columns, counted in characters (too small for wide scripts).
fn display_width(text: &str) -> usize {
    text.chars().count()
}

/// `1 token`, `2 tokens`.
fn count_of(count: usize, noun: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{s}")
}

impl Printer<'_> {
    fn line(&mut self, text: &str) {
        self.out.push_str(&text.trim_end().replace(NO_BREAK, " "));
        self.out.push('\n');
    }

    fn style(&self, code: &str, text: &str) -> String {
        if self.view.colours {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_string()
        }
    }

    /// Prints `text` wrapped to the terminal's width, with every line indented.
    fn wrap(&mut self, indent: &str, text: &str, code: &str) {
        self.wrap_hanging(indent, indent, text, code);
    }

    /// Like [`Self::wrap`], but the first line has another prefix of the same width. Lines are not
    /// broken at [`NO_BREAK`].
    fn wrap_hanging(&mut self, first: &str, indent: &str, text: &str, code: &str) {
        let (mut prefix, mut line) = (first, String::new());
        for word in text.split(' ') {
            let full = display_width(prefix) + display_width(&line) + display_width(word) + 1;
            if !line.is_empty() && full > self.view.width {
                let styled = self.style(code, line.trim_end());
                self.line(&format!("{prefix}{styled}"));
                (prefix, line) = (indent, String::new());
                if word.is_empty() {
                    continue;
                }
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        let styled = self.style(code, &line);
        self.line(&format!("{prefix}{styled}"));
    }

    /// Tokens with their probabilities, side by side.
    fn token_probs(&self, tokens: &[TokenProb]) -> String {
        let texts = tokens.iter().take(self.view.top).map(|token| {
            let percent = 100.0 * token.probability;
            format!(
                "{}{NO_BREAK}{percent:.1}{NO_BREAK}%",
                printable(&token.text)
            )
        });
        texts.collect::<Vec<_>>().join("  ")
    }

    /// Prints `text` beside a token, with further lines aligned to its start.
    fn after_token(&mut self, position: usize, sign: &str, text: &str) {
        let first = format!("    {}{sign} ", self.token(position));
        self.wrap_hanging(&first, &" ".repeat(display_width(&first)), text, "0");
    }

    fn token(&self, position: usize) -> String {
        self.token_of(Input::Target, position)
    }

    /// The text of a token of `input`, in the width of all tokens.
    fn token_of(&self, input: Input, position: usize) -> String {
        let tokens = match input {
            Input::Target => &self.report.tokens,
            Input::Source => &self.report.source,
        };
        let text = printable(&tokens[position].text);
        let mut text: String = if display_width(&text) > self.token_width {
            let start: String = text.chars().take(self.token_width - 1).collect();
            format!("{start}…")
        } else {
            text
        };
        text.push_str(&" ".repeat(self.token_width - display_width(&text).min(self.token_width)));
        text
    }

    /// Width of a value with the space before it.
    fn cell_width(&self) -> usize {
        self.view.decimals + 5
    }

    fn cell(&self, x: f64) -> String {
        self.cell_in(x, self.cell_width())
    }

    /// Formats a value in `width` columns, of which at least the first one is a space.
    fn cell_in(&self, x: f64, width: usize) -> String {
        let decimals = self.view.decimals;
        let mut text = format!("{x:.decimals$}");
        let is_zero = text.chars().all(|c| "-0.".contains(c));
        if is_zero && text.starts_with('-') {
            text = format!("{:.decimals$}", 0.0);
        }
        if x.abs() >= 1e4 {
            text = format!("{x:.1e}");
        }
        format!(" {text:>0$}", width.saturating_sub(1))
    }

    /// Formats as many values as fit into `room` columns, each in `width`.
    fn cells_in(&self, x: &[f64], room: usize, width: usize) -> String {
        let cells = |x: &[f64]| -> String { x.iter().map(|x| self.cell_in(*x, width)).collect() };
        if x.len() <= (room / width).max(1) {
            return cells(x);
        }
        let fit = (room.saturating_sub(9) / width).max(1);
        format!("{} … (+{})", cells(&x[..fit]), x.len() - fit)
    }

    fn cells(&self, x: &[f64], room: usize) -> String {
        self.cells_in(x, room, self.cell_width())
    }

    /// Width of columns with these names over values of `minimum` columns: the names are shown in full if there
    /// is room for all of them.
    fn column_width(names: &[String], minimum: usize, room: usize) -> usize {
        let longest = names.iter().map(|name| display_width(name)).max();
        let full = longest.map_or(0, |longest| longest + 1).max(minimum);
        if full * names.len() <= room {
            full
        } else {
            minimum
        }
    }

    fn header(&mut self) {
        let model = &self.report.model;
        let name = if model.name.is_empty() {
            "model"
        } else {
            &model.name
        };
        let name = printable(name);
        let title = format!(
            "{name}, step {}, {} parameters",
            model.step, model.parameters
        );
        let title = self.style("1", &title);
        self.line(&title);
        let prompt = self.report.source.iter().chain(&self.report.tokens);
        let prompt: Vec<String> = prompt
            .filter(|token| token.origin == TokenOrigin::Prompt)
            .map(|token| printable(&token.text))
            .collect();
        let completion = self.report.completion.iter();
        let completion: Vec<String> = completion
            .map(|sampled| printable(&sampled.token.text))
            .collect();
        self.wrap("", &format!("prompt      {}", prompt.join(" · ")), "0");
        let name = if self.explanation.trace.predicts_masked() {
            "predicted "
        } else {
            "completion"
        };
        self.wrap("", &format!("{name}  {}", completion.join(" · ")), "0");
        if self.report.truncated > 0 {
            let truncated = count_of(self.report.truncated, "token");
            let end = if self.report.source.is_empty() {
                "start"
            } else {
                "end"
            };
            self.line(&format!(
                "truncated: {truncated} at the {end} of the prompt did not fit the context"
            ));
        }
        if !self.report.unknown.is_empty() {
            let unknown = self.report.unknown.iter().map(|text| printable(text));
            let unknown = unknown.collect::<Vec<_>>().join(", ");
            self.wrap("", &format!("not in the vocabulary: {unknown}"), "33");
        }
        let verification = &self.report.verification;
        let code = if verification.verified { "32" } else { "31" };
        let summary = verification.summary.clone();
        self.wrap("", &summary, code);
    }
}
