//! Cosines and sines for rotary position embedding.

use std::sync::Arc;
#[cfg(feature = "gpu")]
use std::sync::{Mutex, PoisonError};

use burn::tensor::{Device, Tensor, TensorData};

/// Cosines and sines for every position, `[positions, head_dim]`. Pair `i` is the elements `i` and
/// `i + head_dim / 2` (the rotate-half layout), so both halves of a row are equal.
#[derive(Clone, Debug)]
pub struct RotaryTables {
    pub(crate) cos: Arc<Vec<f32>>,
    pub(crate) sin: Arc<Vec<f32>>,
    pub(crate) head_dim: usize,
    /// Copies of both tables on devices, made at first use.
    #[cfg(feature = "gpu")]
    copies: Copies,
}

/// The tables of cosines and sines on devices.
#[cfg(feature = "gpu")]
type Copies = Arc<Mutex<Vec<(Device, [Tensor<1>; 2])>>>;

impl RotaryTables {
    /// Creates tables for `positions` positions; `frequencies` are the rotation of each pair in
    /// radians per position.
    pub fn new(frequencies: &[f64], positions: usize) -> Self {
        let table = |function: fn(f64) -> f64| {
            let mut table = Vec::with_capacity(2 * frequencies.len() * positions);
            for position in 0..positions {
                let half = frequencies
                    .iter()
                    .map(|f| function(position as f64 * f) as f32);
                table.extend(half);
                table.extend_from_within(table.len() - frequencies.len()..);
            }
            Arc::new(table)
        };
        Self {
            cos: table(f64::cos),
            sin: table(f64::sin),
            head_dim: 2 * frequencies.len(),
            #[cfg(feature = "gpu")]
            copies: Arc::default(),
        }
    }

    /// Panics unless the tables have rows of `head_dim` elements for `seq` positions from each offset on.
    pub(crate) fn check(&self, head_dim: usize, position_offsets: &[usize], seq: usize) {
        assert_eq!(
            head_dim, self.head_dim,
            "heads of {head_dim} elements do not fit tables of {}",
            self.head_dim
        );
        let positions = self.cos.len().checked_div(head_dim).unwrap_or(usize::MAX);
        for offset in position_offsets {
            assert!(
                offset.checked_add(seq).is_some_and(|end| end <= positions),
                "tables of {positions} positions do not cover {seq} tokens from position {offset} on"
            );
        }
    }

    /// Both tables on a device, flat; the copies are kept.
    #[cfg(feature = "gpu")]
    pub(crate) fn on_device(&self, device: &Device) -> [Tensor<1>; 2] {
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, tables)) = copies.iter().find(|(of, _)| of == device) {
            return tables.clone();
        }
        let tables = [&self.cos, &self.sin].map(|table| {
            let data = TensorData::new(table.to_vec(), [table.len()]);
            Tensor::from_data(data, device)
        });
        copies.push((device.clone(), tables.clone()));
        tables
    }

    /// Gathers both tables as tensors, `[rows, seq, 1, head_dim]`, for rows whose first token is at
    /// `position_offsets[row]`.
    pub(crate) fn gather_rows(
        &self,
        position_offsets: &[usize],
        seq: usize,
        device: &Device,
    ) -> [Tensor<4>; 2] {
        [&self.cos, &self.sin].map(|table| {
            let width = self.head_dim;
            let rows = position_offsets
                .iter()
                .flat_map(|offset| &table[offset * width..(offset + seq) * width]);
            let data = TensorData::new(
                rows.copied().collect(),
                [position_offsets.len(), seq, 1, width],
            );
            Tensor::from_data(data, device)
        })
    }
}
