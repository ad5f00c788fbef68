//! Foreign tensors, and which of ours each one holds.

use std::collections::BTreeMap;

use nextword_model::ModelConfig;
use nextword_model::weights::layout;

use crate::ConvertError;

/// How a foreign tensor holds ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// As it is.
    Same,
    /// `[d_out, d_in]` where ours is `[d_in, d_out]`.
    Transposed,
    /// Several of ours side by side along the last axis.
    Columns,
    /// Several of ours, each transposed, one below the other: `[sum of d_out, d_in]`.
    Rows,
    /// Queries, keys and values, transposed, one head of each after the other:
    /// `[n_heads * 3 * head_dim, d_in]`, or without `d_in` for biases.
    Heads {
        /// Numbers of one head.
        head_dim: usize,
    },
}

/// One foreign tensor.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// Its name there.
    pub(crate) name: String,
    /// Its shape there.
    pub(crate) shape: Vec<usize>,
    /// Names and shapes of ours that it holds.
    pub(crate) ours: Vec<(String, Vec<usize>)>,
    form: Form,
}

/// What a foreign model calls its modules.
pub(crate) trait Names {
    /// The foreign name of our module outside the blocks.
    fn outer(&self, module: &str) -> Option<&'static str>;

    /// The foreign name of our module inside block `layer`.
    fn inner(&self, layer: &str, module: &str) -> Option<String>;

    /// How the weights of block matrices lie.
    fn form(&self) -> Form;

    /// Where queries, keys and values are one tensor: its module, and how they lie in it.
    fn fused(&self, _config: &ModelConfig) -> Option<(&'static str, Form)> {
        None
    }
}

/// All foreign tensors of a model.
pub(crate) fn parts(names: &dyn Names, config: &ModelConfig) -> Vec<Part> {
    let layout = layout(config);
    let shapes: BTreeMap<&str, &Vec<usize>> = layout.iter().map(|(n, s)| (n.as_str(), s)).collect();
    let fused = names.fused(config);
    let mut parts = Vec::new();
    for (name, shape) in &layout {
        let Some((module, kind)) = name.rsplit_once('.') else {
            continue;
        };
        let block = module
            .strip_prefix("blocks.")
            .and_then(|m| m.split_once('.'));
        let is_matrix = shape.len() == 2;
        let (foreign, form) = match block {
            None => {
                let form = if module == "head" && is_matrix {
                    Form::Transposed
                } else {
                    Form::Same
                };
                (names.outer(module).map(str::to_string), form)
            }
            Some((_, "attention.key" | "attention.value")) if fused.is_some() => continue,
            Some((layer, "attention.query")) if let Some((module, form)) = fused => {
                let ours = ["query", "key", "value"].map(|which| {
                    let name = format!("blocks.{layer}.attention.{which}.{kind}");
                    let shape = shapes
                        .get(name.as_str())
                        .map_or_else(Vec::new, |s| (*s).clone());
                    (name, shape)
                });
                if let Some(prefix) = names.inner(layer, module) {
                    parts.push(Part::new(format!("{prefix}.{kind}"), form, ours.to_vec()));
                }
                continue;
            }
            Some((layer, module)) => {
                let form = if is_matrix { names.form() } else { Form::Same };
                (names.inner(layer, module), form)
            }
        };
        if let Some(foreign) = foreign {
            let ours = vec![(name.clone(), shape.clone())];
            parts.push(Part::new(format!("{foreign}.{kind}"), form, ours));
        }
    }
    parts
}

impl Part {
    pub(crate) fn new(name: String, form: Form, ours: Vec<(String, Vec<usize>)>) -> Self {
        let mut shape = ours[0].1.clone();
        match form {
            Form::Same => {}
            Form::Transposed => shape.reverse(),
            Form::Columns | Form::Rows | Form::Heads { .. } => {
                let last = shape.len() - 1;
                shape[last] = ours.iter().map(|(_, shape)| shape[last]).sum();
                if form != Form::Columns {
                    shape.reverse();
                }
            }
        }
        Self {
            name,
            shape,
            ours,
            form,
        }
    }

    /// The values of `wanted`, one of ours, out of the foreign `values`.
    pub(crate) fn take(&self, wanted: &str, values: Vec<f32>) -> Vec<f32> {
        let Some(at) = self.ours.iter().position(|(name, _)| name == wanted) else {
            return Vec::new();
        };
        let shape = &self.ours[at].1;
        match self.form {
            Form::Same => values,
            Form::Transposed => transpose(&values, self.shape[0], self.shape[1]),
            Form::Columns => {
                let widths: Vec<usize> = self
                    .ours
                    .iter()
                    .filter_map(|(_, s)| s.last())
                    .copied()
                    .collect();
                let begin: usize = widths[..at].iter().sum();
                let row = widths.iter().sum();
                let cut = |row: &[f32]| row[begin..begin + widths[at]].to_vec();
                values.chunks_exact(row).flat_map(cut).collect()
            }
            Form::Rows => {
                let d_in = if shape.len() == 2 { shape[0] } else { 1 };
                let sizes: Vec<usize> = self.ours.iter().map(|(_, s)| s.iter().product()).collect();
                let begin: usize = sizes[..at].iter().sum();
                let rows = &values[begin..begin + sizes[at]];
                transpose(rows, rows.len() / d_in, d_in)
            }
            Form::Heads { head_dim } => {
                let d_in = if shape.len() == 2 { shape[0] } else { 1 };
                let head = head_dim * d_in;
                let heads = values.chunks_exact(3 * head);
                let rows: Vec<f32> = heads
                    .flat_map(|three| three[at * head..(at + 1) * head].iter().copied())
                    .collect();
                transpose(&rows, rows.len() / d_in, d_in)
            }
        }
    }

    /// The foreign values, from `ours` by name.
    pub(crate) fn join(
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
        Ok(match self.form {
            Form::Same => values.swap_remove(0),
            Form::Transposed => transpose(&values[0], shape[0], shape[1]),
            Form::Columns => {
                let rows = if shape.len() == 2 { shape[0] } else { 1 };
                let row = |r: usize| {
                    let cut = move |v: &Vec<f32>| {
                        let width = v.len() / rows;
                        v[r * width..(r + 1) * width].to_vec()
                    };
                    values.iter().flat_map(cut)
                };
                (0..rows).flat_map(row).collect()
            }
            Form::Rows => {
                let d_in = if shape.len() == 2 { shape[0] } else { 1 };
                let turned = |v: &Vec<f32>| transpose(v, d_in, v.len() / d_in);
                values.iter().flat_map(turned).collect()
            }
            Form::Heads { head_dim } => {
                let d_in = if shape.len() == 2 { shape[0] } else { 1 };
                let head = head_dim * d_in;
                let rows: Vec<Vec<f32>> = values
                    .iter()
                    .map(|v| transpose(v, d_in, v.len() / d_in))
                    .collect();
                let n_heads = rows[0].len() / head;
                let three = |h: usize| {
                    let cut = move |v: &Vec<f32>| v[h * head..(h + 1) * head].to_vec();
                    rows.iter().flat_map(cut)
                };
                (0..n_heads).flat_map(three).collect()
            }
        })
    }
}

/// `[rows, columns]` to `[columns, rows]`, in tiles that fit the cache.
fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
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

    fn check(form: Form, shapes: &[&[usize]]) {
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
        let part = Part::new("foreign".into(), form, ours.clone());
        let joined = part.join(|name, _| values(name)).unwrap();
        assert_eq!(joined.len(), part.shape.iter().product::<usize>());
        for (name, _) in &ours {
            assert_eq!(
                part.take(name, joined.clone()),
                values(name).unwrap(),
                "{form:?} {name}"
            );
        }
    }

    #[test]
    fn what_is_joined_is_taken_apart_again() {
        check(Form::Same, &[&[3, 2]]);
        check(Form::Transposed, &[&[37, 70]]);
        check(Form::Columns, &[&[4, 6], &[4, 2], &[4, 2]]);
        check(Form::Columns, &[&[6], &[2], &[2]]);
        check(Form::Rows, &[&[4, 6], &[4, 2], &[4, 2]]);
        check(Form::Rows, &[&[6], &[2], &[2]]);
        check(Form::Heads { head_dim: 2 }, &[&[5, 6], &[5, 6], &[5, 6]]);
        check(Form::Heads { head_dim: 2 }, &[&[6], &[6], &[6]]);
    }

    #[test]
    fn heads_stand_as_gpt_neox_has_them() {
        let ours = ["q", "k", "v"].map(|name| (name.to_string(), vec![2]));
        let part = Part::new("qkv".into(), Form::Heads { head_dim: 1 }, ours.to_vec());
        let values = |name: &str| {
            Ok(match name {
                "q" => vec![1.0, 2.0],
                "k" => vec![3.0, 4.0],
                _ => vec![5.0, 6.0],
            })
        };
        assert_eq!(
            part.join(|name, _| values(name)).unwrap(),
            [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]
        );
    }
}
