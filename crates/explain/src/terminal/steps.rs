//! The steps from word to next word, one tensor below the other.

use super::{GLUE, MOST_COLUMNS, MOST_LINES, Page, columns, is_wanted, shown};
use crate::explainer::Explanation;
use crate::graph::{Axis, Node, Op, PROBABILITIES};
use crate::words::about;

impl Page<'_> {
    /// Narrows the view to what can be read, where the reader has not chosen.
    pub(super) fn shorten(&mut self) {
        let mut kept = Vec::new();
        if self.lines() > MOST_LINES && self.view.positions.is_none() {
            self.view.positions = Some(vec![self.explanation.trace.prompt - 1]);
            kept.push("the prompt's last position (--position N shows others)");
        }
        if self.lines() > MOST_LINES && self.view.layers.is_none() {
            self.view.layers = Some(vec![0]);
            kept.push("the first layer (--layer N)");
        }
        if !kept.is_empty() {
            let text = format!(
                "too long to read as a whole, so only {}",
                kept.join(" and ")
            );
            self.wrap("", &text, "33");
        }
    }

    /// Lines with numbers that the steps take.
    fn lines(&self) -> usize {
        let nodes = self.explanation.trace.graph.iter();
        let listed = nodes.filter(|node| self.is_listed(node));
        let positions = self.positions().len();
        listed
            .map(|node| self.heads_of(node).len() * positions)
            .sum()
    }

    fn is_listed(&self, node: &Node) -> bool {
        let layers = self.view.layers.as_ref();
        let wanted = node.layer.is_none_or(|layer| is_wanted(layers, layer));
        let renamed = matches!(node.op, Op::Copy { .. });
        let lone = matches!(&node.op, Op::Join { weight: None, .. })
            && self.explanation.trace.config.n_heads == 1;
        wanted && !renamed && !lone && node.name != PROBABILITIES
    }

    pub(super) fn steps(&mut self) {
        let mut layer = None;
        let mut number = 0;
        let nodes = self.explanation.trace.graph.iter();
        let nodes: Vec<Node> = nodes.filter(|n| self.is_listed(n)).cloned().collect();
        for node in &nodes {
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
        let term = format!("({})", about.term);
        let fits = columns(about.title) + columns(&term) + 6 <= self.view.width;
        let between = if fits { "  " } else { "\n    " };
        let (title, term) = (self.paint("1", about.title), self.paint("2", &term));
        self.line(&format!("\n{number:>2}  {title}{between}{term}"));
        self.wrap("    ", &format!("{}   {}", about.formula, node.name), "2");
        match &node.op {
            _ if node.axes.contains(&Axis::Token) && node.shape[1] > MOST_COLUMNS => {
                self.largest(node);
            }
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
    pub(super) fn positions(&self) -> Vec<usize> {
        let all = 0..self.story.tokens.len();
        all.filter(|at| is_wanted(self.view.positions.as_ref(), *at))
            .collect()
    }

    fn heads_of(&self, node: &Node) -> Vec<Option<usize>> {
        if node.shape.len() < 3 {
            return vec![None];
        }
        // A key and value head belongs to several heads that ask.
        let group = (self.explanation.trace.config.n_heads / node.shape[0]).max(1);
        let asked = |head: &usize| {
            let heads = self.view.heads.as_ref();
            (head * group..(head + 1) * group).any(|head| is_wanted(heads, head))
        };
        (0..node.shape[0]).filter(asked).map(Some).collect()
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

    /// The tokens with the largest numbers, one line a token that was read.
    fn largest(&mut self, node: &Node) {
        for position in self.positions() {
            let row = self.explanation.trace.value(&node.name).row(position);
            let top = self.explanation.guesses(row, self.view.top);
            let top = top.iter().map(|one| {
                let number = self.cell(one.probability);
                format!("{}{GLUE}{}", shown(&one.text), number.trim())
            });
            let more = row.len().saturating_sub(self.view.top);
            let text = format!("{}  … (+{more})", top.collect::<Vec<_>>().join("  "));
            self.after_token(position, "", &text);
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
        // Of many keys the nearest ones to the last word that asks.
        let asks_last = self.positions().last().copied().unwrap_or(seq - 1);
        let end = (asks_last + 1).max(fit).min(seq);
        let first = end - fit;
        for head in self.heads_of(node) {
            self.head_title(node, head);
            let mut header = " ".repeat(self.label);
            for key in first..end {
                let name: String = self.token(key).trim_end().chars().take(width - 1).collect();
                header = format!("{header}{name:>width$}");
            }
            let header = if percent {
                format!("{header}      sum")
            } else {
                header
            };
            if first > 0 {
                self.line(&format!("    … {first} earlier ones are not shown"));
            }
            let header = self.paint("2", &header);
            self.line(&format!("    {header}"));
            for query in self.positions() {
                let trace = &self.explanation.trace;
                let row = trace.value(&node.name).row(head.unwrap_or(0) * seq + query);
                let cells: String = (first..end)
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
