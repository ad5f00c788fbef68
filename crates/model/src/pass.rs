//! What travels through the layers of one forward pass beside the numbers themselves.

use burn::tensor::{Bool, Tensor};

use crate::position::{Rotary, alibi_bias, rotate};
use crate::{Dropout, Hook, KvCache, ModelConfig, NoProbe, Position, Probe, Site, mask};

/// One forward pass: who watches, what is dropped, and which cached tokens came before.
pub struct Pass<'a, P: Probe = NoProbe> {
    probe: Option<&'a mut P>,
    dropout: Dropout,
    cache: Option<(&'a mut KvCache, &'a [usize])>,
    layer: Option<usize>,
    places: Places,
}

impl Pass<'static, NoProbe> {
    /// Inference: nobody watches, nothing is dropped.
    pub fn plain() -> Self {
        Self::dropping(Dropout::Off)
    }

    /// Training with these dropout masks.
    pub fn dropping(dropout: Dropout) -> Self {
        Pass {
            probe: None,
            dropout,
            cache: None,
            layer: None,
            places: Places::default(),
        }
    }
}

impl<'a, P: Probe> Pass<'a, P> {
    /// Inference that `probe` watches.
    pub fn watched(probe: &'a mut P) -> Self {
        Pass {
            probe: Some(probe),
            dropout: Dropout::Off,
            cache: None,
            layer: None,
            places: Places::default(),
        }
    }

    /// The same pass with these dropout masks.
    #[must_use]
    pub fn with_dropout(self, dropout: Dropout) -> Self {
        Pass { dropout, ..self }
    }

    /// Row i of the batch continues what slot `slots[i]` of `cache` holds.
    #[must_use]
    pub fn continuing(self, cache: &'a mut KvCache, slots: &'a [usize]) -> Self {
        Pass {
            cache: Some((cache, slots)),
            ..self
        }
    }

    /// Whether intermediate values are looked at.
    pub fn is_watched(&self) -> bool {
        P::WATCHES && self.probe.is_some()
    }

    pub(crate) fn see<const D: usize>(&mut self, hook: Hook, tensor: &Tensor<D>) {
        if let Some(probe) = &mut self.probe {
            let layer = self.layer;
            probe.see(Site { layer, hook }, tensor);
        }
    }

    pub(crate) fn drop_some<const D: usize>(
        &self,
        hook: Hook,
        x: Tensor<D>,
        rate: f64,
    ) -> Tensor<D> {
        let layer = self.layer;
        self.dropout.apply(x, rate, Site { layer, hook })
    }

    pub(crate) fn enter(&mut self, layer: Option<usize>) {
        self.layer = layer;
    }

    pub(crate) fn places(&self) -> &Places {
        &self.places
    }

    /// Fixes where the given tokens stand, before the first layer runs.
    pub(crate) fn locate(&mut self, config: &ModelConfig, rotary: Option<&Rotary>, x: &Tensor<3>) {
        let [rows, seq, _] = x.dims();
        let starts = match &self.cache {
            Some((cache, slots)) => {
                assert_eq!(slots.len(), rows, "one cache slot for each row");
                slots.iter().map(|slot| cache.len(*slot)).collect()
            }
            None => vec![0],
        };
        self.places = Places::new(config, rotary, starts, x, seq);
    }

    /// Appends this layer's keys and values to the cache and gives back all that are visible; without
    /// a cache gives them back as they are. `[rows, n_kv_heads, seq or keys, head_dim]`.
    pub(crate) fn remember(&mut self, k: Tensor<4>, v: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        match (&mut self.cache, self.layer) {
            (Some((cache, slots)), Some(layer)) => cache.append(layer, slots, k, v),
            _ => (k, v),
        }
    }

    /// Counts the tokens of this pass as cached.
    pub(crate) fn finish(&mut self, seq: usize) {
        if let Some((cache, slots)) = &mut self.cache {
            cache.advance(slots, seq);
        }
    }
}

/// Where the tokens of a pass stand, and what follows from it for every layer.
#[derive(Default)]
pub(crate) struct Places {
    /// The place of each row's first token; one number if all rows agree.
    starts: Vec<usize>,
    seq: usize,
    keys: usize,
    /// Cosines and sines of these places, `[rows or 1, 1, seq, head_dim]`.
    rotary: Option<(Tensor<4>, Tensor<4>)>,
    /// Distance biases, `[rows or 1, n_heads, seq, keys]`.
    alibi: Option<Tensor<4>>,
    /// One mask for each window that occurs, `[rows or 1, 1, seq, keys]`, true where hidden;
    /// `None` where nothing is hidden.
    masks: Vec<(Option<usize>, Option<Tensor<4, Bool>>)>,
}

impl Places {
    fn new(
        config: &ModelConfig,
        rotary: Option<&Rotary>,
        mut starts: Vec<usize>,
        x: &Tensor<3>,
        seq: usize,
    ) -> Self {
        if starts.iter().all(|start| *start == starts[0]) {
            starts.truncate(1);
        }
        let device = x.device().without_autodiff();
        let keys = starts.iter().max().map_or(0, |start| start + seq);
        let mut windows: Vec<_> = (0..config.n_layers).map(|i| config.window(i)).collect();
        windows.sort_unstable();
        windows.dedup();
        let mut places = Self {
            masks: windows
                .into_iter()
                .map(|window| (window, mask::hidden(&starts, seq, keys, window, &device)))
                .collect(),
            alibi: (config.position == Position::Alibi)
                .then(|| alibi_bias(config.n_heads, &starts, seq, keys, &device).cast(x.dtype())),
            starts,
            seq,
            keys,
            rotary: None,
        };
        places.rotary = rotary.map(|rotary| {
            let pick = |table: &Tensor<2>| {
                let rows: Tensor<3> = places.pick(table.clone());
                rows.unsqueeze_dim(1).cast(x.dtype()) // [rows or 1, 1, seq, head_dim]
            };
            (pick(&rotary.cos), pick(&rotary.sin))
        });
        places
    }

    /// Tokens that a query of this pass can look at, itself included.
    pub(crate) fn keys(&self) -> usize {
        self.keys
    }

    /// The rows of a table `[places, d]` for the tokens of this pass, `[rows or 1, seq, d]`.
    pub(crate) fn pick(&self, table: Tensor<2>) -> Tensor<3> {
        let d = table.dims()[1];
        let rows: Vec<Tensor<2>> = self
            .starts
            .iter()
            .map(|start| table.clone().narrow(0, *start, self.seq))
            .collect();
        Tensor::cat(rows, 0).reshape([self.starts.len(), self.seq, d])
    }

    /// Turns queries or keys by rotary positions, where the model has them.
    pub(crate) fn turn(&self, x: Tensor<4>) -> Tensor<4> {
        match &self.rotary {
            Some((cos, sin)) => rotate(x, cos.clone(), sin.clone()),
            None => x,
        }
    }

    /// Adds distance biases and hides the future and what lies behind the window.
    /// `[rows, n_heads, seq, keys]`.
    pub(crate) fn limit(&self, scores: Tensor<4>, window: Option<usize>) -> Tensor<4> {
        let scores = match &self.alibi {
            Some(bias) => scores + bias.clone(),
            None => scores,
        };
        let mask = self.masks.iter().find(|(of, _)| *of == window);
        match mask.and_then(|(_, mask)| mask.clone()) {
            Some(mask) => {
                let shape = scores.dims();
                scores.mask_fill(mask.expand(shape), f32::NEG_INFINITY)
            }
            None => scores,
        }
    }
}
