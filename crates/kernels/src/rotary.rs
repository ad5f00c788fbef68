//! Rotary positions: each pair of a head's numbers is turned by an angle that grows with the place.

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};

/// Cosines and sines for every place, `[places, head_dim]`: pair `i` is numbers `i` and
/// `i + head_dim / 2` (the rotate-half layout), so both halves of a row are alike.
#[derive(Clone, Debug)]
pub struct RotaryTables {
    pub(crate) cos: Arc<Vec<f32>>,
    pub(crate) sin: Arc<Vec<f32>>,
    pub(crate) head_dim: usize,
}

impl RotaryTables {
    /// Tables for `places` places, from the angle in radians that each pair turns per token.
    pub fn new(frequencies: &[f64], places: usize) -> Self {
        let table = |of: fn(f64) -> f64| {
            let row = |place: usize| {
                let half = frequencies.iter().map(move |f| of(place as f64 * f) as f32);
                half.clone().chain(half)
            };
            Arc::new((0..places).flat_map(row).collect())
        };
        Self {
            cos: table(f64::cos),
            sin: table(f64::sin),
            head_dim: 2 * frequencies.len(),
        }
    }

    /// Both tables as tensors for rows whose first token stands at `starts[row]`,
    /// `[rows, seq, 1, head_dim]`.
    pub(crate) fn pick(&self, starts: &[usize], seq: usize, device: &Device) -> [Tensor<4>; 2] {
        [&self.cos, &self.sin].map(|table| {
            let width = self.head_dim;
            let rows = starts
                .iter()
                .flat_map(|start| &table[start * width..(start + seq) * width]);
            let data = TensorData::new(rows.copied().collect(), [starts.len(), seq, 1, width]);
            Tensor::from_data(data, device)
        })
    }
}

/// Turns `x`, `[batch, seq, heads, head_dim]`; token `i` of row `b` stands at place
/// `starts[b] + i`. One start counts for all rows.
pub fn rotate(x: Tensor<4>, tables: &RotaryTables, starts: &[usize]) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if crate::fused::is_fast(&x) {
        return fast::rotate(x, tables, starts);
    }
    crate::reference::rotate(x, tables, starts)
}

#[cfg(feature = "flex")]
mod fast {
    use burn::tensor::Tensor;

    use super::RotaryTables;
    use crate::cpu::rotary::{self as kernel, Tables, Turn};
    use crate::cpu::view::{Strides, ViewMut};
    use crate::fused::{Buffer, Kept, Op, apply};

    #[derive(Clone, Debug)]
    struct Rotate {
        tables: RotaryTables,
        starts: Vec<usize>,
        sizes: [usize; 4],
    }

    pub(super) fn rotate(x: Tensor<4>, tables: &RotaryTables, starts: &[usize]) -> Tensor<4> {
        let sizes = x.dims();
        let starts = match starts {
            [start] => vec![*start; sizes[0]],
            starts => starts.to_vec(),
        };
        let tables = tables.clone();
        let op = Rotate {
            tables,
            starts,
            sizes,
        };
        apply(op, [x.into()], sizes)
    }

    impl Rotate {
        fn turned(&self, turn: Turn, x: &[f32]) -> Buffer {
            let mut y = Buffer::of(x);
            let [_, seq, heads, dim] = self.sizes;
            let view = ViewMut {
                data: &mut y,
                strides: Strides::token_first(seq, heads, dim),
            };
            let tables = Tables {
                cos: &self.tables.cos,
                sin: &self.tables.sin,
            };
            kernel::rotate(turn, tables, &self.starts, view, self.sizes);
            y
        }
    }

    impl Op<1> for Rotate {
        type Saved = ();
        const KEEPS: [bool; 1] = [false];

        fn forward(&self, [x]: [&[f32]; 1], _keep: bool) -> (Buffer, ()) {
            (self.turned(Turn::Forward, x), ())
        }

        fn backward(&self, kept: Kept<'_, (), 1>) -> [Option<Buffer>; 1] {
            [Some(self.turned(Turn::Backward, kept.grad))]
        }
    }
}
