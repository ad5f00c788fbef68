//! Plots of training runs from plain numbers: loss curves as SVG or in a terminal, and attention weights
//! over training as SVG.
//!
//! | for | see |
//! |---|---|
//! | loss curves | [`Curve`], [`Figure`] |
//! | attention weights | [`AttentionFigure`] |
//!
//! Nothing is written to a file or a terminal: every drawing is returned as text.
//!
//! ```
//! use nextword_plot::{Curve, Figure};
//!
//! # fn main() -> Result<(), nextword_plot::PlotError> {
//! let mut curve = Curve::new("quickstart");
//! for step in 1..=100 {
//!     let loss = 1.5 + 3.0 * (-(step as f64) / 30.0).exp();
//!     let validation = (step % 25 == 0).then_some(loss + 0.1);
//!     curve.push(step, Some(loss), validation);
//! }
//! let figure = Figure::new(vec![curve], false)?;
//! assert!(figure.to_svg().starts_with("<svg"));
//! assert!(figure.to_braille(80, false).contains("quickstart: loss, o validation"));
//! # Ok(())
//! # }
//! ```

mod attention;
mod braille;
mod error;
mod figure;
mod scale;
mod svg;
mod text;

pub use attention::{AttentionFigure, AttentionStep};
pub use error::PlotError;
pub use figure::{Curve, Figure, Point};
pub use scale::Scale;
