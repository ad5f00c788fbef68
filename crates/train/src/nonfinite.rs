//! Finding the first number that is not finite.

use burn::module::Module;
use burn::tensor::Tensor;
use nextword_data::TokenBatch;
use nextword_model::{Dropout, Pass, Probe, Site, Transformer, weights};

use crate::Gradients;
use crate::step::batch_loss;

/// Says in words where the first NaN or infinity of this update stands: in a weight, in an
/// intermediate value of the forward pass, or in a gradient.
pub(crate) fn first_nonfinite(
    model: &Transformer,
    batches: &[TokenBatch],
    gradients: &Gradients,
    dropout: impl Fn(usize) -> Dropout,
) -> String {
    let plain = model.valid();
    if let Some(name) = first_weight(&plain) {
        return format!("weight `{name}` is not finite");
    }
    let mut first_sequence = 0;
    for batch in batches {
        let mut probe = FiniteProbe { first: None };
        let mut pass = Pass::watched(&mut probe).with_dropout(dropout(first_sequence));
        batch_loss(&plain, batch, &mut pass);
        first_sequence += batch.batch;
        if let Some(site) = probe.first {
            return format!("`{site}` of the forward pass is not finite");
        }
    }
    let bad = gradients
        .iter()
        .find(|(_, gradient)| !all_finite((*gradient).clone()));
    match bad {
        Some((name, _)) => format!("the gradient of `{name}` is not finite"),
        None => "the loss or the gradients' norm is not finite".to_string(),
    }
}

/// The first parameter with a number that is not finite.
pub(crate) fn first_weight(model: &Transformer) -> Option<String> {
    let mut first = None;
    weights::for_each(model, |name, data| {
        if first.is_none() && !weights::floats(data).iter().all(|v| v.is_finite()) {
            first = Some(name.to_string());
        }
    });
    first
}

fn all_finite<const D: usize>(tensor: Tensor<D>) -> bool {
    weights::floats(tensor.into_data())
        .iter()
        .all(|v| v.is_finite())
}

struct FiniteProbe {
    first: Option<Site>,
}

impl Probe for FiniteProbe {
    fn see<const D: usize>(&mut self, site: Site, tensor: &Tensor<D>) {
        // Masked scores are minus infinity by design; NaN and plus infinity are not.
        let sound = |v: &f32| v.is_finite() || *v == f32::NEG_INFINITY;
        let values = weights::floats(tensor.to_data());
        if self.first.is_none() && !values.iter().all(sound) {
            self.first = Some(site);
        }
    }
}
