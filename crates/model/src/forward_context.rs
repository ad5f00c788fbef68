//! State of one forward pass that every layer shares, besides the activations.

mod source;

use burn::tensor::{Tensor, TensorData};
use nextword_kernels::{
    AttentionDropout, AttentionMask, AttentionOptions, LinearFusion, RowUpdate,
};

use self::source::Source;
use crate::linear::Linear;
use crate::position::Rope;
use crate::{
    Architecture, Dropout, Hook, KvCache, ModelConfig, NoProbe, Position, Probe, RowAdapter, Site,
    alibi_slopes,
};

/// Options and state of one forward pass: the probe, the dropout masks, the KV cache and the adapters of rows.
pub struct ForwardContext<'a, P: Probe = NoProbe> {
    probe: Option<&'a mut P>,
    dropout: Dropout,
    cache: Option<(&'a mut KvCache, &'a [usize])>,
    /// The attention mask, if it is not the default of the model's architecture.
    mask: Option<AttentionMask>,
    layer: Option<usize>,
    positions: Positions,
    source: Source,
    /// Real tokens of each row while the encoder of an encoder-decoder model runs.
    encoder_lengths: Option<Vec<usize>>,
    /// The different adapters of rows, with their rows.
    adapters: Vec<(RowAdapter, Vec<usize>)>,
}

impl ForwardContext<'static, NoProbe> {
    /// Inference without a probe, dropout or cache.
    pub fn inference() -> Self {
        Self::training(Dropout::Off)
    }

    /// Training with these dropout masks.
    pub fn training(dropout: Dropout) -> Self {
        ForwardContext {
            probe: None,
            dropout,
            cache: None,
            mask: None,
            layer: None,
            positions: Positions::default(),
            source: Source::Cached,
            encoder_lengths: None,
            adapters: Vec::new(),
        }
    }
}

impl<'a, P: Probe> ForwardContext<'a, P> {
    /// Inference that passes intermediate values to `probe`.
    pub fn with_probe(probe: &'a mut P) -> Self {
        ForwardContext {
            probe: Some(probe),
            dropout: Dropout::Off,
            cache: None,
            mask: None,
            layer: None,
            positions: Positions::default(),
            source: Source::Cached,
            encoder_lengths: None,
            adapters: Vec::new(),
        }
    }

    /// Sets the dropout masks.
    #[must_use]
    pub fn with_dropout(self, dropout: Dropout) -> Self {
        ForwardContext { dropout, ..self }
    }

    /// Sets the attention mask of a pass that does not continue cached tokens. Its number of queries is that of
    /// the tokens in a row. Without it, a token attends to itself and to earlier tokens, and in an encoder to
    /// all tokens of its row. In encoder-decoder models it is the decoder's.
    ///
    /// ```
    /// use burn::tensor::{Device, Int, Tensor};
    /// use nextword_model::{AttentionMask, ForwardContext, presets};
    ///
    /// let device = Device::flex();
    /// let model = presets::statquest(5).init(&device, 7)?;
    /// let first_logits = |last: i32| -> Result<Vec<f32>, _> {
    ///     let tokens = Tensor::<2, Int>::from_ints([[0, 1, last]], &device);
    ///     let mask = AttentionMask::bidirectional(vec![3], 3);
    ///     let logits = model.forward(tokens, &mut ForwardContext::inference().with_mask(mask));
    ///     logits.narrow(1, 0, 1).into_data().to_vec()
    /// };
    /// assert_ne!(first_logits(2).unwrap(), first_logits(3).unwrap()); // the first token sees the last one
    /// # Ok::<(), nextword_model::ModelError>(())
    /// ```
    #[must_use]
    pub fn with_mask(self, mask: AttentionMask) -> Self {
        Self {
            mask: Some(mask),
            ..self
        }
    }

    /// Continues the sequence in slot `slots[i]` of `cache` with row i of the batch. If rows have one token
    /// each, a slot can be named several times: its rows are consecutive tokens, computed with the bits of
    /// one pass per token.
    #[must_use]
    pub fn with_cache(self, cache: &'a mut KvCache, slots: &'a [usize]) -> Self {
        ForwardContext {
            cache: Some((cache, slots)),
            ..self
        }
    }

    /// Uses `adapters[i]` for row i of the batch. The model itself must be without an adapter.
    #[must_use]
    pub fn with_row_adapters(self, adapters: &[Option<RowAdapter>]) -> Self {
        let mut groups: Vec<(RowAdapter, Vec<usize>)> = Vec::new();
        for (row, adapter) in adapters.iter().enumerate() {
            let Some(adapter) = adapter.as_ref().filter(|adapter| !adapter.is_off()) else {
                continue;
            };
            match groups.iter_mut().find(|(other, _)| other == adapter) {
                Some((_, rows)) => rows.push(row),
                None => groups.push((adapter.clone(), vec![row])),
            }
        }
        Self {
            adapters: groups,
            ..self
        }
    }

    /// Whether some rows have an adapter.
    pub(crate) fn has_row_adapters(&self) -> bool {
        !self.adapters.is_empty()
    }

    /// The updates of rows in the layer of `hook`.
    pub(crate) fn row_updates(&self, hook: Hook) -> Vec<RowUpdate> {
        let site = self.site(hook);
        let update = |(adapter, rows): &(RowAdapter, Vec<usize>)| {
            let update = adapter.update(site)?;
            let rows = rows.clone();
            Some(RowUpdate { rows, update })
        };
        self.adapters.iter().filter_map(update).collect()
    }

    /// Whether a probe receives intermediate values.
    pub fn is_probed(&self) -> bool {
        P::ENABLED && self.probe.is_some()
    }

    pub(crate) fn record<const D: usize>(&mut self, hook: Hook, tensor: &Tensor<D>) {
        let site = self.site(hook);
        if let Some(probe) = &mut self.probe {
            probe.record(site, tensor);
        }
    }

    /// Passes the input of the linear layer of `hook` to a probe that sees inputs.
    fn record_input(&mut self, hook: Hook, x: &Tensor<3>) {
        let site = self.site(hook);
        if P::SEES_INPUTS
            && let Some(probe) = &mut self.probe
        {
            probe.record_input(site, x);
        }
    }

    fn site(&self, hook: Hook) -> Site {
        Site {
            layer: self.layer,
            hook,
            in_encoder: self.encoder_lengths.is_some(),
        }
    }

    /// Records `[batch, seq, heads, head_dim]` as `[batch, heads, seq, head_dim]`.
    pub(crate) fn record_heads(&mut self, hook: Hook, tensor: &Tensor<4>) {
        if self.is_probed() {
            self.record(hook, &tensor.clone().swap_dims(1, 2));
        }
    }

    /// Dropout on the attention weights of `hook` in this layer.
    pub(crate) fn attention_dropout(&self, hook: Hook, rate: f64) -> Option<AttentionDropout> {
        self.dropout.for_attention(rate, self.site(hook))
    }

    pub(crate) fn dropout<const D: usize>(&self, hook: Hook, x: Tensor<D>, rate: f64) -> Tensor<D> {
        self.dropout.apply(x, rate, self.site(hook))
    }

    /// Applies a linear layer. `hook` is that of its adapter, if it has one.
    pub(crate) fn linear(&mut self, linear: &Linear, hook: Hook, x: Tensor<3>) -> Tensor<3> {
        self.record_input(hook, &x);
        let Some(lora) = &linear.lora else {
            return linear.forward_rows(x, &self.row_updates(hook));
        };
        if self.is_probed() {
            let activations = nextword_kernels::linear(x.clone(), lora.a.val(), None);
            self.record(hook, &activations);
        }
        let mask = self.dropout.mask(&x, lora.dropout(), self.site(hook));
        linear.forward(x, mask.filter(|mask| mask.rate > 0.0))
    }

    /// Applies a linear layer and the operations that follow it.
    pub(crate) fn linear_fused(
        &mut self,
        linear: &Linear,
        hook: Hook,
        x: Tensor<3>,
        fusion: LinearFusion,
    ) -> Tensor<3> {
        if linear.lora.is_none() && self.row_updates(hook).is_empty() {
            self.record_input(hook, &x);
            return linear.forward_fused(x, fusion);
        }
        fusion.apply(self.linear(linear, hook, x))
    }

    /// Whether nothing happens between the output of a sublayer and the residual sum: neither dropout with
    /// this rate nor a probe.
    pub(crate) fn adds_directly(&self, rate: f64) -> bool {
        !self.is_probed() && (rate <= 0.0 || matches!(self.dropout, Dropout::Off))
    }

    pub(crate) fn set_layer(&mut self, layer: Option<usize>) {
        self.layer = layer;
    }

    pub(crate) fn positions(&self) -> &Positions {
        &self.positions
    }

    /// Sets the positions of the input tokens. Called before the first layer runs.
    pub(crate) fn set_positions(
        &mut self,
        config: &ModelConfig,
        rope: Option<&Rope>,
        x: &Tensor<3>,
    ) {
        let [rows, seq, _] = x.dims();
        if let Some(lengths) = &self.encoder_lengths {
            let mask = AttentionMask::bidirectional(lengths.clone(), seq);
            self.positions = Positions::new(config, rope, mask);
            return;
        }
        let offsets = match &mut self.cache {
            Some((cache, slots)) => {
                assert_eq!(slots.len(), rows, "one cache slot for each row");
                cache.prepare(slots, seq);
                cache.starts(slots)
            }
            None => vec![0],
        };
        let mask = match &self.mask {
            Some(mask) => {
                assert_eq!(mask.queries(), seq, "a mask for each token of a row");
                assert!(
                    mask.position_offsets() == [0] && offsets.iter().all(|offset| *offset == 0),
                    "the mask of a pass that continues cached tokens is causal"
                );
                mask.clone()
            }
            None if config.architecture == Architecture::Encoder => {
                AttentionMask::bidirectional(vec![seq], seq)
            }
            None => AttentionMask::causal(offsets, seq),
        };
        self.positions = Positions::new(config, rope, mask);
        if config.has_encoder() {
            self.positions.cross_mask = self.prepare_source(seq);
        }
    }

    /// Appends this layer's keys and values, `[rows, seq, n_kv_heads, head_dim]`, to the cache. Returns the
    /// visible keys and values, `[rows, keys, n_kv_heads, head_dim]`: without a cache `k` and `v`
    /// themselves, with a cache for a probe only (see [`attend_cached`](Self::attend_cached)).
    pub(crate) fn update_cache(&mut self, k: Tensor<4>, v: Tensor<4>) -> Option<[Tensor<4>; 2]> {
        let is_probed = self.is_probed();
        if self.encoder_lengths.is_some() {
            return Some([k, v]);
        }
        let (Some((cache, slots)), Some(layer)) = (&mut self.cache, self.layer) else {
            return Some([k, v]);
        };
        let [k, v] = [k, v].map(|x| x.swap_dims(1, 2));
        cache.append(layer, slots, k, v);
        is_probed.then(|| {
            let visible = cache.gather(layer, slots, self.positions.mask.keys());
            visible.map(|x| x.swap_dims(1, 2))
        })
    }

    /// Attention over this layer's pages of the cache; `None` without a cache.
    pub(crate) fn attend_cached(
        &self,
        q: Tensor<4>,
        options: &AttentionOptions<'_>,
    ) -> Option<Tensor<4>> {
        let ((cache, slots), layer) = (self.cache.as_ref()?, self.layer?);
        Some(cache.attend(layer, slots, q, options))
    }

    /// Adds the tokens of this pass to the lengths of the cached sequences.
    pub(crate) fn advance_cache(&mut self, seq: usize) {
        if let Some((cache, slots)) = &mut self.cache {
            cache.advance(slots, seq);
            if let Source::Encoded(_, lengths) = &self.source {
                cache.advance_sources(slots, lengths);
            }
        }
    }
}

/// The positions of the tokens of a forward pass, and the masks and tables derived from them.
#[derive(Default)]
pub(crate) struct Positions {
    mask: AttentionMask,
    /// The mask of cross-attention, in decoders with an encoder.
    cross_mask: AttentionMask,
    /// The position of each token, `[rows of the mask, seq]`, if rows have several segments: it counts from 0 in each.
    in_segments: Option<Vec<usize>>,
    rope: Option<Rope>,
    /// `ALiBi`'s slopes.
    slopes: Vec<f64>,
}

impl Positions {
    fn new(config: &ModelConfig, rope: Option<&Rope>, mask: AttentionMask) -> Self {
        let slopes = if config.position == Position::Alibi {
            alibi_slopes(config.n_heads)
        } else {
            Vec::new()
        };
        Self {
            in_segments: mask.segment_positions(),
            mask,
            cross_mask: AttentionMask::default(),
            rope: rope.cloned(),
            slopes,
        }
    }

    /// The attention mask of all rows.
    pub(crate) fn mask(&self) -> &AttentionMask {
        &self.mask
    }

    /// `ALiBi`'s slope of each head; empty for models without `ALiBi`.
    pub(crate) fn slopes(&self) -> &[f64] {
        &self.slopes
    }

    /// Gathers the rows of `table`, `[positions, d]`, for the tokens of this pass:
    /// `[rows or 1, seq, d]`.
    pub(crate) fn gather(&self, table: Tensor<2>) -> Tensor<3> {
        let (offsets, seq) = (self.mask.position_offsets(), self.mask.queries());
        let positions = match (&self.in_segments, offsets) {
            (Some(positions), _) => positions.clone(),
            (None, [offset]) => return table.narrow(0, *offset, seq).unsqueeze(),
            (None, offsets) => offsets
                .iter()
                .flat_map(|offset| *offset..offset + seq)
                .collect(),
        };
        let rows = positions.len() / seq.max(1);
        let positions: Vec<i32> = positions.iter().map(|position| *position as i32).collect();
        let data = TensorData::new(positions, [rows, seq]);
        let device = table.device().without_autodiff();
        nextword_kernels::embed(table, Tensor::from_data(data, &device))
    }

    /// Applies `RoPE` to queries or keys, `[batch, seq, heads, head_dim]`, in models that use it. A
    /// local layer has its own frequencies.
    pub(crate) fn apply_rope(&self, x: Tensor<4>, is_local: bool) -> Tensor<4> {
        let Some(rope) = &self.rope else {
            return x;
        };
        let Some(positions) = &self.in_segments else {
            return rope.apply(x, is_local, self.mask.position_offsets());
        };
        // Each token is a row of its own, whose offset is the token's position.
        let [batch, seq, heads, head_dim] = x.dims();
        let positions = positions.repeat(batch * seq / positions.len().max(1));
        let tokens = x.reshape([batch * seq, 1, heads, head_dim]);
        let rotated = rope.apply(tokens, is_local, &positions);
        rotated.reshape([batch, seq, heads, head_dim])
    }
}
