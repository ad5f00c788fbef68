//! Which keys each query sees, for all layers of a forward pass.

use std::cell::OnceCell;

use burn::tensor::{Bool, Device, Tensor, TensorData};

/// A window, and its mask; `None` hides nothing.
type WindowMask = (Option<usize>, Option<Tensor<4, Bool>>);

/// Where the tokens of a forward pass stand. Row `b`'s queries stand at places
/// `starts[b]..starts[b] + seq`, keys at `0..keys`; a query sees itself and what came before.
#[derive(Clone, Debug, Default)]
pub struct AttentionMask {
    position_offsets: Vec<usize>,
    seq: usize,
    keys: usize,
    /// Masks that were asked for, by window: made once for all layers.
    masks: [OnceCell<WindowMask>; 4],
}

impl AttentionMask {
    /// The sight of `seq` queries a row. Starts that are all the same become one.
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

    /// The place of each row's first query; one number if all rows agree.
    pub fn position_offsets(&self) -> &[usize] {
        &self.position_offsets
    }

    /// Queries of each row.
    pub fn seq(&self) -> usize {
        self.seq
    }

    /// Keys that the last query of the longest row sees, itself included.
    pub fn keys(&self) -> usize {
        self.keys
    }

    /// Adds ALiBi's bias (empty slopes: none) and hides the future and what lies `window` or more
    /// places behind. `scores` is `[rows, n_heads, seq, keys]`.
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

    /// True where a query may not look, `[rows or 1, 1, seq, keys]`; `None` if it may look
    /// everywhere.
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

    /// `-slope * (query place - key place)`, `[rows or 1, n_heads, seq, keys]`.
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
