//! Products of a few rows with a quantized matrix.

use super::activation::Activations;
use super::dot::{DotFn, dot_kernel};
use super::{BLOCK, PANEL, QuantMatrix, scale_to_f32};
use crate::cpu::isa::Isa;
use crate::cpu::matmul::matrix::{MatMut, MatRef};
use crate::cpu::matmul::matvec::{MatvecOptions, Out, ROWS, check_shapes, parallel_columns};
use crate::cpu::scratch::with_call_scratch;

/// Computes `y = x * w`, plus the bias, for a quantized `w`. Fast for few rows of `x`.
///
/// The rows of `x` must be contiguous. They are quantized to 16-bit integers with a scale per 32
/// values. Since the products are integer products, the result is identical on every machine, and
/// a row is independent of the number of rows and threads.
///
/// # Panics
/// If the shapes do not match or the rows of `x` are not contiguous.
pub(crate) fn matvec_quant(
    x: MatRef<'_>,
    w: &QuantMatrix,
    y: &mut MatMut<'_>,
    options: &MatvecOptions<'_>,
) {
    check_shapes(&x, (w.k, w.n), y, options);
    let out = Out::new(y, options);
    let bytes_per_column = w.bytes() / w.n.max(1);
    for first in (0..x.rows).step_by(ROWS) {
        let rows = ROWS.min(x.rows - first);
        with_call_scratch(Activations::words(rows, w.blocks()), |words| {
            let data = x.data.get(first * x.row_stride..).unwrap_or_default();
            let x =
                Activations::quantize(options.isa, data, x.row_stride, rows, w.k, w.bits, words);
            let out = out.offset_rows(first);
            let kernel = PanelKernel {
                w,
                x,
                rows,
                out,
                dot: dot_kernel(options.isa, w.bits),
                isa: options.isa,
            };
            parallel_columns(w.n, PANEL, bytes_per_column, &|columns| {
                // SAFETY: the shapes have been checked, `dot_kernel` selected a kernel that the machine
                // supports, and tasks have disjoint columns, which start at a panel.
                unsafe { kernel.run(columns) };
            });
        });
    }
    debug_assert_eq!(w.blocks(), w.k.div_ceil(BLOCK));
}

/// Computes ranges of panels.
struct PanelKernel<'a> {
    w: &'a QuantMatrix,
    x: Activations<'a>,
    rows: usize,
    out: Out,
    dot: DotFn,
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(dead_code, reason = "used only on x86-64")
    )]
    isa: Isa,
}

impl PanelKernel<'_> {
    /// Computes columns of the result; the first one must start a panel.
    ///
    /// # Safety
    /// `out` must have `rows` rows of as many columns as `w`, which stay valid during the call, and the
    /// machine must support `dot`. Nothing else may access the panels of these columns.
    unsafe fn run(&self, columns: std::ops::Range<usize>) {
        #[cfg(target_arch = "x86_64")]
        if self.isa.clamp_to_current() >= Isa::Avx512Vnni {
            // SAFETY: `clamp_to_current` ensures that the machine supports the level; the rest is the
            // contract of this function.
            return unsafe { self.vnni(columns) };
        }
        for j in columns.step_by(PANEL) {
            // SAFETY: the contract of this function.
            unsafe {
                let sums = self.panel_by_blocks(j / PANEL);
                self.write(j, &sums[..self.rows]);
            }
        }
    }

    /// Dispatches to a constant number of rows, outside the loop over panels.
    ///
    /// # Safety
    /// As for [`run`](Self::run); the machine must support the target features.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn vnni(&self, columns: std::ops::Range<usize>) {
        // SAFETY: the contract of this function; `rows` is at most `ROWS`, which is 8.
        unsafe {
            match self.rows {
                1 => self.vnni_rows::<1>(columns),
                2 => self.vnni_rows::<2>(columns),
                3 => self.vnni_rows::<3>(columns),
                4 => self.vnni_rows::<4>(columns),
                5 => self.vnni_rows::<5>(columns),
                6 => self.vnni_rows::<6>(columns),
                7 => self.vnni_rows::<7>(columns),
                _ => self.vnni_rows::<8>(columns),
            }
        }
    }

    /// Computes columns of a result with `M` rows.
    ///
    /// # Safety
    /// As for [`vnni`](Self::vnni), and `rows` must be `M`.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn vnni_rows<const M: usize>(&self, columns: std::ops::Range<usize>) {
        for j in columns.step_by(PANEL) {
            let sums = super::dot_x86::panel_vnni::<M>(self.w, j / PANEL, &self.x);
            // SAFETY: the contract of this function.
            unsafe { self.write(j, &sums) };
        }
    }

    /// Computes a panel one row and block at a time; the block stays in the L1 cache.
    ///
    /// # Safety
    /// The machine must support `dot`.
    unsafe fn panel_by_blocks(&self, panel: usize) -> [[f32; PANEL]; ROWS] {
        let mut sums = [[0.0; PANEL]; ROWS];
        for b in 0..self.w.blocks() {
            let (lines, scales) = self.w.block(panel, b);
            for (r, sums) in sums.iter_mut().enumerate().take(self.rows) {
                let x = self.x.block(r, b);
                // SAFETY: the caller guarantees that the machine supports the kernel.
                let dots = unsafe { (self.dot)(lines, x) };
                for c in 0..PANEL {
                    let product = (dots[c] - x.correction) as f32;
                    sums[c] += scale_to_f32(scales[c]) * x.scale * product;
                }
            }
        }
        sums
    }

    /// Writes a panel: the columns from `j` up to the end of the matrix.
    ///
    /// # Safety
    /// `out` must have as many columns as `w` and at least as many rows as `sums`, and nothing else may
    /// access these columns during the call.
    unsafe fn write(&self, j: usize, sums: &[[f32; PANEL]]) {
        for (r, sums) in sums.iter().enumerate() {
            for (c, sum) in sums.iter().enumerate().take(self.w.n - j) {
                // SAFETY: the caller guarantees that row and column are within the result, and that
                // the columns belong to this task.
                unsafe {
                    let init = self.out.init(j + c).map_or(0.0, |init| *init);
                    *self.out.element(r, j + c) = sum + init;
                }
            }
        }
    }
}
