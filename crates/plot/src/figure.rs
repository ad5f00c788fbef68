//! Loss curves with their axes.

use crate::PlotError;
use crate::scale::Scale;

/// A step and its loss.
pub type Point = (u64, f64);

/// Maximum number of points per curve; more could not be distinguished, so they are averaged.
const MAX_POINTS: usize = 1000;

/// The losses of one run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curve {
    /// Name in the legend.
    pub name: String,
    /// Training losses by step.
    pub train: Vec<Point>,
    /// Validation losses by step.
    pub validation: Vec<Point>,
}

impl Curve {
    /// A curve without points.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// Adds the losses at `step`, which must not decrease from call to call. Losses that are not finite
    /// are skipped.
    ///
    /// ```
    /// let mut curve = nextword_plot::Curve::new("run");
    /// curve.push(10, Some(3.2), None);
    /// curve.push(20, Some(f64::NAN), Some(3.1));
    /// assert_eq!(curve.train, [(10, 3.2)]);
    /// assert_eq!(curve.validation, [(20, 3.1)]);
    /// ```
    pub fn push(&mut self, step: u64, train: Option<f64>, validation: Option<f64>) {
        let finite = |loss: &f64| loss.is_finite();
        self.train
            .extend(train.filter(finite).map(|loss| (step, loss)));
        self.validation
            .extend(validation.filter(finite).map(|loss| (step, loss)));
    }

    /// Whether the curve has no points.
    pub fn is_empty(&self) -> bool {
        self.train.is_empty() && self.validation.is_empty()
    }

    fn points(&self) -> impl Iterator<Item = &Point> {
        self.train.iter().chain(&self.validation)
    }
}

/// Curves with axes that contain them all.
#[derive(Clone, Debug)]
pub struct Figure {
    /// The curves.
    pub curves: Vec<Curve>,
    /// Horizontal axis: steps.
    pub x: Scale,
    /// Vertical axis: losses.
    pub y: Scale,
}

impl Figure {
    /// Fits the axes to `curves`; `log` selects a logarithmic loss axis. Curves of many points are averaged
    /// to at most 1000.
    ///
    /// # Errors
    /// [`PlotError::NotPositive`] if `log` is set and a loss is not positive.
    ///
    /// ```
    /// use nextword_plot::{Curve, Figure, PlotError};
    ///
    /// let mut curve = Curve::new("run");
    /// curve.push(1, Some(0.0), None);
    /// assert!(Figure::new(vec![curve.clone()], false).is_ok());
    /// let error = Figure::new(vec![curve], true).unwrap_err();
    /// assert_eq!(error, PlotError::NotPositive { loss: 0.0 });
    /// ```
    pub fn new(mut curves: Vec<Curve>, log: bool) -> Result<Self, PlotError> {
        let steps = range(&curves, |(step, _)| *step as f64);
        let losses = range(&curves, |(_, loss)| *loss);
        if log && losses.0 <= 0.0 {
            return Err(PlotError::NotPositive { loss: losses.0 });
        }
        for curve in &mut curves {
            curve.train = downsample(&curve.train);
            curve.validation = downsample(&curve.validation);
        }
        Ok(Self {
            curves,
            x: Scale::linear(steps.0.min(0.0), steps.1),
            y: if log {
                Scale::log(losses.0, losses.1)
            } else {
                Scale::linear(losses.0, losses.1)
            },
        })
    }
}

/// The smallest and the largest value; 1 without points.
fn range(curves: &[Curve], value: impl Fn(&Point) -> f64) -> (f64, f64) {
    let values = curves.iter().flat_map(Curve::points).map(value);
    let range = values.map(|v| (v, v));
    let range = range.reduce(|(low, high), (v, _)| (low.min(v), high.max(v)));
    range.unwrap_or((1.0, 1.0))
}

/// Averages neighbouring points so that at most [`MAX_POINTS`] are left.
fn downsample(points: &[Point]) -> Vec<Point> {
    let size = points.len().div_ceil(MAX_POINTS).max(1);
    let mean = |chunk: &[Point]| {
        let loss = chunk.iter().map(|(_, loss)| loss).sum::<f64>() / chunk.len() as f64;
        (chunk[chunk.len() / 2].0, loss)
    };
    points.chunks(size).map(mean).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;

    /// Returns a figure of two runs with falling losses.
    pub(crate) fn figure(log: bool) -> Figure {
        let curve = |name: &str, floor: f64| {
            let mut curve = Curve::new(name);
            for step in (10..=1000).step_by(10) {
                let loss = floor + 3.0 * (-(step as f64) / 200.0).exp();
                let validation = (step % 250 == 0).then_some(loss + 0.1);
                curve.push(step, Some(loss), validation);
            }
            curve
        };
        Figure::new(vec![curve("one", 1.5), curve("<two> & \"more\"", 1.2)], log).unwrap()
    }

    #[test]
    fn axes_contain_every_point() {
        for log in [false, true] {
            let figure = figure(log);
            for (step, loss) in figure.curves.iter().flat_map(Curve::points) {
                for fraction in [figure.x.fraction(*step as f64), figure.y.fraction(*loss)] {
                    assert!(
                        (-1e-9..=1.0 + 1e-9).contains(&fraction),
                        "{step} {loss}: {fraction}"
                    );
                }
            }
        }
    }

    #[test]
    fn non_finite_losses_are_skipped() {
        let mut curve = Curve::default();
        curve.push(1, Some(f64::NAN), Some(f64::INFINITY));
        assert!(curve.is_empty());
    }

    #[test]
    fn downsampling_keeps_mean_and_order() {
        let points: Vec<Point> = (0..2500).map(|step| (step, step as f64)).collect();
        let downsampled = downsample(&points);
        assert!(downsampled.len() <= MAX_POINTS);
        assert!(downsampled.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!((downsampled[0].1 - 1.0).abs() < 1e-12);
        assert_eq!(downsample(&points[..10]), &points[..10]);
    }

    #[test]
    fn log_axis_refuses_a_zero_loss() {
        let mut curve = Curve::default();
        curve.push(1, Some(0.0), None);
        assert!(Figure::new(vec![curve.clone()], true).is_err());
        assert!(Figure::new(vec![curve], false).is_ok());
    }

    #[test]
    fn a_figure_without_points_can_be_drawn() {
        for curves in [vec![], vec![Curve::new("empty")]] {
            for log in [false, true] {
                let figure = Figure::new(curves.clone(), log).unwrap();
                let drawings = figure.to_svg() + &figure.to_braille(80, false);
                assert!(!drawings.contains("NaN") && !drawings.contains("inf"));
            }
        }
    }
}
