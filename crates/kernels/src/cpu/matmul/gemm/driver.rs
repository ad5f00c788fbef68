//! The cache-blocked loops around the micro-kernel, and the split of work between threads.

use super::block::Block;
use super::pack::pack_f32;
use super::tile::{Init, MicroKernel, TileOut, TileRows};
use crate::cpu::isa::Isa;
use crate::cpu::matmul::matrix::MatRef;
use crate::cpu::matmul::panel::PanelLayout;
use crate::cpu::par::{self, Shared};
use crate::cpu::scratch::{padded_len, with_task_scratch};

/// Maximum block length along k. Rounding depends on the block length, so it must depend only on
/// `k`: then an element is independent of threads and of the other rows and columns.
const KC: usize = 512;
/// Rows of A packed at a time: with `KC`, about a third of a 1 MB L2 cache.
const MC: usize = 144;
/// Maximum number of columns per task.
const NC: usize = 1024;
/// Below this number of multiply-adds, a second thread costs more than it saves.
const MIN_PARALLEL_MACS: usize = 1 << 18;
/// Below this number of multiply-adds, each thread gets one task, since smaller tasks would pack too
/// much for their size. Above it, each thread gets two, so that others can take over from a thread
/// that is delayed.
const SINGLE_TASK_MACS: usize = 1 << 26;

/// Cost of packing one element, in multiply-adds.
const PACK_COST: usize = 32;

/// One matrix product.
pub(crate) struct Problem<'a> {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) a: MatRef<'a>,
    pub(crate) b: MatRef<'a>,
    pub(crate) c: Shared<f32>,
    pub(crate) c_stride: usize,
    pub(crate) accumulate: bool,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) bf16: bool,
    pub(crate) kernel: &'static MicroKernel,
    pub(crate) isa: Isa,
    pub(crate) update: Option<Update<'a>>,
}

/// A second product that is added to the result, block by block while it is in a cache. Both operands A are read in
/// place.
#[derive(Clone, Copy)]
pub(crate) struct Update<'a> {
    pub(crate) a: MatRef<'a>,
    pub(crate) b: MatRef<'a>,
}

/// The block of a result that one task computes.
struct Region {
    rows: std::ops::Range<usize>,
    cols: std::ops::Range<usize>,
}

/// The tasks of one product: a grid of regions.
struct Grid {
    region_rows: usize,
    region_cols: usize,
    row_tasks: usize,
    col_tasks: usize,
}

impl Grid {
    /// Chooses the grid of at least `min_tasks` regions (if there is that much work) with the lowest
    /// estimated time on `workers` threads. Each region packs its own columns of B and, unless A is
    /// read in place, its own rows of A.
    fn new(
        m: usize,
        n: usize,
        min_tasks: usize,
        workers: usize,
        packs_a: bool,
        kernel: &MicroKernel,
    ) -> Self {
        let min_cols = n.div_ceil(NC);
        let max_cols = n.div_ceil(kernel.nr).min(min_tasks).max(min_cols);
        let candidates = (min_cols..=max_cols).map(|col_tasks| {
            let row_tasks = min_tasks.div_ceil(col_tasks).min(m.div_ceil(kernel.mr));
            let region_rows = m.div_ceil(row_tasks).next_multiple_of(kernel.mr);
            let region_cols = n.div_ceil(col_tasks).next_multiple_of(kernel.nr);
            Self {
                region_rows,
                region_cols,
                row_tasks: m.div_ceil(region_rows),
                col_tasks: n.div_ceil(region_cols),
            }
        });
        let cost = |grid: &Self| {
            let rounds = grid.count().div_ceil(workers);
            let packed = grid.region_cols + if packs_a { grid.region_rows } else { 0 };
            rounds * (grid.region_rows.min(m) * grid.region_cols.min(n) + PACK_COST * packed)
        };
        // There is always a candidate, since `min_cols <= max_cols`.
        candidates.min_by_key(cost).unwrap_or(Self {
            region_rows: m,
            region_cols: n,
            row_tasks: 1,
            col_tasks: 1,
        })
    }

    fn count(&self) -> usize {
        self.row_tasks * self.col_tasks
    }

    fn region(&self, index: usize, m: usize, n: usize) -> Region {
        let i = index % self.row_tasks * self.region_rows;
        let j = index / self.row_tasks * self.region_cols;
        Region {
            rows: i..m.min(i + self.region_rows),
            cols: j..n.min(j + self.region_cols),
        }
    }
}

impl Problem<'_> {
    /// Computes the product.
    ///
    /// # Safety
    /// `c` must point to `m` rows of `n` elements, `c_stride` apart, that do not overlap and that nothing
    /// else accesses during the call. `bias`, if any, must have `n` elements.
    pub(crate) unsafe fn run(&self) {
        if self.m == 0 || self.n == 0 {
            return;
        }
        let macs = self.m.saturating_mul(self.n).saturating_mul(self.k.max(1));
        let workers = if macs < MIN_PARALLEL_MACS {
            1
        } else {
            par::threads()
        };
        let min_tasks = match workers {
            1 => 1,
            _ if macs < SINGLE_TASK_MACS => workers,
            _ => 2 * workers,
        };
        let packs_a = !self.reads_a_directly();
        let grid = Grid::new(self.m, self.n, min_tasks, workers, packs_a, self.kernel);
        par::run(workers, grid.count(), &|t| {
            // SAFETY: the regions of a grid are within the result and do not overlap; the caller
            // guarantees that it is valid.
            unsafe { self.compute_region(&grid.region(t, self.m, self.n)) };
        });
    }

    /// Computes one region of the result.
    ///
    /// # Safety
    /// As for [`run`](Self::run). The region must be within the result, and nothing else may access it
    /// during the call.
    unsafe fn compute_region(&self, region: &Region) {
        let (kc, blocks) = k_blocks(self.k);
        let cols = region.cols.len().next_multiple_of(self.kernel.lanes);
        let direct = self.reads_a_directly();
        let rows = if direct { 0 } else { region.rows.len().min(MC) };
        let a_len = padded_len(rows * kc);
        let b_len = padded_len(cols * kc);
        let rank = self.update.map_or(0, |update| update.a.cols);
        with_task_scratch(a_len + b_len + cols * rank, |panels| {
            let (a, panels) = panels.split_at_mut(a_len);
            let (b, update_b) = panels.split_at_mut(b_len);
            if let Some(update) = &self.update {
                self.pack_b(&update.b, region, &(0..rank), update_b);
            }
            let update_b = &*update_b;
            for block in 0..blocks {
                let k = block * kc..self.k.min((block + 1) * kc);
                self.pack_b(&self.b, region, &k, b);
                let update = self.update.filter(|_| block + 1 == blocks);
                for i in region.rows.clone().step_by(MC) {
                    let rows = i..region.rows.end.min(i + MC);
                    let rows_of_a = if direct {
                        RowSource::Direct(self.a)
                    } else {
                        self.pack_a(&rows, &k, a);
                        RowSource::Packed(a)
                    };
                    let product = Term {
                        k: k.clone(),
                        a: rows_of_a,
                        b,
                        adds: k.start > 0 || self.accumulate,
                    };
                    let update = update.map(|update| Term {
                        k: 0..rank,
                        a: RowSource::Direct(update.a),
                        b: update_b,
                        adds: true,
                    });
                    // SAFETY: these rows and columns are within the region.
                    unsafe { self.macro_kernel(&rows, &region.cols, &product, update.as_ref()) };
                }
            }
        });
    }

    /// Returns whether the micro-kernel reads the rows of A in place, which makes packing unnecessary.
    pub(crate) fn reads_a_directly(&self) -> bool {
        self.a.col_stride == 1 && !self.bf16 && self.kernel.supports_direct_rows()
    }

    fn pack_a(&self, rows: &Span, k: &Span, a: &mut [u32]) {
        let panels = PanelLayout {
            width: self.kernel.mr,
            pad: 1,
            format: self.kernel.format,
        };
        let block = Block::from_rows(&self.a, rows, k);
        pack_f32(self.isa, &block, panels, self.bf16, a);
    }

    fn pack_b(&self, matrix: &MatRef<'_>, region: &Region, k: &Span, b: &mut [u32]) {
        let panels = PanelLayout {
            width: self.kernel.nr,
            pad: self.kernel.lanes,
            format: self.kernel.format,
        };
        let block = Block::from_rows(&matrix.t(), &region.cols, k);
        pack_f32(self.isa, &block, panels, self.bf16, b);
    }

    /// Multiplies a block of rows by packed columns, and adds the update if there is one. A panel of B stays in the L1
    /// cache while the panels of A are streamed through, and so does its part of the result for the update.
    ///
    /// # Safety
    /// As for [`run`](Self::run). The rows and columns must be within the result, and nothing else may
    /// access them during the call.
    unsafe fn macro_kernel(
        &self,
        rows: &Span,
        cols: &Span,
        product: &Term<'_>,
        update: Option<&Term<'_>>,
    ) {
        for j in cols.clone().step_by(self.kernel.nr) {
            // SAFETY: the caller guarantees the contract; `j` is one of the columns.
            unsafe {
                self.multiply_panel(rows, cols, j, product);
                if let Some(update) = update {
                    self.multiply_panel(rows, cols, j, update);
                }
            }
        }
    }

    /// Multiplies a block of rows by the panel of columns from `j` on.
    ///
    /// # Safety
    /// As for [`macro_kernel`](Self::macro_kernel); `j` must be one of the columns.
    unsafe fn multiply_panel(&self, rows: &Span, cols: &Span, j: usize, term: &Term<'_>) {
        let MicroKernel { mr, nr, lanes, .. } = *self.kernel;
        let k = &term.k;
        let words = k.len().div_ceil(self.kernel.format.elements_per_word());
        let used = nr.min(cols.end - j);
        let width = used.next_multiple_of(lanes);
        let b = &term.b[(j - cols.start) * words..][..width * words];
        for i in rows.clone().step_by(mr) {
            let height = mr.min(rows.end - i);
            let (direct, a) = match &term.a {
                RowSource::Packed(a) => {
                    let start = a[(i - rows.start) * words..][..height * words].as_ptr();
                    (false, TileRows { start, stride: 0 })
                }
                RowSource::Direct(a) => {
                    let end = (i + height - 1) * a.row_stride + k.end;
                    assert!(end <= a.data.len() || k.is_empty());
                    let start = a.data.as_ptr().wrapping_add(i * a.row_stride + k.start);
                    let (start, stride) = (start.cast(), a.row_stride);
                    (true, TileRows { start, stride })
                }
            };
            let out = TileOut {
                c: self.c.as_ptr().wrapping_add(i * self.c_stride + j),
                row_stride: self.c_stride,
                cols: used,
                init: self.init(term.adds, j),
            };
            // SAFETY: the machine supports the kernel (`Isa::clamp_to_current`), panels and rows
            // have been bounds-checked above, and the caller guarantees that rows and columns are
            // within the result.
            unsafe { self.kernel.tile(height, width, direct)(words, a, b.as_ptr(), &out) };
        }
    }

    /// Returns the initial value that a product is added to.
    fn init(&self, adds: bool, j: usize) -> Init {
        match self.bias {
            _ if adds => Init::Load,
            Some(bias) => Init::Bias(bias[j..].as_ptr()),
            None => Init::Zero,
        }
    }
}

/// A product of a block of rows and packed columns, over a block of k.
struct Term<'a> {
    k: Span,
    a: RowSource<'a>,
    /// The packed columns of B.
    b: &'a [u32],
    /// Whether it is added to the result.
    adds: bool,
}

/// Where the micro-kernel reads the rows of A.
#[derive(Clone, Copy)]
enum RowSource<'a> {
    /// From packed panels, in tile order.
    Packed(&'a [u32]),
    /// From A itself, contiguous along k.
    Direct(MatRef<'a>),
}

type Span = std::ops::Range<usize>;

/// Returns the length and number of blocks along k, whose sums are added one after the other. There is at least one block, even for
/// `k == 0`, which writes the bias or zeros.
pub(crate) fn k_blocks(k: usize) -> (usize, usize) {
    let blocks = k.div_ceil(KC).max(1);
    // Even, so that a bf16 pair never straddles two blocks.
    let kc = k.div_ceil(blocks).next_multiple_of(32).max(1);
    (kc, k.div_ceil(kc).max(1))
}
