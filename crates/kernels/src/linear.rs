//! Linear layers: `y = x W + b`.

use burn::tensor::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::cpu::matmul::isa::Isa;

/// The arithmetic of matrix products. Sums are f32 in each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32 factors.
    #[default]
    F32,
    /// Factors rounded to bf16 (8 bits of mantissa), in the forward and the backward pass.
    Bf16,
}

impl Precision {
    /// Whether it is the default.
    pub fn is_f32(&self) -> bool {
        *self == Self::F32
    }

    /// Whether it brings speed on `device`: bf16 on a CPU takes AVX-512 BF16 instructions, and without
    /// them gives (nearly) the same numbers in the time of f32.
    pub fn is_fast(self, device: &Device) -> bool {
        self == Self::F32
            || !crate::QuantizedMatrix::runs_on(device)
            || Isa::detect() == Isa::Avx512Bf16
    }

    /// Whether products on `device` can have it.
    pub fn is_supported(self, device: &Device) -> bool {
        match self {
            Self::F32 => true,
            Self::Bf16 => {
                crate::QuantizedMatrix::runs_on(device) || device.supports_dtype(DType::BF16)
            }
        }
    }
}

/// `x W + bias`: `[batch, seq, d_in]` to `[batch, seq, d_out]`, `weight` is `[d_in, d_out]`.
pub fn linear(x: Tensor<3>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<3> {
    linear_in(Precision::F32, x, weight, bias)
}

/// As [`linear`], with the product in `precision`. Weights, result and gradients are f32.
pub fn linear_in(
    precision: Precision,
    x: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<3> {
    #[cfg(feature = "flex")]
    if crate::fused::is_fast(&x) {
        return fast::linear(precision, x, weight, bias, fast::Stored::InOut);
    }
    crate::reference::linear_in(precision, x, weight, bias)
}

/// `x table^T + bias`, for an output layer that reuses an embedding's `table`, `[d_out, d_in]`.
pub fn linear_table(
    precision: Precision,
    x: Tensor<3>,
    table: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<3> {
    #[cfg(feature = "flex")]
    if crate::fused::is_fast(&x) {
        return fast::linear(precision, x, table, bias, fast::Stored::OutIn);
    }
    crate::reference::linear_in(precision, x, table.transpose(), bias)
}

#[cfg(feature = "flex")]
pub(crate) mod fast {
    use burn::tensor::Tensor;

    use super::Precision;
    use crate::cpu::columns::add_column_sums;
    use crate::cpu::matmul::{self, GemmOptions, MatMut, MatRef, MatvecOptions, gemm};
    use crate::fused::{Buffer, Kept, Op, apply};

    /// Places in a sequence up to which a product is bound by reading the weights. The number of
    /// sequences does not count: a row's result must not depend on what else is in the batch, and the
    /// two kernels sum in different orders.
    pub(crate) const FEW: usize = 8;

    /// How the weight lies in memory.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Stored {
        /// `[d_in, d_out]`.
        InOut,
        /// `[d_out, d_in]`.
        OutIn,
    }

    /// The sizes of a product.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Product {
        pub(crate) rows: usize,
        pub(crate) d_in: usize,
        pub(crate) d_out: usize,
        pub(crate) stored: Stored,
        /// Whether reading the weights takes longer than multiplying: few places in a sequence.
        pub(crate) few: bool,
        pub(crate) precision: Precision,
    }

    pub(super) fn linear(
        precision: Precision,
        x: Tensor<3>,
        weight: Tensor<2>,
        bias: Option<Tensor<1>>,
        stored: Stored,
    ) -> Tensor<3> {
        let [batch, seq, d_in] = x.dims();
        let d_out = match stored {
            Stored::InOut => weight.dims()[1],
            Stored::OutIn => weight.dims()[0],
        };
        let product = Product {
            rows: batch * seq,
            d_in,
            d_out,
            stored,
            few: seq <= FEW,
            precision,
        };
        let shape = [batch, seq, d_out];
        match bias {
            Some(bias) => apply(product, [x.into(), weight.into(), bias.into()], shape),
            None => apply(product, [x.into(), weight.into()], shape),
        }
    }

    impl Product {
        fn options<'a>(&self) -> GemmOptions<'a> {
            GemmOptions {
                precision: match self.precision {
                    Precision::F32 => gemm::Precision::F32,
                    Precision::Bf16 => gemm::Precision::Bf16,
                },
                ..GemmOptions::default()
            }
        }

        /// The weight as it multiplies, `d_in` by `d_out`.
        fn weight<'a>(&self, weight: &'a [f32]) -> MatRef<'a> {
            match self.stored {
                Stored::InOut => MatRef::row_major(weight, self.d_in, self.d_out),
                Stored::OutIn => MatRef::row_major(weight, self.d_out, self.d_in).t(),
            }
        }

        /// `y = x W + bias` (an empty bias is none).
        pub(crate) fn forward(&self, x: &[f32], weight: &[f32], bias: &[f32], y: &mut [f32]) {
            let Self {
                rows, d_in, d_out, ..
            } = *self;
            let x = MatRef::row_major(x, rows, d_in);
            let mut y = MatMut::new(y, rows, d_out, d_out);
            let bias = (!bias.is_empty()).then_some(bias);
            if self.few && self.precision == Precision::F32 {
                let options = MatvecOptions {
                    bias,
                    ..MatvecOptions::default()
                };
                return matmul::matvec(x, self.weight(weight), &mut y, &options);
            }
            let options = GemmOptions {
                bias,
                ..self.options()
            };
            matmul::gemm(x, self.weight(weight), &mut y, &options);
        }

        /// `dx = dy W^T`.
        pub(crate) fn input_gradient(&self, dy: &[f32], weight: &[f32], dx: &mut [f32]) {
            let Self {
                rows, d_in, d_out, ..
            } = *self;
            let dy = MatRef::row_major(dy, rows, d_out);
            let mut dx = MatMut::new(dx, rows, d_in, d_in);
            matmul::gemm(dy, self.weight(weight).t(), &mut dx, &self.options());
        }

        /// `dW = x^T dy`, or its sum with what is there.
        pub(crate) fn weight_gradient(
            &self,
            x: &[f32],
            dy: &[f32],
            dw: &mut [f32],
            accumulate: bool,
        ) {
            let Self {
                rows, d_in, d_out, ..
            } = *self;
            let (x, dy) = (
                MatRef::row_major(x, rows, d_in),
                MatRef::row_major(dy, rows, d_out),
            );
            let options = GemmOptions {
                accumulate,
                ..self.options()
            };
            match self.stored {
                Stored::InOut => {
                    matmul::gemm(
                        x.t(),
                        dy,
                        &mut MatMut::new(dw, d_in, d_out, d_out),
                        &options,
                    );
                }
                Stored::OutIn => {
                    matmul::gemm(dy.t(), x, &mut MatMut::new(dw, d_out, d_in, d_in), &options);
                }
            }
        }

        fn result(&self, x: &[f32], weight: &[f32], bias: &[f32]) -> Buffer {
            let mut y = Buffer::new(self.rows * self.d_out);
            self.forward(x, weight, bias, &mut y);
            y
        }

        fn gradients(
            &self,
            x: &[f32],
            weight: &[f32],
            dy: &[f32],
            wanted: [bool; 2],
        ) -> [Option<Buffer>; 2] {
            let dx = wanted[0].then(|| {
                let mut dx = Buffer::new(self.rows * self.d_in);
                self.input_gradient(dy, weight, &mut dx);
                dx
            });
            let dw = wanted[1].then(|| {
                let mut dw = Buffer::new(self.d_in * self.d_out);
                self.weight_gradient(x, dy, &mut dw, false);
                dw
            });
            [dx, dw]
        }
    }

    impl Op<2> for Product {
        type Saved = ();
        const KEEPS: [bool; 2] = [true; 2];

        fn forward(&self, [x, weight]: [&[f32]; 2], _keep: bool) -> (Buffer, ()) {
            (self.result(x, weight, &[]), ())
        }

        fn backward(&self, kept: Kept<'_, (), 2>) -> [Option<Buffer>; 2] {
            let [x, weight] = kept.inputs;
            self.gradients(x, weight, kept.grad, kept.wanted)
        }
    }

    impl Op<3> for Product {
        type Saved = ();
        const KEEPS: [bool; 3] = [true, true, false];

        fn forward(&self, [x, weight, bias]: [&[f32]; 3], _keep: bool) -> (Buffer, ()) {
            (self.result(x, weight, bias), ())
        }

        fn backward(&self, kept: Kept<'_, (), 3>) -> [Option<Buffer>; 3] {
            let ([x, weight, _], [wx, ww, wb]) = (kept.inputs, kept.wanted);
            let [dx, dw] = self.gradients(x, weight, kept.grad, [wx, ww]);
            let db = wb.then(|| {
                let mut db = Buffer::zeros(self.d_out);
                add_column_sums(kept.grad, &mut db);
                db
            });
            [dx, dw, db]
        }
    }
}
