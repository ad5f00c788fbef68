//! Rotary position embedding, from tables that stay on the device.

use burn::tensor::Tensor;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::apply::{BackwardContext, Op, apply, primitive};
use super::launch::{buffer, empty_like, len, per_element, upload_recent};
use crate::RotaryTables;

#[derive(Clone, Debug)]
struct Rotate {
    cos: CubeTensor,
    sin: CubeTensor,
    /// Position of the first token: of each row, or of all rows.
    offsets: Vec<usize>,
    /// `[batch, seq, heads, head_dim]`.
    sizes: [usize; 4],
}

pub(crate) fn rotate(x: Tensor<4>, tables: &RotaryTables, offsets: &[usize]) -> Tensor<4> {
    let [cos, sin] = tables.on_device(&x.device().without_autodiff());
    let op = Rotate {
        cos: primitive(cos),
        sin: primitive(sin),
        offsets: match offsets {
            [first, rest @ ..] if rest.iter().all(|offset| offset == first) => vec![*first],
            offsets => offsets.to_vec(),
        },
        sizes: x.dims(),
    };
    apply(op, [x.into()])
}

impl Rotate {
    /// Rotates by the angles of the tables times `direction`, 1 or -1.
    fn rotated(&self, x: &CubeTensor, direction: f32) -> CubeTensor {
        let y = empty_like(x);
        let [_, seq, heads, head_dim] = self.sizes;
        let Some((cubes, units)) = per_element(x, len(x) / 2) else {
            return y;
        };
        let args = [x, &self.cos, &self.sin, &y].map(buffer);
        let [x_arg, cos, sin, y_arg] = args;
        let client = &x.client;
        if let [offset] = self.offsets[..] {
            let layout = LayoutLaunch::new(seq, heads, head_dim / 2, direction);
            rotate_all::launch(client, cubes, units, x_arg, cos, sin, y_arg, layout, offset);
        } else {
            let offsets: Vec<u32> = self.offsets.iter().map(|offset| *offset as u32).collect();
            let rows = buffer(&upload_recent(x, &offsets));
            let layout = LayoutLaunch::new(seq, heads, head_dim / 2, direction);
            rotate_rows::launch(client, cubes, units, x_arg, cos, sin, y_arg, rows, layout);
        }
        y
    }
}

impl Op<1> for Rotate {
    type Saved = ();
    const SAVES_INPUT: [bool; 1] = [false];

    fn forward(&self, [x]: [&CubeTensor; 1], _: [bool; 1]) -> (CubeTensor, ()) {
        (self.rotated(x, 1.0), ())
    }

    fn backward(&self, ctx: BackwardContext<(), 1>) -> [Option<CubeTensor>; 1] {
        [Some(self.rotated(&ctx.grad, -1.0))]
    }
}

/// Sizes of the tensor, and the direction of rotation.
#[derive(CubeType, CubeLaunch)]
struct Layout {
    seq: usize,
    heads: usize,
    half: usize,
    direction: f32,
}

#[cube(launch)]
fn rotate_all(x: &[f32], cos: &[f32], sin: &[f32], y: &mut [f32], layout: Layout, offset: usize) {
    if 2 * ABSOLUTE_POS < y.len() {
        rotate_pair(x, cos, sin, y, &layout, offset);
    }
}

#[cube(launch)]
fn rotate_rows(
    x: &[f32],
    cos: &[f32],
    sin: &[f32],
    y: &mut [f32],
    offsets: &[u32],
    layout: Layout,
) {
    if 2 * ABSOLUTE_POS < y.len() {
        let row = ABSOLUTE_POS / (layout.half * layout.heads * layout.seq);
        rotate_pair(x, cos, sin, y, &layout, offsets[row] as usize);
    }
}

/// Rotates the pair of this unit in a row whose first token is at position `offset`.
#[cube]
fn rotate_pair(x: &[f32], cos: &[f32], sin: &[f32], y: &mut [f32], layout: &Layout, offset: usize) {
    let (head, pair) = (ABSOLUTE_POS / layout.half, ABSOLUTE_POS % layout.half);
    let position = offset + head / layout.heads % layout.seq;
    let angle = position * 2 * layout.half + pair;
    let (cos, sin) = (cos[angle], sin[angle] * layout.direction);
    let first = head * 2 * layout.half + pair;
    let second = first + layout.half;
    let (a, b) = (x[first], x[second]);
    y[first] = a * cos - b * sin;
    y[second] = b * cos + a * sin;
}
