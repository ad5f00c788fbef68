//! Updates of token embedding and output layer in a file of PEFT. An adapter of ours has full copies of these, so the sum
//! of the base's weight and the update becomes one, which computes the same.

use std::collections::BTreeMap;

use nextword_model::weights::{TensorFile, WeightSource, dequantized_values};
use nextword_model::{ModelDir, SavedTensor};

use super::keys::PREFIX;
use super::problems::Kind;
use super::reader::{Reader, TABLE, Update};
use crate::ConvertError;
use crate::mapping::{TensorMapping, transpose};

/// The sums of our weights and `updates`, which belong to token embedding and output layer, the module `head`, by the
/// names of the weights.
pub(super) fn read(
    reader: &mut Reader<'_>,
    updates: &BTreeMap<String, Update>,
    head: &str,
    base: &ModelDir,
) -> Result<BTreeMap<String, SavedTensor>, ConvertError> {
    let mut sums = BTreeMap::new();
    if base.config.tied_head && !updates.is_empty() {
        let table = updates.iter().find(|(module, _)| *module != head);
        check_tied(reader, table, updates.get(head), head)?;
    }
    for (module, update) in updates {
        if !(base.config.tied_head && module == head) {
            sums.extend(read_sum(reader, module, update, base)?);
        }
    }
    Ok(sums)
}

/// Checks that the updates of the embedding, a module with its update, and of the output layer `head`, which the base
/// ties to it, are the same.
fn check_tied(
    reader: &mut Reader<'_>,
    table: Option<(&String, &Update)>,
    update: Option<&Update>,
    head: &str,
) -> Result<(), ConvertError> {
    if let Some(update) = update {
        let unused = [&update.magnitude, &update.embedding_a, &update.embedding_b];
        for unused in unused.into_iter().flatten() {
            reader.problems.push(format!("  unused: `{unused}`"));
        }
    }
    // PEFT takes rank and scale of a tied output layer from the settings for its own name.
    let scale = |module: &str| {
        let rank = reader.config.rank(module);
        reader.config.scale_of_rank(module, rank).to_bits()
    };
    let is_tied = match (table, update) {
        (Some((table, _)), _) if scale(table) != scale(head) => false,
        (Some(_), None) => reader.config.ties_weights,
        (Some((_, table)), Some(update)) => {
            is_transposed(reader.file, table.embedding_b.as_ref(), update.a.as_ref())?
                && is_transposed(reader.file, table.embedding_a.as_ref(), update.b.as_ref())?
                && is_equal(reader.file, table.base.as_ref(), update.base.as_ref())?
        }
        _ => false,
    };
    if !is_tied {
        reader.problems.push(format!(
            "  the base model ties `{head}` to the token embedding, but the adapter updates only one of them, or both \
             differently, so that they are no longer tied; hint: train with ensure_weight_tying=True"
        ));
    }
    Ok(())
}

/// Whether the matrix `b` is the transpose of `a`.
fn is_transposed(
    file: &TensorFile,
    a: Option<&String>,
    b: Option<&String>,
) -> Result<bool, ConvertError> {
    let (Some(a), Some(b)) = (a, b) else {
        return Ok(false);
    };
    let (Some([rows, columns]), Some([b_rows, b_columns])) = (file.shape(a), file.shape(b)) else {
        return Ok(false);
    };
    if (rows, columns) != (b_columns, b_rows) {
        return Ok(false);
    }
    Ok(transpose(&file.values(a)?, *rows, *columns) == file.values(b)?)
}

/// Whether the weights `a` and `b` are the same, or there is no `b`.
fn is_equal(
    file: &TensorFile,
    a: Option<&String>,
    b: Option<&String>,
) -> Result<bool, ConvertError> {
    Ok(match (a, b) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(a), Some(b)) => {
            file.shape(a) == file.shape(b) && file.values(a)? == file.values(b)?
        }
    })
}

/// The name of our weight of `module` and its sum with `update`. `None` if it has a problem.
fn read_sum(
    reader: &mut Reader<'_>,
    module: &str,
    update: &Update,
    base: &ModelDir,
) -> Result<Option<(String, SavedTensor)>, ConvertError> {
    let Some((mapping, [a, b])) = factors(reader, module, update) else {
        return Ok(None);
    };
    let (name, shape) = mapping.ours[0].clone();
    let rank = reader.check_rank(module, &mapping, a);
    reader.check_shape(a, &[rank, shape[0]]);
    reader.check_shape(b, &[shape[1], rank]);
    if let Some(weight) = &update.base {
        reader.check_shape(weight, &mapping.shape);
    }
    if !reader.problems.is_empty() {
        return Ok(None); // Nothing is read from a file with problems.
    }
    // A weight in the file replaces that of the base when PEFT loads it.
    let mut values = match &update.base {
        Some(weight) => mapping.extract(&name, finite_values(reader, weight)?),
        None => base_values(&*base.open_weights()?, &name, &shape)?,
    };
    let factors = [finite_values(reader, a)?, finite_values(reader, b)?];
    let scale = reader.config.scale(module, rank);
    add_product(&mut values, &factors, rank, scale);
    if reader.problems.is_empty() && !values.iter().all(|value| value.is_finite()) {
        let line =
            format!("  the sum of `{module}.weight` and its update contains NaN or infinity");
        reader.problems.push_kind(Kind::NotFinite, line);
    }
    Ok(Some((name, SavedTensor { shape, values })))
}

/// The values of the tensor `name`, which are a problem unless all are finite.
fn finite_values(reader: &mut Reader<'_>, name: &str) -> Result<Vec<f32>, ConvertError> {
    let values = reader.file.values(name)?;
    reader.check_finite(name, &values);
    Ok(values)
}

/// The weight of `module` and the names of the factors A, `[rank, n]`, and B, `[m, rank]`, of the update of ours, `[n, m]`.
fn factors<'a>(
    reader: &mut Reader<'_>,
    module: &str,
    update: &'a Update,
) -> Option<(TensorMapping, [&'a str; 2])> {
    let mapping = reader.mappings.get(&format!("{module}.weight"))?.clone();
    let linear = (&update.a, &update.b);
    let embedding = (&update.embedding_a, &update.embedding_b);
    let ((a, b), unused, names) = if mapping.ours[0].0 == TABLE {
        (embedding, linear, ["lora_embedding_A", "lora_embedding_B"])
    } else {
        (linear, embedding, ["lora_A.weight", "lora_B.weight"])
    };
    for unused in [unused.0, unused.1].into_iter().flatten() {
        reader.problems.push(format!("  unused: `{unused}`"));
    }
    if reader.config.use_dora || update.magnitude.is_some() {
        let line = format!(
            "  `{module}` is adapted with DoRA, which nextword supports only in attention and feed-forward; hint: merge the \
             adapter with PEFT"
        );
        reader.problems.push_kind(Kind::Module, line);
    }
    for (factor, name) in [a, b].into_iter().zip(names) {
        if factor.is_none() {
            let line = format!("  missing: `{PREFIX}{module}.{name}`");
            reader.problems.push(line);
        }
    }
    Some((mapping, [a.as_deref()?, b.as_deref()?]))
}

fn base_values(
    weights: &dyn WeightSource,
    name: &str,
    shape: &[usize],
) -> Result<Vec<f32>, ConvertError> {
    Ok(match dequantized_values(weights, name, shape)? {
        Some(values) => values,
        None => weights.values(name)?,
    })
}

/// Adds `scale (B A)^T` to `values`, `[n, m]`: `A` is `[rank, n]`, `B` `[m, rank]`.
fn add_product(values: &mut [f32], [a, b]: &[Vec<f32>; 2], rank: usize, scale: f32) {
    let n = a.len() / rank.max(1);
    for (i, row) in values
        .chunks_exact_mut((b.len() / rank.max(1)).max(1))
        .enumerate()
    {
        for (value, b) in row.iter_mut().zip(b.chunks_exact(rank.max(1))) {
            let products = b.iter().enumerate();
            let products = products.map(|(r, b)| f64::from(*b) * f64::from(a[r * n + i]));
            *value += scale * products.sum::<f64>() as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_product_of_the_factors_is_added() {
        let mut values = vec![1.0; 6]; // [2, 3]
        let factors = [vec![1.0, 2.0, 3.0, 4.0], vec![1.0, 0.0, 0.0, 1.0, 1.0, 1.0]];
        add_product(&mut values, &factors, 2, 0.5);
        // B A is [[1, 2], [3, 4], [4, 6]].
        assert_eq!(values, [1.5, 2.5, 3.0, 2.0, 3.0, 4.0]);
    }
}
