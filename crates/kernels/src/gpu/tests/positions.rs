//! Embedding lookup and rotary positions.

use burn::tensor::{Int, Tensor, TensorData};

use super::compare;
use crate::{CounterRng, RotaryTables, embed, rotate};

#[test]
fn embeddings_and_their_gradients_agree_with_the_cpu() {
    let rng = CounterRng::new(5);
    for (rows, width, tokens) in [(50, 33, 200), (1, 5, 70), (300, 8, 20)] {
        let ids: Vec<i32> = (0..tokens as u64)
            .map(|i| rng.below(i, rows as u64) as i32)
            .collect();
        let label = format!("{tokens} of {rows} ids");
        compare(&label, &[rows * width], 1e-6, |x| {
            let device = x[0].device().without_autodiff();
            let ids = TensorData::new(ids.clone(), [2, tokens / 2]);
            let ids = Tensor::<2, Int>::from_data(ids, &device);
            embed(x[0].clone().reshape([rows, width]), ids)
        });
    }
}

#[test]
fn rotary_positions_and_their_gradients_agree_with_the_cpu() {
    for (sizes, offsets) in [
        ([2, 7, 3, 8], vec![0]),
        ([3, 5, 1, 20], vec![4, 0, 9]),
        ([2, 1, 2, 64], vec![3, 3]),
    ] {
        let pairs = sizes[3] / 2;
        let frequencies: Vec<f64> = (0..pairs).map(|i| 0.9 / (i + 1) as f64).collect();
        let tables = RotaryTables::new(&frequencies, 16);
        compare("rotary", &[sizes.iter().product()], 1e-6, |x| {
            rotate(x[0].clone().reshape(sizes), &tables, &offsets)
        });
    }
}
