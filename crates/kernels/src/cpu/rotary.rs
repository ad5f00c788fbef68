//! Rotary position embedding (`RoPE`): rotates the pairs (i, i + half) of each head by an angle
//! proportional to the position.

use pulp::Simd;

use super::par::{self, Shared};
use super::simd::{Ops, dispatch, for_lanes, load_part, store_part};

/// Cosines and sines, `[positions, head_dim]` each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tables<'a> {
    /// Cosines.
    pub(crate) cos: &'a [f32],
    /// Sines.
    pub(crate) sin: &'a [f32],
}

/// Direction of the rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// `x * cos + (-second half, first half) * sin`.
    Forward,
    /// The transpose of `Forward`: maps the output gradient to the input gradient.
    Backward,
}

/// Rotates `x`, `[batch, seq, heads, head_dim]`, in place; token i of sequence b is at position
/// `position_offsets[b] + i`.
///
/// # Panics
/// If the lengths do not match the sizes, or the tables do not cover all positions.
pub(crate) fn rotate(
    direction: Direction,
    tables: Tables<'_>,
    position_offsets: &[usize],
    x: &mut [f32],
    [batch, seq, heads, dim]: [usize; 4],
) {
    assert!(dim.is_multiple_of(2) && tables.cos.len() == tables.sin.len());
    assert_eq!(position_offsets.len(), batch);
    let mut sizes = [batch, seq, heads, dim].into_iter();
    let len = sizes.try_fold(1_usize, usize::checked_mul);
    assert_eq!(len, Some(x.len()));
    let positions = tables.cos.len().checked_div(dim).unwrap_or(usize::MAX);
    let covered = |offset: &usize| offset.checked_add(seq).is_some_and(|end| end <= positions);
    assert!(
        position_offsets.iter().all(covered),
        "the tables must cover all positions"
    );
    if x.is_empty() {
        return;
    }
    let width = heads * dim;
    let x = Shared::new(x);
    par::for_each(batch * seq, width, |token| {
        let position = position_offsets[token / seq] + token % seq;
        let angles = position * dim..(position + 1) * dim;
        let (cos, sin) = (&tables.cos[angles.clone()], &tables.sin[angles]);
        // SAFETY: `x` has `width` elements per token, and tokens do not overlap.
        let x = unsafe { x.slice(token * width, width) };
        for head in x.chunks_exact_mut(dim) {
            rotate_row(direction, cos, sin, head);
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
