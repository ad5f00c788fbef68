//! Norms.

use super::compare;
use crate::{NormKind, normalize};

#[test]
fn norms_and_their_gradients_agree_with_the_cpu() {
    for (rows, width) in [(3, 5), (37, 384), (130, 70)] {
        for kind in [NormKind::Layer, NormKind::Rms] {
            let label = format!("{kind:?} of {rows} rows of {width}");
            compare(&label, &[rows * width, width, width], 2e-5, |x| {
                let rows = x[0].clone().reshape([rows, width]);
                normalize(kind, rows, x[1].clone(), Some(x[2].clone()), 1e-2)
            });
            compare(&label, &[rows * width, width], 2e-5, |x| {
                let rows = x[0].clone().reshape([rows, 1, width]);
                normalize(kind, rows, x[1].clone(), None, 1e-2)
            });
        }
    }
}
