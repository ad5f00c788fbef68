//! Embedding lookup.

use burn::tensor::{Int, Tensor};

/// Gathers `table[ids]`: `table` is `[rows, width]`, `ids` is `[batch, seq]`, and the output is
/// `[batch, seq, width]`.
///
/// # Panics
/// If an id is not a row of the table; on other backends than flex, such an id may instead select
/// arbitrary values.
///
/// # Example
///
/// ```
/// use burn::tensor::{Device, Int, Tensor, TensorData};
/// use nextword_kernels::embed;
///
/// let device = Device::flex();
/// let table = Tensor::<2>::from_floats([[0.0, 0.5], [1.0, 1.5], [2.0, 2.5]], &device);
/// let ids = Tensor::<2, Int>::from_ints([[2, 0]], &device);
/// assert_eq!(embed(table, ids).into_data(), TensorData::from([[[2.0f32, 2.5], [0.0, 0.5]]]));
/// ```
pub fn embed(table: Tensor<2>, ids: Tensor<2, Int>) -> Tensor<3> {
    #[cfg(feature = "flex")]
    if crate::fused::is_flex_f32(&table) {
        return fast::embed(table, ids);
    }
    #[cfg(feature = "gpu")]
    if crate::gpu::is_gpu_f32(&table) {
        return crate::gpu::embedding::embed(table, ids);
    }
    burn::tensor::module::embedding(table, ids)
}

#[cfg(feature = "flex")]
mod fast {
    use std::sync::Arc;

    use burn::tensor::{Int, Tensor};

    use crate::cpu::embedding as kernel;
    use crate::fused::{BackwardContext, Buffer, Op, apply};

    #[derive(Clone, Debug)]
    struct Embed {
        ids: Arc<Vec<u32>>,
        rows: usize,
        width: usize,
    }

    pub(super) fn embed(table: Tensor<2>, ids: Tensor<2, Int>) -> Tensor<3> {
        let ([rows, width], [batch, seq]) = (table.dims(), ids.dims());
        let ids = ids.into_data().convert::<i32>().try_into_vec::<i32>();
        let ids = ids.unwrap_or_else(|e| unreachable!("just converted: {e:?}"));
        let ids = Arc::new(ids.into_iter().map(i32::cast_unsigned).collect());
        apply(
            Embed { ids, rows, width },
            [table.into()],
            [batch, seq, width],
        )
    }

    impl Op<1> for Embed {
        type Saved = ();
        const SAVES_INPUT: [bool; 1] = [false];

        fn forward(&self, [table]: [&[f32]; 1], _needs_grad: [bool; 1]) -> (Buffer, ()) {
            let mut out = Buffer::new(self.ids.len() * self.width);
            kernel::gather(table, self.width, &self.ids, &mut out);
            (out, ())
        }

        fn backward(&self, ctx: BackwardContext<'_, (), 1>) -> [Option<Buffer>; 1] {
            let mut sums = Buffer::zeros(self.rows * self.width);
            kernel::scatter_add(ctx.grad, self.width, &self.ids, &mut sums);
            [Some(sums)]
        }
    }
}
