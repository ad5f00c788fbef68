//! The encoder of an encoder-decoder model, and the layer before a masked-token model's output layer.

use burn::module::Module;
use burn::nn::Embedding;
use burn::tensor::{Device, Int, Tensor};

use super::Transformer;
use crate::linear::{Linear, placeholder, zero_linear};
use crate::{Block, FeedForwardKind, ForwardContext, ModelConfig, Norm, Position, Probe};

/// The stack that reads the source (Vaswani et al. 2017, section 3.1). Its blocks are those of the
/// decoder without cross-attention.
#[derive(Module, Debug)]
pub struct Encoder {
    /// `[vocab_size, d_model]`; `None` if it is shared with the decoder.
    pub token_embedding: Option<Embedding>,
    /// `[context_length, d_model]`; learned positions only.
    pub position_embedding: Option<Embedding>,
    /// After the sum of the embeddings, in models with `embedding_norm`.
    pub embedding_norm: Option<Norm>,
    /// The blocks, in order.
    pub blocks: Vec<Block>,
    /// Norm after the last block, in pre-norm and sandwich-norm models.
    pub final_norm: Option<Norm>,
}

impl Encoder {
    /// The encoder that `config` describes, if any.
    pub(crate) fn new(config: &ModelConfig, device: &Device) -> Option<Self> {
        let embedding = |rows| Embedding {
            weight: placeholder([rows, config.d_model], device),
        };
        let norm = || Norm::new(config, config.d_model, device);
        config.has_encoder().then(|| Self {
            token_embedding: (!config.share_embeddings).then(|| embedding(config.vocab_size)),
            position_embedding: (config.position == Position::Learned)
                .then(|| embedding(config.context_length)),
            embedding_norm: config.embedding_norm.then(norm).flatten(),
            blocks: (0..config.encoder_layers())
                .map(|layer| Block::new(config, layer, device))
                .collect(),
            final_norm: config.has_final_norm().then(norm).flatten(),
        })
    }
}

impl Transformer {
    /// Runs the encoder of an encoder-decoder model: `[batch, source]` to `[batch, source, d_model]`.
    /// The first `lengths[row]` tokens of a row are real, the others padding; a single length applies to
    /// all rows.
    ///
    /// # Panics
    /// If the model has no encoder, a length exceeds `source`, or `source` exceeds `context_length`.
    ///
    /// ```
    /// use burn::tensor::{Device, Int, Tensor};
    /// use nextword_model::{ForwardContext, presets};
    ///
    /// let device = Device::flex();
    /// let model = presets::statquest_normal(9).init(&device, 1)?;
    /// let source = Tensor::<2, Int>::from_ints([[4, 6]], &device);
    /// let encoded = model.encode(source, vec![2], &mut ForwardContext::inference());
    /// assert_eq!(encoded.dims(), [1, 2, 2]);
    /// # Ok::<(), nextword_model::ModelError>(())
    /// ```
    pub fn encode<P: Probe>(
        &self,
        tokens: Tensor<2, Int>,
        lengths: Vec<usize>,
        ctx: &mut ForwardContext<'_, P>,
    ) -> Tensor<3> {
        ctx.enter_encoder(lengths);
        let mut x = self.embed_source(tokens, ctx);
        let encoder = self.require_encoder();
        for (layer, block) in encoder.blocks.iter().enumerate() {
            ctx.set_layer(Some(layer));
            x = block.forward(x, ctx);
        }
        ctx.set_layer(None);
        let x = self.normalize_encoded(x, ctx);
        ctx.leave_encoder();
        x
    }

    /// The norm after the encoder's last block.
    pub(crate) fn normalize_encoded<P: Probe>(
        &self,
        x: Tensor<3>,
        ctx: &mut ForwardContext<'_, P>,
    ) -> Tensor<3> {
        super::final_norm(self.require_encoder().final_norm.as_ref(), x, ctx)
    }

    /// The encoder.
    ///
    /// # Panics
    /// If the model has none.
    pub(crate) fn require_encoder(&self) -> &Encoder {
        match &self.encoder {
            Some(encoder) => encoder,
            None => panic!("only encoder-decoder models have an encoder beside the decoder"),
        }
    }
}

/// `norm(activation(x W + b))`, before the output layer of BERT (Devlin et al. 2018).
#[derive(Module, Debug)]
pub struct HeadTransform {
    /// `[d_model, d_model]`.
    pub dense: Linear,
    /// After the activation.
    pub norm: Option<Norm>,
    #[module(skip)]
    kind: FeedForwardKind,
}

impl HeadTransform {
    /// The layer that `config` describes, if any.
    pub(crate) fn new(config: &ModelConfig, device: &Device) -> Option<Self> {
        let d = config.d_model;
        config.head_transform.then(|| Self {
            dense: zero_linear(d, d, config.bias.head, device),
            norm: Norm::new(config, d, device),
            kind: config.feed_forward,
        })
    }

    /// `[batch, seq, d_model]` to `[batch, seq, d_model]`.
    pub(crate) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let x = self.dense.forward(x, None);
        let x = nextword_kernels::activate(self.kind.activation(), x);
        match &self.norm {
            Some(norm) => norm.forward(x),
            None => x,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn::tensor::Tensor;

    use crate::{Architecture, ForwardContext, InitConfig, ModelConfig, NoProbe, weights};

    #[test]
    fn losses_of_sequences_are_those_after_the_head_transform() {
        let device = burn::tensor::Device::flex();
        let config = ModelConfig {
            architecture: Architecture::Encoder,
            head_transform: true,
            vocab_size: 11,
            context_length: 4,
            n_layers: 1,
            n_heads: 2,
            d_model: 8,
            init: InitConfig {
                std: 0.4,
                scale_output: false,
            },
            ..ModelConfig::default()
        };
        let model = config.init(&device, 5).unwrap();
        let ctx = || ForwardContext::<NoProbe>::inference();
        let tokens = Tensor::from_ints([[1, 2, 3], [4, 5, 6]], &device);
        let targets = [7, 8, 9, 1, 2, 3];
        let each = model.sequence_losses(tokens.clone(), &targets, &mut ctx());
        let each: f32 = weights::to_f32_vec(each.into_data()).iter().sum();
        let sum = model.loss_sum(tokens, &targets, &mut ctx());
        let sum = weights::to_f32_vec(sum.into_data())[0];
        assert!((each - sum).abs() < 1e-3, "{each} {sum}");
    }
}
