//! The source of an encoder-decoder model: the encoder's output, and its keys and values in the cache.

use burn::tensor::{Int, Tensor};
use nextword_kernels::{AttentionMask, AttentionOptions};

use super::ForwardContext;
use crate::Probe;

/// The source of an encoder-decoder model.
#[derive(Default)]
pub(super) enum Source {
    /// In the cache, or there is none.
    #[default]
    Cached,
    /// The encoder's input, `[batch, source]`, and the number of real tokens of each row.
    Tokens(Tensor<2, Int>, Vec<usize>),
    /// The encoder's output, `[batch, source, d_model]`, and the number of real tokens of each row.
    Encoded(Tensor<3>, Vec<usize>),
}

impl<P: Probe> ForwardContext<'_, P> {
    /// Sets the source of an encoder-decoder model, `[batch, source]`. The first `lengths[row]` tokens of a
    /// row are real, the others padding; a single length applies to all rows. With a cache, its keys and
    /// values are kept for later passes.
    ///
    /// ```
    /// use burn::tensor::{Device, Int, Tensor};
    /// use nextword_model::{ForwardContext, presets};
    ///
    /// let device = Device::flex();
    /// let model = presets::statquest_normal(9).init(&device, 1)?;
    /// let ids = |ids: [i32; 2]| Tensor::<2, Int>::from_ints([ids], &device);
    /// let mut ctx = ForwardContext::inference().with_source(ids([4, 6]), vec![2]);
    /// assert_eq!(model.forward(ids([0, 7]), &mut ctx).dims(), [1, 2, 9]);
    /// # Ok::<(), nextword_model::ModelError>(())
    /// ```
    #[must_use]
    pub fn with_source(self, tokens: Tensor<2, Int>, lengths: Vec<usize>) -> Self {
        ForwardContext {
            source: Source::Tokens(tokens, lengths),
            ..self
        }
    }

    /// Takes the encoder's input, if the encoder has not run.
    pub(crate) fn take_source(&mut self) -> Option<(Tensor<2, Int>, Vec<usize>)> {
        match std::mem::take(&mut self.source) {
            Source::Tokens(tokens, lengths) => Some((tokens, lengths)),
            other => {
                self.source = other;
                None
            }
        }
    }

    /// Sets the encoder's output, after it has run.
    pub(crate) fn set_encoded(&mut self, encoded: Tensor<3>, lengths: Vec<usize>) {
        self.source = Source::Encoded(encoded, lengths);
    }

    /// The encoder's output, `[batch, source, d_model]`, unless only the cache has its keys and values.
    pub(crate) fn encoded(&self) -> Option<Tensor<3>> {
        match &self.source {
            Source::Encoded(encoded, _) => Some(encoded.clone()),
            Source::Cached | Source::Tokens(..) => None,
        }
    }

    /// The following layers are those of the encoder, until [`leave_encoder`](Self::leave_encoder).
    pub(crate) fn enter_encoder(&mut self, lengths: Vec<usize>) {
        self.encoder_lengths = Some(lengths);
    }

    pub(crate) fn leave_encoder(&mut self) {
        self.encoder_lengths = None;
    }

    /// Makes room for the source in the cache. Returns the mask of cross-attention for `seq` queries.
    pub(super) fn prepare_source(&mut self, seq: usize) -> AttentionMask {
        let (lengths, keys) = match (&self.source, &mut self.cache) {
            (Source::Encoded(encoded, lengths), cache) => {
                let keys = encoded.dims()[1];
                if let Some((cache, slots)) = cache {
                    cache.source_mut().replace(slots, keys);
                }
                (lengths.clone(), keys)
            }
            (_, Some((cache, slots))) => {
                let source = cache.source_mut();
                let lengths: Vec<usize> = slots.iter().map(|slot| source.len(*slot)).collect();
                let keys = lengths.iter().copied().max().unwrap_or(0);
                (lengths, keys)
            }
            (_, None) => panic!("an encoder-decoder model needs a source"),
        };
        AttentionMask::cross(lengths, seq, keys)
    }

    /// The mask of cross-attention.
    pub(crate) fn cross_mask(&self) -> &AttentionMask {
        &self.positions.cross_mask
    }

    /// As [`update_cache`](Self::update_cache), for the keys and values of cross-attention.
    pub(crate) fn update_source_cache(
        &mut self,
        k: Tensor<4>,
        v: Tensor<4>,
    ) -> Option<[Tensor<4>; 2]> {
        let (Some((cache, slots)), Some(layer)) = (&mut self.cache, self.layer) else {
            return Some([k, v]);
        };
        let [k, v] = [k, v].map(|x| x.swap_dims(1, 2));
        cache.source_mut().append(layer, slots, k, v);
        self.cached_source()
    }

    /// This layer's cached keys and values of cross-attention, for a probe only (see
    /// [`attend_cached_source`](Self::attend_cached_source)).
    pub(crate) fn cached_source(&mut self) -> Option<[Tensor<4>; 2]> {
        let is_probed = self.is_probed();
        let (Some((cache, slots)), Some(layer)) = (&mut self.cache, self.layer) else {
            return None;
        };
        is_probed.then(|| {
            let keys = self.positions.cross_mask.keys();
            let visible = cache.source_mut().gather(layer, slots, keys);
            visible.map(|x| x.swap_dims(1, 2))
        })
    }

    /// Cross-attention over the pages of the source in the cache; `None` without a cache.
    pub(crate) fn attend_cached_source(
        &self,
        q: Tensor<4>,
        options: &AttentionOptions<'_>,
    ) -> Option<Tensor<4>> {
        let ((cache, slots), layer) = (self.cache.as_ref()?, self.layer?);
        Some(cache.source()?.attend(layer, slots, q, options))
    }
}
