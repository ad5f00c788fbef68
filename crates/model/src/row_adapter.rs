//! Adapters of single rows of a batch, whose base product all rows share.

use std::sync::Arc;

use nextword_kernels::LowRankUpdate;

use crate::{Hook, Site};

/// An adapter for some rows of a batch, made by
/// [`Transformer::row_adapter`](crate::Transformer::row_adapter). Clones share its matrices.
///
/// The rows of a forward pass share the products with the weights of the base; those with an adapter then add its
/// updates. On the CPU a row has the bits that it would have in a batch of its own, with the adapter attached to
/// the model.
///
/// # Example
///
/// ```
/// use burn::tensor::{Device, Int, Tensor};
/// use nextword_model::{ForwardContext, LoraConfig, presets};
///
/// let device = Device::flex();
/// let base = presets::shakespeare_char_cpu(65).init(&device, 1)?;
/// let mut adapter = base.clone().with_new_adapter(&LoraConfig::default(), 7)?.adapter().unwrap();
/// for module in adapter.modules.values_mut() {
///     module.b.fill(0.1);
/// }
/// let adapted = base.clone().with_adapter(&adapter)?;
///
/// let tokens = || Tensor::<2, Int>::from_ints([[5, 6, 7], [5, 6, 7]], &device);
/// let rows = [None, Some(adapted.row_adapter()?)];
/// let mixed = base.forward(tokens(), &mut ForwardContext::inference().with_row_adapters(&rows));
/// let row = |logits: &Tensor<3>, row| logits.clone().narrow(0, row, 1).into_data();
/// let alone = |model: &nextword_model::Transformer| {
///     model.forward(tokens(), &mut ForwardContext::inference())
/// };
/// assert_eq!(row(&mixed, 0), row(&alone(&base), 0));
/// assert_eq!(row(&mixed, 1), row(&alone(&adapted), 1));
/// # Ok::<(), nextword_model::ModelError>(())
/// ```
#[derive(Clone, Debug)]
pub struct RowAdapter {
    parts: Arc<Parts>,
    factor: f32,
}

#[derive(Debug)]
struct Parts {
    /// The updates of each block by the hooks of their layers.
    blocks: Vec<Vec<(Hook, LowRankUpdate)>>,
    /// SHA-256 of all values.
    hash: String,
    /// The configuration of the base model.
    base: String,
}

impl RowAdapter {
    /// The updates of each block by the hooks of their layers. `hash` is that of all values, and `base` the
    /// configuration of the model.
    pub(crate) fn new(blocks: Vec<Vec<(Hook, LowRankUpdate)>>, hash: String, base: String) -> Self {
        let parts = Parts { blocks, hash, base };
        Self {
            parts: Arc::new(parts),
            factor: 1.0,
        }
    }

    /// The configuration of the base model.
    pub(crate) fn base(&self) -> &str {
        &self.parts.base
    }

    /// Multiplies the updates by `factor`.
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use nextword_model::{LoraConfig, presets};
    ///
    /// let model = presets::shakespeare_char_cpu(65).init(&Device::flex(), 1)?;
    /// let adapter = model.with_new_adapter(&LoraConfig::default(), 7)?.row_adapter()?;
    /// assert_ne!(adapter.clone().with_factor(0.5), adapter);
    /// assert_eq!(adapter.clone().with_factor(1.0), adapter);
    /// # Ok::<(), nextword_model::ModelError>(())
    /// ```
    #[must_use]
    pub fn with_factor(self, factor: f32) -> Self {
        Self { factor, ..self }
    }

    /// Identifies what the adapter computes: a hash of its values, and the factor.
    pub fn id(&self) -> String {
        format!("{} {:08x}", self.parts.hash, self.factor.to_bits())
    }

    /// Whether the adapter changes nothing, because its factor is zero.
    pub fn is_off(&self) -> bool {
        self.factor == 0.0
    }

    /// The update of the layer with the hook `site`, if it has one.
    pub(crate) fn update(&self, site: Site) -> Option<LowRankUpdate> {
        let block = self.parts.blocks.get(site.layer?)?;
        let (_, update) = block.iter().find(|(hook, _)| *hook == site.hook)?;
        Some(LowRankUpdate {
            scale: update.scale * self.factor,
            ..update.clone()
        })
    }
}

impl PartialEq for RowAdapter {
    fn eq(&self, other: &Self) -> bool {
        self.parts.hash == other.parts.hash && self.factor.to_bits() == other.factor.to_bits()
    }
}
