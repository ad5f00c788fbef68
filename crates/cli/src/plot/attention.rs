//! Attention over training as SVG: a row for each head, a column for each step.

use std::fmt::Write;

use nextword_explain::learning::Sentence;

use crate::format::harmless;

/// Steps that are drawn at most.
const COLUMNS: usize = 8;
/// Heads that are drawn at most.
const ROWS: usize = 24;
const SIZE: f64 = 110.0;
const GAP: f64 = 14.0;
const LEFT: f64 = 110.0;
const TOP: f64 = 54.0;
/// Room for the words' names, and how many of them there is room for.
const NAMES: f64 = 70.0;
const NAMED: usize = 12;
/// Characters of a name at most.
const NAME: usize = 10;

/// The attention of `sentence` at up to eight steps.
pub(crate) fn draw(sentence: &Sentence) -> String {
    let count = sentence.steps.len();
    let columns = count.min(COLUMNS);
    let pick = |column: usize| column * (count - 1) / columns.saturating_sub(1).max(1);
    let steps: Vec<_> = (0..columns)
        .map(|column| &sentence.steps[pick(column)])
        .collect();
    let mut heads: Vec<(usize, usize)> = steps.first().map_or_else(Vec::new, |step| {
        let layers = step.snapshot.patterns.iter().enumerate();
        let heads =
            layers.flat_map(|(layer, heads)| (0..heads.len()).map(move |head| (layer, head)));
        heads.collect()
    });
    let all = heads.len();
    heads.truncate(ROWS);
    let tokens = steps
        .first()
        .map_or(&[][..], |step| step.snapshot.tokens.as_slice());
    let names = if tokens.len() <= NAMED { NAMES } else { 0.0 };
    let (left, top) = (LEFT + names, TOP + names);
    let width = left + columns as f64 * (SIZE + GAP);
    let height = top + heads.len() as f64 * (SIZE + GAP) + 24.0;
    let title = escape(&sentence.prompt);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\">\n\
         <title>Attention over training: {title}</title>\n\
         <style>text{{font:12px sans-serif;fill:#808080}}.cell{{fill:#3b82c4}}.frame{{fill:none;stroke:#808080;stroke-opacity:.5}}</style>\n\
         <text x=\"8\" y=\"18\">{title}: each row a word that asks, each column one that answers</text>\n"
    );
    for (column, step) in steps.iter().enumerate() {
        let x = left + column as f64 * (SIZE + GAP);
        push(
            &mut svg,
            format_args!(
                "<text x=\"{x:.1}\" y=\"{:.1}\">step {}</text>\n",
                TOP - 8.0,
                step.step
            ),
        );
        if names > 0.0 {
            across(tokens, [x, top], &mut svg);
        }
        for (row, (layer, head)) in heads.iter().enumerate() {
            let y = top + row as f64 * (SIZE + GAP);
            if column == 0 {
                let name = format!("layer {}, head {}", layer + 1, head + 1);
                push(
                    &mut svg,
                    format_args!("<text x=\"8\" y=\"{:.1}\">{name}</text>\n", y + SIZE / 2.0),
                );
                if names > 0.0 {
                    down(tokens, [left, y], &mut svg);
                }
            }
            cells(&step.snapshot.patterns[*layer][*head], [x, y], &mut svg);
        }
    }
    if all > heads.len() {
        let shown = heads.len();
        let y = height - 8.0;
        push(
            &mut svg,
            format_args!(
                "<text x=\"8\" y=\"{y:.1}\">{shown} of {all} heads; the page of explain --over-training has all</text>\n"
            ),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// The words that ask, beside the rows.
fn down(tokens: &[String], [left, top]: [f64; 2], svg: &mut String) {
    let side = SIZE / tokens.len() as f64;
    for (at, token) in tokens.iter().enumerate() {
        let (x, y) = (left - 6.0, top + (at as f64 + 0.5) * side + 4.0);
        let name = name(token);
        push(
            svg,
            format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"end\">{name}</text>\n"),
        );
    }
}

/// The words that answer, upright above the columns.
fn across(tokens: &[String], [left, top]: [f64; 2], svg: &mut String) {
    let side = SIZE / tokens.len() as f64;
    for (at, token) in tokens.iter().enumerate() {
        let (x, y) = (left + (at as f64 + 0.5) * side + 4.0, top - 6.0);
        let name = name(token);
        push(
            svg,
            format_args!(
                "<text transform=\"translate({x:.1} {y:.1}) rotate(-90)\">{name}</text>\n"
            ),
        );
    }
}

fn name(token: &str) -> String {
    let short: String = token.chars().take(NAME).collect();
    escape(&short.replace(' ', "\u{2423}"))
}

fn cells(pattern: &[Vec<f32>], [left, top]: [f64; 2], svg: &mut String) {
    let side = SIZE / pattern.len().max(1) as f64;
    for (query, row) in pattern.iter().enumerate() {
        for (key, share) in row.iter().enumerate().filter(|(_, share)| **share >= 0.005) {
            let (x, y) = (left + key as f64 * side, top + query as f64 * side);
            push(
                svg,
                format_args!(
                    "<rect class=\"cell\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{side:.1}\" height=\"{side:.1}\" fill-opacity=\"{share:.2}\"/>\n"
                ),
            );
        }
    }
    push(
        svg,
        format_args!(
            "<rect class=\"frame\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{SIZE}\" height=\"{SIZE}\"/>\n"
        ),
    );
}

fn push(svg: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = svg.write_fmt(text);
}

fn escape(text: &str) -> String {
    let text = harmless(text);
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
