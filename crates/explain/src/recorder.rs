//! A probe that records the forward passes of one sequence and assembles their tensors.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use nextword_model::{Hook, Position, Probe, Site, weights};

use crate::array::Array;

/// The tensor that one pass reported at one site. The shape has no batch axis.
struct PassTensor {
    shape: Vec<usize>,
    data: Vec<f32>,
}

/// A probe that stores every tensor of one sequence, pass by pass.
pub(crate) struct Recorder {
    rotary: bool,
    passes: BTreeMap<String, Vec<PassTensor>>,
}

impl Recorder {
    pub(crate) fn new(position: Position) -> Self {
        Self {
            rotary: position == Position::Rotary,
            passes: BTreeMap::new(),
        }
    }

    /// Names of the recorded tensors.
    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.passes.keys()
    }

    /// Takes the tensor `name` of all passes with shape `shape`: passes are concatenated along the
    /// position axis, and scores of earlier passes are `masked` at later keys.
    pub(crate) fn take(&mut self, name: &str, shape: &[usize], masked: f64) -> Option<Array> {
        let passes = self.passes.remove(name)?;
        let mut all = Array::zeros(shape);
        all.data.fill(masked);
        let axes = shape.len();
        let (seq, width) = (shape[axes - 2], shape[axes - 1]);
        let mut first = 0;
        for pass in passes {
            let (rows, pass_width) = (pass.shape[axes - 2], pass.shape[axes - 1]);
            for (at, values) in pass.data.chunks_exact(pass_width).enumerate() {
                let (outer, row) = (at / rows, first + at % rows);
                let start = (outer * seq + row) * width;
                for (to, from) in all.data[start..].iter_mut().zip(values) {
                    *to = f64::from(*from);
                }
            }
            first += rows;
        }
        (first == seq).then_some(all)
    }

    /// The values that the last pass reported at `name`.
    pub(crate) fn last(&self, name: &str) -> Option<&[f32]> {
        let pass = self.passes.get(name)?.last()?;
        Some(&pass.data)
    }

    /// The values that the first pass reported at `name`.
    pub(crate) fn first(&self, name: &str) -> Option<&[f32]> {
        let pass = self.passes.get(name)?.first()?;
        Some(&pass.data)
    }

    /// Replaces the values recorded at `name` with `rows`, one per pass.
    pub(crate) fn replace(&mut self, name: &str, rows: Vec<Vec<f32>>) {
        let passes = rows.into_iter().map(|data| PassTensor {
            shape: vec![1, data.len()],
            data,
        });
        self.passes.insert(name.to_string(), passes.collect());
    }
}

impl Probe for Recorder {
    fn record<const D: usize>(&mut self, site: Site, tensor: &Tensor<D>) {
        if !self.rotary && matches!(site.hook, Hook::RotatedQuery | Hook::RotatedKey) {
            return; // Without RoPE these equal the unrotated tensors.
        }
        self.passes
            .entry(site.to_string())
            .or_default()
            .push(PassTensor {
                shape: tensor.dims()[1..].to_vec(),
                data: weights::to_f32_vec(tensor.clone().into_data()),
            });
    }
}
