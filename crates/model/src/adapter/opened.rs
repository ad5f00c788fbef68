//! An adapter folder with its base, in place of a model folder.

use std::collections::BTreeMap;

use super::{Adapter, AdapterDir, LowRank};
use crate::model_dir::WeightUpdate;
use crate::weights::{WeightSource, dequantized_values, layout};
use crate::{
    BlockFormat, ModelCard, ModelConfig, ModelDir, ModelError, ModelTokens, QuantizedMatrix,
    Transformer,
};

impl AdapterDir {
    /// The model that this adapter makes of `base`, to be used like that of a model folder, with the card of
    /// [`card_over`](Self::card_over). Whether `base` is the right model is not checked: see
    /// [`BaseModel`](crate::BaseModel).
    ///
    /// # Errors
    /// As [`load`](Self::load).
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use nextword_model::{AdapterDir, BaseModel, LoraConfig, ModelCard, ModelDir};
    ///
    /// let base = ModelDir::open("../../docs/models/letters".as_ref())?;
    /// let device = Device::flex();
    /// let model = base.load(&device)?.with_new_adapter(&LoraConfig::default(), 7)?;
    /// let folder = tempfile::tempdir()?;
    /// let path = folder.path().join("adapter");
    /// let description = BaseModel::of(&base)?;
    /// AdapterDir::save(&path, &model.adapter().unwrap(), &description, &ModelCard::default())?;
    ///
    /// let opened = AdapterDir::open(&path)?.with_base(base)?;
    /// assert!(opened.base().is_some());
    /// assert!(opened.load(&device)?.has_adapter());
    /// // Formats without adapters get the sum.
    /// assert_eq!(opened.open_weights()?.shape("token_embedding.weight").unwrap().len(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn with_base(self, base: ModelDir) -> Result<ModelDir, ModelError> {
        let card = self.card_over(&base.card);
        let update = AdapterUpdate(self.load(&base.config)?);
        Ok(base.with_update(&self.path, card, Box::new(update)))
    }

    /// The card of the model that this adapter makes of one with the card `base`: that of the adapter; what it leaves
    /// out, such as the chat templates of an imported adapter, is that of the base. Reads no tensors.
    pub fn card_over(&self, base: &ModelCard) -> ModelCard {
        let mut card = self.card.clone();
        if card.special == ModelTokens::default() {
            card.special.clone_from(&base.special);
        }
        if card.chat_templates.is_empty() && card.template_problem.is_none() {
            card.chat_templates.clone_from(&base.chat_templates);
        }
        if card.prompt_template.is_none() {
            card.prompt_template.clone_from(&base.prompt_template);
        }
        card.unused_ids = base.unused_ids;
        card
    }
}

/// The values of an adapter, added to those of its base.
#[derive(Debug)]
struct AdapterUpdate(Adapter);

impl WeightUpdate for AdapterUpdate {
    fn apply(&self, model: Transformer) -> Result<Transformer, ModelError> {
        model.with_adapter(&self.0)
    }

    fn merged<'a>(
        &'a self,
        config: &ModelConfig,
        base: Box<dyn WeightSource + 'a>,
    ) -> Box<dyn WeightSource + 'a> {
        self.0.merged_weights(config, base)
    }
}

impl Adapter {
    /// The weights in `base`, of a model of `config`, with this adapter added to them. They are read one tensor at a time;
    /// quantized matrices become floats.
    pub fn merged_weights<'a>(
        &'a self,
        config: &ModelConfig,
        base: Box<dyn WeightSource + 'a>,
    ) -> Box<dyn WeightSource + 'a> {
        Box::new(MergedWeights {
            base,
            adapter: self,
            shapes: layout(config).into_iter().collect(),
        })
    }
}

/// The weights of a base with an adapter added to them, read one tensor at a time. A quantized matrix with an update is
/// read as floats.
#[derive(Debug)]
struct MergedWeights<'a> {
    base: Box<dyn WeightSource + 'a>,
    adapter: &'a Adapter,
    shapes: BTreeMap<String, Vec<usize>>,
}

impl MergedWeights<'_> {
    fn module(&self, name: &str) -> Option<&LowRank> {
        self.adapter.modules.get(name.strip_suffix(".weight")?)
    }

    fn is_changed(&self, name: &str) -> bool {
        self.module(name).is_some() || self.adapter.saved.contains_key(name)
    }

    /// The values of the base, dequantized.
    fn base_values(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        if let Some(shape) = self.shapes.get(name)
            && let Some(values) = dequantized_values(&*self.base, name, shape)?
        {
            return Ok(values);
        }
        self.base.values(name)
    }
}

impl WeightSource for MergedWeights<'_> {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        if self.is_changed(name) {
            return self.shapes.get(name).map(Vec::as_slice);
        }
        self.base.shape(name)
    }

    fn values(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        if let Some(saved) = self.adapter.saved.get(name) {
            return Ok(saved.values.clone());
        }
        let Some(module) = self.module(name) else {
            return self.base_values(name);
        };
        let mut values = self.base_values(name)?;
        module.add_to(&mut values);
        Ok(values)
    }

    fn matrix_format(&self, name: &str) -> Option<BlockFormat> {
        if self.is_changed(name) {
            return None;
        }
        self.base.matrix_format(name)
    }

    fn quantized_matrix(
        &self,
        name: &str,
        shape: [usize; 2],
    ) -> Result<Option<QuantizedMatrix>, ModelError> {
        if self.is_changed(name) {
            return Ok(None);
        }
        self.base.quantized_matrix(name, shape)
    }
}

impl Transformer {
    /// Adds the adapter, if there is one, to the weights, which become floats if they are quantized. For everything that
    /// has no notion of an adapter.
    ///
    /// # Errors
    /// As [`merge_adapter`](Self::merge_adapter), for no known reason.
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use nextword_model::{Bits, LoraConfig, presets};
    ///
    /// let base = presets::shakespeare_char_cpu(65).init(&Device::flex(), 1)?;
    /// let adapted = base.quantize(Bits::Int8).with_new_adapter(&LoraConfig::default(), 7)?;
    /// let merged = adapted.into_merged()?;
    /// assert!(!merged.has_adapter() && merged.bits().is_none());
    /// # Ok::<(), nextword_model::ModelError>(())
    /// ```
    pub fn into_merged(self) -> Result<Self, ModelError> {
        if !self.has_adapter() {
            return Ok(self);
        }
        self.dequantize().merge_adapter()
    }
}
