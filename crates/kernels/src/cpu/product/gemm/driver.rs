//! The blocked loops around the tiles, and the division of the work between threads.

use super::operand::Operand;
use super::pack::Panels;
use super::tile::{Init, Kernel, TileOut, TileRows};
use crate::cpu::product::isa::Isa;
use crate::cpu::product::matrix::MatRef;
use crate::cpu::product::par::{SharedMut, Threads, run};
use crate::cpu::product::scratch::with_scratch;

/// Values along k in a block, at most. Rounding depends on it, so it must depend on nothing but
/// `k`: then neither threads nor the other rows and columns influence an element.
const KC: usize = 512;
/// Rows of A packed at a time: with `KC` about a third of a 1 MB L2 cache.
const MC: usize = 144;
/// Columns of a task, at most.
const NC: usize = 1024;
/// Below this many multiplications a second thread costs more than it saves.
const SERIAL: usize = 1 << 18;
/// Below this many, each thread gets one task: a smaller one would pack too much for its size.
/// Above, two, so that a thread that is held up leaves the rest to the others.
const ONE_TASK: usize = 1 << 26;

/// Packing one value takes as long as so many multiplications.
const PACKING: usize = 32;

/// A batch of products of one shape.
pub(crate) struct Problem<'a> {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) batch: usize,
    /// Operands and result of an index of the batch.
    pub(crate) item: &'a (dyn Fn(usize) -> Item<'a> + Sync),
    pub(crate) alpha: f32,
    pub(crate) accumulate: bool,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) bf16: bool,
    pub(crate) kernel: &'static Kernel,
    pub(crate) isa: Isa,
}

/// One product of a batch.
pub(crate) struct Item<'a> {
    pub(crate) a: Operand<'a>,
    pub(crate) b: Operand<'a>,
    pub(crate) c: SharedMut,
    pub(crate) c_stride: usize,
}

/// A part of a result that one thread computes.
struct Region {
    rows: std::ops::Range<usize>,
    cols: std::ops::Range<usize>,
}

/// The tasks of one product: a grid of regions.
struct Grid {
    rows: usize,
    cols: usize,
    down: usize,
    across: usize,
}

impl Grid {
    /// At least `wanted` regions, if there is work for so many, divided so that the slowest of
    /// `workers` threads is done first: each region packs its columns of B (and, unless A is read
    /// where it lies, its rows of A) for itself.
    fn new(m: usize, n: usize, wanted: usize, workers: usize, packs_a: bool, k: &Kernel) -> Self {
        let least = n.div_ceil(NC);
        let most = n.div_ceil(k.nr).min(wanted).max(least);
        let grids = (least..=most).map(|across| {
            let down = wanted.div_ceil(across).min(m.div_ceil(k.mr));
            let rows = m.div_ceil(down).next_multiple_of(k.mr);
            let cols = n.div_ceil(across).next_multiple_of(k.nr);
            Self {
                rows,
                cols,
                down: m.div_ceil(rows),
                across: n.div_ceil(cols),
            }
        });
        let cost = |grid: &Self| {
            let turns = grid.count().div_ceil(workers);
            let packed = grid.cols + if packs_a { grid.rows } else { 0 };
            turns * (grid.rows.min(m) * grid.cols.min(n) + PACKING * packed)
        };
        // There is at least one: `least` is at most `most`.
        grids.min_by_key(cost).unwrap_or(Self {
            rows: m,
            cols: n,
            down: 1,
            across: 1,
        })
    }

    fn count(&self) -> usize {
        self.down * self.across
    }

    fn region(&self, index: usize, m: usize, n: usize) -> Region {
        let (i, j) = (index % self.down * self.rows, index / self.down * self.cols);
        Region {
            rows: i..m.min(i + self.rows),
            cols: j..n.min(j + self.cols),
        }
    }
}

impl Problem<'_> {
    /// Computes all products.
    pub(crate) fn run(&self, threads: Threads) {
        if self.m == 0 || self.n == 0 || self.batch == 0 {
            return;
        }
        let work = self.m * self.n * self.k.max(1) * self.batch;
        let workers = threads.workers(if work < SERIAL { 1 } else { usize::MAX });
        let wanted = match workers {
            1 => 1,
            _ if work < ONE_TASK => workers.div_ceil(self.batch),
            _ => (2 * workers).div_ceil(self.batch),
        };
        let packs_a = self.rows_as_they_lie(&(self.item)(0).a).is_none();
        let grid = Grid::new(self.m, self.n, wanted, workers, packs_a, self.kernel);
        let tasks = grid.count();
        run(workers, tasks * self.batch, &|t| {
            let item = (self.item)(t / tasks);
            self.region(&item, &grid.region(t % tasks, self.m, self.n));
        });
    }

    /// Computes one region of one product.
    fn region(&self, item: &Item<'_>, region: &Region) {
        let (kc, blocks) = k_blocks(self.k);
        let cols = region.cols.len().next_multiple_of(self.kernel.lanes);
        let direct = self.rows_as_they_lie(&item.a);
        let rows = match direct {
            Some(_) => 0,
            None => region.rows.len().min(MC),
        };
        with_scratch(rows * kc, cols * kc, |a, b| {
            for block in 0..blocks {
                let k = block * kc..self.k.min((block + 1) * kc);
                self.pack_b(item, region, &k, b);
                for i in region.rows.clone().step_by(MC) {
                    let rows = i..region.rows.end.min(i + MC);
                    let a = match direct {
                        Some(a) => Rows::Direct(a),
                        None => {
                            self.pack_a(item, &rows, &k, a);
                            Rows::Packed(a)
                        }
                    };
                    self.macro_tile(item, &rows, &region.cols, &k, a, b);
                }
            }
        });
    }

    /// A, where the tiles can read its rows in place: then packing would only cost time.
    fn rows_as_they_lie<'a>(&self, a: &Operand<'a>) -> Option<MatRef<'a>> {
        match a {
            Operand::F32(a) if a.col_stride == 1 && !self.bf16 && self.kernel.reads_rows() => {
                Some(*a)
            }
            _ => None,
        }
    }

    fn pack_a(&self, item: &Item<'_>, rows: &Span, k: &Span, a: &mut [u32]) {
        let panels = Panels {
            width: self.kernel.mr,
            pad: 1,
            format: self.kernel.format,
        };
        item.a.pack_rows(self.isa, rows, k, panels, self.bf16, a);
    }

    fn pack_b(&self, item: &Item<'_>, region: &Region, k: &Span, b: &mut [u32]) {
        let kernel = self.kernel;
        let panels = Panels {
            width: kernel.nr,
            pad: kernel.lanes,
            format: kernel.format,
        };
        item.b
            .pack_cols(self.isa, &region.cols, k, panels, self.bf16, b);
    }

    /// Multiplies packed rows by packed columns: a panel of B stays in the nearest cache while
    /// the panels of A pass by.
    fn macro_tile(
        &self,
        item: &Item<'_>,
        rows: &Span,
        cols: &Span,
        k: &Span,
        a: Rows<'_>,
        b: &[u32],
    ) {
        let Kernel { mr, nr, lanes, .. } = *self.kernel;
        let words = k.len().div_ceil(self.kernel.format.values());
        for j in cols.clone().step_by(nr) {
            let used = nr.min(cols.end - j);
            let width = used.next_multiple_of(lanes);
            let b = &b[(j - cols.start) * words..][..width * words];
            for i in rows.clone().step_by(mr) {
                let height = mr.min(rows.end - i);
                let (direct, a) = match a {
                    Rows::Packed(a) => {
                        let start = a[(i - rows.start) * words..][..height * words].as_ptr();
                        (false, TileRows { start, stride: 0 })
                    }
                    Rows::Direct(a) => {
                        let last = (i + height - 1) * a.row_stride + k.end;
                        assert!(last <= a.data.len() || k.is_empty());
                        let start = a.data.as_ptr().wrapping_add(i * a.row_stride + k.start);
                        let (start, stride) = (start.cast(), a.row_stride);
                        (true, TileRows { start, stride })
                    }
                };
                let out = TileOut {
                    c: item.c.get().wrapping_add(i * item.c_stride + j),
                    row_stride: item.c_stride,
                    cols: used,
                    alpha: self.alpha,
                    init: self.init(k.start, j),
                };
                // SAFETY: the kernel fits the machine (`Isa::clamp_to_machine`), panels and rows
                // have just been checked, and the region lies within the result.
                unsafe { self.kernel.tile(height, width, direct)(words, a, b.as_ptr(), &out) };
            }
        }
    }

    /// What the block of k that starts at `k0` adds its product to.
    fn init(&self, k0: usize, j: usize) -> Init {
        match self.bias {
            _ if k0 > 0 || self.accumulate => Init::Load,
            Some(bias) => Init::Bias(bias[j..].as_ptr()),
            None => Init::Zero,
        }
    }
}

/// Where the rows of A are read.
#[derive(Clone, Copy)]
enum Rows<'a> {
    /// In panels, in the order of the tiles.
    Packed(&'a [u32]),
    /// In A itself, contiguous along k.
    Direct(MatRef<'a>),
}

type Span = std::ops::Range<usize>;

/// The length of the blocks of k, and their number. At least one block, even for `k == 0`: it
/// writes the bias or the zeros.
fn k_blocks(k: usize) -> (usize, usize) {
    let blocks = k.div_ceil(KC).max(1);
    // Even, so that pairs never straddle two blocks; a multiple of the quantization block too.
    let kc = k.div_ceil(blocks).next_multiple_of(32).max(1);
    (kc, k.div_ceil(kc).max(1))
}
