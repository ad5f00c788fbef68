//! Draws a figure as SVG, legible on light and dark backgrounds.

use crate::figure::{Figure, Point};
use crate::text::{BASE_STYLE, append, escape};

const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 450.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 48.0;

/// Maximum number of characters of the title.
const MAX_TITLE_CHARS: usize = 90;

/// Colours of medium lightness, which contrast with both white and black.
const COLOURS: [&str; 6] = [
    "#3b82c4", "#e07b39", "#3a9d5d", "#c0504d", "#8f6fc0", "#a08a3c",
];

const STYLE: &str = ".grid{stroke:#808080;stroke-opacity:.25}.axis{stroke:#808080}\
.curve{fill:none;stroke-linejoin:round}.train{stroke-width:1.2;stroke-opacity:.75}.validation{stroke-width:2.2}";

impl Figure {
    /// Draws the figure as SVG, with a legend of the curves.
    ///
    /// ```
    /// use nextword_plot::{Curve, Figure};
    ///
    /// let mut curve = Curve::new("a & b");
    /// curve.push(1, Some(4.0), None);
    /// curve.push(2, Some(3.0), None);
    /// let svg = Figure::new(vec![curve], false).unwrap().to_svg();
    /// assert!(svg.contains("a &amp; b, train") && svg.ends_with("</svg>\n"));
    /// ```
    pub fn to_svg(&self) -> String {
        let title = escape(&self.title());
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n\
             <title>{title}</title>\n<style>{BASE_STYLE}{STYLE}</style>\n\
             <rect class=\"paper\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\n\
             <text class=\"title\" x=\"{LEFT}\" y=\"26\">{title}</text>\n"
        );
        axes(self, &mut svg);
        for (number, curve) in self.curves.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            line(self, &curve.train, "train", colour, &mut svg);
            line(self, &curve.validation, "validation", colour, &mut svg);
            for point in &curve.validation {
                let (x, y) = to_xy(self, *point);
                append(
                    &mut svg,
                    format_args!(
                        "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"{colour}\"/>\n"
                    ),
                );
            }
        }
        legend(self, &mut svg);
        svg.push_str("</svg>\n");
        svg
    }

    /// `Loss of NAME`, `Loss of ONE and TWO`, or `Loss of 3 runs`.
    fn title(&self) -> String {
        let names: Vec<&str> = self
            .curves
            .iter()
            .map(|curve| curve.name.as_str())
            .collect();
        let named = match names[..] {
            [one] => format!("Loss of {one}"),
            [one, two] => format!("Loss of {one} and {two}"),
            _ => String::new(),
        };
        if named.is_empty() || named.chars().count() > MAX_TITLE_CHARS {
            let runs = names.len();
            let s = if runs == 1 { "" } else { "s" };
            return format!("Loss of {runs} run{s}");
        }
        named
    }
}

fn axes(figure: &Figure, svg: &mut String) {
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    for (value, label) in figure.y.ticks() {
        let y = bottom - figure.y.fraction(value) * (bottom - TOP);
        append(
            svg,
            format_args!("<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right}\"/>\n"),
        );
        let (x, y) = (LEFT - 8.0, y + 4.0);
        append(
            svg,
            format_args!("<text x=\"{x}\" y=\"{y:.1}\" text-anchor=\"end\">{label}</text>\n"),
        );
    }
    for (value, label) in figure.x.ticks() {
        let x = LEFT + figure.x.fraction(value) * (right - LEFT);
        append(
            svg,
            format_args!("<path class=\"axis\" d=\"M{x:.1} {bottom}v5\"/>\n"),
        );
        let y = bottom + 20.0;
        append(
            svg,
            format_args!("<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{label}</text>\n"),
        );
    }
    append(
        svg,
        format_args!("<path class=\"axis\" fill=\"none\" d=\"M{LEFT} {TOP}V{bottom}H{right}\"/>\n"),
    );
    let (x, y) = (f64::midpoint(LEFT, right), HEIGHT - 10.0);
    append(
        svg,
        format_args!("<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">step</text>\n"),
    );
    let y = f64::midpoint(TOP, bottom);
    append(
        svg,
        format_args!(
            "<text x=\"16\" y=\"{y}\" text-anchor=\"middle\" transform=\"rotate(-90 16 {y})\">loss (nats per token)</text>\n"
        ),
    );
}

fn line(figure: &Figure, points: &[Point], class: &str, colour: &str, svg: &mut String) {
    if points.is_empty() {
        return;
    }
    let points = points.iter().map(|point| to_xy(figure, *point));
    let points: Vec<String> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    append(
        svg,
        format_args!(
            "<polyline class=\"curve {class}\" stroke=\"{colour}\" points=\"{}\"/>\n",
            points.join(" ")
        ),
    );
}

/// Draws the legend at the upper right, away from falling curves.
fn legend(figure: &Figure, svg: &mut String) {
    let x = WIDTH - RIGHT - 12.0;
    let mut y = TOP + 16.0;
    for (number, curve) in figure.curves.iter().enumerate() {
        let (colour, name) = (COLOURS[number % COLOURS.len()], escape(&curve.name));
        for (class, points) in [("train", &curve.train), ("validation", &curve.validation)] {
            if points.is_empty() {
                continue;
            }
            let (from, text, base) = (x - 24.0, x - 32.0, y + 4.0);
            append(
                svg,
                format_args!(
                    "<path class=\"curve {class}\" stroke=\"{colour}\" d=\"M{from} {y}H{x}\"/>\
                 <text x=\"{text}\" y=\"{base}\" text-anchor=\"end\">{name}, {class}</text>\n"
                ),
            );
            y += 18.0;
        }
    }
}

/// The coordinates of a point.
fn to_xy(figure: &Figure, (step, loss): Point) -> (f64, f64) {
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let x = LEFT + figure.x.fraction(step as f64) * (right - LEFT);
    (x, bottom - figure.y.fraction(loss) * (bottom - TOP))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::tests::figure;

    #[test]
    fn every_curve_is_drawn_with_a_legend() {
        let svg = figure(false).to_svg();
        assert_eq!(svg.matches("<polyline").count(), 4);
        assert_eq!(svg.matches("<circle").count(), 8);
        assert!(svg.contains(">one, validation</text>"));
        assert!(svg.contains("&lt;two&gt; &amp; &quot;more&quot;, train"));
    }

    #[test]
    fn a_drawing_has_a_title_and_a_paper_for_light_and_dark() {
        let svg = figure(false).to_svg();
        assert!(svg.contains("prefers-color-scheme:dark") && svg.contains("class=\"paper\""));
        assert!(svg.contains("y=\"26\">Loss of one and &lt;two&gt; &amp; &quot;more&quot;</text>"));
        let curve = |name: &str| crate::Curve {
            train: vec![(1, 2.0), (2, 1.0)],
            ..crate::Curve::new(name)
        };
        let title = |curves: Vec<crate::Curve>| Figure::new(curves, false).map(|f| f.title());
        assert_eq!(title(vec![curve("a")]), Ok("Loss of a".to_string()));
        assert_eq!(title(vec![curve("a"); 3]), Ok("Loss of 3 runs".to_string()));
        let long = "x".repeat(200);
        assert_eq!(title(vec![curve(&long)]), Ok("Loss of 1 run".to_string()));
    }

    #[test]
    fn coordinates_stay_within_the_axes() {
        let svg = figure(true).to_svg();
        let points = svg
            .split("points=\"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next());
        for point in points.flat_map(|points| points.split(' ')) {
            let mut coordinates = point.split(',').filter_map(|text| text.parse::<f64>().ok());
            let (x, y) = (coordinates.next(), coordinates.next());
            assert!(
                x.is_some_and(|x| (LEFT..=WIDTH - RIGHT).contains(&x)),
                "{point}"
            );
            assert!(
                y.is_some_and(|y| (TOP..=HEIGHT - BOTTOM).contains(&y)),
                "{point}"
            );
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }
}
