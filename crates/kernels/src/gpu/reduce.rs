//! Sums within a cube, without subgroup operations.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{buffer, empty, len};

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

/// The maximum of `value` over the units of a cube of [`ROW_UNITS`], for all of them.
#[cube]
pub(super) fn max_over_cube(value: f32) -> f32 {
    let mut parts = Shared::<[f32]>::new_slice(64usize);
    let mut maxima = Shared::<[f32]>::new_slice(8usize);
    let unit = UNIT_POS as usize;
    parts[unit] = value;
    sync_cube();
    if unit < 8 {
        let mut maximum = parts[unit * 8];
        for i in 1..8 {
            maximum = max(maximum, parts[unit * 8 + i]);
        }
        maxima[unit] = maximum;
    }
    sync_cube();
    let mut maximum = maxima[0];
    for i in 1..8 {
        maximum = max(maximum, maxima[i]);
    }
    maximum
}

/// The sum of all elements, `[1]`.
pub(super) fn total(parts: &CubeTensor) -> CubeTensor {
    let sum = empty(parts, [1]);
    let (cubes, units) = (CubeCount::new_single(), CubeDim::new_1d(ROW_UNITS));
    let (parts_arg, sum_arg) = (buffer(parts), buffer(&sum));
    sum_all::launch(&parts.client, cubes, units, parts_arg, sum_arg, len(parts));
    sum
}

#[cube(launch)]
fn sum_all(parts: &[f32], sum: &mut [f32], len: usize) {
    let mut part = 0.0f32;
    for i in range_stepped(UNIT_POS as usize, len, 64) {
        part += parts[i];
    }
    let all = sum_over_cube(part);
    if UNIT_POS == 0 {
        sum[0] = all;
    }
}
