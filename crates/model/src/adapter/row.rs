//! The adapter of a model as one for rows of its base.

use std::fmt::Write;

use nextword_base::hash::sha256_hex;
use nextword_kernels::LowRankUpdate;

use super::Adapter;
use crate::linear::Linear;
use crate::{Architecture, Block, Hook, ModelError, RowAdapter, Transformer};

impl Transformer {
    /// The adapter of this model, for rows of its base model. It shares the matrices with this model.
    ///
    /// # Errors
    /// [`ModelError::Adapter`] if there is none, or it is more than a sum of low-rank updates: with magnitudes
    /// (`DoRA`), or with full copies of parameters.
    pub fn row_adapter(&self) -> Result<RowAdapter, ModelError> {
        let one_stack = [
            Architecture::Decoder,
            Architecture::Prefix,
            Architecture::Encoder,
        ];
        self.config()
            .require(&one_stack, "use adapters for single rows")?;
        let hint = "serve a model of its own with the adapter attached or merged";
        let Some(adapter) = self.adapter() else {
            return Err(ModelError::adapter(
                "the model has no adapter",
                "attach one first",
            ));
        };
        if adapter.modules.values().any(|m| m.magnitude.is_some()) {
            return Err(ModelError::adapter(
                "an adapter with DoRA scales the products with the base's weights, so that other rows cannot share them",
                hint,
            ));
        }
        if let Some(name) = adapter.saved.keys().next() {
            return Err(ModelError::adapter(
                format!(
                    "the adapter has its own copy of `{name}` (modules_to_save), which other rows cannot share"
                ),
                hint,
            ));
        }
        let blocks = self.blocks.iter().map(updates).collect();
        Ok(RowAdapter::new(blocks, hash(&adapter), self.shape()))
    }

    /// Checks that rows of this model can use `adapter`: that the model has none itself, and is like the one that the
    /// adapter was attached to.
    ///
    /// # Errors
    /// [`ModelError::Adapter`] if they cannot.
    pub fn check_row_adapter(&self, adapter: &RowAdapter) -> Result<(), ModelError> {
        let problem = if self.has_adapter() {
            "rows cannot have adapters in a model with an adapter"
        } else if self.shape() != adapter.base() {
            "the adapter of a row is for a model with another configuration"
        } else {
            return Ok(());
        };
        Err(ModelError::adapter(problem, "use the adapter's base model"))
    }

    /// The configuration, to be compared.
    fn shape(&self) -> String {
        format!("{:?}", self.config())
    }
}

/// The updates of the layers of `block`.
fn updates(block: &Block) -> Vec<(Hook, LowRankUpdate)> {
    let (attention, feed_forward) = (&block.attention, block.feed_forward.as_ref());
    let layers: [(Hook, Option<&Linear>); 7] = [
        (Hook::LoraQuery, Some(&attention.query)),
        (Hook::LoraKey, Some(&attention.key)),
        (Hook::LoraValue, Some(&attention.value)),
        (Hook::LoraOutput, attention.output.as_ref()),
        (Hook::LoraGate, feed_forward.and_then(|f| f.gate.as_ref())),
        (Hook::LoraUp, feed_forward.map(|f| &f.up)),
        (Hook::LoraDown, feed_forward.map(|f| &f.down)),
    ];
    let update =
        |(hook, linear): (Hook, Option<&Linear>)| Some((hook, linear?.lora.as_ref()?.update(None)));
    layers.into_iter().filter_map(update).collect()
}

/// SHA-256 of the names, shapes and values of all modules.
fn hash(adapter: &Adapter) -> String {
    let mut bytes = Vec::new();
    let mut header = String::new();
    for (name, module) in &adapter.modules {
        let [rank, d_in, d_out] = [module.rank, module.d_in, module.d_out];
        let scale = module.scale.to_bits();
        // Writing to a string cannot fail.
        let _ = writeln!(header, "{name} {rank} {d_in} {d_out} {scale:08x}");
        let values = module.a.iter().chain(&module.b);
        bytes.extend(values.flat_map(|value| value.to_le_bytes()));
    }
    bytes.extend_from_slice(header.as_bytes());
    sha256_hex(&bytes)
}
