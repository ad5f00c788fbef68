//! Loss curves as figures, which [`svg`] and [`braille`] draw.

pub(crate) mod attention;
pub(crate) mod braille;
mod scale;
pub(crate) mod svg;

use scale::Scale;

use crate::exit;

/// A step and its loss.
pub(crate) type Point = (u64, f64);

/// Maximum number of points per curve; more could not be distinguished, so they are averaged.
const MAX_POINTS: usize = 1000;

/// The losses of one run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Curve {
    /// Name in the legend.
    pub(crate) name: String,
    /// Training losses by step.
    pub(crate) train: Vec<Point>,
    /// Validation losses by step.
    pub(crate) validation: Vec<Point>,
}

impl Curve {
    /// Returns a curve without points.
    pub(crate) fn new(name: String) -> Self {
        Self {
            name,
            ..Self::default()
        }
    }

    /// Adds the losses at `step`. Losses that are not finite are skipped.
    pub(crate) fn push(&mut self, step: u64, train: Option<f64>, validation: Option<f64>) {
        let finite = |loss: &f64| loss.is_finite();
        self.train
            .extend(train.filter(finite).map(|loss| (step, loss)));
        self.validation
            .extend(validation.filter(finite).map(|loss| (step, loss)));
    }

    /// Returns whether the curve has no points.
    pub(crate) fn is_empty(&self) -> bool {
        self.train.is_empty() && self.validation.is_empty()
    }

    fn points(&self) -> impl Iterator<Item = &Point> {
        self.train.iter().chain(&self.validation)
    }
}

/// Curves with axes that contain them all.
#[derive(Debug)]
pub(crate) struct Figure {
    /// The curves.
    pub(crate) curves: Vec<Curve>,
    /// Horizontal axis: steps.
    pub(crate) x: Scale,
    /// Vertical axis: losses.
    pub(crate) y: Scale,
}

impl Figure {
    /// Fits the axes to `curves`, which must not be empty; `log` selects a logarithmic loss axis.
    ///
    /// # Errors
    /// If `log` is set and a loss is not positive.
    pub(crate) fn new(mut curves: Vec<Curve>, log: bool) -> anyhow::Result<Self> {
        let steps = range(&curves, |(step, _)| *step as f64);
        let losses = range(&curves, |(_, loss)| *loss);
        if log && losses.0 <= 0.0 {
            return Err(exit::usage(format!(
                "cannot plot a loss of {} on a logarithmic axis; hint: omit --log",
                losses.0
            )));
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

/// Returns the smallest and the largest value.
fn range(curves: &[Curve], value: impl Fn(&Point) -> f64) -> (f64, f64) {
    let start = (f64::INFINITY, f64::NEG_INFINITY);
    let values = curves.iter().flat_map(Curve::points).map(value);
    values.fold(start, |(low, high), v| (low.min(v), high.max(v)))
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
            let mut curve = Curve::new(name.to_string());
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
}
