//! Loss curves: what is drawn. How it is drawn stands in [`svg`] and [`braille`].

pub(crate) mod attention;
pub(crate) mod braille;
mod scale;
pub(crate) mod svg;

use scale::Scale;

use crate::exit;

/// A step and a loss there.
pub(crate) type Point = (u64, f64);

/// More points than this of one curve cannot be told apart; they are averaged.
const MOST_POINTS: usize = 1000;

/// The losses of one run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Curve {
    /// What the legend calls it.
    pub(crate) name: String,
    /// Training losses by step.
    pub(crate) train: Vec<Point>,
    /// Validation losses by step.
    pub(crate) validation: Vec<Point>,
}

impl Curve {
    /// A curve without points.
    pub(crate) fn named(name: String) -> Self {
        Self {
            name,
            ..Self::default()
        }
    }

    /// Adds what was measured at `step`; what is not finite cannot be drawn.
    pub(crate) fn push(&mut self, step: u64, train: Option<f64>, validation: Option<f64>) {
        let finite = |loss: &f64| loss.is_finite();
        self.train
            .extend(train.filter(finite).map(|loss| (step, loss)));
        self.validation
            .extend(validation.filter(finite).map(|loss| (step, loss)));
    }

    /// Whether there is nothing to draw.
    pub(crate) fn is_empty(&self) -> bool {
        self.train.is_empty() && self.validation.is_empty()
    }

    fn points(&self) -> impl Iterator<Item = &Point> {
        self.train.iter().chain(&self.validation)
    }
}

/// Curves with the axes that hold them all.
#[derive(Debug)]
pub(crate) struct Figure {
    /// The curves.
    pub(crate) curves: Vec<Curve>,
    /// Steps, along.
    pub(crate) x: Scale,
    /// Losses, up.
    pub(crate) y: Scale,
}

impl Figure {
    /// Finds the axes of `curves`, which are not empty; `log` makes that of the losses logarithmic.
    ///
    /// # Errors
    /// If a logarithm is asked for losses that have none.
    pub(crate) fn new(mut curves: Vec<Curve>, log: bool) -> anyhow::Result<Self> {
        let steps = range(&curves, |(step, _)| *step as f64);
        let losses = range(&curves, |(_, loss)| *loss);
        if log && losses.0 <= 0.0 {
            let hint = "hint: leave out --log";
            return Err(exit::usage(format!(
                "a loss of {} has no logarithm; {hint}",
                losses.0
            )));
        }
        for curve in &mut curves {
            curve.train = thin(&curve.train);
            curve.validation = thin(&curve.validation);
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

fn range(curves: &[Curve], of: impl Fn(&Point) -> f64) -> (f64, f64) {
    let start = (f64::INFINITY, f64::NEG_INFINITY);
    let values = curves.iter().flat_map(Curve::points).map(of);
    values.fold(start, |(low, high), v| (low.min(v), high.max(v)))
}

/// Averages neighbours until few enough points are left.
fn thin(points: &[Point]) -> Vec<Point> {
    let size = points.len().div_ceil(MOST_POINTS).max(1);
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

    /// Two runs with falling losses.
    pub(crate) fn figure(log: bool) -> Figure {
        let curve = |name: &str, floor: f64| {
            let mut curve = Curve::named(name.to_string());
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
    fn axes_hold_every_point() {
        for log in [false, true] {
            let figure = figure(log);
            for (step, loss) in figure.curves.iter().flat_map(Curve::points) {
                for place in [figure.x.place(*step as f64), figure.y.place(*loss)] {
                    assert!(
                        (-1e-9..=1.0 + 1e-9).contains(&place),
                        "{step} {loss}: {place}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_left_out() {
        let mut curve = Curve::default();
        curve.push(1, Some(f64::NAN), Some(f64::INFINITY));
        assert!(curve.is_empty());
    }

    #[test]
    fn thinning_keeps_the_mean_and_the_order() {
        let points: Vec<Point> = (0..2500).map(|step| (step, step as f64)).collect();
        let thinned = thin(&points);
        assert!(thinned.len() <= MOST_POINTS);
        assert!(thinned.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!((thinned[0].1 - 1.0).abs() < 1e-12);
        assert_eq!(thin(&points[..10]), &points[..10]);
    }

    #[test]
    fn a_logarithm_of_zero_is_refused() {
        let mut curve = Curve::default();
        curve.push(1, Some(0.0), None);
        assert!(Figure::new(vec![curve.clone()], true).is_err());
        assert!(Figure::new(vec![curve], false).is_ok());
    }
}
