//! The steps of the forward pass, one tensor after the other.

use super::{
    MAX_COLUMNS, MAX_LINES, NO_BREAK, Printer, count_of, display_width, is_selected, printable,
};
use crate::explainer::Explanation;
use crate::graph::{Axis, Input, Node, Op, PROBABILITIES};
use crate::labels::label;

impl Printer<'_> {
    /// Narrows the view if the output would be too long and the user has not selected what to show.
    pub(super) fn narrow_view(&mut self) {
        let mut selected = Vec::new();
        if self.lines() > MAX_LINES && self.view.positions.is_none() {
            let trace = &self.explanation.trace;
            self.view.positions = Some(vec![trace.focus()]);
            selected.push(if trace.predicts_masked() {
                "the first masked position (--position N shows others)"
            } else if trace.config.has_encoder() {
                "the first position of the output (--position N shows others)"
            } else {
                "the prompt's last position (--position N shows others)"
            });
        }
        if self.lines() > MAX_LINES && self.view.layers.is_none() {
            self.view.layers = Some(vec![0]);
            selected.push("the first layer (--layer N)");
        }
        if !selected.is_empty() {
            let text = format!(
                "too long to show in full; showing only {}",
                selected.join(" and ")
            );
            self.wrap("", &text, "33");
        }
    }

    /// Number of lines with values that the steps take.
    fn lines(&self) -> usize {
        let nodes = self.explanation.trace.graph.iter();
        let listed = nodes.filter(|node| self.is_listed(node));
        listed
            .map(|node| self.heads_of(node).len() * self.rows_of(node).len())
            .sum()
    }

    fn is_listed(&self, node: &Node) -> bool {
        let layers = self.view.layers.as_ref();
        let selected = node.layer.is_none_or(|layer| is_selected(layers, layer));
        let is_copy = matches!(node.op, Op::Copy { .. });
        let is_single_head = matches!(&node.op, Op::OutputProjection { weight: None, .. })
            && self.explanation.trace.config.n_heads == 1;
        selected && !is_copy && !is_single_head && node.name != PROBABILITIES
    }

    pub(super) fn steps(&mut self) {
        let mut layer = None;
        let mut in_encoder = None;
        let mut number = 0;
        let nodes = self.explanation.trace.graph.iter();
        let nodes: Vec<Node> = nodes.filter(|n| self.is_listed(n)).cloned().collect();
        for node in &nodes {
            let config = &self.explanation.trace.config;
            if config.has_encoder() && in_encoder != Some(node.is_in_encoder()) {
                in_encoder = Some(node.is_in_encoder());
                self.rule(if node.is_in_encoder() {
                    "encoder"
                } else {
                    "decoder"
                });
            }
            let config = &self.explanation.trace.config;
            let has_layers = config.n_layers.max(config.encoder_layers()) > 1;
            if node.layer != layer {
                layer = node.layer;
                if let Some(layer) = layer.filter(|_| has_layers) {
                    self.rule(&format!("layer {}", layer + 1));
                }
            }
            number += 1;
            self.step(number, node);
        }
    }

    /// A title with a line to its right.
    fn rule(&mut self, title: &str) {
        let title = format!("── {title} ");
        let room = self.view.width.saturating_sub(display_width(&title));
        let title = self.style("1", &format!("{title}{}", "─".repeat(room.min(40))));
        self.line(&format!("\n{title}"));
    }

    fn step(&mut self, number: usize, node: &Node) {
        let label = label(node);
        let term = format!("({})", label.term);
        let fits = display_width(label.title) + display_width(&term) + 6 <= self.view.width;
        let separator = if fits { "  " } else { "\n    " };
        let (title, term) = (self.style("1", label.title), self.style("2", &term));
        self.line(&format!("\n{number:>2}  {title}{separator}{term}"));
        let name = if self.view.names {
            format!("   {}", node.name)
        } else {
            String::new()
        };
        self.wrap("    ", &format!("{}{name}", label.formula), "2");
        match &node.op {
            _ if node.axes.contains(&Axis::Token) && node.shape[1] > MAX_COLUMNS => {
                self.largest(node);
            }
            Op::Add { a, b } => self.sums(node, a, b),
            Op::Scores { .. } | Op::Softmax { .. } => self.square(node),
            Op::WeightedSum { pattern, v } => {
                self.rows(node);
                self.weighted_sum(node, pattern, v);
            }
            _ => self.rows(node),
        }
    }

    /// The positions to show.
    pub(super) fn positions(&self) -> Vec<usize> {
        let all = 0..self.report.tokens.len();
        all.filter(|at| is_selected(self.view.positions.as_ref(), *at))
            .collect()
    }

    /// The rows of `node` to show. The selected positions are those of the only stack, or of the decoder.
    fn rows_of(&self, node: &Node) -> Vec<usize> {
        match node.rows {
            Input::Target => self.positions(),
            Input::Source => (0..self.report.source.len()).collect(),
        }
    }

    fn heads_of(&self, node: &Node) -> Vec<Option<usize>> {
        if node.shape.len() < 3 {
            return vec![None];
        }
        // With grouped queries, several query heads share a key/value head.
        let group = (self.explanation.trace.config.n_heads / node.shape[0]).max(1);
        let selected = |head: &usize| {
            let heads = self.view.heads.as_ref();
            (head * group..(head + 1) * group).any(|head| is_selected(heads, head))
        };
        (0..node.shape[0]).filter(selected).map(Some).collect()
    }

    fn head_title(&mut self, node: &Node, head: Option<usize>) {
        let trace = &self.explanation.trace;
        let has_heads = trace.config.n_heads > 1;
        if let Some(head) = head.filter(|_| has_heads) {
            let is_shared = node.shape[0] < trace.config.n_heads;
            let kind = if is_shared { "key/value head" } else { "head" };
            let title = self.style("2", &format!("{kind} {}", head + 1));
            self.line(&format!("    {title}"));
        }
    }

    /// One line per position.
    fn rows(&mut self, node: &Node) {
        let seq = node.shape[node.shape.len() - 2];
        let room = self.view.width.saturating_sub(self.token_width + 4);
        let mut width = self.cell_width();
        if node.axes.contains(&Axis::Token) {
            let names: Vec<String> = (0..node.shape[1] as u32)
                .map(|id| printable(&self.explanation.explainer.token_text(id)))
                .collect();
            width = Self::column_width(&names, width, room);
            let names: String = names.iter().map(|name| column_name(name, width)).collect();
            let names = format!("    {}{names}", " ".repeat(self.token_width));
            let names = self.style("2", &names);
            self.line(&names);
        }
        for head in self.heads_of(node) {
            self.head_title(node, head);
            for position in self.rows_of(node) {
                let value = self.explanation.trace.value(&node.name);
                let x = value.row(head.unwrap_or(0) * seq + position);
                let cells = self.cells_in(x, room, width);
                let token = self.token_of(node.rows, position);
                self.line(&format!("    {token}{cells}"));
            }
        }
    }

    /// The tokens with the largest values, one line per position.
    fn largest(&mut self, node: &Node) {
        for position in self.positions() {
            let row = self.explanation.trace.value(&node.name).row(position);
            let top = self.explanation.top_tokens(row, self.view.top);
            let top = top.iter().map(|token| {
                let value = self.cell(token.probability);
                format!("{}{NO_BREAK}{}", printable(&token.text), value.trim())
            });
            let more = row.len().saturating_sub(self.view.top);
            let text = format!("{}  … (+{more})", top.collect::<Vec<_>>().join("  "));
            self.after_token(position, "", &text);
        }
    }

    /// `a + b = sum`, one line per position; three lines if the values fit only so.
    fn sums(&mut self, node: &Node, a: &str, b: &str) {
        const SIGNS: [&str; 3] = ["", " +", " ="];
        let names = [a, b, node.name.as_str()];
        let (positions, values) = (self.rows_of(node), node.shape[1]);
        // An operator is preceded by a space, and a value begins with one.
        let all = self.view.width.saturating_sub(self.token_width + 4 + 4);
        let narrow = self.widest_cell(&names, &positions);
        let fitting = [self.cell_width(), narrow];
        let mut fitting = fitting
            .into_iter()
            .filter(|width| 3 * values * width <= all);
        let width = fitting.next();
        let line_room = self.view.width.saturating_sub(self.token_width + 4 + 2);
        let is_split = width.is_none() && values * self.cell_width() <= line_room;
        for position in positions {
            let trace = &self.explanation.trace;
            let room = if is_split { line_room } else { all / 3 };
            let parts = names.iter().zip(SIGNS).map(|(name, sign)| {
                let row = trace.value(name).row(position);
                let cells = self.cells_in(row, room, width.unwrap_or(self.cell_width()));
                format!("{sign}{cells}")
            });
            let parts: Vec<String> = parts.collect();
            let token = self.token_of(node.rows, position);
            if !is_split {
                self.line(&format!("    {token}{}", parts.concat()));
                continue;
            }
            let indent = " ".repeat(self.token_width);
            self.line(&format!("    {token}  {}", parts[0]));
            self.line(&format!("    {indent}{}", parts[1]));
            self.line(&format!("    {indent}{}", parts[2]));
        }
    }

    /// Width of the longest value of the tensors `names` at `positions`, with the space before it.
    fn widest_cell(&self, names: &[&str], positions: &[usize]) -> usize {
        let trace = &self.explanation.trace;
        let rows = names.iter().flat_map(|name| {
            let value = trace.value(name);
            positions.iter().map(|position| value.row(*position))
        });
        let widths = rows.flatten().map(|x| self.cell_in(*x, 1).len());
        widths.max().unwrap_or(1)
    }

    /// Attention scores or weights: one row per query.
    fn square(&mut self, node: &Node) {
        let (queries, seq) = (node.shape[1], node.shape[2]);
        let is_weights = matches!(node.op, Op::Softmax { .. });
        // A percentage takes up to seven columns: `100.0 %`.
        let minimum = if is_weights { 8 } else { self.cell_width() };
        let sum_width = if is_weights { 9 } else { 0 };
        let room = self
            .view
            .width
            .saturating_sub(self.token_width + 4 + sum_width);
        let names: Vec<String> = (0..seq)
            .map(|key| self.token_of(node.keys, key).trim_end().to_string())
            .collect();
        let width = Self::column_width(&names, minimum, room);
        let fit = (room / width).clamp(1, seq);
        // If there is not enough room, show the keys nearest to the last query.
        let last_query = self.rows_of(node).last().copied().unwrap_or(queries - 1);
        let trace = &self.explanation.trace;
        let last_key = (0..seq).rfind(|key| trace.is_visible(node, last_query, *key));
        let end = last_key.map_or(seq, |key| key + 1).max(fit).min(seq);
        let first = end - fit;
        for head in self.heads_of(node) {
            self.head_title(node, head);
            let mut header = " ".repeat(self.token_width);
            for name in &names[first..end] {
                header.push_str(&column_name(name, width));
            }
            let header = if is_weights {
                format!("{header}      sum")
            } else {
                header
            };
            if first > 0 {
                let earlier = count_of(first, "earlier key");
                self.line(&format!("    … {earlier} not shown"));
            }
            let header = self.style("2", &header);
            self.line(&format!("    {header}"));
            for query in self.rows_of(node) {
                let trace = &self.explanation.trace;
                let row = trace
                    .value(&node.name)
                    .row(head.unwrap_or(0) * queries + query);
                let cells: String = (first..end)
                    .map(|key| match () {
                        () if !trace.is_visible(node, query, key) => format!("{:>width$}", "·"),
                        () if is_weights => {
                            format!("{:>width$}", format!("{:.1} %", 100.0 * row[key]))
                        }
                        () => self.cell_in(row[key], width),
                    })
                    .collect();
                let total = if is_weights {
                    format!("{:>9}", format!("{:.1} %", 100.0 * row.iter().sum::<f64>()))
                } else {
                    String::new()
                };
                let token = self.token_of(node.rows, query);
                self.line(&format!("    {token}{cells}{total}"));
            }
        }
    }

    /// The weighted sum of values for the last position shown, one line per key.
    fn weighted_sum(&mut self, node: &Node, pattern: &str, v: &str) {
        let Some(query) = self.rows_of(node).last().copied() else {
            return;
        };
        let Some(scores) = self.explanation.trace.node(pattern).cloned() else {
            return;
        };
        for head in self.heads_of(node) {
            let head = head.unwrap_or(0);
            let trace = &self.explanation.trace;
            let group = node.shape[0] / trace.value(v).shape[0];
            let (queries, seq) = (scores.shape[1], scores.shape[2]);
            let in_head = if node.shape[0] > 1 {
                format!(" in head {}", head + 1)
            } else {
                String::new()
            };
            let title = format!(
                "weighted sum for \u{201c}{}\u{201d}{in_head}",
                self.token_of(node.rows, query).trim_end()
            );
            let title = self.style("2", &title);
            self.line(&format!("    {title}"));
            let mut keys: Vec<(usize, f64)> = (0..seq)
                .filter(|key| trace.is_visible(&scores, query, *key))
                .map(|key| (key, trace.value(pattern).row(head * queries + query)[key]))
                .collect();
            if keys.len() > 8 {
                keys.sort_by(|a, b| b.1.total_cmp(&a.1));
            }
            let omitted = keys.len().saturating_sub(8);
            for (key, weight) in keys.into_iter().take(8) {
                let value = trace_row(self.explanation, v, head / group * seq + key);
                let room = self.view.width.saturating_sub(self.token_width + 4 + 14);
                let cells = self.cells(&value, room);
                let token = self.token_of(scores.keys, key);
                self.line(&format!("    {token}{:>8.1} % × {cells}", 100.0 * weight));
            }
            if omitted > 0 {
                self.line(&format!("    … and {omitted} more with smaller weights"));
            }
        }
    }
}

/// The name of a column, cut so that the columns do not touch.
fn column_name(name: &str, width: usize) -> String {
    let name: String = name.chars().take(width.saturating_sub(1)).collect();
    format!("{name:>width$}")
}

fn trace_row(explanation: &Explanation<'_>, name: &str, row: usize) -> Vec<f64> {
    explanation.trace.value(name).row(row).to_vec()
}
