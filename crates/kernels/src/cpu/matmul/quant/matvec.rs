//! Products with a quantized matrix.

use super::activation::{Activations, RowGroup, RowsToQuantize};
use super::{PANEL, QuantMatrix, panel};
use crate::cpu::isa::Isa;
use crate::cpu::matmul::matrix::{MatMut, MatRef};
use crate::cpu::matmul::matvec::{MatvecOptions, Out, check_shapes};
use crate::cpu::par;
use crate::cpu::scratch::{with_call_scratch, with_task_scratch};

/// Below this number of weight bytes (for up to four rows), a second thread costs more than it saves.
const MIN_PARALLEL_BYTES: usize = 1 << 17;
/// Least groups of rows of a task if a product is also split by rows.
const MIN_TASK_GROUPS: usize = 8;
/// Panels that are multiplied together.
const PAIR: usize = 2;
/// Most panels that AVX2 widens at a time: each reads the activations from the cache again.
#[cfg(target_arch = "x86_64")]
const MAX_WIDE_PANELS: usize = 4;
/// Most words that several widened panels take: a quarter of an L2 cache of 1 MiB.
#[cfg(target_arch = "x86_64")]
const MAX_WIDE_WORDS: usize = 1 << 16;

/// Computes `y = x * w`, plus the bias, for a quantized `w`.
///
/// The rows of `x` must be contiguous. They are quantized to 16-bit integers with a scale per 32
/// values. Since the products are integer products, the result is identical on every machine, and
/// a row is independent of the number of rows and threads. A panel of weights is read from memory once
/// and stays in the cache while all rows pass over it.
///
/// # Panics
/// If the shapes do not match or the rows of `x` are not contiguous.
pub(crate) fn matmul_quant(
    x: MatRef<'_>,
    w: &QuantMatrix,
    y: &mut MatMut<'_>,
    options: &MatvecOptions<'_>,
) {
    check_shapes(&x, (w.k, w.n), y, options);
    if x.rows == 0 || w.n == 0 {
        return;
    }
    let out = Out::new(y, options);
    let isa = options.isa.clamp_to_current();
    let sub_blocks = w.format.sub_blocks();
    let words = Activations::words(isa, x.rows, w.blocks(), sub_blocks);
    with_call_scratch(words, |words| {
        let rows = RowsToQuantize {
            x: x.data,
            stride: x.row_stride,
            count: x.rows,
            k: w.k,
            offset: w.format.offset(),
            sub_blocks,
        };
        let kernel = Kernel {
            w,
            x: Activations::quantize(isa, rows, words),
            out,
            isa,
        };
        let tasks = Tasks::new(w, x.rows, kernel.x.groups());
        par::run(tasks.workers, tasks.count(), &|t| {
            let (groups, panels) = tasks.ranges(t);
            // SAFETY: the shapes have been checked, and tasks have disjoint rows or panels.
            unsafe { kernel.run(groups, panels) };
        });
    });
}

type Span = std::ops::Range<usize>;

/// The split of a product between threads: a grid of tasks.
struct Tasks {
    workers: usize,
    groups: usize,
    task_groups: usize,
    panels: usize,
    task_panels: usize,
}

impl Tasks {
    fn new(w: &QuantMatrix, rows: usize, groups: usize) -> Self {
        let panels = w.n.div_ceil(PANEL);
        let work = w.bytes().saturating_mul(rows.div_ceil(4));
        let workers = if work < MIN_PARALLEL_BYTES {
            1
        } else {
            par::threads()
        };
        // Several tasks per worker, so that others can take over from a worker that is delayed. With many
        // rows they are smaller, as each computes longer.
        let (parts, unit) = match (workers, rows) {
            (1, _) => (1, PAIR),
            (_, 1) => (2 * workers, 1),
            _ => (8 * workers, PAIR),
        };
        let task_panels = panels.div_ceil(parts).next_multiple_of(unit).max(1);
        let panel_tasks = panels.div_ceil(task_panels);
        let row_tasks = (2 * workers / panel_tasks).clamp(1, groups.div_ceil(MIN_TASK_GROUPS));
        Self {
            workers,
            groups,
            task_groups: groups.div_ceil(row_tasks),
            panels,
            task_panels,
        }
    }

    fn row_tasks(&self) -> usize {
        self.groups.div_ceil(self.task_groups)
    }

    fn count(&self) -> usize {
        self.row_tasks() * self.panels.div_ceil(self.task_panels)
    }

    /// Returns the groups of rows and the panels of a task.
    fn ranges(&self, task: usize) -> (Span, Span) {
        let range =
            |index: usize, size: usize, end: usize| index * size..end.min((index + 1) * size);
        (
            range(task % self.row_tasks(), self.task_groups, self.groups),
            range(task / self.row_tasks(), self.task_panels, self.panels),
        )
    }
}

/// Least rows for which widening a panel first is faster with AVX2 than unpacking it for each group. More than
/// four rows always do that, so that the direct kernel needs no more registers than there are.
#[cfg(target_arch = "x86_64")]
fn min_wide_rows(bits: u8) -> usize {
    if bits == 8 { 5 } else { 2 }
}

/// A product on an instruction set that the machine supports.
struct Kernel<'a> {
    w: &'a QuantMatrix,
    x: Activations<'a>,
    out: Out,
    isa: Isa,
}

impl Kernel<'_> {
    /// Computes groups of rows of panels of the result.
    ///
    /// # Safety
    /// `out` must have these rows and as many columns as `w`, which stay valid during the call. Nothing
    /// else may access these rows of these panels.
    unsafe fn run(&self, groups: Span, panels: Span) {
        #[cfg(target_arch = "x86_64")]
        if self.isa >= Isa::Avx512Vnni {
            // SAFETY: `isa` is what the machine supports; the rest is the contract of this function.
            return unsafe { self.vnni(groups, panels) };
        }
        #[cfg(target_arch = "x86_64")]
        if self.isa >= Isa::Avx2 && self.x.rows >= min_wide_rows(self.w.format.bits()) {
            // SAFETY: as above.
            return unsafe {
                match self.w.format.sub_blocks() {
                    1 => self.wide::<1>(groups, panels),
                    _ => self.wide::<2>(groups, panels),
                }
            };
        }
        for panel in panels {
            for group in groups.clone() {
                let x = self.x.group(group);
                // SAFETY: the contract of this function.
                unsafe {
                    match x.rows {
                        1 => self.panel::<1>(panel, &x),
                        2 => self.panel::<2>(panel, &x),
                        3 => self.panel::<3>(panel, &x),
                        _ => self.panel::<4>(panel, &x),
                    }
                }
            }
        }
    }

    /// Computes the `M` rows of `x` of a panel on a level below VNNI.
    ///
    /// # Safety
    /// As for [`run`](Self::run).
    unsafe fn panel<const M: usize>(&self, panel: usize, x: &RowGroup<'_>) {
        let sums = panel::panel::<M>(self.isa, self.w, panel, x);
        // SAFETY: the contract of this function.
        unsafe { self.write(panel * PANEL, x.first, &sums) };
    }

    /// Computes groups of rows of panels with AVX2: of a few panels at a time, which are widened once.
    ///
    /// # Safety
    /// As for [`run`](Self::run), and the machine must support AVX2.
    #[cfg(target_arch = "x86_64")]
    unsafe fn wide<const S: usize>(&self, groups: Span, panels: Span) {
        use super::tile_avx2::{tile, wide_words, widen_panels};
        let (w, panel_words) = (self.w, wide_words::<S>(self.w.blocks()));
        let together = (MAX_WIDE_WORDS / panel_words.max(1)).clamp(1, MAX_WIDE_PANELS);
        let end = panels.end;
        for first in panels.step_by(together) {
            let panels = first..end.min(first + together);
            with_task_scratch(panels.len() * panel_words, |words| {
                // SAFETY: the contract of this function.
                let blocks = unsafe { widen_panels::<S>(w, panels.clone(), words) };
                for group in groups.clone() {
                    let x = self.x.group(group);
                    for (p, panel) in panels.clone().enumerate() {
                        let blocks = &blocks[p * w.blocks()..][..w.blocks()];
                        macro_rules! tile_of {
                            ($rows:literal) => {
                                // SAFETY: the contract of this function.
                                unsafe {
                                    let sums = if w.format.has_minimum() {
                                        tile::<$rows, S, true>(blocks, &x)
                                    } else {
                                        tile::<$rows, S, false>(blocks, &x)
                                    };
                                    self.write(panel * PANEL, x.first, &sums);
                                }
                            };
                        }
                        match x.rows {
                            1 => tile_of!(1),
                            2 => tile_of!(2),
                            3 => tile_of!(3),
                            4 => tile_of!(4),
                            5 => tile_of!(5),
                            _ => tile_of!(6),
                        }
                    }
                }
            });
        }
    }

    /// Computes groups of rows of panels with VNNI.
    ///
    /// # Safety
    /// As for [`run`](Self::run), and the machine must support VNNI.
    #[cfg(target_arch = "x86_64")]
    unsafe fn vnni(&self, groups: Span, panels: Span) {
        if self.x.groups() == 1 && self.x.group(0).rows == 1 {
            for panel in panels {
                // SAFETY: the contract of this function.
                unsafe {
                    let sums = super::tile_x86::row(self.w, panel, &self.x.group(0));
                    self.write(panel * PANEL, 0, &[sums]);
                }
            }
            return;
        }
        let end = panels.end;
        for first in panels.step_by(PAIR) {
            // SAFETY: the contract of this function.
            unsafe {
                match (first + 1 < end, self.w.format.sub_blocks()) {
                    (true, 1) => self.tiles::<PAIR, 1>(groups.clone(), first, end),
                    (true, _) => self.tiles::<PAIR, 2>(groups.clone(), first, end),
                    (false, 1) => self.tiles::<1, 1>(groups.clone(), first, end),
                    (false, _) => self.tiles::<1, 2>(groups.clone(), first, end),
                }
            }
        }
    }

    /// Computes groups of rows of `P` panels with blocks of `S` sub-blocks. The task ends at panel `end`.
    ///
    /// # Safety
    /// As for [`vnni`](Self::vnni).
    #[cfg(target_arch = "x86_64")]
    unsafe fn tiles<const P: usize, const S: usize>(&self, groups: Span, first: usize, end: usize) {
        use super::tile_x86::{prefetch_result, tile};
        let w = self.w;
        let panel_lines = w.blocks() * w.format.lines();
        let upcoming = first + P..end.min(first + 2 * P);
        let upcoming = &w.lines[upcoming.start * panel_lines..upcoming.end * panel_lines];
        with_task_scratch(P * w.unpacked_words(), |words| {
            // SAFETY: the contract of this function.
            let panels = unsafe { w.unpack_panels::<P>(first, words) };
            for group in groups.clone() {
                let x = self.x.group(group);
                for r in x.first..x.first + x.rows {
                    for p in first..first + P {
                        // SAFETY: the contract of this function.
                        unsafe { prefetch_result(self.out.element(r, p * PANEL)) };
                    }
                }
                let next = if group == groups.start { upcoming } else { &[] };
                macro_rules! tile_of {
                    ($rows:literal) => {
                        // SAFETY: the contract of this function.
                        unsafe {
                            let sums = if w.format.has_minimum() {
                                tile::<$rows, P, S, true>(panels, &x, next)
                            } else {
                                tile::<$rows, P, S, false>(panels, &x, next)
                            };
                            for (p, sums) in sums.iter().enumerate() {
                                self.write((first + p) * PANEL, x.first, sums);
                            }
                        }
                    };
                }
                match x.rows {
                    1 => tile_of!(1),
                    2 => tile_of!(2),
                    3 => tile_of!(3),
                    _ => tile_of!(4),
                }
            }
        });
    }

    /// Writes rows of a panel: the columns from `j` up to the end of the matrix.
    ///
    /// # Safety
    /// `out` must have as many columns as `w` and the rows of `sums` from `first` on, and nothing else may
    /// access these elements during the call.
    unsafe fn write(&self, j: usize, first: usize, sums: &[[f32; PANEL]]) {
        let count = PANEL.min(self.w.n - j);
        for (r, sums) in sums.iter().enumerate() {
            // SAFETY: the caller guarantees that the row and `count` columns from `j` on are within the
            // result, and that the elements belong to this task; a bias has as many columns.
            unsafe {
                let mut values = *sums;
                for (c, value) in values.iter_mut().enumerate().take(count) {
                    *value += self.out.init(j + c).map_or(0.0, |init| *init);
                }
                let to = self.out.element(first + r, j);
                std::ptr::copy_nonoverlapping(values.as_ptr(), to, count);
            }
        }
    }
}
