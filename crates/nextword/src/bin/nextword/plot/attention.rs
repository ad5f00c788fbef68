//! Attention weights over training as SVG: one row per head, one column per step.

use std::fmt::Write;

use nextword_explain::history::SentenceHistory;

use crate::format::sanitize;

/// Maximum number of steps to draw.
const MAX_STEPS: usize = 8;
/// Maximum number of heads to draw.
const MAX_HEADS: usize = 24;
const SIZE: f64 = 110.0;
const GAP: f64 = 14.0;
const LEFT: f64 = 110.0;
const TOP: f64 = 54.0;
/// Space for token labels.
const LABEL_SPACE: f64 = 70.0;
/// Maximum number of tokens that are labelled.
const MAX_LABELS: usize = 12;
/// Maximum number of characters per label.
const MAX_LABEL_CHARS: usize = 10;

/// Draws the attention weights of `sentence` at up to [`MAX_STEPS`] steps.
pub(crate) fn draw(sentence: &SentenceHistory) -> String {
    let count = sentence.steps.len();
    let columns = count.min(MAX_STEPS);
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
    let total = heads.len();
    heads.truncate(MAX_HEADS);
    let tokens = steps
        .first()
        .map_or(&[][..], |step| step.snapshot.tokens.as_slice());
    let label_space = if tokens.len() <= MAX_LABELS {
        LABEL_SPACE
    } else {
        0.0
    };
    let (left, top) = (LEFT + label_space, TOP + label_space);
    let width = left + columns as f64 * (SIZE + GAP);
    let height = top + heads.len() as f64 * (SIZE + GAP) + 24.0;
    let title = escape(&sentence.prompt);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\">\n\
         <title>Attention over training: {title}</title>\n\
         <style>text{{font:12px sans-serif;fill:#808080}}.cell{{fill:#3b82c4}}.frame{{fill:none;stroke:#808080;stroke-opacity:.5}}</style>\n\
         <text x=\"8\" y=\"18\">{title}: rows are query tokens, columns are key tokens</text>\n"
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
        if label_space > 0.0 {
            column_labels(tokens, [x, top], &mut svg);
        }
        for (row, (layer, head)) in heads.iter().enumerate() {
            let y = top + row as f64 * (SIZE + GAP);
            if column == 0 {
                let name = format!("layer {}, head {}", layer + 1, head + 1);
                push(
                    &mut svg,
                    format_args!("<text x=\"8\" y=\"{:.1}\">{name}</text>\n", y + SIZE / 2.0),
                );
                if label_space > 0.0 {
                    row_labels(tokens, [left, y], &mut svg);
                }
            }
            heatmap(&step.snapshot.patterns[*layer][*head], [x, y], &mut svg);
        }
    }
    if total > heads.len() {
        let shown = heads.len();
        let y = height - 8.0;
        push(
            &mut svg,
            format_args!(
                "<text x=\"8\" y=\"{y:.1}\">{shown} of {total} heads; `explain --over-training` shows all of them</text>\n"
            ),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// Labels the rows with the query tokens.
fn row_labels(tokens: &[String], [left, top]: [f64; 2], svg: &mut String) {
    let side = SIZE / tokens.len() as f64;
    for (index, token) in tokens.iter().enumerate() {
        let (x, y) = (left - 6.0, top + (index as f64 + 0.5) * side + 4.0);
        let label = label(token);
        push(
            svg,
            format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"end\">{label}</text>\n"),
        );
    }
}

/// Labels the columns with the key tokens, rotated.
fn column_labels(tokens: &[String], [left, top]: [f64; 2], svg: &mut String) {
    let side = SIZE / tokens.len() as f64;
    for (index, token) in tokens.iter().enumerate() {
        let (x, y) = (left + (index as f64 + 0.5) * side + 4.0, top - 6.0);
        let label = label(token);
        push(
            svg,
            format_args!(
                "<text transform=\"translate({x:.1} {y:.1}) rotate(-90)\">{label}</text>\n"
            ),
        );
    }
}

/// Returns a token's label, shortened and escaped.
fn label(token: &str) -> String {
    let short: String = token.chars().take(MAX_LABEL_CHARS).collect();
    escape(&short.replace(' ', "\u{2423}"))
}

/// Draws the attention weights of one head as a heat map.
fn heatmap(pattern: &[Vec<f32>], [left, top]: [f64; 2], svg: &mut String) {
    let side = SIZE / pattern.len().max(1) as f64;
    for (query, row) in pattern.iter().enumerate() {
        for (key, weight) in row
            .iter()
            .enumerate()
            .filter(|(_, weight)| **weight >= 0.005)
        {
            let (x, y) = (left + key as f64 * side, top + query as f64 * side);
            push(
                svg,
                format_args!(
                    "<rect class=\"cell\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{side:.1}\" height=\"{side:.1}\" fill-opacity=\"{weight:.2}\"/>\n"
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
    let text = sanitize(text);
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
