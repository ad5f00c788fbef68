//! Export of an adapter for `llama.cpp`.

use std::path::Path;

use nextword_model::{Adapter, AdapterDir, LowRank, ModelDir};

use super::file::{self, MetadataValue, TensorInfo, TensorValues};
use super::names::{Architecture, WRITER_KEY};
use super::{GgufType, interleave_halves};
use crate::low_rank::{ForeignLowRank, alpha, combine};
use crate::mapping::{TensorMapping, tensor_mappings};
use crate::{ConvertError, hf};

/// Exports an adapter of the model `base` as the GGUF file `to`, atomically, in f32, for `llama.cpp --lora`: use it with
/// a GGUF file of the base. Returns the name of the architecture.
///
/// `llama.cpp` has one alpha for all matrices, and its scale is alpha divided by a matrix's rank. Where the adapter's
/// scales are not of this form, they are multiplied into B.
///
/// # Errors
/// [`ConvertError::Inexpressible`] for DoRA, for full copies of parameters, and if no architecture of `llama.cpp`
/// supports the base; errors from reading the adapter or writing the file.
///
/// # Example
///
/// ```
/// use nextword_convert::{export_gguf_lora, import, import_peft};
/// use nextword_model::{AdapterDir, ModelDir};
///
/// let folder = tempfile::tempdir()?;
/// let path = |name: &str| folder.path().join(name);
/// import("../../tests/fixtures/hf/qwen2".as_ref(), &path("base"))?;
/// let base = ModelDir::open(&path("base"))?;
/// import_peft("../../tests/fixtures/peft/qwen2".as_ref(), &base, &path("adapter"))?;
/// let adapter = AdapterDir::open(&path("adapter"))?;
/// assert_eq!(export_gguf_lora(&adapter, &base, &path("lora.gguf"))?, "qwen2");
/// assert!(std::fs::read(path("lora.gguf"))?.starts_with(b"GGUF"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn export(
    adapter_dir: &AdapterDir,
    base: &ModelDir,
    to: &Path,
) -> Result<&'static str, ConvertError> {
    let hf::HfModel { kind, config, .. } = hf::to_hf(&base.config)?;
    let architecture = Architecture::new(kind, &config)?;
    let adapter = adapter_dir.load(&base.config)?;
    check(&adapter)?;
    let mappings = tensor_mappings(&architecture, &config);
    let mut updates = Vec::new();
    for mapping in &mappings {
        if let Some(mut update) = update(&adapter, mapping)? {
            if architecture.has_interleaved_rope() && mapping.is_query_or_key() {
                update.b = interleave_halves(&update.b, mapping.shape[0], config.head_dim());
            }
            updates.push((mapping, update));
        }
    }
    let alpha = common_alpha(&updates);
    if alpha.is_none() {
        for (_, update) in &mut updates {
            update.b.iter_mut().for_each(|value| *value *= update.scale);
        }
    }
    let text = |key: &str, value: &str| (key.to_string(), MetadataValue::String(value.into()));
    let meta = [
        text("general.architecture", architecture.name),
        text("general.type", "adapter"),
        text("general.name", &adapter_dir.card.name),
        text(WRITER_KEY, env!("CARGO_PKG_VERSION")),
        text("adapter.type", "lora"),
        // 0 stands for a scale of 1.
        (
            "adapter.lora.alpha".to_string(),
            MetadataValue::F32(alpha.unwrap_or(0.0)),
        ),
    ];
    let factors: Vec<(TensorInfo, &[f32])> = updates
        .iter()
        .flat_map(|(mapping, update)| {
            let info = |part: &str, shape: &[usize]| {
                TensorInfo::new(&format!("{}.{part}", mapping.name), shape, GgufType::F32)
            };
            let b = mapping.factor_b(update.rank).shape;
            [
                (
                    info("lora_a", &[update.rank, mapping.d_in()]),
                    &update.a[..],
                ),
                (info("lora_b", &b), &update.b[..]),
            ]
        })
        .collect();
    let (infos, values): (Vec<TensorInfo>, Vec<&[f32]>) = factors.into_iter().unzip();
    file::write(to, &meta, &infos, |index| {
        Ok(TensorValues::Floats(values[index].to_vec()))
    })?;
    Ok(architecture.name)
}

/// Checks that `llama.cpp` can apply all parts of `adapter`.
fn check(adapter: &Adapter) -> Result<(), ConvertError> {
    let saved = adapter
        .saved
        .keys()
        .map(|name| format!("a full copy of `{name}`"));
    let magnitudes = adapter
        .modules
        .iter()
        .filter(|(_, module)| module.magnitude.is_some());
    let magnitudes = magnitudes.map(|(name, _)| format!("DoRA of `{name}`"));
    let mut fields: Vec<String> = magnitudes.chain(saved).collect();
    if adapter.modules.is_empty() {
        fields.push("no low-rank updates".to_string());
    }
    if fields.is_empty() {
        return Ok(());
    }
    let others = fields.len() - 1;
    fields.truncate(1);
    if others > 0 {
        fields.push(format!("{others} more of this kind"));
    }
    fields.push(
        "hint: merge the adapter into its base model, and export that with --format gguf"
            .to_string(),
    );
    Err(ConvertError::Inexpressible {
        format: "a GGUF adapter".to_string(),
        fields,
    })
}

/// The update of a matrix, if there is one.
fn update(
    adapter: &Adapter,
    mapping: &TensorMapping,
) -> Result<Option<ForeignLowRank>, ConvertError> {
    let parts = mapping.ours.iter();
    let parts: Vec<Option<&LowRank>> = parts
        .map(|(name, _)| adapter.modules.get(name.strip_suffix(".weight")?))
        .collect();
    combine(mapping, &parts)
}

/// The alpha that gives all updates their scale, as `llama.cpp` computes it: in f32.
fn common_alpha(updates: &[(&TensorMapping, ForeignLowRank)]) -> Option<f64> {
    let (_, first) = updates.first()?;
    let alpha = alpha(first.scale, first.rank as f64);
    let is_common = |(_, update): &(&TensorMapping, ForeignLowRank)| {
        let scale = alpha as f32 / update.rank as f32;
        scale.to_bits() == update.scale.to_bits()
    };
    (alpha.abs() > 0.0 && updates.iter().all(is_common)).then_some(alpha)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::Layout;

    #[test]
    fn one_alpha_stands_for_all_scales_of_its_form() {
        let ours = vec![("a.weight".to_string(), vec![8, 8])];
        let mapping = TensorMapping::new("a".into(), Layout::Transposed, ours);
        let alpha = |scales: &[(usize, f32)]| {
            let update = |(rank, scale): &(usize, f32)| ForeignLowRank {
                rank: *rank,
                scale: *scale,
                a: Vec::new(),
                b: Vec::new(),
                magnitude: None,
            };
            let updates = scales.iter().map(|scale| (&mapping, update(scale)));
            common_alpha(&updates.collect::<Vec<_>>())
        };
        assert_eq!(alpha(&[(4, 2.0), (8, 1.0), (3, 8.0 / 3.0)]), Some(8.0));
        assert_eq!(alpha(&[(4, 2.0), (8, 2.0)]), None);
        assert_eq!(alpha(&[(4, 0.0)]), None);
    }
}
