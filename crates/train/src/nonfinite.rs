//! Finding the first value that is not finite.

use burn::module::Module;
use burn::tensor::Tensor;
use nextword_data::{EvalWindows, TokenBatch};
use nextword_model::{Adapter, Dropout, ForwardContext, Probe, Site, Transformer, weights};

use crate::step::batch_loss;
use crate::{Gradients, TrainError};

/// Describes the first NaN or infinity of an update on `batches`, of which the first sequence has the number
/// `first_sequence`, in a weight or in an activation of the forward pass.
pub(crate) fn first_nonfinite_activation(
    model: &Transformer,
    batches: &[TokenBatch],
    mut first_sequence: usize,
    dropout: impl Fn(usize) -> Dropout,
) -> Option<String> {
    let inference = model.valid();
    if let Some(name) = first_nonfinite_weight(&inference) {
        return Some(format!("weight `{name}` is not finite"));
    }
    for batch in batches {
        let mut probe = FiniteProbe { first: None };
        let ctx = ForwardContext::with_probe(&mut probe).with_dropout(dropout(first_sequence));
        batch_loss(&inference, batch, ctx);
        first_sequence += batch.batch;
        if let Some(site) = probe.first {
            return Some(format!("`{site}` of the forward pass is not finite"));
        }
    }
    None
}

/// The name of the first gradient that is not finite.
pub(crate) fn first_nonfinite_gradient(gradients: &Gradients) -> Option<String> {
    let mut gradients = gradients.iter();
    let found = gradients.find(|(_, gradient)| !all_finite((*gradient).clone()));
    found.map(|(name, _)| name.to_string())
}

/// Describes the first NaN or infinity of a validation: in a weight, or in an activation of the forward
/// pass.
pub(crate) fn first_nonfinite_validation(
    model: &Transformer,
    windows: &EvalWindows,
    batch_size: usize,
) -> Result<String, TrainError> {
    let prefix = "the validation loss is not finite";
    if let Some(name) = first_nonfinite_weight(model) {
        return Ok(format!("{prefix}, because weight `{name}` is not"));
    }
    for batch in windows.batches(batch_size) {
        let mut probe = FiniteProbe { first: None };
        batch_loss(model, &batch?, ForwardContext::with_probe(&mut probe));
        if let Some(site) = probe.first {
            return Ok(format!(
                "{prefix}, because `{site}` of the forward pass is not"
            ));
        }
    }
    Ok(prefix.to_string())
}

/// The first parameter with a value that is not finite; of a model with an adapter, only the adapter is checked, because
/// the base does not change.
pub(crate) fn first_nonfinite_weight(model: &Transformer) -> Option<String> {
    if let Some(adapter) = model.adapter() {
        return first_nonfinite_part(&adapter);
    }
    let mut first = None;
    weights::for_each(model, |name, data| {
        if first.is_none() && !weights::to_f32_vec(data).iter().all(|v| v.is_finite()) {
            first = Some(name.to_string());
        }
    });
    first
}

/// The first part of an adapter with a value that is not finite.
fn first_nonfinite_part(adapter: &Adapter) -> Option<String> {
    let modules = adapter.modules.iter().flat_map(|(name, module)| {
        let magnitude = module.magnitude.as_deref().unwrap_or_default();
        [
            (format!("{name}.lora_a"), &module.a[..]),
            (format!("{name}.lora_b"), &module.b[..]),
            (format!("{name}.lora_magnitude"), magnitude),
        ]
    });
    let saved = adapter.saved.iter();
    let saved = saved.map(|(name, saved)| (name.clone(), &saved.values[..]));
    let mut parts = modules.chain(saved);
    let found = parts.find(|(_, values)| !values.iter().all(|value| value.is_finite()));
    found.map(|(name, _)| name)
}

fn all_finite<const D: usize>(tensor: Tensor<D>) -> bool {
    weights::to_f32_vec(tensor.into_data())
        .iter()
        .all(|v| v.is_finite())
}

struct FiniteProbe {
    first: Option<Site>,
}

impl Probe for FiniteProbe {
    fn record<const D: usize>(&mut self, site: Site, tensor: &Tensor<D>) {
        // Masked scores are minus infinity; NaN and plus infinity are errors.
        let is_valid = |v: &f32| v.is_finite() || *v == f32::NEG_INFINITY;
        let values = weights::to_f32_vec(tensor.to_data());
        if self.first.is_none() && !values.iter().all(is_valid) {
            self.first = Some(site);
        }
    }
}
