//! Products of large matrices: one cube for each tile of the output, whose units hold its elements in registers.
//! Both factors pass through shared memory in strips of the inner dimension.
//!
//! Unit `(y, x)` of the 16 x 16 units of a cube computes the rows `y + 16 i` and the columns `x + 16 j` of the
//! tile. Each element is one sum in the order of the inner dimension, whatever the size of the tiles, and on software
//! adapters the sum of such sums over parts of it.

use std::ops::Range;

use burn_cubecl::tensor::CubeTensor;
use cubecl::features::Plane;
use cubecl::prelude::*;

use super::epilogue::{Addends, Epilogue, activated, added};
use crate::gpu::launch::{buffer, empty, per_cube};

/// Units per cube.
const UNITS: u32 = 256;
/// Tiles that keep a GPU busy; with fewer, tiles are smaller.
const MIN_TILES: usize = 96;
/// Tiles that keep the cores of a CPU busy.
const MIN_TILES_SOFTWARE: usize = 4;
/// Elements of the inner dimension in one launch on software adapters. Mesa's silently ends the loops of a program
/// after 65,535 rounds, all loops together; an element takes one round for the products, one for the sums of a factor,
/// and at most an eighth of one to be loaded.
const MAX_INNER_SOFTWARE: usize = 1 << 14;

/// Shape and layout of a product `a b`, `[m, n]`.
#[derive(Clone, Copy, Debug)]
pub(in crate::gpu) struct MatrixProduct {
    pub(in crate::gpu) m: usize,
    pub(in crate::gpu) n: usize,
    pub(in crate::gpu) k: usize,
    /// Whether `a` is stored as `[k, m]`.
    pub(in crate::gpu) is_a_transposed: bool,
    /// Whether `b` is stored as `[n, k]`.
    pub(in crate::gpu) is_b_transposed: bool,
}

/// A factor whose sums over the inner dimension are wanted, too: the gradient of a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::gpu) enum Summed {
    A,
    B,
}

/// Where a product goes.
#[derive(Clone, Copy, Debug)]
pub(in crate::gpu) struct Target<'a> {
    pub(in crate::gpu) y: &'a CubeTensor,
    /// Where the sums of a factor go.
    pub(in crate::gpu) sums: Option<&'a CubeTensor>,
    pub(in crate::gpu) summed: Option<Summed>,
    /// Whether product and sums are added to what is there.
    pub(in crate::gpu) accumulates: bool,
}

impl<'a> Target<'a> {
    /// The product alone, which replaces the elements of `y`.
    pub(in crate::gpu) fn new(y: &'a CubeTensor) -> Self {
        Self {
            y,
            sums: None,
            summed: None,
            accumulates: false,
        }
    }
}

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Program {
    /// Rows and columns of a unit; a tile has 16 times as many.
    side: usize,
    is_a_transposed: bool,
    is_b_transposed: bool,
    epilogue: Epilogue,
    /// Whether the elements before the activation are written, too.
    keeps_input: bool,
    summed: Option<Summed>,
    accumulates: bool,
}

/// Whether the device is a GPU: `CubeCL` offers subgroup operations on them, but not on software adapters.
fn is_gpu(like: &CubeTensor) -> bool {
    like.client.properties().features.plane.contains(Plane::Ops)
}

impl MatrixProduct {
    /// Rows and columns per unit: the larger, the less is read; but enough tiles are needed.
    fn side(&self, like: &CubeTensor) -> usize {
        let min_tiles = if is_gpu(like) {
            MIN_TILES
        } else {
            MIN_TILES_SOFTWARE
        };
        let tiles = |side: usize| self.m.div_ceil(16 * side) * self.n.div_ceil(16 * side);
        let mut sides = [8, 4].into_iter();
        sides.find(|side| tiles(*side) >= min_tiles).unwrap_or(2)
    }

    fn program(&self, like: &CubeTensor) -> Program {
        Program {
            side: self.side(like),
            is_a_transposed: self.is_a_transposed,
            is_b_transposed: self.is_b_transposed,
            epilogue: Epilogue::default(),
            keeps_input: false,
            summed: None,
            accumulates: false,
        }
    }

    /// `activation(a b + bias + addend)` in `shape`, and what the activation was applied to, if
    /// `keeps_input`.
    pub(in crate::gpu) fn run(
        &self,
        [a, b]: [&CubeTensor; 2],
        [bias, addend]: Addends<'_>,
        epilogue: Epilogue,
        keeps_input: bool,
        shape: &[usize],
    ) -> (CubeTensor, Option<CubeTensor>) {
        let y = empty(a, shape.to_vec());
        let input = keeps_input.then(|| empty(a, shape.to_vec()));
        let program = Program {
            epilogue,
            keeps_input,
            ..self.program(a)
        };
        let extra = input.clone().unwrap_or_else(|| empty(a, [1]));
        let (bias, addend) = (bias.unwrap_or(a), addend.unwrap_or(a));
        self.launch([a, b, bias, addend], [&y, &extra], program);
        (y, input)
    }

    /// `a b` in `shape`, and the sums of a factor over the inner dimension.
    pub(in crate::gpu) fn run_with_sums(
        &self,
        [a, b]: [&CubeTensor; 2],
        summed: Option<Summed>,
        shape: &[usize],
    ) -> (CubeTensor, Option<CubeTensor>) {
        let len = match summed {
            Some(Summed::A) => self.m,
            Some(Summed::B) => self.n,
            None => 1,
        };
        let (y, sums) = (empty(a, shape.to_vec()), empty(a, [len]));
        let target = Target {
            sums: Some(&sums),
            summed,
            ..Target::new(&y)
        };
        self.run_into([a, b], None, &target);
        (y, summed.map(|_| sums))
    }

    /// `a b + bias`.
    pub(in crate::gpu) fn run_into(
        &self,
        [a, b]: [&CubeTensor; 2],
        bias: Option<&CubeTensor>,
        target: &Target<'_>,
    ) {
        let program = Program {
            epilogue: Epilogue {
                has_bias: bias.is_some(),
                ..Epilogue::default()
            },
            summed: target.summed,
            accumulates: target.accumulates,
            ..self.program(a)
        };
        let unused = target.sums.is_none().then(|| empty(a, [1]));
        let sums = target.sums.or(unused.as_ref()).unwrap_or(target.y);
        self.launch([a, b, bias.unwrap_or(a), a], [target.y, sums], program);
    }

    /// Launches the program, for parts of the inner dimension if it is too long. Each part is added to those before
    /// it, and the last one ends with the epilogue.
    fn launch(&self, inputs: [&CubeTensor; 4], outputs: [&CubeTensor; 2], program: Program) {
        let len = if is_gpu(inputs[0]) {
            self.k
        } else {
            MAX_INNER_SOFTWARE
        };
        for begin in (0..self.k).step_by(len) {
            let end = self.k.min(begin + len);
            let is_last = end == self.k;
            let epilogue = if is_last {
                program.epilogue
            } else {
                Epilogue::default()
            };
            let part = Program {
                epilogue,
                keeps_input: program.keeps_input && is_last,
                accumulates: program.accumulates || begin > 0,
                ..program
            };
            self.launch_part(inputs, outputs, begin..end, part);
        }
    }

    fn launch_part(
        &self,
        [a, b, bias, addend]: [&CubeTensor; 4],
        [y, extra]: [&CubeTensor; 2],
        inner: Range<usize>,
        program: Program,
    ) {
        let tile = 16 * program.side;
        let tiles = self.m.div_ceil(tile) * self.n.div_ceil(tile);
        if let Some(cubes) = per_cube(a, tiles) {
            multiply::launch(
                &a.client,
                cubes,
                CubeDim::new_1d(UNITS),
                buffer(a),
                buffer(b),
                buffer(bias),
                buffer(addend),
                buffer(y),
                buffer(extra),
                self.m,
                self.n,
                self.k,
                inner.start,
                inner.end,
                program,
            );
        }
    }
}

#[cube(launch)]
#[allow(clippy::too_many_lines)] // One program, whose parts share registers.
#[allow(clippy::collapsible_if)] // What is compiled, and then a condition in the program.
fn multiply(
    a: &[f32],
    b: &[f32],
    bias: &[f32],
    addend: &[f32],
    y: &mut [f32],
    extra: &mut [f32],
    m: usize,
    n: usize,
    k: usize,
    first_inner: usize,
    end_inner: usize,
    #[comptime] program: Program,
) {
    let side = comptime!(program.side);
    let tile = comptime!(16 * side);
    let depth = comptime!(64 / side);
    let stride = comptime!(tile + 1);
    let across = n.div_ceil(tile);
    let (first_row, first_column) = (CUBE_POS / across * tile, CUBE_POS % across * tile);
    if first_row >= m {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let (unit_y, unit_x) = (unit / 16, unit % 16);
    let mut a_strip = Shared::<[f32]>::new_slice(comptime!(depth * stride));
    let mut b_strip = Shared::<[f32]>::new_slice(comptime!(depth * stride));
    let mut sums = Array::<f32>::new(comptime!(side * side));
    let mut right = Array::<f32>::new(comptime!(side));
    let mut factor_sum = 0.0f32;
    #[unroll]
    for i in 0..comptime!(side * side) {
        sums[i] = 0.0f32;
    }
    for begin in range_stepped(first_inner, end_inner, depth) {
        sync_cube();
        let is_a_contiguous = comptime!(!program.is_a_transposed);
        load(
            a,
            &mut a_strip,
            first_row,
            m,
            begin,
            k,
            side,
            is_a_contiguous,
        );
        load(
            b,
            &mut b_strip,
            first_column,
            n,
            begin,
            k,
            side,
            comptime!(program.is_b_transposed),
        );
        sync_cube();
        for inner in 0..depth {
            #[unroll]
            for j in 0..side {
                right[j] = b_strip[inner * stride + unit_x + 16 * j];
            }
            #[unroll]
            for i in 0..side {
                let left = a_strip[inner * stride + unit_y + 16 * i];
                #[unroll]
                for j in 0..side {
                    sums[i * side + j] += left * right[j];
                }
            }
        }
        if comptime!(program.summed == Some(Summed::A)) {
            if unit < tile && first_column == 0 {
                for inner in 0..depth {
                    factor_sum += a_strip[inner * stride + unit];
                }
            }
        }
        if comptime!(program.summed == Some(Summed::B)) {
            if unit < tile && first_row == 0 {
                for inner in 0..depth {
                    factor_sum += b_strip[inner * stride + unit];
                }
            }
        }
    }
    if comptime!(program.summed == Some(Summed::A)) {
        if unit < tile && first_column == 0 && first_row + unit < m {
            let at = first_row + unit;
            if comptime!(program.accumulates) {
                factor_sum += extra[at];
            }
            extra[at] = factor_sum;
        }
    }
    if comptime!(program.summed == Some(Summed::B)) {
        if unit < tile && first_row == 0 && first_column + unit < n {
            let at = first_column + unit;
            if comptime!(program.accumulates) {
                factor_sum += extra[at];
            }
            extra[at] = factor_sum;
        }
    }
    #[unroll]
    for i in 0..side {
        let row = first_row + unit_y + 16 * i;
        #[unroll]
        for j in 0..side {
            let column = first_column + unit_x + 16 * j;
            if row < m && column < n {
                let at = row * n + column;
                let epilogue = comptime!(program.epilogue);
                let mut product = sums[i * side + j];
                if comptime!(program.accumulates) {
                    product += y[at];
                }
                let sum = added(product, bias, addend, at, column, epilogue);
                if comptime!(program.keeps_input) {
                    extra[at] = sum;
                }
                y[at] = activated(sum, epilogue);
            }
        }
    }
}

/// Copies the strip `begin..begin + 64 / side` of the inner dimension of `16 side` rows, or columns, of a
/// factor from `first` on, of which there are `len`; 0 beyond the ends.
#[cube]
fn load(
    source: &[f32],
    strip: &mut Shared<[f32]>,
    first: usize,
    len: usize,
    begin: usize,
    k: usize,
    #[comptime] side: usize,
    #[comptime] is_inner_contiguous: bool,
) {
    let tile = comptime!(16 * side);
    let depth = comptime!(64 / side);
    #[unroll]
    for i in 0..4usize {
        let element = i * 256 + UNIT_POS as usize;
        let mut outer = element % tile;
        let mut inner = element / tile;
        if comptime!(is_inner_contiguous) {
            outer = element / depth;
            inner = element % depth;
        }
        let mut value = 0.0f32;
        if first + outer < len && begin + inner < k {
            if comptime!(is_inner_contiguous) {
                value = source[(first + outer) * k + begin + inner];
            } else {
                value = source[(begin + inner) * len + first + outer];
            }
        }
        strip[inner * (tile + 1) + outer] = value;
    }
}
