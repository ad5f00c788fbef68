//! Export of an adapter for `llama.cpp`.

use std::path::Path;

use nextword_model::{Adapter, AdapterDir, LowRank, ModelDir};

use super::file::{self, MetadataValue, TensorInfo, TensorValues};
use super::names::{Architecture, WRITER_KEY};
use super::{GgufType, interleave_halves};
use crate::error::join_some;
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
/// [`ConvertError::InexpressibleAdapter`] for `DoRA` and full copies of parameters; [`ConvertError::Inexpressible`] if no
/// architecture of `llama.cpp` supports the base; errors from reading the adapter or writing the file.
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
    let mut parts: Vec<String> = magnitudes.chain(saved).collect();
    if adapter.modules.is_empty() {
        parts.push("no low-rank updates".to_string());
    }
    if parts.is_empty() {
        return Ok(());
    }
    Err(ConvertError::InexpressibleAdapter {
        format: "llama.cpp",
        problem: format!("it has {}", join_some(&parts)),
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
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::PathBuf;

    use nextword_model::ModelTokens;
    use nextword_model::weights::{load_tensors, save_tensors};

    use super::*;
    use crate::gguf::reader::GgufFile;
    use crate::mapping::Layout;
    use crate::{export_gguf, import_peft};

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/fixtures")
            .join(name)
    }

    /// Adds the updates of `adapter` to the weights of the model folder `path`.
    fn merge(path: &Path, adapter: &Adapter) {
        let path = path.join("model.safetensors");
        let mut tensors = load_tensors(&path).unwrap();
        for (name, module) in &adapter.modules {
            let (_, weight) = tensors.get_mut(&format!("{name}.weight")).unwrap();
            for (index, value) in weight.iter_mut().enumerate() {
                let (row, column) = (index / module.d_out, index % module.d_out);
                let terms = (0..module.rank)
                    .map(|k| module.a[row * module.rank + k] * module.b[k * module.d_out + column]);
                *value += terms.sum::<f32>() * module.scale;
            }
        }
        save_tensors(&tensors, &path).unwrap();
    }

    /// The base's matrix plus the update, as llama.cpp computes it, equals the matrix of the merged model.
    #[test]
    fn updates_give_the_matrices_of_the_merged_model() {
        for (name, base_name) in [
            ("llama", "llama"),
            ("llama_patterns", "llama"),
            ("llama_rslora", "llama"),
            ("qwen2", "qwen2"),
            ("qwen3", "qwen3"),
            ("gpt2", "gpt2"),
            ("gpt_neox", "gpt_neox"),
            ("gemma", "gemma"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let path = |name: &str| folder.path().join(name);
            crate::import(&fixture("hf").join(base_name), &path("base")).unwrap();
            // llama.cpp does not support the tokenizer of the fixtures.
            let tokenizer = fixture("../../docs/models/letters/tokenizer.json");
            std::fs::copy(tokenizer, path("base").join("tokenizer.json")).unwrap();
            let mut base = ModelDir::open(&path("base")).unwrap();
            base.card.special = ModelTokens::default();
            import_peft(&fixture("peft").join(name), &base, &path("adapter")).unwrap();
            let adapter = AdapterDir::open(&path("adapter")).unwrap();
            export(&adapter, &base, &path("lora.gguf")).unwrap();
            export_gguf(&base, GgufType::F32, &path("base.gguf")).unwrap();
            merge(&path("base"), &adapter.load(&base.config).unwrap());
            export_gguf(&base, GgufType::F32, &path("merged.gguf")).unwrap();

            let open = |name: &str| GgufFile::open(&path(name)).unwrap();
            let (lora, base, merged) = (open("lora.gguf"), open("base.gguf"), open("merged.gguf"));
            assert_eq!(lora.metadata.text("general.type").unwrap(), Some("adapter"));
            let alpha = lora.metadata.number("adapter.lora.alpha").unwrap().unwrap() as f32;
            let key = "general.architecture";
            assert_eq!(
                lora.metadata.text(key).unwrap(),
                base.metadata.text(key).unwrap()
            );
            let mut count = 0;
            for matrix in base.names() {
                let mut values = base.values(matrix).unwrap();
                if let Some(a) = lora.tensor(&format!("{matrix}.lora_a")) {
                    count += 2;
                    let (rank, d_in) = (a.shape[0], a.shape[1]);
                    let scale = if alpha == 0.0 {
                        1.0
                    } else {
                        alpha / rank as f32
                    };
                    let a = lora.values(&format!("{matrix}.lora_a")).unwrap();
                    let b = lora.values(&format!("{matrix}.lora_b")).unwrap();
                    for (index, value) in values.iter_mut().enumerate() {
                        let (row, column) = (index / d_in, index % d_in);
                        let terms = (0..rank).map(|k| b[row * rank + k] * a[k * d_in + column]);
                        *value += scale * terms.sum::<f32>();
                    }
                }
                for (found, expected) in values.iter().zip(merged.values(matrix).unwrap()) {
                    assert!(
                        (found - expected).abs() < 1e-5,
                        "{name} {matrix}: {found} {expected}"
                    );
                }
            }
            assert_eq!(count, lora.names().count(), "every tensor has a matrix");
            assert!(count > 0);
        }
    }

    #[test]
    fn parts_that_are_not_low_rank_are_errors_with_a_way_out() {
        for (name, part) in [
            ("llama_dora", "DoRA"),
            ("gpt2_bias", "a full copy of `blocks.0.attention.key.bias`"),
            ("llama_saved", "a full copy of"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let path = |name: &str| folder.path().join(name);
            let base_name = name.split('_').next().unwrap();
            crate::import(&fixture("hf").join(base_name), &path("base")).unwrap();
            let base = ModelDir::open(&path("base")).unwrap();
            import_peft(&fixture("peft").join(name), &base, &path("adapter")).unwrap();
            let adapter = AdapterDir::open(&path("adapter")).unwrap();
            let error = export(&adapter, &base, &path("lora.gguf"))
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(part) && error.contains("merge"),
                "{name}: {error}"
            );
            assert!(!path("lora.gguf").exists());
        }
    }

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
