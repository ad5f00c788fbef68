//! What travels through the layers of one forward pass beside the numbers themselves.

use std::ops::Range;

use burn::tensor::{Tensor, TensorData};
use nextword_kernels::{AttentionDropout, Sight};

use crate::kv_cache::runs;
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
        // Neighbouring slots are read where they lie; a probe is shown the rows as one.
        let parts = match &self.cache {
            Some((_, slots)) if !self.is_watched() => runs(slots),
            _ => std::iter::once(0..rows).collect(),
        };
        self.places = Places::new(config, rotary, starts, seq, parts);
    }

    /// Appends this layer's keys and values, `[rows, seq, n_kv_heads, head_dim]`, to the cache.
    /// Gives what is visible to each part of the rows, `[rows, keys, n_kv_heads, head_dim]`; without
    /// a cache that is `k` and `v` themselves.
    pub(crate) fn remember(&mut self, k: Tensor<4>, v: Tensor<4>) -> Vec<[Tensor<4>; 2]> {
        let (Some((cache, slots)), Some(layer)) = (&mut self.cache, self.layer) else {
            return vec![[k, v]];
        };
        let [k, v] = [k, v].map(|x| x.swap_dims(1, 2));
        cache.append(layer, slots, k, v);
        let parts = self.places.parts.iter();
        let visible = parts.map(|(rows, sight)| {
            let (k, v) = cache.visible(layer, &slots[rows.clone()], sight.keys());
            [k, v].map(|x| x.swap_dims(1, 2))
        });
        visible.collect()
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
    /// The rows that attend together, and what each part sees.
    parts: Vec<(Range<usize>, Sight)>,
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
        parts: Vec<Range<usize>>,
    ) -> Self {
        let whole = parts.len() == 1;
        let sight_of = |rows: Range<usize>| {
            let starts = if whole {
                starts.clone()
            } else {
                starts[rows].to_vec()
            };
            Sight::new(starts, seq)
        };
        let parts = parts.into_iter().map(|rows| (rows.clone(), sight_of(rows)));
        let parts = parts.collect();
        let slopes = if config.position == Position::Alibi {
            alibi_slopes(config.n_heads)
        } else {
            Vec::new()
        };
        Self {
            parts,
            sight: Sight::new(starts, seq),
            rotary: rotary.cloned(),
            slopes,
        }
    }

    /// Where all rows' tokens stand.
    pub(crate) fn sight(&self) -> &Sight {
        &self.sight
    }

    /// The rows that attend together, and which keys their queries see.
    pub(crate) fn parts(&self) -> &[(Range<usize>, Sight)] {
        &self.parts
    }

    /// `ALiBi`'s slope of each head; empty for models without.
    pub(crate) fn slopes(&self) -> &[f64] {
        &self.slopes
    }

    /// The rows of a table `[places, d]` for the tokens of this pass, `[rows or 1, seq, d]`.
    pub(crate) fn pick(&self, table: Tensor<2>) -> Tensor<3> {
        let (starts, seq) = (self.sight.starts(), self.sight.seq());
        if let [start] = starts {
            return table.narrow(0, *start, seq).unsqueeze();
        }
        let places = starts.iter().flat_map(|start| *start..start + seq);
        let places: Vec<i32> = places.map(|place| place as i32).collect();
        let data = TensorData::new(places, [starts.len(), seq]);
        let device = table.device();
        nextword_kernels::embed(table, Tensor::from_data(data, &device))
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
