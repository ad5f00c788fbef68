//! Attention weights over training as SVG: one row per head, one column per step.

use crate::text::{BASE_STYLE, append, escape};

/// Maximum number of steps to draw.
const MAX_STEPS: usize = 8;
/// Maximum number of heads to draw.
const MAX_HEADS: usize = 24;
const SIZE: f64 = 110.0;
const GAP: f64 = 14.0;
const LEFT: f64 = 110.0;
const TOP: f64 = 76.0;
/// Space for token labels.
const LABEL_SPACE: f64 = 70.0;
/// Maximum number of tokens that are labelled.
const MAX_LABELS: usize = 12;
/// Maximum number of characters per label.
const MAX_LABEL_CHARS: usize = 10;

/// Attention weights of one sentence at several training steps.
///
/// ```
/// use nextword_plot::{AttentionFigure, AttentionStep};
///
/// let tokens = ["what", "is"].map(String::from);
/// // One layer with one head: the second token attends mostly to the first.
/// let weights = [vec![vec![vec![1.0, 0.0], vec![0.9, 0.1]]]];
/// let figure = AttentionFigure {
///     prompt: "what is",
///     tokens: &tokens,
///     steps: vec![AttentionStep { step: 100, weights: &weights }],
/// };
/// let svg = figure.to_svg();
/// assert!(svg.contains("layer 1, head 1") && svg.contains("step 100"));
/// assert!(svg.contains("fill-opacity=\"0.90\""));
/// ```
#[derive(Clone, Debug)]
pub struct AttentionFigure<'a> {
    /// The sentence.
    pub prompt: &'a str,
    /// Its tokens.
    pub tokens: &'a [String],
    /// The weights by step, in ascending order.
    pub steps: Vec<AttentionStep<'a>>,
}

/// Attention weights at one training step.
#[derive(Clone, Copy, Debug)]
pub struct AttentionStep<'a> {
    /// Number of updates.
    pub step: u64,
    /// Weights by layer, head, query and key: 0 to 1.
    pub weights: &'a [Vec<Vec<Vec<f32>>>],
}

/// Positions of the heat maps in the drawing.
struct Layout {
    /// Width of the names and the row labels at the left.
    left: f64,
    /// Height of the titles and the column labels at the top.
    top: f64,
    width: f64,
    height: f64,
    has_labels: bool,
}

impl Layout {
    fn new(tokens: usize, columns: usize, rows: usize) -> Self {
        let has_labels = tokens <= MAX_LABELS;
        let label_space = if has_labels { LABEL_SPACE } else { 0.0 };
        let (left, top) = (LEFT + label_space, TOP + label_space);
        Self {
            left,
            top,
            width: left + columns as f64 * (SIZE + GAP),
            height: top + rows as f64 * (SIZE + GAP) + 24.0,
            has_labels,
        }
    }

    fn x(&self, column: usize) -> f64 {
        self.left + column as f64 * (SIZE + GAP)
    }

    fn y(&self, row: usize) -> f64 {
        self.top + row as f64 * (SIZE + GAP)
    }
}

impl AttentionFigure<'_> {
    /// Draws heat maps, one row per head and one column per step, as SVG. At most 8 steps, spread evenly,
    /// and the first 24 heads are drawn; up to 12 tokens are labelled.
    pub fn to_svg(&self) -> String {
        let steps = self.drawn_steps();
        let mut heads = self.heads();
        let total = heads.len();
        heads.truncate(MAX_HEADS);
        let layout = Layout::new(self.tokens.len(), steps.len(), heads.len());
        let mut svg = self.header(&layout);
        for (column, step) in steps.iter().enumerate() {
            let x = layout.x(column);
            let y = TOP - 8.0;
            append(
                &mut svg,
                format_args!(
                    "<text x=\"{x:.1}\" y=\"{y:.1}\">step {}</text>\n",
                    step.step
                ),
            );
            if layout.has_labels {
                column_labels(self.tokens, [x, layout.top], &mut svg);
            }
            for (row, (layer, head)) in heads.iter().enumerate() {
                let y = layout.y(row);
                if column == 0 {
                    self.row_header(&layout, [*layer, *head], y, &mut svg);
                }
                let weights = step.weights.get(*layer).and_then(|heads| heads.get(*head));
                heatmap(weights.map_or(&[], Vec::as_slice), [x, y], &mut svg);
            }
        }
        if total > heads.len() {
            let shown = heads.len();
            let y = layout.height - 8.0;
            append(
                &mut svg,
                format_args!(
                    "<text x=\"8\" y=\"{y:.1}\">{shown} of {total} heads; `explain --over-training` shows all of them</text>\n"
                ),
            );
        }
        svg.push_str("</svg>\n");
        svg
    }

    /// At most [`MAX_STEPS`] steps: the first, the last and some between.
    fn drawn_steps(&self) -> Vec<AttentionStep<'_>> {
        let count = self.steps.len();
        let columns = count.min(MAX_STEPS);
        let index = |column: usize| column * (count - 1) / columns.saturating_sub(1).max(1);
        (0..columns)
            .map(|column| self.steps[index(column)])
            .collect()
    }

    /// All heads of the first step, as layer and head.
    fn heads(&self) -> Vec<(usize, usize)> {
        let layers = self.steps.first().map_or(&[][..], |step| step.weights);
        let layers = layers.iter().enumerate();
        let heads =
            layers.flat_map(|(layer, heads)| (0..heads.len()).map(move |head| (layer, head)));
        heads.collect()
    }

    fn header(&self, layout: &Layout) -> String {
        let title = escape(self.prompt);
        let (width, height) = (layout.width, layout.height);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\">\n\
             <title>Attention over training: {title}</title>\n\
             <style>{BASE_STYLE}.cell{{fill:#3b82c4}}.frame{{fill:none;stroke:#808080;stroke-opacity:.5}}</style>\n\
             <rect class=\"paper\" width=\"{width:.0}\" height=\"{height:.0}\"/>\n\
             <text class=\"title\" x=\"8\" y=\"22\">Attention over training: {title}</text>\n\
             <text x=\"8\" y=\"40\">rows: query tokens · columns: key tokens · the bluer, the larger the weight</text>\n"
        )
    }

    /// Writes the name of a head and the labels of its rows.
    fn row_header(&self, layout: &Layout, [layer, head]: [usize; 2], y: f64, svg: &mut String) {
        let name = format!("layer {}, head {}", layer + 1, head + 1);
        append(
            svg,
            format_args!("<text x=\"8\" y=\"{:.1}\">{name}</text>\n", y + SIZE / 2.0),
        );
        if layout.has_labels {
            row_labels(self.tokens, [layout.left, y], svg);
        }
    }
}

/// Labels the rows with the query tokens.
fn row_labels(tokens: &[String], [left, top]: [f64; 2], svg: &mut String) {
    let side = SIZE / tokens.len() as f64;
    for (index, token) in tokens.iter().enumerate() {
        let (x, y) = (left - 6.0, top + (index as f64 + 0.5) * side + 4.0);
        let label = label(token);
        append(
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
        append(
            svg,
            format_args!(
                "<text transform=\"translate({x:.1} {y:.1}) rotate(-90)\">{label}</text>\n"
            ),
        );
    }
}

/// A token's label, shortened and escaped.
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
            append(
                svg,
                format_args!(
                    "<rect class=\"cell\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{side:.1}\" height=\"{side:.1}\" fill-opacity=\"{weight:.2}\"/>\n"
                ),
            );
        }
    }
    append(
        svg,
        format_args!(
            "<rect class=\"frame\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{SIZE}\" height=\"{SIZE}\"/>\n"
        ),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Draws `steps` equal steps of `layers` x `heads` heads over `seq` tokens.
    fn draw(steps: u64, layers: usize, heads: usize, seq: usize) -> String {
        let tokens: Vec<String> = (0..seq).map(|n| format!("<t{n}>")).collect();
        let row = vec![1.0 / seq as f32; seq];
        let weights = vec![vec![vec![row; seq]; heads]; layers];
        let steps = (0..steps).map(|step| AttentionStep {
            step: 10 * step,
            weights: &weights,
        });
        let figure = AttentionFigure {
            prompt: "a \"quoted\"\nprompt",
            tokens: &tokens,
            steps: steps.collect(),
        };
        figure.to_svg()
    }

    #[test]
    fn every_head_and_step_is_drawn() {
        let svg = draw(3, 2, 2, 4);
        assert_eq!(svg.matches("class=\"frame\"").count(), 3 * 4);
        assert_eq!(svg.matches("class=\"cell\"").count(), 3 * 4 * 16);
        assert!(svg.contains("layer 2, head 2") && svg.contains("&lt;t3&gt;"));
        assert!(svg.contains("a &quot;quoted&quot; prompt"));
    }

    #[test]
    fn many_steps_are_spread_from_first_to_last() {
        let svg = draw(100, 1, 1, 2);
        assert_eq!(svg.matches(">step ").count(), MAX_STEPS);
        assert!(svg.contains(">step 0<") && svg.contains(">step 990<"));
    }

    #[test]
    fn more_heads_and_tokens_than_fit_are_left_out() {
        let svg = draw(1, 5, 6, MAX_LABELS + 1);
        assert_eq!(svg.matches("class=\"frame\"").count(), MAX_HEADS);
        assert!(svg.contains("24 of 30 heads"), "{svg}");
        assert!(!svg.contains("&lt;t0"), "{svg}");
    }

    #[test]
    fn incomplete_steps_are_drawn_empty() {
        let full = vec![vec![vec![vec![1.0]]]; 2];
        let steps = [&full[..], &[]].map(|weights| AttentionStep { step: 1, weights });
        let figure = |steps| AttentionFigure {
            prompt: "",
            tokens: &[],
            steps,
        };
        let svg = figure(steps.to_vec()).to_svg();
        assert_eq!(svg.matches("class=\"cell\"").count(), 2);
        assert_eq!(svg.matches("class=\"frame\"").count(), 4);
        assert!(figure(Vec::new()).to_svg().ends_with("</svg>\n"));
    }
}
