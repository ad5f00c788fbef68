//! The cache-blocked loops around the micro-kernel, and the split of work between threads.

use super::operand::Operand;
use super::pack::PanelLayout;
use super::tile::{Init, MicroKernel, TileOut, TileRows};
use crate::cpu::matmul::isa::Isa;
use crate::cpu::matmul::matrix::MatRef;
use crate::cpu::matmul::par::{SharedMut, Threads, parallel_for};
use crate::cpu::matmul::scratch::with_scratch;

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

/// A batch of matrix products of one shape.
pub(crate) struct Problem<'a> {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) batch: usize,
    /// Returns the operands and the result of a batch index.
    pub(crate) item: &'a (dyn Fn(usize) -> Item<'a> + Sync),
    pub(crate) alpha: f32,
    pub(crate) accumulate: bool,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) bf16: bool,
    pub(crate) kernel: &'static MicroKernel,
    pub(crate) isa: Isa,
}

/// One matrix product of a batch.
pub(crate) struct Item<'a> {
    pub(crate) a: Operand<'a>,
    pub(crate) b: Operand<'a>,
    pub(crate) c: SharedMut,
    pub(crate) c_stride: usize,
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
    /// Computes all products of the batch.
    pub(crate) fn run(&self, threads: Threads) {
        if self.m == 0 || self.n == 0 || self.batch == 0 {
            return;
        }
        let macs = self.m * self.n * self.k.max(1) * self.batch;
        let workers = threads.workers(if macs < MIN_PARALLEL_MACS {
            1
        } else {
            usize::MAX
        });
        let min_tasks = match workers {
            1 => 1,
            _ if macs < SINGLE_TASK_MACS => workers.div_ceil(self.batch),
            _ => (2 * workers).div_ceil(self.batch),
        };
        let packs_a = self.direct_a(&(self.item)(0).a).is_none();
        let grid = Grid::new(self.m, self.n, min_tasks, workers, packs_a, self.kernel);
        let tasks = grid.count();
        parallel_for(workers, tasks * self.batch, &|t| {
            let item = (self.item)(t / tasks);
            self.compute_region(&item, &grid.region(t % tasks, self.m, self.n));
        });
    }

    /// Computes one region of one product.
    fn compute_region(&self, item: &Item<'_>, region: &Region) {
        let (kc, blocks) = k_blocks(self.k);
        let cols = region.cols.len().next_multiple_of(self.kernel.lanes);
        let direct = self.direct_a(&item.a);
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
                        Some(a) => RowSource::Direct(a),
                        None => {
                            self.pack_a(item, &rows, &k, a);
                            RowSource::Packed(a)
                        }
                    };
                    self.macro_kernel(item, &rows, &region.cols, &k, a, b);
                }
            }
        });
    }

    /// Returns A if the micro-kernel can read its rows in place, which makes packing unnecessary.
    fn direct_a<'a>(&self, a: &Operand<'a>) -> Option<MatRef<'a>> {
        match a {
            Operand::F32(a)
                if a.col_stride == 1 && !self.bf16 && self.kernel.supports_direct_rows() =>
            {
                Some(*a)
            }
            _ => None,
        }
    }

    fn pack_a(&self, item: &Item<'_>, rows: &Span, k: &Span, a: &mut [u32]) {
        let panels = PanelLayout {
            width: self.kernel.mr,
            pad: 1,
            format: self.kernel.format,
        };
        item.a.pack_rows(self.isa, rows, k, panels, self.bf16, a);
    }

    fn pack_b(&self, item: &Item<'_>, region: &Region, k: &Span, b: &mut [u32]) {
        let kernel = self.kernel;
        let panels = PanelLayout {
            width: kernel.nr,
            pad: kernel.lanes,
            format: kernel.format,
        };
        item.b
            .pack_cols(self.isa, &region.cols, k, panels, self.bf16, b);
    }

    /// Multiplies a block of rows by packed columns. A panel of B stays in the L1 cache while the
    /// panels of A are streamed through.
    fn macro_kernel(
        &self,
        item: &Item<'_>,
        rows: &Span,
        cols: &Span,
        k: &Span,
        a: RowSource<'_>,
        b: &[u32],
    ) {
        let MicroKernel { mr, nr, lanes, .. } = *self.kernel;
        let words = k.len().div_ceil(self.kernel.format.elements_per_word());
        for j in cols.clone().step_by(nr) {
            let used = nr.min(cols.end - j);
            let width = used.next_multiple_of(lanes);
            let b = &b[(j - cols.start) * words..][..width * words];
            for i in rows.clone().step_by(mr) {
                let height = mr.min(rows.end - i);
                let (direct, a) = match a {
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
                    c: item.c.get().wrapping_add(i * item.c_stride + j),
                    row_stride: item.c_stride,
                    cols: used,
                    alpha: self.alpha,
                    init: self.init(k.start, j),
                };
                // SAFETY: the machine supports the kernel (`Isa::clamp_to_machine`), panels and rows
                // have been bounds-checked above, and the region lies within the result.
                unsafe { self.kernel.tile(height, width, direct)(words, a, b.as_ptr(), &out) };
            }
        }
    }

    /// Returns the initial value that the block of k starting at `k0` is added to.
    fn init(&self, k0: usize, j: usize) -> Init {
        match self.bias {
            _ if k0 > 0 || self.accumulate => Init::Load,
            Some(bias) => Init::Bias(bias[j..].as_ptr()),
            None => Init::Zero,
        }
    }
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

/// Returns the length and number of blocks along k. There is at least one block, even for
/// `k == 0`, which writes the bias or zeros.
fn k_blocks(k: usize) -> (usize, usize) {
    let blocks = k.div_ceil(KC).max(1);
    // Even, so that a bf16 pair never straddles two blocks, and a multiple of the quantization block.
    let kc = k.div_ceil(blocks).next_multiple_of(32).max(1);
    (kc, k.div_ceil(kc).max(1))
}
