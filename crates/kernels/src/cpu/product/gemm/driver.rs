//! The blocked loops around the tiles, and the division of the work between threads.

use super::operand::Operand;
use super::pack::Panels;
use super::tile::{Init, Kernel, TileOut};
use crate::cpu::product::isa::Isa;
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
    /// Regions as large as possible (each packs its operands for itself), but at least
    /// `wanted` of them as long as they stay worth packing for.
    fn new(m: usize, n: usize, wanted: usize, kernel: &Kernel) -> Self {
        let (mut down, mut across) = (1, n.div_ceil(NC));
        while down * across < wanted {
            let (height, width) = (m.div_ceil(down), n.div_ceil(across));
            if height >= width && height >= 8 * kernel.mr {
                down += 1;
            } else if width >= 4 * kernel.nr {
                across += 1;
            } else if height >= 4 * kernel.mr {
                down += 1;
            } else {
                break;
            }
        }
        let rows = m.div_ceil(down).next_multiple_of(kernel.mr);
        let cols = n.div_ceil(across).next_multiple_of(kernel.nr);
        Self {
            rows,
            cols,
            down: m.div_ceil(rows),
            across: n.div_ceil(cols),
        }
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
        let grid = Grid::new(self.m, self.n, wanted, self.kernel);
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
        let rows = region.rows.len().min(MC);
        with_scratch(rows * kc, cols * kc, |a, b| {
            for block in 0..blocks {
                let k = block * kc..self.k.min((block + 1) * kc);
                self.pack_b(item, region, &k, b);
                for i in region.rows.clone().step_by(MC) {
                    let rows = i..region.rows.end.min(i + MC);
                    self.pack_a(item, &rows, &k, a);
                    self.macro_tile(item, &rows, &region.cols, &k, a, b);
                }
            }
        });
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
        a: &[u32],
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
                let a = &a[(i - rows.start) * words..][..height * words];
                let out = TileOut {
                    c: item.c.get().wrapping_add(i * item.c_stride + j),
                    row_stride: item.c_stride,
                    cols: used,
                    alpha: self.alpha,
                    init: self.init(k.start, j),
                };
                // SAFETY: the kernel fits the machine (`Isa::clamp_to_machine`), the panels
                // have just been checked, and the region lies within the result.
                unsafe { self.kernel.tile(height, width)(words, a.as_ptr(), b.as_ptr(), &out) };
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

type Span = std::ops::Range<usize>;

/// The length of the blocks of k, and their number. At least one block, even for `k == 0`: it
/// writes the bias or the zeros.
fn k_blocks(k: usize) -> (usize, usize) {
    let blocks = k.div_ceil(KC).max(1);
    // Even, so that pairs never straddle two blocks; a multiple of the quantization block too.
    let kc = k.div_ceil(blocks).next_multiple_of(32).max(1);
    (kc, k.div_ceil(kc).max(1))
}
