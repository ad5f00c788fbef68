//! The causal attention mask, shared by all layers of a forward pass.

use std::cell::OnceCell;

use burn::tensor::{Bool, Device, Tensor, TensorData};

/// A window size and its mask; `None` means that nothing is masked.
type WindowMask = (Option<usize>, Option<Tensor<4, Bool>>);

/// The positions of the queries and keys of a forward pass. The queries of row `b` are at positions
/// `position_offsets[b]..position_offsets[b] + seq` and the keys at `0..keys`; a query attends to
/// itself and to earlier positions.
#[derive(Clone, Debug, Default)]
pub struct AttentionMask {
    position_offsets: Vec<usize>,
    seq: usize,
    keys: usize,
    /// Masks by window size, built once and shared by all layers.
    masks: [OnceCell<WindowMask>; 4],
}

impl AttentionMask {
    /// Creates the mask for `seq` queries per row. Equal offsets collapse to one.
    pub fn new(mut position_offsets: Vec<usize>, seq: usize) -> Self {
        if position_offsets
            .iter()
            .all(|offset| *offset == position_offsets[0])
        {
            position_offsets.truncate(1);
        }
        let keys = position_offsets
            .iter()
            .max()
            .map_or(0, |offset| offset + seq);
        Self {
            position_offsets,
            seq,
            keys,
            masks: Default::default(),
        }
    }

    /// Position of the first query of each row; a single element if all rows agree.
    pub fn position_offsets(&self) -> &[usize] {
        &self.position_offsets
    }

    /// Number of queries per row.
    pub fn seq(&self) -> usize {
        self.seq
    }

    /// Number of keys visible to the last query of the longest row, including itself.
    pub fn keys(&self) -> usize {
        self.keys
    }

    /// Adds the ALiBi bias (empty `slopes`: none) and masks future keys and keys `window` or more
    /// positions back. `scores` is `[rows, n_heads, seq, keys]`.
    pub(crate) fn apply(
        &self,
        scores: Tensor<4>,
        window: Option<usize>,
        slopes: &[f64],
    ) -> Tensor<4> {
        let device = scores.device();
        let scores = if slopes.is_empty() {
            scores
        } else {
            let bias = self.alibi_bias(slopes, &device);
            let dtype = scores.dtype();
            scores + bias.cast(dtype)
        };
        match self.cached_mask(window, &device) {
            Some(mask) => {
                let shape = scores.dims();
                scores.mask_fill(mask.expand(shape), f32::NEG_INFINITY)
            }
            None => scores,
        }
    }

    fn cached_mask(&self, window: Option<usize>, device: &Device) -> Option<Tensor<4, Bool>> {
        for cell in &self.masks {
            let (cached_window, mask) =
                cell.get_or_init(|| (window, self.build_mask(window, device)));
            if *cached_window == window {
                return mask.clone();
            }
        }
        self.build_mask(window, device)
    }

    /// Builds the mask, true where a key is masked, `[rows or 1, 1, seq, keys]`; `None` if all keys
    /// are visible.
    fn build_mask(&self, window: Option<usize>, device: &Device) -> Option<Tensor<4, Bool>> {
        let window = window.unwrap_or(usize::MAX);
        let all_visible = self.seq == 1 && self.position_offsets.len() == 1 && self.keys <= window;
        if all_visible {
            return None;
        }
        let mut values = Vec::with_capacity(self.position_offsets.len() * self.seq * self.keys);
        for &offset in &self.position_offsets {
            for query in offset..offset + self.seq {
                values.extend((0..self.keys).map(|key| key > query || query - key >= window));
            }
        }
        let shape = [self.position_offsets.len(), 1, self.seq, self.keys];
        let device = device.clone().without_autodiff();
        Some(Tensor::from_data(TensorData::new(values, shape), &device))
    }

    /// `-slope * (query position - key position)`, `[rows or 1, n_heads, seq, keys]`.
    fn alibi_bias(&self, slopes: &[f64], device: &Device) -> Tensor<4> {
        let shape = [
            self.position_offsets.len(),
            slopes.len(),
            self.seq,
            self.keys,
        ];
        let mut values = Vec::with_capacity(shape.iter().product());
        for &offset in &self.position_offsets {
            for slope in slopes {
                for query in offset..offset + self.seq {
                    let bias = |key: usize| (slope * (key as f64 - query as f64)) as f32;
                    values.extend((0..self.keys).map(bias));
                }
            }
        }
        let device = device.clone().without_autodiff();
        Tensor::from_data(TensorData::new(values, shape), &device)
    }
}
