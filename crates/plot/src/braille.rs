//! Draws a figure in a terminal with braille characters of 2 x 4 dots.

use std::fmt::Write;

use crate::figure::{Figure, Point};
use crate::text::printable;

/// Height of the drawing in rows.
const ROWS: usize = 16;

/// Width of the axis labels at the left, in columns.
const MARGIN: usize = 8;

/// ANSI colours, matching those of the SVG.
const COLOURS: [u8; 6] = [34, 33, 32, 31, 35, 36];

/// How the lines of the curves are drawn, and how the legend shows it: which of the dots in a row are set. Curves
/// differ without colours, too.
const LINES: [(&str, &[bool]); 4] = [
    ("⣀⣀⣀", &[true]),
    ("⣀ ⣀", &[true, true, true, false, false, false]),
    ("⡀⡀⡀", &[true, false, false]),
    (
        "⣀ ⡀",
        &[true, true, true, true, false, false, true, false, false],
    ),
];

/// Marks of the validation losses.
const MARKS: [char; 6] = ['o', 'x', '+', '*', '#', '@'];

/// Bits of the dots in a character, by column and row (Unicode block "Braille Patterns").
const DOTS: [[u8; 4]; 2] = [[0x01, 0x02, 0x04, 0x40], [0x08, 0x10, 0x20, 0x80]];

impl Figure {
    /// Draws the figure as 16 lines of text with axes and legend, at most `columns` wide (at least 28, at
    /// most 200). With `colours`, curves have ANSI colours.
    ///
    /// ```
    /// use nextword_plot::{Curve, Figure};
    ///
    /// let mut curve = Curve::new("run");
    /// (0..50).for_each(|step| curve.push(step, Some(5.0 - step as f64 / 20.0), None));
    /// let text = Figure::new(vec![curve], false).unwrap().to_braille(60, false);
    /// assert!(text.lines().all(|line| line.chars().count() <= 60));
    /// assert!(text.ends_with("run: loss\n"));
    /// ```
    pub fn to_braille(&self, columns: usize, colours: bool) -> String {
        let width = columns.clamp(MARGIN + 20, 200) - MARGIN - 1;
        let mut canvas = Canvas::new(width);
        for (number, curve) in self.curves.iter().enumerate() {
            canvas.line(self, &curve.train, number);
        }
        for (number, curve) in self.curves.iter().enumerate() {
            curve
                .validation
                .iter()
                .for_each(|point| canvas.mark(self, *point, number));
        }
        let mut text = canvas.rows(self, colours);
        text.push_str(&step_axis(self, width));
        for (number, curve) in self.curves.iter().enumerate() {
            let name = printable(&curve.name);
            let (line, _) = LINES[number % LINES.len()];
            let legend = paint(&format!("{line} {name}"), number, colours);
            let validation = if curve.validation.is_empty() {
                String::new()
            } else {
                format!(", {} validation", MARKS[number % MARKS.len()])
            };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{:MARGIN$}  {legend}: loss{validation}", "");
        }
        text
    }
}

/// One character cell of the drawing.
#[derive(Clone, Copy, Default)]
struct Cell {
    dots: u8,
    mark: bool,
    curve: usize,
}

struct Canvas {
    width: usize,
    cells: Vec<Cell>,
}

impl Canvas {
    fn new(width: usize) -> Self {
        Self {
            width,
            cells: vec![Cell::default(); width * ROWS],
        }
    }

    /// The dot of a point: column and row from the upper left.
    fn dot(&self, figure: &Figure, (step, loss): Point) -> (usize, usize) {
        let to_dot = |fraction: f64, dots: usize| {
            (fraction.clamp(0.0, 1.0) * (dots - 1) as f64).round() as usize
        };
        let x = to_dot(figure.x.fraction(step as f64), 2 * self.width);
        (x, to_dot(1.0 - figure.y.fraction(loss), 4 * ROWS))
    }

    fn line(&mut self, figure: &Figure, points: &[Point], curve: usize) {
        let dots: Vec<_> = points
            .iter()
            .map(|point| self.dot(figure, *point))
            .collect();
        if let [single] = dots[..] {
            self.set(single, curve);
        }
        let (_, pattern) = LINES[curve % LINES.len()];
        let mut drawn = 0;
        for pair in dots.windows(2) {
            let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
            let steps = x0.abs_diff(x1).max(y0.abs_diff(y1)).max(1);
            for n in 0..=steps {
                drawn += usize::from(n > 0);
                if !pattern[drawn % pattern.len()] {
                    continue;
                }
                let interpolate = |a: usize, b: usize| {
                    let t = n as f64 / steps as f64;
                    (a as f64 + (b as f64 - a as f64) * t).round() as usize
                };
                self.set((interpolate(x0, x1), interpolate(y0, y1)), curve);
            }
        }
    }

    fn set(&mut self, (x, y): (usize, usize), curve: usize) {
        let cell = &mut self.cells[y / 4 * self.width + x / 2];
        cell.dots |= DOTS[x % 2][y % 4];
        cell.curve = curve;
    }

    fn mark(&mut self, figure: &Figure, point: Point, curve: usize) {
        let (x, y) = self.dot(figure, point);
        let cell = &mut self.cells[y / 4 * self.width + x / 2];
        (cell.mark, cell.curve) = (true, curve);
    }

    /// All rows, with the loss axis at the left.
    fn rows(&self, figure: &Figure, colours: bool) -> String {
        let mut labels = vec![String::new(); ROWS];
        for (value, label) in figure.y.ticks() {
            let row =
                ((1.0 - figure.y.fraction(value)) * (4 * ROWS - 1) as f64).round() as usize / 4;
            if let Some(slot) = labels.get_mut(row) {
                *slot = label;
            }
        }
        let mut text = String::new();
        for (cells, label) in self.cells.chunks(self.width).zip(labels) {
            let edge = if label.is_empty() { '│' } else { '┤' };
            let cells: String = cells.iter().map(|cell| cell.render(colours)).collect();
            let _ = writeln!(text, "{label:>MARGIN$}{edge}{}", cells.trim_end());
        }
        text
    }
}

impl Cell {
    fn render(self, colours: bool) -> String {
        if self.mark {
            let mark = MARKS[self.curve % MARKS.len()];
            return paint(&mark.to_string(), self.curve, colours);
        }
        if self.dots == 0 {
            return " ".to_string();
        }
        let c = char::from_u32(0x2800 + u32::from(self.dots)).unwrap_or(' ');
        paint(c.encode_utf8(&mut [0; 4]), self.curve, colours)
    }
}

fn paint(text: &str, curve: usize, colours: bool) -> String {
    if colours {
        format!("\x1b[{}m{text}\x1b[0m", COLOURS[curve % COLOURS.len()])
    } else {
        text.to_string()
    }
}

/// Draws the step axis with its labels.
fn step_axis(figure: &Figure, width: usize) -> String {
    let mut axis: Vec<char> = vec!['─'; width];
    let mut labels = vec![' '; width + 1];
    let mut next_free = 0;
    for (value, label) in figure.x.ticks() {
        let at = (figure.x.fraction(value) * (width - 1) as f64).round() as usize;
        axis[at.min(width - 1)] = '┬';
        // Centred under its tick, but within the width.
        let max_start = labels.len().saturating_sub(label.len());
        let start = (at + 1).saturating_sub(label.len() / 2).min(max_start);
        if start < next_free {
            continue;
        }
        for (slot, c) in labels[start..].iter_mut().zip(label.chars()) {
            *slot = c;
        }
        next_free = start + label.len() + 1;
    }
    let (axis, labels): (String, String) = (axis.iter().collect(), labels.iter().collect());
    format!(
        "{:MARGIN$}└{axis}\n{:MARGIN$}{}\n",
        "",
        "",
        labels.trim_end()
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::figure::tests::figure;

    #[test]
    fn lines_fit_the_width_and_curves_fall() {
        let one = figure(false).curves.remove(0);
        let text = Figure::new(vec![one], false).unwrap().to_braille(80, false);
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
        let braille = |c: char| ('\u{2801}'..='\u{28ff}').contains(&c);
        let first_dot = |row: &str| row.chars().position(braille);
        let rows: Vec<usize> = text.lines().take(ROWS).filter_map(first_dot).collect();
        assert!(rows.windows(2).all(|pair| pair[0] <= pair[1]), "{text}");
        assert!(
            text.contains('o') && text.contains("one: loss, o validation"),
            "{text}"
        );
    }

    #[test]
    fn curves_differ_without_colours() {
        let curve = |name: &str| {
            let mut curve = crate::Curve::new(name);
            (0..400).for_each(|step| {
                let validation = (step % 100 == 0).then_some(3.0);
                curve.push(step, Some(4.0 - step as f64 / 200.0), validation);
            });
            curve
        };
        let mut drawings = Vec::new();
        for number in 0..4 {
            let mut canvas = Canvas::new(60);
            let figure = Figure::new(vec![curve("a")], false).unwrap();
            canvas.line(&figure, &figure.curves[0].train, number);
            let dots: Vec<u8> = canvas.cells.iter().map(|cell| cell.dots).collect();
            assert!(
                dots.iter().filter(|dots| **dots > 0).count() > 20,
                "{number}"
            );
            drawings.push(dots);
        }
        for (a, b) in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)] {
            assert_ne!(drawings[a], drawings[b]);
        }
        let text = Figure::new(vec![curve("a"), curve("b")], false)
            .unwrap()
            .to_braille(80, false);
        assert!(text.contains("⣀⣀⣀ a: loss, o validation\n"), "{text}");
        assert!(text.contains("⣀ ⣀ b: loss, x validation\n"), "{text}");
        assert!(text.contains('x'), "{text}");
    }

    #[test]
    fn colours_are_off_unless_requested() {
        assert!(!figure(false).to_braille(80, false).contains('\x1b'));
        assert!(figure(false).to_braille(80, true).contains("\x1b[34m"));
    }

    #[test]
    fn any_terminal_width_can_be_drawn() {
        for columns in [0, 1, 29, 1000] {
            assert!(!figure(true).to_braille(columns, false).is_empty());
        }
    }
}
