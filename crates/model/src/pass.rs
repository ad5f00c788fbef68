//! What travels through the layers of one forward pass beside the numbers themselves.

use burn::tensor::Tensor;
use nextword_kernels::{AttentionDropout, Sight};

use crate::position::Rotation;
use crate::{Dropout, Hook, KvCache, ModelConfig, NoProbe, Position, Probe, Site, alibi_slopes};

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

    /// Shows `[batch, seq, heads, head_dim]` as `[batch, heads, seq, head_dim]`.
    pub(crate) fn see_heads(&mut self, hook: Hook, tensor: &Tensor<4>) {
        if self.is_watched() {
            self.see(hook, &tensor.clone().swap_dims(1, 2));
        }
    }

    /// Dropout on this layer's percentages.
    pub(crate) fn attention_dropout(&self, rate: f64) -> Option<AttentionDropout> {
        let (layer, hook) = (self.layer, Hook::Pattern);
        self.dropout.on_attention(rate, Site { layer, hook })
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
    pub(crate) fn locate(
        &mut self,
        config: &ModelConfig,
        rotary: Option<&Rotation>,
        x: &Tensor<3>,
    ) {
        let [rows, seq, _] = x.dims();
        let starts = match &self.cache {
            Some((cache, slots)) => {
                assert_eq!(slots.len(), rows, "one cache slot for each row");
                slots.iter().map(|slot| cache.len(*slot)).collect()
            }
            None => vec![0],
        };
        self.places = Places::new(config, rotary, starts, seq);
    }

    /// Appends this layer's keys and values to the cache and gives back all that are visible; without
    /// a cache gives them back as they are. `[rows, seq or keys, n_kv_heads, head_dim]`.
    pub(crate) fn remember(&mut self, k: Tensor<4>, v: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        match (&mut self.cache, self.layer) {
            (Some((cache, slots)), Some(layer)) => {
                let [k, v] = [k, v].map(|x| x.swap_dims(1, 2));
                let (k, v) = cache.append(layer, slots, k, v);
                (k.swap_dims(1, 2), v.swap_dims(1, 2))
            }
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
    sight: Sight,
    rotary: Option<Rotation>,
    /// `ALiBi`'s slopes.
    slopes: Vec<f64>,
}

impl Places {
    fn new(
        config: &ModelConfig,
        rotary: Option<&Rotation>,
        starts: Vec<usize>,
        seq: usize,
    ) -> Self {
        let slopes = if config.position == Position::Alibi {
            alibi_slopes(config.n_heads)
        } else {
            Vec::new()
        };
        Self {
            sight: Sight::new(starts, seq),
            rotary: rotary.cloned(),
            slopes,
        }
    }

    /// Which keys each query sees.
    pub(crate) fn sight(&self) -> &Sight {
        &self.sight
    }

    /// `ALiBi`'s slope of each head; empty for models without.
    pub(crate) fn slopes(&self) -> &[f64] {
        &self.slopes
    }

    /// The rows of a table `[places, d]` for the tokens of this pass, `[rows or 1, seq, d]`.
    pub(crate) fn pick(&self, table: Tensor<2>) -> Tensor<3> {
        let (d, starts, seq) = (table.dims()[1], self.sight.starts(), self.sight.seq());
        let rows: Vec<Tensor<2>> = starts
            .iter()
            .map(|start| table.clone().narrow(0, *start, seq))
            .collect();
        Tensor::cat(rows, 0).reshape([starts.len(), seq, d])
    }

    /// Turns queries or keys, `[batch, seq, heads, head_dim]`, by rotary positions, where the model
    /// has them; a local layer has its own angles.
    pub(crate) fn turn(&self, x: Tensor<4>, is_local: bool) -> Tensor<4> {
        match &self.rotary {
            Some(rotation) => rotation.turn(x, is_local, self.sight.starts()),
            None => x,
        }
    }
}
