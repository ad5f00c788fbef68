//! Low-rank updates of foreign matrices that contain several of ours: queries, keys and values in one.
//!
//! An update of such a matrix is one of each of ours: they share A, and B is divided like the matrix. The
//! other way, independent updates of ours become one of a larger rank: A stacked, B block-diagonal.

use nextword_model::LowRank;

use crate::ConvertError;
use crate::mapping::{TensorMapping, transpose};

/// An update of a foreign matrix, in the layout of PyTorch.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ForeignLowRank {
    pub(crate) rank: usize,
    /// The factor on B A.
    pub(crate) scale: f32,
    /// `[rank, d_in]`.
    pub(crate) a: Vec<f32>,
    /// `[d_out, rank]`.
    pub(crate) b: Vec<f32>,
    /// `[d_out]`.
    pub(crate) magnitude: Option<Vec<f32>>,
}

impl TensorMapping {
    /// The number of inputs of this matrix.
    pub(crate) fn d_in(&self) -> usize {
        self.ours[0].1[0]
    }

    /// The names of our linear layers in this matrix.
    pub(crate) fn modules(&self) -> impl Iterator<Item = &str> {
        let names = self.ours.iter().map(|(name, _)| name);
        names.map(|name| name.strip_suffix(".weight").unwrap_or(name))
    }
}

/// Divides the update of a foreign matrix into those of our linear layers, by name.
pub(crate) fn split(mapping: &TensorMapping, update: ForeignLowRank) -> Vec<(String, LowRank)> {
    let (d_in, rank) = (mapping.d_in(), update.rank);
    let all = mapping.factor_b(rank);
    let b: Vec<Vec<f32>> = all
        .ours
        .iter()
        .map(|(name, _)| all.extract(name, update.b.clone()))
        .collect();
    let a = transpose(&update.a, rank, d_in);
    let block = block_rank(&b, rank);
    let vector = mapping.output_vector();
    let modules = mapping.modules().zip(&mapping.ours);
    let mut parts = Vec::with_capacity(b.len());
    for (index, ((module, (name, shape)), b)) in modules.zip(b).enumerate() {
        let d_out = shape[1];
        let magnitude = update.magnitude.clone();
        let (rank, a, b) = match block {
            None => (rank, a.clone(), b),
            Some(block) => {
                let start = index * block;
                let columns = |row: &[f32]| row[start..start + block].to_vec();
                let a = a.chunks_exact(rank).flat_map(columns).collect();
                (block, a, b[start * d_out..(start + block) * d_out].to_vec())
            }
        };
        let update = LowRank {
            a,
            b,
            rank,
            d_in,
            d_out,
            scale: update.scale,
            magnitude: magnitude.map(|values| vector.extract(name, values)),
        };
        parts.push((module.to_string(), update));
    }
    parts
}

/// The rank of each block, if the parts of B, `[rank, d_out]` each, are block-diagonal as [`combine`] makes them.
fn block_rank(b: &[Vec<f32>], rank: usize) -> Option<usize> {
    let parts = b.len();
    if parts < 2 || !rank.is_multiple_of(parts) {
        return None;
    }
    let block = rank / parts;
    let is_block = |(index, b): (usize, &Vec<f32>)| {
        let d_out = b.len() / rank;
        let own = index * block * d_out..(index + 1) * block * d_out;
        let outside = b[..own.start].iter().chain(&b[own.end..]);
        let is_zero = |value: &f32| value.to_bits() == 0;
        outside.copied().all(|value| is_zero(&value)) && !b[own].iter().all(is_zero)
    };
    b.iter().enumerate().all(is_block).then_some(block)
}

/// Combines the updates of our linear layers in a foreign matrix, in their order, into one. `None` if there is none.
///
/// # Errors
/// [`ConvertError::InexpressibleAdapter`] if only some of them have magnitudes.
pub(crate) fn combine(
    mapping: &TensorMapping,
    parts: &[Option<&LowRank>],
) -> Result<Option<ForeignLowRank>, ConvertError> {
    let present: Vec<&LowRank> = parts.iter().copied().flatten().collect();
    let Some(first) = present.first() else {
        return Ok(None);
    };
    let is_shared = present.iter().all(|part| same_bits(&part.a, &first.a));
    let has_scale = present
        .iter()
        .all(|part| part.scale.to_bits() == first.scale.to_bits());
    let rank = if is_shared {
        first.rank
    } else {
        present.iter().map(|part| part.rank).sum()
    };
    let d_in = mapping.d_in();
    let mut a = Vec::with_capacity(rank * d_in);
    let mut b = Vec::new();
    let mut start = 0;
    for (part, (_, shape)) in parts.iter().zip(&mapping.ours) {
        let d_out = shape[1];
        let mut rows = vec![0.0; rank * d_out];
        if let Some(part) = part {
            let factor = if has_scale { 1.0 } else { part.scale };
            let own = &mut rows[start * d_out..(start + part.rank) * d_out];
            for (to, from) in own.iter_mut().zip(&part.b) {
                *to = from * factor;
            }
            if !is_shared || a.is_empty() {
                a.extend(transpose(&part.a, d_in, part.rank));
            }
            if !is_shared {
                start += part.rank;
            }
        }
        b.push(rows);
    }
    let all = mapping.factor_b(rank);
    let names = all.ours.iter().map(|(name, _)| name.as_str());
    let names: Vec<&str> = names.collect();
    let index = |name: &str| names.iter().position(|n| *n == name).unwrap_or_default();
    Ok(Some(ForeignLowRank {
        rank,
        scale: if has_scale { first.scale } else { 1.0 },
        a,
        b: all.assemble(|name, _| Ok(b[index(name)].clone()))?,
        magnitude: combine_magnitudes(mapping, parts)?,
    }))
}

fn combine_magnitudes(
    mapping: &TensorMapping,
    parts: &[Option<&LowRank>],
) -> Result<Option<Vec<f32>>, ConvertError> {
    let magnitudes = parts.iter().zip(mapping.modules());
    let magnitudes: Vec<_> = magnitudes
        .map(|(part, module)| (module, part.and_then(|part| part.magnitude.clone())))
        .collect();
    if magnitudes.iter().all(|(_, magnitude)| magnitude.is_none()) {
        return Ok(None);
    }
    if let Some((module, _)) = magnitudes.iter().find(|(_, magnitude)| magnitude.is_none()) {
        let problem = format!(
            "`{module}` has no DoRA magnitudes, but others that `{}` combines do",
            mapping.name
        );
        return Err(ConvertError::InexpressibleAdapter {
            format: "PEFT",
            problem,
        });
    }
    let mut values = magnitudes
        .into_iter()
        .filter_map(|(_, magnitude)| magnitude);
    let vector = mapping.output_vector();
    let values = vector.assemble(|_, _| Ok(values.next().unwrap_or_default()))?;
    Ok(Some(values))
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// The alpha for which `alpha / divisor` is `scale`, as short a number as possible.
pub(crate) fn alpha(scale: f32, divisor: f64) -> f64 {
    let exact = f64::from(scale) * divisor;
    let candidates = [exact.round(), (exact * 1e6).round() / 1e6];
    let found = candidates
        .into_iter()
        .find(|alpha| ((alpha / divisor) as f32).to_bits() == scale.to_bits());
    found.unwrap_or(exact)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::float_cmp)]
mod tests {
    use super::*;
    use crate::mapping::Layout;

    fn mapping(layout: Layout) -> TensorMapping {
        let ours = ["q.weight", "k.weight", "v.weight"].map(|n| (n.to_string(), vec![5, 4]));
        TensorMapping::new("qkv".into(), layout, ours.to_vec())
    }

    fn part(seed: usize, rank: usize, scale: f32) -> LowRank {
        let values = |len: usize, salt: usize| {
            let value = |i: usize| ((i * 7 + seed * 13 + salt) % 11) as f32 - 4.5;
            (0..len).map(value).collect::<Vec<_>>()
        };
        LowRank {
            a: values(5 * rank, 1),
            b: values(rank * 4, 2),
            rank,
            d_in: 5,
            d_out: 4,
            scale,
            magnitude: Some(values(4, 3)),
        }
    }

    /// `scale * a b`, `[d_in, d_out]`.
    fn product(part: &LowRank) -> Vec<f32> {
        let element = |row: usize, column: usize| {
            let terms = (0..part.rank)
                .map(|k| part.a[row * part.rank + k] * part.b[k * part.d_out + column]);
            terms.sum::<f32>() * part.scale
        };
        let cells = (0..part.d_in).flat_map(|row| (0..part.d_out).map(move |column| (row, column)));
        cells.map(|(row, column)| element(row, column)).collect()
    }

    const LAYOUTS: [Layout; 3] = [
        Layout::ConcatColumns,
        Layout::ConcatRows,
        Layout::InterleavedHeads { head_dim: 2 },
    ];

    #[test]
    fn independent_updates_have_the_same_bits_after_combining_and_splitting() {
        for layout in LAYOUTS {
            let mapping = mapping(layout);
            let parts = [part(0, 2, 0.5), part(1, 2, 0.5), part(2, 2, 0.5)];
            let combined = combine(&mapping, &parts.each_ref().map(Some))
                .unwrap()
                .unwrap();
            assert_eq!((combined.rank, combined.scale), (6, 0.5));
            let back: Vec<LowRank> = split(&mapping, combined)
                .into_iter()
                .map(|(_, p)| p)
                .collect();
            assert_eq!(back, parts, "{layout:?}");
        }
    }

    #[test]
    fn updates_that_share_a_keep_their_rank() {
        for layout in LAYOUTS {
            let mapping = mapping(layout);
            let [q, k, v] = [part(0, 2, 0.5), part(1, 2, 0.5), part(2, 2, 0.5)];
            let parts = [
                q.clone(),
                LowRank {
                    a: q.a.clone(),
                    ..k
                },
                LowRank { a: q.a, ..v },
            ];
            let combined = combine(&mapping, &parts.each_ref().map(Some))
                .unwrap()
                .unwrap();
            assert_eq!(combined.rank, 2);
            let back: Vec<LowRank> = split(&mapping, combined)
                .into_iter()
                .map(|(_, p)| p)
                .collect();
            assert_eq!(back, parts, "{layout:?}");
        }
    }

    #[test]
    fn updates_of_other_ranks_and_scales_keep_their_product() {
        let without = |part: LowRank| LowRank {
            magnitude: None,
            ..part
        };
        for layout in LAYOUTS {
            let mapping = mapping(layout);
            let (q, v) = (without(part(0, 1, 0.5)), without(part(2, 3, 4.0)));
            let combined = combine(&mapping, &[Some(&q), None, Some(&v)])
                .unwrap()
                .unwrap();
            assert_eq!((combined.rank, combined.scale), (4, 1.0));
            let back = split(&mapping, combined);
            assert_eq!(product(&back[0].1), product(&q), "{layout:?}");
            assert!(product(&back[1].1).iter().all(|value| *value == 0.0));
            assert_eq!(product(&back[2].1), product(&v));
        }
    }

    #[test]
    fn magnitudes_of_some_parts_are_an_error_that_names_the_others() {
        let mapping = mapping(Layout::ConcatRows);
        let part = part(0, 1, 1.0);
        let error = combine(&mapping, &[Some(&part), None, None]).unwrap_err();
        assert!(
            error.to_string().contains("`k` has no DoRA magnitudes"),
            "{error}"
        );
    }

    #[test]
    fn alpha_is_as_short_as_possible() {
        assert_eq!(alpha((7.0_f64 / 3.0) as f32, 3.0), 7.0);
        assert_eq!(alpha((16.0 / 2.0_f64.sqrt()) as f32, 2.0_f64.sqrt()), 16.0);
        assert_eq!(alpha(0.1, 1.0), 0.1);
        let odd = 0.123_456_79_f32;
        assert_eq!((alpha(odd, 7.0) / 7.0) as f32, odd);
    }
}
