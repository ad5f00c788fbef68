//! Rotary position embedding (`RoPE`): rotates pairs of elements of each head by an angle
//! proportional to the position.

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};

/// Cosines and sines for every position, `[positions, head_dim]`. Pair `i` is the elements `i` and
/// `i + head_dim / 2` (the rotate-half layout), so both halves of a row are equal.
#[derive(Clone, Debug)]
pub struct RotaryTables {
    pub(crate) cos: Arc<Vec<f32>>,
    pub(crate) sin: Arc<Vec<f32>>,
    pub(crate) head_dim: usize,
}

impl RotaryTables {
    /// Creates tables for `positions` positions; `frequencies` are the rotation of each pair in
    /// radians per position.
    pub fn new(frequencies: &[f64], positions: usize) -> Self {
        let table = |function: fn(f64) -> f64| {
            let row = |position: usize| {
                let half = frequencies
                    .iter()
                    .map(move |f| function(position as f64 * f) as f32);
                half.clone().chain(half)
            };
            Arc::new((0..positions).flat_map(row).collect())
        };
        Self {
            cos: table(f64::cos),
            sin: table(f64::sin),
            head_dim: 2 * frequencies.len(),
        }
    }

    /// Gathers both tables as tensors, `[rows, seq, 1, head_dim]`, for rows whose first token is at
    /// `position_offsets[row]`.
    pub(crate) fn gather_rows(
        &self,
        position_offsets: &[usize],
        seq: usize,
        device: &Device,
    ) -> [Tensor<4>; 2] {
        [&self.cos, &self.sin].map(|table| {
            let width = self.head_dim;
            let rows = position_offsets
                .iter()
                .flat_map(|offset| &table[offset * width..(offset + seq) * width]);
            let data = TensorData::new(
                rows.copied().collect(),
                [position_offsets.len(), seq, 1, width],
            );
            Tensor::from_data(data, device)
        })
    }
}

/// Rotates `x`, `[batch, seq, heads, head_dim]`; token `i` of row `b` is at position
/// `position_offsets[b] + i`. A single offset applies to all rows.
///
/// # Example
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use nextword_kernels::{RotaryTables, rotate};
///
/// let device = Device::flex();
/// let quarter = std::f64::consts::FRAC_PI_2; // of a full turn per position
/// let tables = RotaryTables::new(&[quarter], 8);
/// let x = Tensor::<4>::from_floats([[[[1.0, 0.0]], [[1.0, 0.0]]]], &device); // [1, seq 2, 1, 2]
/// let y = rotate(x, &tables, &[1]); // tokens at positions 1 and 2
/// let expected = Tensor::from_floats([[[[0.0, 1.0]], [[-1.0, 0.0]]]], &device);
/// assert!(y.all_close(expected, None, Some(1e-6)));
/// ```
pub fn rotate(x: Tensor<4>, tables: &RotaryTables, position_offsets: &[usize]) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if crate::fused::is_flex_f32(&x) {
        return fast::rotate(x, tables, position_offsets);
    }
    crate::reference::rotate(x, tables, position_offsets)
}

#[cfg(feature = "flex")]
mod fast {
    use burn::tensor::Tensor;

    use super::RotaryTables;
    use crate::cpu::rotary::{self as kernel, Direction, Tables};
    use crate::fused::{BackwardContext, Buffer, Op, apply};

    #[derive(Clone, Debug)]
    struct Rotate {
        tables: RotaryTables,
        position_offsets: Vec<usize>,
        sizes: [usize; 4],
    }

    pub(super) fn rotate(
        x: Tensor<4>,
        tables: &RotaryTables,
        position_offsets: &[usize],
    ) -> Tensor<4> {
        let sizes = x.dims();
        let position_offsets = match position_offsets {
            [offset] => vec![*offset; sizes[0]],
            position_offsets => position_offsets.to_vec(),
        };
        let tables = tables.clone();
        let op = Rotate {
            tables,
            position_offsets,
            sizes,
        };
        apply(op, [x.into()], sizes)
    }

    impl Rotate {
        fn rotated(&self, direction: Direction, x: &[f32]) -> Buffer {
            let mut y = Buffer::from_slice(x);
            let tables = Tables {
                cos: &self.tables.cos,
                sin: &self.tables.sin,
            };
            kernel::rotate(
                direction,
                tables,
                &self.position_offsets,
                &mut y,
                self.sizes,
            );
            y
        }
    }

    impl Op<1> for Rotate {
        type Saved = ();
        const SAVES_INPUT: [bool; 1] = [false];

        fn forward(&self, [x]: [&[f32]; 1], _requires_grad: bool) -> (Buffer, ()) {
            (self.rotated(Direction::Forward, x), ())
        }

        fn backward(&self, ctx: BackwardContext<'_, (), 1>) -> [Option<Buffer>; 1] {
            [Some(self.rotated(Direction::Backward, ctx.grad))]
        }
    }
}
