//! Full copies of parameters in a file of PEFT: `modules_to_save` and trained biases.

use std::collections::BTreeMap;

use nextword_model::weights::{TensorFile, layout};
use nextword_model::{ModelConfig, SavedTensor};

use super::problems::{Kind, Problems};
use super::reader::TABLE;
use crate::ConvertError;
use crate::mapping::TensorMapping;

/// What the names of parameters mean in the base model.
pub(super) struct Names {
    /// The name of the output layer's weight.
    pub(super) head: &'static str,
    /// Whether a tied output layer has the values of a trained token embedding.
    pub(super) ties_weights: bool,
}

/// Reads the copies of `parameters`, names in the base model with those in the file. Adds to `problems`.
pub(super) fn read(
    file: &TensorFile,
    mappings: &BTreeMap<String, TensorMapping>,
    names: &Names,
    config: &ModelConfig,
    parameters: &BTreeMap<String, String>,
    problems: &mut Problems,
) -> Result<BTreeMap<String, SavedTensor>, ConvertError> {
    let layout: BTreeMap<String, Vec<usize>> = layout(config).into_iter().collect();
    let mut found = Vec::new();
    for (parameter, name) in parameters {
        if config.tied_head && parameter == names.head {
            continue; // Compared with the token embedding below.
        }
        let Some(mapping) = mappings.get(parameter) else {
            problems.push(format!("  `{name}` is not a parameter of the base model"));
            continue;
        };
        let is_shared = config.has_encoder() && mapping.ours[0].0 == TABLE;
        if is_shared {
            problems.push(format!(
                "  `{name}` is a full copy of an embedding that several modules of the base share, which nextword does not \
                 support; hint: merge the adapter with PEFT"
            ));
        } else if let Some(problem) = problem(mapping, &layout, file.shape(name)) {
            problems.push(format!("  `{name}` {problem}"));
        }
        found.push((mapping, name));
    }
    if !problems.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut saved = BTreeMap::new();
    for (mapping, name) in found {
        let values = file.values(name)?;
        if !values.iter().all(|value| value.is_finite()) {
            problems.push_kind(
                Kind::NotFinite,
                format!("  `{name}` contains NaN or infinity"),
            );
        }
        for (ours, shape) in &mapping.ours {
            let values = mapping.extract(ours, values.clone());
            let shape = shape.clone();
            saved.insert(ours.clone(), SavedTensor { shape, values });
        }
    }
    if config.tied_head {
        let head = parameters.get(names.head);
        let head = head.map(|name| file.values(name)).transpose()?;
        if let Some(problem) = tied_problem(saved.get(TABLE), head.as_deref(), names) {
            problems.push(problem);
        }
    }
    Ok(saved)
}

/// What is wrong with a copy of the parameter `mapping` that has the shape `found`.
fn problem(
    mapping: &TensorMapping,
    layout: &BTreeMap<String, Vec<usize>>,
    found: Option<&[usize]>,
) -> Option<String> {
    let (ours, _) = &mapping.ours[0];
    let is_supported = ours == TABLE
        || ours == "head.weight"
        || ours.rsplit('.').next() == Some("bias")
        || ours.contains("norm.");
    if !is_supported {
        return Some(
            "is a full copy, which nextword supports only of embedding, output layer, norms and biases; hint: merge \
             the adapter with PEFT"
                .to_string(),
        );
    }
    if let Some((missing, _)) = mapping
        .ours
        .iter()
        .find(|(name, _)| !layout.contains_key(name))
    {
        return Some(format!(
            "is `{missing}`, which the base model does not have"
        ));
    }
    let found = found.unwrap_or_default();
    (found != mapping.shape).then(|| {
        format!(
            "has shape {found:?}, but the base model requires {:?}",
            mapping.shape
        )
    })
}

/// The problem if token embedding and output layer, which the base ties, differ in the adapter.
fn tied_problem(
    table: Option<&SavedTensor>,
    head: Option<&[f32]>,
    names: &Names,
) -> Option<String> {
    let is_tied = match (table, head) {
        (None, None) => true,
        (Some(_), None) => names.ties_weights,
        (None, Some(_)) => false,
        (Some(table), Some(head)) => table.values == head,
    };
    (!is_tied).then(|| {
        format!(
            "  the base model ties `{}` to the token embedding, but the adapter has a copy of only one of them, or \
             different ones; hint: train with ensure_weight_tying=True",
            names.head
        )
    })
}
