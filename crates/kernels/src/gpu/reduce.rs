//! Sums within a cube, without subgroup operations.

use cubecl::prelude::*;

/// Units of a cube that reduces one row.
pub(super) const ROW_UNITS: u32 = 64;

/// The sum of `value` over the units of a cube of [`ROW_UNITS`], for all of them. Two stages of eight:
/// fewer barriers than a tree. It may be called repeatedly.
#[cube]
pub(super) fn sum_over_cube(value: f32) -> f32 {
    let mut parts = Shared::<[f32]>::new_slice(64usize);
    let mut totals = Shared::<[f32]>::new_slice(8usize);
    let unit = UNIT_POS as usize;
    parts[unit] = value;
    sync_cube();
    if unit < 8 {
        let mut sum = 0.0f32;
        for i in 0..8 {
            sum += parts[unit * 8 + i];
        }
        totals[unit] = sum;
    }
    sync_cube();
    let mut sum = 0.0f32;
    for i in 0..8 {
        sum += totals[i];
    }
    sum
}
