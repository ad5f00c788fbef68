//! Rotary position embedding (`RoPE`): rotates pairs of elements of each head by an angle
//! proportional to the position.

use burn::tensor::Tensor;

use crate::RotaryTables;

/// Rotates `x`, `[batch, seq, heads, head_dim]`; token `i` of row `b` is at position
/// `position_offsets[b] + i`. A single offset applies to all rows.
///
/// # Panics
/// If `x` and the tables differ in head size, the tables do not cover all positions, or the number of
/// offsets is neither 1 nor that of the rows.
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
    let [batch, seq, _, head_dim] = x.dims();
    tables.check(head_dim, position_offsets, seq);
    let offsets = position_offsets.len();
    assert!(
        offsets == 1 || offsets == batch,
        "{offsets} position offsets for {batch} rows"
    );
    #[cfg(feature = "flex")]
    if crate::fused::is_flex_f32(&x) {
        return fast::rotate(x, tables, position_offsets);
    }
    #[cfg(feature = "gpu")]
    if crate::gpu::is_gpu_f32(&x) {
        return crate::gpu::rotary::rotate(x, tables, position_offsets);
    }
    crate::reference::rotate(x, tables, position_offsets)
}

#[cfg(feature = "flex")]
mod fast {
    use burn::tensor::Tensor;

    use crate::RotaryTables;
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

        fn forward(&self, [x]: [&[f32]; 1], _needs_grad: [bool; 1]) -> (Buffer, ()) {
            (self.rotated(Direction::Forward, x), ())
        }

        fn backward(&self, ctx: BackwardContext<'_, (), 1>) -> [Option<Buffer>; 1] {
            [Some(self.rotated(Direction::Backward, ctx.grad))]
        }
    }
}
