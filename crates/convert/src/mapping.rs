//! Mapping between foreign tensors and ours.

use std::borrow::Cow;
use std::collections::BTreeMap;

use nextword_model::ModelConfig;
use nextword_model::weights::layout as weight_shapes;

use crate::ConvertError;

/// How a foreign tensor stores ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Unchanged.
    Same,
    /// `[d_out, d_in]`, where ours is `[d_in, d_out]`.
    Transposed,
    /// `[1, n]`, where ours is `[n]`; zeros if it is missing.
    Row,
    /// Several of ours, concatenated along the last axis.
    ConcatColumns,
    /// Several of ours, transposed and concatenated along the first axis: `[sum of d_out, d_in]`.
    ConcatRows,
    /// Queries, keys and values, transposed and interleaved by head: `[n_heads * 3 * head_dim, d_in]`,
    /// or without `d_in` for biases.
    InterleavedHeads {
        /// Size of a head.
        head_dim: usize,
    },
}

/// One foreign tensor and the tensors of ours that it contains.
#[derive(Clone, Debug)]
pub(crate) struct TensorMapping {
    /// The foreign name.
    pub(crate) name: String,
    /// The foreign shape.
    pub(crate) shape: Vec<usize>,
    /// Names and shapes of our tensors.
    pub(crate) ours: Vec<(String, Vec<usize>)>,
    /// A foreign matrix whose first row is added to each row of ours.
    pub(crate) added_row: Option<&'static str>,
    /// Rows before the first of ours, which are zeros in an export.
    unused_rows: usize,
    layout: Layout,
}

/// Names of modules in a foreign format.
pub(crate) trait TensorNames {
    /// The foreign name of our module outside the blocks.
    fn top_level(&self, module: &str) -> Option<&'static str>;

    /// The foreign name of our module inside block `layer`.
    fn in_block(&self, layer: &str, module: &str) -> Option<String>;

    /// The foreign name of our module inside block `layer` of the encoder, in encoder-decoder models.
    fn in_encoder_block(&self, _layer: &str, _module: &str) -> Option<String> {
        None
    }

    /// Number of foreign rows before the first one of our matrix `ours`.
    fn unused_rows(&self, _ours: &str) -> usize {
        0
    }

    /// The whole foreign name of our vector `ours`, if it is stored as a matrix of one row.
    fn row(&self, _ours: &str) -> Option<&'static str> {
        None
    }

    /// The layout of weight matrices in blocks.
    fn matrix_layout(&self) -> Layout;

    /// The foreign matrix whose first row is part of each row of our matrix `ours`.
    fn added_row(&self, _ours: &str) -> Option<&'static str> {
        None
    }

    /// The module and layout of the combined query, key and value tensor, if the format has one.
    fn fused_qkv(&self, _config: &ModelConfig) -> Option<(&'static str, Layout)> {
        None
    }
}

/// The mappings of all foreign tensors of a model.
pub(crate) fn tensor_mappings(names: &dyn TensorNames, config: &ModelConfig) -> Vec<TensorMapping> {
    let ours = weight_shapes(config);
    let shapes: BTreeMap<&str, &Vec<usize>> = ours.iter().map(|(n, s)| (n.as_str(), s)).collect();
    let fused_qkv = names.fused_qkv(config);
    let mut mappings = Vec::new();
    for (name, shape) in &ours {
        let Some((module, kind)) = name.rsplit_once('.') else {
            continue;
        };
        if let Some(foreign) = names.row(name) {
            let ours = vec![(name.clone(), shape.clone())];
            mappings.push(TensorMapping::new(foreign.to_string(), Layout::Row, ours));
            continue;
        }
        let (in_encoder, path) = match module.strip_prefix("encoder.") {
            Some(path) => (true, path),
            None => (false, module),
        };
        let block = path.strip_prefix("blocks.").and_then(|m| m.split_once('.'));
        let is_matrix = shape.len() == 2;
        let (foreign, layout) = match block {
            None => {
                let is_linear = module == "head" || module.starts_with("head_transform");
                let layout = if is_linear && is_matrix {
                    Layout::Transposed
                } else {
                    Layout::Same
                };
                (names.top_level(module).map(str::to_string), layout)
            }
            Some((_, "attention.key" | "attention.value")) if fused_qkv.is_some() => continue,
            Some((layer, "attention.query")) if let Some((module, layout)) = fused_qkv => {
                let ours = ["query", "key", "value"].map(|projection| {
                    let name = format!("blocks.{layer}.attention.{projection}.{kind}");
                    let shape = shapes
                        .get(name.as_str())
                        .map_or_else(Vec::new, |s| (*s).clone());
                    (name, shape)
                });
                if let Some(prefix) = names.in_block(layer, module) {
                    mappings.push(TensorMapping::new(
                        format!("{prefix}.{kind}"),
                        layout,
                        ours.to_vec(),
                    ));
                }
                continue;
            }
            Some((layer, module)) => {
                let layout = if is_matrix {
                    names.matrix_layout()
                } else {
                    Layout::Same
                };
                let foreign = if in_encoder {
                    names.in_encoder_block(layer, module)
                } else {
                    names.in_block(layer, module)
                };
                (foreign, layout)
            }
        };
        if let Some(foreign) = foreign {
            let ours = vec![(name.clone(), shape.clone())];
            let foreign = format!("{foreign}.{kind}");
            let mapping = TensorMapping::new(foreign, layout, ours);
            mappings.push(TensorMapping {
                added_row: names.added_row(name),
                ..mapping.after_unused_rows(names.unused_rows(name))
            });
        }
    }
    mappings
}

impl TensorMapping {
    pub(crate) fn new(name: String, layout: Layout, ours: Vec<(String, Vec<usize>)>) -> Self {
        let mut shape = ours[0].1.clone();
        match layout {
            Layout::Same => {}
            Layout::Row => shape.insert(0, 1),
            Layout::Transposed => shape.reverse(),
            Layout::ConcatColumns | Layout::ConcatRows | Layout::InterleavedHeads { .. } => {
                let last = shape.len() - 1;
                shape[last] = ours.iter().map(|(_, shape)| shape[last]).sum();
                if layout != Layout::ConcatColumns {
                    shape.reverse();
                }
            }
        }
        Self {
            name,
            shape,
            ours,
            added_row: None,
            unused_rows: 0,
            layout,
        }
    }

    /// The mapping of a foreign matrix with `count` rows before the first one of ours, which has the same layout.
    fn after_unused_rows(mut self, count: usize) -> Self {
        self.shape[0] += count;
        self.unused_rows = count;
        self
    }

    /// Whether a file may omit the tensor, which is then zeros.
    pub(crate) fn is_optional(&self) -> bool {
        self.layout == Layout::Row
    }

    /// The mapping of the factor B of a low-rank update of this matrix: `[d_out, rank]` in foreign formats,
    /// whatever the layout of the matrix itself, and `[rank, d_out]` in ours.
    pub(crate) fn factor_b(&self, rank: usize) -> Self {
        let ours = self.ours.iter();
        let ours = ours.map(|(name, shape)| (name.clone(), vec![rank, shape[1]]));
        let layout = match self.layout {
            Layout::Same | Layout::Row | Layout::Transposed => Layout::Transposed,
            Layout::ConcatColumns | Layout::ConcatRows => Layout::ConcatRows,
            Layout::InterleavedHeads { head_dim } => Layout::InterleavedHeads { head_dim },
        };
        Self::new(self.name.clone(), layout, ours.collect())
    }

    /// The mapping of a vector with one value for each output unit of this matrix.
    pub(crate) fn output_vector(&self) -> Self {
        let ours = self.ours.iter();
        let ours = ours.map(|(name, shape)| (name.clone(), vec![shape[1]]));
        let layout = match self.layout {
            Layout::Transposed => Layout::Same,
            other => other,
        };
        Self::new(self.name.clone(), layout, ours.collect())
    }

    /// Extracts the values of our tensor `target` from the foreign `values`.
    pub(crate) fn extract(&self, target: &str, mut values: Vec<f32>) -> Vec<f32> {
        let Some(index) = self.ours.iter().position(|(name, _)| name == target) else {
            return Vec::new();
        };
        let shape = &self.ours[index].1;
        match self.layout {
            Layout::Row => values,
            Layout::Same => {
                values.drain(..self.unused_rows * self.row_width());
                values
            }
            Layout::Transposed => transpose(&values, self.shape[0], self.shape[1]),
            Layout::ConcatColumns => {
                let widths: Vec<usize> = self
                    .ours
                    .iter()
                    .filter_map(|(_, s)| s.last())
                    .copied()
                    .collect();
                let start: usize = widths[..index].iter().sum();
                let row = widths.iter().sum();
                let columns = |row: &[f32]| row[start..start + widths[index]].to_vec();
                values.chunks_exact(row).flat_map(columns).collect()
            }
            Layout::ConcatRows => {
                let d_in = if shape.len() == 2 { shape[0] } else { 1 };
                let sizes: Vec<usize> = self.ours.iter().map(|(_, s)| s.iter().product()).collect();
                let start: usize = sizes[..index].iter().sum();
                let rows = &values[start..start + sizes[index]];
                transpose(rows, rows.len() / d_in, d_in)
            }
            Layout::InterleavedHeads { head_dim } => {
                let d_in = if shape.len() == 2 { shape[0] } else { 1 };
                let head = head_dim * d_in;
                let heads = values.chunks_exact(3 * head);
                let rows: Vec<f32> = heads
                    .flat_map(|qkv| qkv[index * head..(index + 1) * head].iter().copied())
                    .collect();
                transpose(&rows, rows.len() / d_in, d_in)
            }
        }
    }

    /// Number of values in a row of the foreign tensor.
    fn row_width(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Whether the rows of the foreign tensor are columns of ours, as quantized blocks require.
    pub(crate) fn has_rows(&self) -> bool {
        self.shape.len() == 2 && self.layout != Layout::ConcatColumns
    }

    /// Extracts the rows of our tensor `target` from those of the foreign tensor, which can have any encoding:
    /// the inverse of [`assemble_rows`](Self::assemble_rows).
    pub(crate) fn extract_rows<'a>(&self, target: &str, rows: &'a [u8]) -> Cow<'a, [u8]> {
        let Some(index) = self.ours.iter().position(|(name, _)| name == target) else {
            return Cow::Borrowed(&[]);
        };
        let row = rows.len() / self.shape[0].max(1);
        match self.layout {
            Layout::ConcatRows => {
                let widths: Vec<usize> = self.ours.iter().map(|(_, shape)| shape[1]).collect();
                let start = widths[..index].iter().sum::<usize>() * row;
                Cow::Borrowed(&rows[start..start + widths[index] * row])
            }
            Layout::InterleavedHeads { head_dim } => {
                let head = head_dim * row;
                let heads = rows.chunks_exact(3 * head);
                let own = heads.map(|qkv| &qkv[index * head..(index + 1) * head]);
                Cow::Owned(own.collect::<Vec<_>>().concat())
            }
            Layout::Same | Layout::Row | Layout::Transposed | Layout::ConcatColumns => {
                Cow::Borrowed(rows)
            }
        }
    }

    /// Assembles the rows of the foreign tensor, which can have any encoding, from those of ours.
    pub(crate) fn assemble_rows(&self, ours: Vec<Vec<u8>>) -> Vec<u8> {
        let Layout::InterleavedHeads { head_dim } = self.layout else {
            return ours.concat();
        };
        let rows = ours.len() * self.ours[0].1[1];
        let head = ours.iter().map(Vec::len).sum::<usize>() / rows.max(1) * head_dim;
        let heads = ours[0].len() / head.max(1);
        let head_of = |h: usize| ours.iter().map(move |v| &v[h * head..(h + 1) * head]);
        (0..heads).flat_map(head_of).collect::<Vec<_>>().concat()
    }

    /// Assembles the foreign values from `ours`, which returns our tensors by name.
    pub(crate) fn assemble(
        &self,
        mut ours: impl FnMut(&str, &[usize]) -> Result<Vec<f32>, ConvertError>,
    ) -> Result<Vec<f32>, ConvertError> {
        let values: Result<Vec<Vec<f32>>, _> = self
            .ours
            .iter()
            .map(|(name, shape)| ours(name, shape))
            .collect();
        let mut values = values?;
        let shape = &self.ours[0].1;
        Ok(match self.layout {
            Layout::Row => values.swap_remove(0),
            Layout::Same => {
                let mut own = values.swap_remove(0);
                let unused = self.unused_rows * self.row_width();
                own.splice(0..0, std::iter::repeat_n(0.0, unused));
                own
            }
            Layout::Transposed => transpose(&values[0], shape[0], shape[1]),
            Layout::ConcatColumns => {
                let rows = if shape.len() == 2 { shape[0] } else { 1 };
                let row = |r: usize| {
                    let row_of = move |v: &Vec<f32>| {
                        let width = v.len() / rows;
                        v[r * width..(r + 1) * width].to_vec()
                    };
                    values.iter().flat_map(row_of)
                };
                (0..rows).flat_map(row).collect()
            }
            Layout::ConcatRows => {
                let d_in = if shape.len() == 2 { shape[0] } else { 1 };
                let transposed = |v: &Vec<f32>| transpose(v, d_in, v.len() / d_in);
                values.iter().flat_map(transposed).collect()
            }
            Layout::InterleavedHeads { head_dim } => {
                let d_in = if shape.len() == 2 { shape[0] } else { 1 };
                let head = head_dim * d_in;
                let rows: Vec<Vec<f32>> = values
                    .iter()
                    .map(|v| transpose(v, d_in, v.len() / d_in))
                    .collect();
                let n_heads = rows[0].len() / head;
                let qkv = |h: usize| {
                    let head_of = move |v: &Vec<f32>| v[h * head..(h + 1) * head].to_vec();
                    rows.iter().flat_map(head_of)
                };
                (0..n_heads).flat_map(qkv).collect()
            }
        })
    }
}

/// Transposes `[rows, columns]` to `[columns, rows]`, in tiles that fit the CPU cache.
pub(crate) fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const TILE: usize = 32;
    let mut out = vec![0.0; values.len()];
    for top in (0..rows).step_by(TILE) {
        for left in (0..columns).step_by(TILE) {
            for row in top..rows.min(top + TILE) {
                for column in left..columns.min(left + TILE) {
                    out[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn check(layout: Layout, shapes: &[&[usize]]) {
        let ours: Vec<(String, Vec<usize>)> = shapes
            .iter()
            .enumerate()
            .map(|(n, shape)| (n.to_string(), shape.to_vec()))
            .collect();
        let values = |name: &str| {
            let n: usize = name.parse().unwrap();
            let len: usize = shapes[n].iter().product();
            Ok((0..len).map(|i| (1000 * n + i) as f32).collect::<Vec<_>>())
        };
        let mapping = TensorMapping::new("foreign".into(), layout, ours.clone());
        let assembled = mapping.assemble(|name, _| values(name)).unwrap();
        assert_eq!(assembled.len(), mapping.shape.iter().product::<usize>());
        for (name, _) in &ours {
            assert_eq!(
                mapping.extract(name, assembled.clone()),
                values(name).unwrap(),
                "{layout:?} {name}"
            );
        }
        if !mapping.has_rows() || layout == Layout::Row {
            return;
        }
        // Rows of three bytes each.
        let count = |shape: &[usize]| shape[usize::from(layout != Layout::Same)];
        let rows = |n: usize| (0..3 * count(&ours[n].1)).map(move |i| (100 * n + i) as u8);
        let all = (0..ours.len()).map(|n| rows(n).collect()).collect();
        let assembled = mapping.assemble_rows(all);
        assert_eq!(assembled.len(), 3 * mapping.shape[0]);
        for (n, (name, _)) in ours.iter().enumerate() {
            let extracted = mapping.extract_rows(name, &assembled);
            assert_eq!(extracted, rows(n).collect::<Vec<u8>>(), "{layout:?} {name}");
        }
    }

    #[test]
    fn extract_inverts_assemble() {
        check(Layout::Same, &[&[3, 2]]);
        check(Layout::Transposed, &[&[37, 70]]);
        check(Layout::ConcatColumns, &[&[4, 6], &[4, 2], &[4, 2]]);
        check(Layout::ConcatColumns, &[&[6], &[2], &[2]]);
        check(Layout::ConcatRows, &[&[4, 6], &[4, 2], &[4, 2]]);
        check(Layout::ConcatRows, &[&[6], &[2], &[2]]);
        check(
            Layout::InterleavedHeads { head_dim: 2 },
            &[&[5, 6], &[5, 6], &[5, 6]],
        );
        check(
            Layout::InterleavedHeads { head_dim: 2 },
            &[&[6], &[6], &[6]],
        );
    }

    #[test]
    fn unused_rows_are_left_out_and_written_as_zeros() {
        let ours = vec![("table".to_string(), vec![2, 3])];
        let mapping = TensorMapping::new("foreign".into(), Layout::Same, ours);
        let mapping = mapping.after_unused_rows(1);
        assert_eq!(mapping.shape, [3, 3]);
        let foreign: Vec<f32> = (0..9).map(|i| i as f32).collect();
        let table = mapping.extract("table", foreign.clone());
        assert_eq!(table, foreign[3..]);
        let assembled = mapping.assemble(|_, _| Ok(table.clone())).unwrap();
        assert_eq!(assembled, [&[0.0; 3], &foreign[3..]].concat());
    }

    #[test]
    fn a_vector_may_be_stored_as_a_row() {
        check(Layout::Row, &[&[4]]);
        let ours = vec![("bias".to_string(), vec![4])];
        let mapping = TensorMapping::new("foreign".into(), Layout::Row, ours);
        assert_eq!(mapping.shape, [1, 4]);
        assert!(mapping.is_optional());
    }

    #[test]
    fn heads_are_interleaved_as_in_gpt_neox() {
        let ours = ["q", "k", "v"].map(|name| (name.to_string(), vec![2]));
        let mapping = TensorMapping::new(
            "qkv".into(),
            Layout::InterleavedHeads { head_dim: 1 },
            ours.to_vec(),
        );
        let values = |name: &str| {
            Ok(match name {
                "q" => vec![1.0, 2.0],
                "k" => vec![3.0, 4.0],
                _ => vec![5.0, 6.0],
            })
        };
        assert_eq!(
            mapping.assemble(|name, _| values(name)).unwrap(),
            [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]
        );
    }
}
