//! The mask and the ALiBi bias as tensors, for the implementation in plain Burn operations.

use std::sync::OnceLock;

use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Device, Tensor, TensorData};

use super::layout::Layout;

/// Tensors of a mask, built once and shared by all layers. Layers with more than four different
/// windows, or on a second device, build their own.
#[derive(Debug, Default)]
pub(super) struct MaskTensors {
    masks: [OnceLock<WindowMask>; 4],
    alibi: OnceLock<AlibiBias>,
}

/// The masks of layers with one window size; `None` where nothing is masked.
#[derive(Clone, Debug)]
struct WindowMask {
    window: Option<usize>,
    device: Device,
    /// True where a key is masked, `[rows, 1, queries, keys]`.
    masked: Option<Tensor<4, Bool>>,
    /// True where a query has no visible key, `[rows, 1, queries, 1]`.
    without_keys: Option<Tensor<4, Bool>>,
}

#[derive(Debug)]
struct AlibiBias {
    slopes: Vec<f64>,
    device: Device,
    /// `[rows, n_heads, queries, keys]`.
    bias: Tensor<4>,
}

impl MaskTensors {
    /// Adds the ALiBi bias to scores, `[rows, n_heads, queries, keys]`.
    pub(super) fn add_alibi(
        &self,
        layout: &Layout,
        scores: Tensor<4>,
        slopes: &[f64],
    ) -> Tensor<4> {
        if slopes.is_empty() {
            return scores;
        }
        let device = scores.device().without_autodiff();
        let build = || AlibiBias {
            slopes: slopes.to_vec(),
            bias: alibi_bias(layout, slopes, &device),
            device: device.clone(),
        };
        let cached = self.alibi.get_or_init(build);
        let dtype = scores.dtype();
        if cached.slopes == slopes && cached.device == device {
            return scores + cached.bias.clone().cast(dtype);
        }
        scores + build().bias.cast(dtype)
    }

    /// Sets the scores of masked keys to minus infinity.
    pub(super) fn mask_scores(
        &self,
        layout: &Layout,
        scores: Tensor<4>,
        window: Option<usize>,
    ) -> Tensor<4> {
        match self.for_window(layout, window, &scores).masked {
            Some(masked) => {
                let shape = scores.dims();
                scores.mask_fill(masked.expand(shape), f32::NEG_INFINITY)
            }
            None => scores,
        }
    }

    /// The softmax over the keys. The scores of a query without visible keys are all minus infinity,
    /// whose softmax and its derivative are NaN: they are replaced before it, and the result after.
    pub(super) fn softmax(
        &self,
        layout: &Layout,
        scores: Tensor<4>,
        window: Option<usize>,
    ) -> Tensor<4> {
        match self.for_window(layout, window, &scores).without_keys {
            Some(without_keys) => {
                let without_keys = without_keys.expand(scores.dims());
                let scores = scores.mask_fill(without_keys.clone(), 0.0);
                softmax(scores, 3).mask_fill(without_keys, 0.0)
            }
            None => softmax(scores, 3),
        }
    }

    fn for_window(&self, layout: &Layout, window: Option<usize>, scores: &Tensor<4>) -> WindowMask {
        let device = scores.device().without_autodiff();
        for cell in &self.masks {
            let cached = cell.get_or_init(|| WindowMask::new(layout, window, &device));
            if cached.window == window && cached.device == device {
                return cached.clone();
            }
        }
        WindowMask::new(layout, window, &device)
    }
}

impl WindowMask {
    fn new(layout: &Layout, window: Option<usize>, device: &Device) -> Self {
        let (rows, queries, keys) = (layout.rows(), layout.queries, layout.keys);
        let visible = || {
            (0..rows).flat_map(|row| {
                (0..queries).map(move |query| layout.visible_keys(row, query, window))
            })
        };
        let tensor = |values: Vec<bool>, keys: usize| {
            let data = TensorData::new(values, [rows, 1, queries, keys]);
            Tensor::from_data(data, device)
        };
        let masked = visible().any(|range| range != (0..keys)).then(|| {
            let mut values = Vec::with_capacity(rows * queries * keys);
            for range in visible() {
                values.extend((0..keys).map(|key| !range.contains(&key)));
            }
            tensor(values, keys)
        });
        let without_keys = visible()
            .any(|range| range.is_empty())
            .then(|| tensor(visible().map(|range| range.is_empty()).collect(), 1));
        Self {
            window,
            device: device.clone(),
            masked,
            without_keys,
        }
    }
}

/// `-slope * abs(query position - key position)`, `[rows, n_heads, queries, keys]`.
fn alibi_bias(layout: &Layout, slopes: &[f64], device: &Device) -> Tensor<4> {
    let shape = [
        layout.position_offsets.len(),
        slopes.len(),
        layout.queries,
        layout.keys,
    ];
    let mut values = Vec::with_capacity(shape.iter().product());
    for &offset in &layout.position_offsets {
        for slope in slopes {
            for query in offset..offset + layout.queries {
                let bias = |key: usize| {
                    let distance = query.max(key) as f64 - query.min(key) as f64;
                    (slope * (0.0 - distance)) as f32
                };
                values.extend((0..layout.keys).map(bias));
            }
        }
    }
    Tensor::from_data(TensorData::new(values, shape), device)
}
