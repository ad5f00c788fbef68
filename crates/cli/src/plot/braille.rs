//! A figure in a terminal: 2 x 4 braille dots in each character.

use std::fmt::Write;

use super::{Figure, Point};

/// Rows of characters of the drawing.
const ROWS: usize = 16;

/// Columns for the numbers at the left.
const MARGIN: usize = 8;

/// ANSI colours, as in the SVG.
const COLOURS: [u8; 6] = [34, 33, 32, 31, 35, 36];

/// Dots of a character, by column and row (Unicode, "Braille Patterns").
const DOTS: [[u8; 4]; 2] = [[0x01, 0x02, 0x04, 0x40], [0x08, 0x10, 0x20, 0x80]];

/// The figure as lines of text, at most `columns` wide.
pub(crate) fn draw(figure: &Figure, columns: usize, colours: bool) -> String {
    let width = columns.clamp(MARGIN + 20, 200) - MARGIN - 1;
    let mut canvas = Canvas::new(width);
    for (number, curve) in figure.curves.iter().enumerate() {
        canvas.line(figure, &curve.train, number);
    }
    for (number, curve) in figure.curves.iter().enumerate() {
        curve
            .validation
            .iter()
            .for_each(|point| canvas.mark(figure, *point, number));
    }
    let mut text = canvas.rows(figure, colours);
    text.push_str(&steps(figure, width));
    for (number, curve) in figure.curves.iter().enumerate() {
        let name = crate::format::harmless(&curve.name);
        let colour = paint(&format!("⣀⣀ {name}"), number, colours);
        let validation = if curve.validation.is_empty() {
            ""
        } else {
            ", o validation"
        };
        // Writing to a string does not fail.
        let _ = writeln!(text, "{:MARGIN$}  {colour}: loss{validation}", "");
    }
    text
}

/// One character of the drawing.
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
        let at =
            |place: f64, dots: usize| (place.clamp(0.0, 1.0) * (dots - 1) as f64).round() as usize;
        let x = at(figure.x.place(step as f64), 2 * self.width);
        (x, at(1.0 - figure.y.place(loss), 4 * ROWS))
    }

    fn line(&mut self, figure: &Figure, points: &[Point], curve: usize) {
        let dots: Vec<_> = points
            .iter()
            .map(|point| self.dot(figure, *point))
            .collect();
        if let [only] = dots[..] {
            self.set(only, curve);
        }
        for pair in dots.windows(2) {
            let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
            let most = x0.abs_diff(x1).max(y0.abs_diff(y1)).max(1);
            for n in 0..=most {
                let between = |a: usize, b: usize| {
                    let share = n as f64 / most as f64;
                    (a as f64 + (b as f64 - a as f64) * share).round() as usize
                };
                self.set((between(x0, x1), between(y0, y1)), curve);
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

    /// All rows with the losses at the left.
    fn rows(&self, figure: &Figure, colours: bool) -> String {
        let mut labels = vec![String::new(); ROWS];
        for (value, label) in figure.y.ticks() {
            let row = ((1.0 - figure.y.place(value)) * (4 * ROWS - 1) as f64).round() as usize / 4;
            if let Some(place) = labels.get_mut(row) {
                *place = label;
            }
        }
        let mut text = String::new();
        for (cells, label) in self.cells.chunks(self.width).zip(labels) {
            let edge = if label.is_empty() { '│' } else { '┤' };
            let cells: String = cells.iter().map(|cell| cell.show(colours)).collect();
            let _ = writeln!(text, "{label:>MARGIN$}{edge}{}", cells.trim_end());
        }
        text
    }
}

impl Cell {
    fn show(self, colours: bool) -> String {
        if self.mark {
            return paint("o", self.curve, colours);
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

/// The axis of steps with its numbers.
fn steps(figure: &Figure, width: usize) -> String {
    let mut axis: Vec<char> = vec!['─'; width];
    let mut numbers = vec![' '; width + 1];
    let mut free = 0;
    for (value, label) in figure.x.ticks() {
        let at = (figure.x.place(value) * (width - 1) as f64).round() as usize;
        axis[at.min(width - 1)] = '┬';
        // Centred under its tick where the page is wide enough.
        let most = numbers.len().saturating_sub(label.len());
        let start = (at + 1).saturating_sub(label.len() / 2).min(most);
        if start < free {
            continue;
        }
        for (place, c) in numbers[start..].iter_mut().zip(label.chars()) {
            *place = c;
        }
        free = start + label.len() + 1;
    }
    let (axis, numbers): (String, String) = (axis.iter().collect(), numbers.iter().collect());
    format!(
        "{:MARGIN$}└{axis}\n{:MARGIN$}{}\n",
        "",
        "",
        numbers.trim_end()
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::plot::tests::figure;

    #[test]
    fn lines_fit_the_terminal_and_curves_fall() {
        let one = figure(false).curves.remove(0);
        let text = draw(&Figure::new(vec![one], false).unwrap(), 80, false);
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
        let braille = |c: char| ('\u{2801}'..='\u{28ff}').contains(&c);
        let place = |row: &str| row.chars().position(braille);
        let rows: Vec<usize> = text.lines().take(ROWS).filter_map(place).collect();
        assert!(rows.windows(2).all(|pair| pair[0] <= pair[1]), "{text}");
        assert!(
            text.contains('o') && text.contains("one: loss, o validation"),
            "{text}"
        );
    }

    #[test]
    fn colours_are_used_only_if_asked_for() {
        assert!(!draw(&figure(false), 80, false).contains('\x1b'));
        assert!(draw(&figure(false), 80, true).contains("\x1b[34m"));
    }

    #[test]
    fn a_narrow_terminal_does_not_break_it() {
        for columns in [0, 1, 29, 1000] {
            assert!(!draw(&figure(true), columns, false).is_empty());
        }
    }
}
