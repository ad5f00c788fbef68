//! Low-rank updates of some rows of a batch, each with its own matrices.

use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};

use super::RowUpdate;

/// Adds to the rows of `y`, the output of a linear layer for `x`, their updates `scale * (x A) B`: `y` is
/// `[batch, seq, d_out]`, `x` is `[batch, seq, d_in]`. Has no gradient.
///
/// On the CPU a row gets the bits of [`linear_lora`](crate::linear_lora()), whatever the other rows have.
///
/// # Panics
/// If the shapes do not match or there is no such row.
///
/// # Example
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use nextword_kernels::{LowRankUpdate, RowUpdate, add_row_updates};
///
/// let device = Device::flex();
/// let random = |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Default, &device);
/// let (x, y) = (random([3, 16]), random([3, 32]));
/// let (a, b) = (random([16, 4]), random([4, 32]));
/// let update = LowRankUpdate { a: a.clone(), b: b.clone(), scale: 2.0, dropout: None };
/// let updates = [RowUpdate { rows: vec![0, 2], update }];
/// let sum = add_row_updates(y.clone().unsqueeze_dim(1), x.clone().unsqueeze_dim(1), &updates);
/// let sum = sum.squeeze_dim::<2>(1);
/// let row = |tensor: &Tensor<2>, row| tensor.clone().narrow(0, row, 1);
/// assert_eq!(row(&sum, 1).into_data(), row(&y, 1).into_data());
/// let expected = row(&y, 2) + row(&x, 2).matmul(a).matmul(b) * 2.0;
/// assert!(row(&sum, 2).all_close(expected, None, Some(1e-4)));
/// ```
pub fn add_row_updates(y: Tensor<3>, x: Tensor<3>, updates: &[RowUpdate]) -> Tensor<3> {
    let ([batch, _, d_in], [_, _, d_out]) = (x.dims(), y.dims());
    assert_eq!(
        x.dims()[..2],
        y.dims()[..2],
        "input and output have different rows"
    );
    for RowUpdate { rows, update } in updates {
        let ([a_in, rank], b) = (update.a.dims(), update.b.dims());
        assert!(
            a_in == d_in && b == [rank, d_out],
            "an update of shapes [{a_in}, {rank}] and {b:?} does not fit a layer of {d_in} to {d_out} features"
        );
        assert!(
            rows.iter().all(|row| *row < batch),
            "an update names rows {rows:?} of a batch of {batch}"
        );
    }
    #[cfg(feature = "flex")]
    if crate::fused::is_flex_f32(&x) && !x.device().is_autodiff() {
        return super::fast::add_row_updates(y, x, updates);
    }
    reference(y, x, updates)
}

/// The same in plain operations.
pub(super) fn reference(y: Tensor<3>, x: Tensor<3>, updates: &[RowUpdate]) -> Tensor<3> {
    let with_update = |y: Tensor<3>, RowUpdate { rows, update }: &RowUpdate| {
        let indices: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
        let indices = TensorData::new(indices, [rows.len()]);
        let indices = Tensor::<1, Int>::from_data(indices, &x.device());
        let rows = x.clone().select(0, indices.clone());
        let low = crate::reference::linear(rows, update.a.clone(), None);
        let update = crate::reference::linear(low, update.b.clone(), None) * update.scale;
        y.select_assign(0, indices, update, IndexingUpdateOp::Add)
    };
    updates.iter().fold(y, with_update)
}
