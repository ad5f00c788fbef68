//! Sees the forward passes of one sequence and puts their tensors together.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use nextword_model::{Hook, Position, Probe, Site, weights};

use crate::array::Array;

/// What one pass showed at one place: the shape without the batch axis, and the numbers.
struct Part {
    shape: Vec<usize>,
    data: Vec<f32>,
}

/// A probe that keeps all that it sees of one sequence, pass by pass.
pub(crate) struct Recorder {
    rotary: bool,
    parts: BTreeMap<String, Vec<Part>>,
}

impl Recorder {
    pub(crate) fn new(position: Position) -> Self {
        Self {
            rotary: position == Position::Rotary,
            parts: BTreeMap::new(),
        }
    }

    /// The names seen.
    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.parts.keys()
    }

    /// The tensor `name` over all passes, shaped as `shape`: passes one below the other along the
    /// position axis, and scores of earlier passes `hidden` where later tokens stand.
    pub(crate) fn take(&mut self, name: &str, shape: &[usize], hidden: f64) -> Option<Array> {
        let parts = self.parts.remove(name)?;
        let mut whole = Array::zeros(shape);
        whole.data.fill(hidden);
        let axes = shape.len();
        let (seq, width) = (shape[axes - 2], shape[axes - 1]);
        let mut first = 0;
        for part in parts {
            let (rows, part_width) = (part.shape[axes - 2], part.shape[axes - 1]);
            for (at, values) in part.data.chunks_exact(part_width).enumerate() {
                let (outer, row) = (at / rows, first + at % rows);
                let start = (outer * seq + row) * width;
                for (to, from) in whole.data[start..].iter_mut().zip(values) {
                    *to = f64::from(*from);
                }
            }
            first += rows;
        }
        (first == seq).then_some(whole)
    }

    /// The numbers that the last pass showed at `name`.
    pub(crate) fn last(&self, name: &str) -> Option<&[f32]> {
        let part = self.parts.get(name)?.last()?;
        Some(&part.data)
    }

    /// The numbers that the first pass showed at `name`.
    pub(crate) fn first(&self, name: &str) -> Option<&[f32]> {
        let part = self.parts.get(name)?.first()?;
        Some(&part.data)
    }

    /// Puts `rows` in the place of what was seen at `name`.
    pub(crate) fn put(&mut self, name: &str, rows: Vec<Vec<f32>>) {
        let parts = rows.into_iter().map(|data| Part {
            shape: vec![1, data.len()],
            data,
        });
        self.parts.insert(name.to_string(), parts.collect());
    }
}

impl Probe for Recorder {
    fn see<const D: usize>(&mut self, site: Site, tensor: &Tensor<D>) {
        if !self.rotary && matches!(site.hook, Hook::RotatedQuery | Hook::RotatedKey) {
            return; // The same numbers as before: nothing was turned.
        }
        self.parts.entry(site.to_string()).or_default().push(Part {
            shape: tensor.dims()[1..].to_vec(),
            data: weights::floats(tensor.clone().into_data()),
        });
    }
}
