//! Rotary position embedding (`RoPE`): rotates the pairs (i, i + half) of each head by an angle
//! proportional to the position.

use pulp::Simd;

use super::par;
use super::simd::{Ops, dispatch, for_lanes, load_part, store_part};
use super::view::{SharedViewMut, ViewMut};

/// Cosines and sines, `[positions, head_dim]` each.
#[derive(Clone, Copy, Debug)]
pub struct Tables<'a> {
    /// Cosines.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
}

/// Direction of the rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// `x * cos + (-second half, first half) * sin`.
    Forward,
    /// The transpose of `Forward`: maps the output gradient to the input gradient.
    Backward,
}

/// Rotates `x`, of sizes `[batch, seq, heads, head_dim]`, in place; token i of sequence b is at
/// position `position_offsets[b] + i` (empty: i).
pub fn rotate(
    direction: Direction,
    tables: Tables<'_>,
    position_offsets: &[usize],
    x: ViewMut<'_>,
    sizes @ [batch, seq, heads, dim]: [usize; 4],
) {
    assert!(dim % 2 == 0 && tables.cos.len() == tables.sin.len());
    assert!(position_offsets.is_empty() || position_offsets.len() == batch);
    let last = position_offsets.iter().copied().max().unwrap_or(0) + seq;
    assert!(
        batch == 0 || last * dim <= tables.cos.len(),
        "the tables must cover all positions"
    );
    let x = SharedViewMut::new(x, sizes);
    par::for_each(batch * seq, heads * dim, |token| {
        let (b, i) = (token / seq, token % seq);
        let position = position_offsets.get(b).copied().unwrap_or(0) + i;
        let angles = position * dim..(position + 1) * dim;
        let (cos, sin) = (&tables.cos[angles.clone()], &tables.sin[angles]);
        for head in 0..heads {
            // SAFETY: the indices are within the sizes that `SharedViewMut::new` checked, and
            // tokens do not overlap.
            let x = unsafe { std::slice::from_raw_parts_mut(x.tokens(b, head, i).ptr, dim) };
            rotate_row(direction, cos, sin, x);
        }
    });
}

dispatch!(fn rotate_row(direction: Direction, cos: &[f32], sin: &[f32], x: &mut [f32]) => body);

#[inline(always)]
fn body<S: Simd>(s: S, direction: Direction, cos: &[f32], sin: &[f32], x: &mut [f32]) {
    let half = x.len() / 2;
    assert!(cos.len() == 2 * half && sin.len() == 2 * half);
    let (low_ptr, cos, sin) = (x.as_mut_ptr(), cos.as_ptr(), sin.as_ptr());
    for_lanes!(s, half, |offset, part| {
        // SAFETY: `offset` and `part` stay within half a row; all three slices have two halves.
        unsafe {
            let high_ptr = low_ptr.add(half);
            let (low, high) = (
                load_part(s, low_ptr, offset, part),
                load_part(s, high_ptr, offset, part),
            );
            let sins = (
                load_part(s, sin, offset, part),
                load_part(s, sin.add(half), offset, part),
            );
            let to_low = match direction {
                Direction::Forward => s.neg_f32s(s.mul_f32s(high, sins.0)),
                Direction::Backward => s.mul_f32s(high, sins.1),
            };
            let to_high = match direction {
                Direction::Forward => s.mul_f32s(low, sins.1),
                Direction::Backward => s.neg_f32s(s.mul_f32s(low, sins.0)),
            };
            let low = s.fma(low, load_part(s, cos, offset, part), to_low);
            let high = s.fma(high, load_part(s, cos.add(half), offset, part), to_high);
            store_part(s, low_ptr, offset, part, low);
            store_part(s, high_ptr, offset, part, high);
        }
    });
}
