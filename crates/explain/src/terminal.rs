//! The story as text, as wide as the terminal.

mod answers;

use crate::explainer::Explanation;
use crate::graph::{Axis, Node, Op, PROBABILITIES};
use crate::story::{Origin, Story};
use crate::words::about;

/// What is shown, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// Columns of the terminal.
    pub width: usize,
    /// Whether there may be colours.
    pub colours: bool,
    /// Decimals of a number.
    pub decimals: usize,
    /// The layers shown; `None`: all.
    pub layers: Option<Vec<usize>>,
    /// The heads shown; `None`: all.
    pub heads: Option<Vec<usize>>,
    /// The positions shown; `None`: all.
    pub positions: Option<Vec<usize>>,
    /// The likeliest next tokens that are listed.
    pub top: usize,
}

impl Default for View {
    fn default() -> Self {
        Self {
            width: 80,
            colours: false,
            decimals: 2,
            layers: None,
            heads: None,
            positions: None,
            top: 5,
        }
    }
}

/// Columns for a token's name at most.
const LABEL: usize = 14;

/// Output values are tabled for vocabularies up to this size.
const MOST_COLUMNS: usize = 8;

/// The whole story from word to next word.
pub fn draw(explanation: &Explanation<'_>, story: &Story, view: &View) -> String {
    let mut page = Page {
        explanation,
        story,
        view,
        label: 0,
        out: String::new(),
    };
    let longest = story
        .tokens
        .iter()
        .map(|token| columns(&shown(&token.text)))
        .max();
    page.label = longest.unwrap_or(0).clamp(4, LABEL);
    page.head();
    page.steps();
    page.next_words();
    page.answers();
    page.contributions();
    page.foot();
    page.out
}

struct Page<'a> {
    explanation: &'a Explanation<'a>,
    story: &'a Story,
    view: &'a View,
    label: usize,
    out: String,
}

fn is_wanted(list: Option<&Vec<usize>>, at: usize) -> bool {
    list.is_none_or(|list| list.contains(&at))
}

/// A token without characters that move the cursor.
fn shown(text: &str) -> String {
    let visible = |c: char| match c {
        '\n' => '↵',
        '\t' => '⇥',
        ' ' => '␣',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    text.chars().map(visible).collect()
}

/// Columns that a text takes: characters, which is right for all but wide scripts.
fn columns(text: &str) -> usize {
    text.chars().count()
}

impl Page<'_> {
    fn line(&mut self, text: &str) {
        self.out.push_str(text.trim_end());
        self.out.push('\n');
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.view.colours {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_string()
        }
    }

    /// `text` in lines of the terminal's width, each indented.
    fn wrap(&mut self, indent: &str, text: &str, code: &str) {
        let mut line = String::new();
        for word in text.split(' ') {
            let full = columns(indent) + columns(&line) + columns(word) + 1;
            if !line.is_empty() && full > self.view.width {
                let painted = self.paint(code, &line);
                self.line(&format!("{indent}{painted}"));
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        let painted = self.paint(code, &line);
        self.line(&format!("{indent}{painted}"));
    }

    fn token(&self, position: usize) -> String {
        let text = shown(&self.story.tokens[position].text);
        let mut text: String = if columns(&text) > self.label {
            let kept: String = text.chars().take(self.label - 1).collect();
            format!("{kept}…")
        } else {
            text
        };
        text.push_str(&" ".repeat(self.label - columns(&text).min(self.label)));
        text
    }

    fn cell(&self, x: f64) -> String {
        let (width, decimals) = (self.view.decimals + 5, self.view.decimals);
        let large = x != 0.0 && x.abs() >= 1e4;
        if large {
            return format!("{x:>width$.1e}");
        }
        let text = format!("{x:>width$.decimals$}");
        let zero = text
            .trim()
            .trim_start_matches('-')
            .chars()
            .all(|c| c == '0' || c == '.');
        if zero && text.contains('-') {
            format!("{:>width$.decimals$}", 0.0)
        } else {
            text
        }
    }

    /// Numbers in a row, as many as `room` columns hold.
    fn numbers(&self, x: &[f64], room: usize) -> String {
        let each = self.view.decimals + 5;
        let fit = (room / each).max(1);
        if x.len() <= fit {
            return x.iter().map(|x| self.cell(*x)).collect();
        }
        let fit = (room.saturating_sub(9) / each).max(1);
        let some: String = x[..fit].iter().map(|x| self.cell(*x)).collect();
        format!("{some} … (+{})", x.len() - fit)
    }

    fn head(&mut self) {
        let model = &self.story.model;
        let name = if model.name.is_empty() {
            "model"
        } else {
            &model.name
        };
        let title = format!(
            "{name}, step {}, {} parameters",
            model.step, model.parameters
        );
        let title = self.paint("1", &title);
        self.line(&title);
        let text = |origin: Origin| -> Vec<String> {
            let of = self
                .story
                .tokens
                .iter()
                .filter(|token| token.from == origin);
            of.map(|token| shown(&token.text)).collect()
        };
        let (prompt, answer): (Vec<String>, Vec<String>) = (
            text(Origin::Prompt),
            self.story
                .answer
                .iter()
                .map(|a| shown(&a.token.text))
                .collect(),
        );
        self.wrap("", &format!("prompt  {}", prompt.join(" · ")), "0");
        self.wrap("", &format!("answer  {}", answer.join(" · ")), "0");
        if self.story.truncated > 0 {
            let truncated = self.story.truncated;
            self.line(&format!(
                "the prompt's first {truncated} tokens did not fit the context"
            ));
        }
        if !self.story.unknown.is_empty() {
            let unknown = self.story.unknown.join(", ");
            self.wrap("", &format!("not in the vocabulary: {unknown}"), "33");
        }
        let verdict = &self.story.verdict;
        let code = if verdict.verified { "32" } else { "31" };
        let sentence = verdict.sentence.clone();
        self.wrap("", &sentence, code);
    }

    fn steps(&mut self) {
        let mut layer = None;
        let mut number = 0;
        let nodes: Vec<Node> = self.explanation.trace.graph.clone();
        for node in &nodes {
            let listed = node
                .layer
                .is_none_or(|layer| is_wanted(self.view.layers.as_ref(), layer));
            let renamed = matches!(node.op, Op::Copy { .. });
            let output = node.axes.contains(&Axis::Token)
                && (node.name == PROBABILITIES || node.shape[1] > MOST_COLUMNS);
            let lone = matches!(&node.op, Op::Join { weight: None, .. })
                && self.explanation.trace.config.n_heads == 1;
            if !listed || renamed || output || lone {
                continue;
            }
            if node.layer != layer {
                layer = node.layer;
                if let Some(layer) = layer.filter(|_| self.explanation.trace.config.n_layers > 1) {
                    let title = format!("── layer {} ", layer + 1);
                    let rule = "─".repeat(self.view.width.saturating_sub(columns(&title)).min(40));
                    let title = self.paint("1", &format!("{title}{rule}"));
                    self.line(&format!("\n{title}"));
                }
            }
            number += 1;
            self.step(number, node);
        }
    }

    fn step(&mut self, number: usize, node: &Node) {
        let about = about(node);
        let title = self.paint("1", about.title);
        let term = self.paint("2", &format!("({})", about.term));
        self.line(&format!("\n{number:>2}  {title}  {term}"));
        self.wrap("    ", &format!("{}   {}", about.formula, node.name), "2");
        match &node.op {
            Op::Add { a, b } => self.sums(node, a, b),
            Op::Scores { .. } | Op::Softmax { .. } => self.square(node),
            Op::Mix { pattern, v } => {
                self.rows(node);
                self.mixture(node, pattern, v);
            }
            _ => self.rows(node),
        }
    }

    /// The positions that are shown of `seq`.
    fn positions(&self) -> Vec<usize> {
        let all = 0..self.story.tokens.len();
        all.filter(|at| is_wanted(self.view.positions.as_ref(), *at))
            .collect()
    }

    fn heads_of(&self, node: &Node) -> Vec<Option<usize>> {
        if node.shape.len() < 3 {
            return vec![None];
        }
        let all = 0..node.shape[0];
        all.filter(|head| is_wanted(self.view.heads.as_ref(), *head))
            .map(Some)
            .collect()
    }

    fn head_title(&mut self, node: &Node, head: Option<usize>) {
        let trace = &self.explanation.trace;
        let many = trace.config.n_heads > 1;
        if let Some(head) = head.filter(|_| many) {
            let shared = node.shape[0] < trace.config.n_heads;
            let kind = if shared { "key/value head" } else { "head" };
            let title = self.paint("2", &format!("{kind} {}", head + 1));
            self.line(&format!("    {title}"));
        }
    }

    /// One line a token.
    fn rows(&mut self, node: &Node) {
        let seq = self.story.tokens.len();
        if node.axes.contains(&Axis::Token) {
            let width = self.view.decimals + 5;
            let names = (0..node.shape[1] as u32).map(|id| {
                let name: String = shown(&self.explanation.explainer.text(id))
                    .chars()
                    .take(width - 1)
                    .collect();
                format!("{name:>width$}")
            });
            let names = format!(
                "    {}{}",
                " ".repeat(self.label),
                names.collect::<String>()
            );
            let names = self.paint("2", &names);
            self.line(&names);
        }
        for head in self.heads_of(node) {
            self.head_title(node, head);
            for position in self.positions() {
                let value = self.explanation.trace.value(&node.name);
                let x = value.row(head.unwrap_or(0) * seq + position);
                let room = self.view.width.saturating_sub(self.label + 4);
                let numbers = self.numbers(x, room);
                let token = self.token(position);
                self.line(&format!("    {token}{numbers}"));
            }
        }
    }

    /// `a + b = sum`, one line a token where it fits.
    fn sums(&mut self, node: &Node, a: &str, b: &str) {
        for position in self.positions() {
            let trace = &self.explanation.trace;
            let room = self.view.width.saturating_sub(self.label + 4 + 6) / 3;
            let parts: Vec<String> = [a, b, &node.name]
                .iter()
                .map(|name| self.numbers(trace.value(name).row(position), room))
                .collect();
            let token = self.token(position);
            self.line(&format!(
                "    {token}{} + {} = {}",
                parts[0], parts[1], parts[2]
            ));
        }
    }

    /// Similarities or percentages: a row for each token that asks.
    fn square(&mut self, node: &Node) {
        let seq = self.story.tokens.len();
        let width = self.label.min(9).max(self.view.decimals + 5);
        let percent = matches!(node.op, Op::Softmax { .. });
        let sum = if percent { 9 } else { 0 };
        let room = self.view.width.saturating_sub(self.label + 4 + sum);
        let fit = (room / width).clamp(1, seq);
        // Of many keys the last ones are nearest.
        let first = seq - fit;
        for head in self.heads_of(node) {
            self.head_title(node, head);
            let mut header = " ".repeat(self.label);
            for key in first..seq {
                let name: String = self.token(key).trim_end().chars().take(width - 1).collect();
                header = format!("{header}{name:>width$}");
            }
            let header = if percent {
                format!("{header}      sum")
            } else {
                header
            };
            let header = self.paint("2", &header);
            let more = if first > 0 {
                format!("  ({first} earlier ones not shown)")
            } else {
                String::new()
            };
            self.line(&format!("    {header}{more}"));
            for query in self.positions() {
                let trace = &self.explanation.trace;
                let row = trace.value(&node.name).row(head.unwrap_or(0) * seq + query);
                let cells: String = (first..seq)
                    .map(|key| match () {
                        () if !trace.sees(node, query, key) => format!("{:>width$}", "·"),
                        () if percent => {
                            format!("{:>width$}", format!("{:.1} %", 100.0 * row[key]))
                        }
                        () => format!("{:>width$}", self.cell(row[key]).trim()),
                    })
                    .collect();
                let total = if percent {
                    format!("{:>9}", format!("{:.1} %", 100.0 * row.iter().sum::<f64>()))
                } else {
                    String::new()
                };
                let token = self.token(query);
                self.line(&format!("    {token}{cells}{total}"));
            }
        }
    }

    /// How the last shown token's value is mixed, one line a source.
    fn mixture(&mut self, node: &Node, pattern: &str, v: &str) {
        let Some(query) = self.positions().last().copied() else {
            return;
        };
        let seq = self.story.tokens.len();
        let Some(scores) = self.explanation.trace.node(pattern).cloned() else {
            return;
        };
        for head in self.heads_of(node) {
            let head = head.unwrap_or(0);
            let trace = &self.explanation.trace;
            let group = node.shape[0] / trace.value(v).shape[0];
            let which = if node.shape[0] > 1 {
                format!(" in head {}", head + 1)
            } else {
                String::new()
            };
            let title = format!(
                "how \u{201c}{}\u{201d} is mixed{which}",
                self.token(query).trim_end()
            );
            let title = self.paint("2", &title);
            self.line(&format!("    {title}"));
            let mut sources: Vec<(usize, f64)> = (0..=query)
                .filter(|key| trace.sees(&scores, query, *key))
                .map(|key| (key, trace.value(pattern).row(head * seq + query)[key]))
                .collect();
            let many = sources.len() > 8;
            if many {
                sources.sort_by(|a, b| b.1.total_cmp(&a.1));
            }
            let left = sources.len().saturating_sub(8);
            for (key, share) in sources.into_iter().take(8) {
                let value = trace_row(self.explanation, v, head / group * seq + key);
                let room = self.view.width.saturating_sub(self.label + 4 + 14);
                let numbers = self.numbers(&value, room);
                let token = self.token(key);
                self.line(&format!("    {token}{:>8.1} % × {numbers}", 100.0 * share));
            }
            if left > 0 {
                self.line(&format!("    … and {left} more with smaller percentages"));
            }
        }
    }
}

fn trace_row(explanation: &Explanation<'_>, name: &str, row: usize) -> Vec<f64> {
    explanation.trace.value(name).row(row).to_vec()
}
