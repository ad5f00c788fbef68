//! The complete network, from token ids to logits.

mod embedding;
mod encoder;

use burn::module::{Module, Param};
use burn::nn::Embedding;
use burn::tensor::{Device, Int, Tensor};
use nextword_kernels::{OutputLayer, OutputWeight, Precision, QuantizedMatrix};

use crate::linear::placeholder;
use crate::lora::Attached;
use crate::position::{Rope, sinusoidal_table};
use crate::{
    Block, ForwardContext, Hook, KvCache, ModelConfig, ModelError, Norm, Position, Probe,
    init::initialize,
};

pub use self::encoder::{Encoder, HeadTransform};

/// A Transformer: a decoder, with an encoder beside it in encoder-decoder models, or a single stack with
/// another mask (see [`Architecture`](crate::Architecture)).
///
/// # Example
///
/// ```
/// use burn::tensor::{Device, Int, Tensor};
/// use nextword_model::{ForwardContext, presets};
///
/// let device = Device::flex();
/// let model = presets::shakespeare_char_cpu(65).init(&device, 1)?;
/// let logits = |ids: [i32; 4]| {
///     let tokens = Tensor::<2, Int>::from_ints([ids], &device); // [batch 1, seq 4]
///     model.forward(tokens, &mut ForwardContext::inference()) // [batch 1, seq 4, vocab 65]
/// };
/// // A token changes the predictions from its own position on, never earlier ones.
/// let (a, b) = (logits([7, 8, 9, 1]), logits([7, 8, 9, 2]));
/// let first = |x: &Tensor<3>| x.clone().narrow(1, 0, 3).into_data();
/// assert_eq!(first(&a), first(&b));
/// assert_ne!(a.into_data(), b.into_data());
/// # Ok::<(), nextword_model::ModelError>(())
/// ```
#[derive(Module, Debug)]
pub struct Transformer {
    /// `[vocab_size, d_model]`.
    pub token_embedding: Embedding,
    /// `[context_length, d_model]`; learned positions only.
    pub position_embedding: Option<Embedding>,
    /// After the sum of the embeddings, in models with `embedding_norm`.
    pub embedding_norm: Option<Norm>,
    /// The encoder of encoder-decoder models.
    pub encoder: Option<Encoder>,
    /// The blocks, in order; in encoder-decoder models, those of the decoder.
    pub blocks: Vec<Block>,
    /// Norm after the last block, in pre-norm and sandwich-norm models.
    pub final_norm: Option<Norm>,
    /// Before the output layer, in models with `head_transform`.
    pub head_transform: Option<HeadTransform>,
    /// The output layer (language-model head).
    pub head: Head,
    /// The token embedding of a quantized model, `[d_model, vocab_size]`. The float
    /// weight is then empty.
    #[module(skip)]
    pub(crate) quantized_embedding: Option<QuantizedMatrix>,
    /// What belongs to the adapter besides its modules, if there is one.
    #[module(skip)]
    pub(crate) attached: Option<Attached>,
    #[module(skip)]
    sinusoidal_table: Option<Tensor<2>>,
    #[module(skip)]
    rope: Option<Rope>,
    #[module(skip)]
    precision: Precision,
    #[module(skip)]
    config: ModelConfig,
}

/// The output layer. A tied head shares the token embedding's weight and has none of its own.
#[derive(Module, Debug)]
pub struct Head {
    /// `[d_model, vocab_size]`.
    pub weight: Option<Param<Tensor<2>>>,
    /// `[vocab_size]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// The weight of a quantized model. The float weight is then empty.
    #[module(skip)]
    pub(crate) quantized: Option<QuantizedMatrix>,
}

impl ModelConfig {
    /// Builds the model on `device` with random weights from `seed`.
    ///
    /// # Errors
    /// [`ModelError::Config`] if the configuration is invalid.
    ///
    /// # Example
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use nextword_model::{presets, weights};
    ///
    /// let first = |seed| {
    ///     let model = presets::statquest(5).init(&Device::flex(), seed)?;
    ///     Ok::<_, nextword_model::ModelError>(model.token_embedding.weight.val().into_data())
    /// };
    /// assert_eq!(first(7)?, first(7)?);
    /// assert_ne!(first(7)?, first(8)?);
    /// # Ok::<(), nextword_model::ModelError>(())
    /// ```
    pub fn init(&self, device: &Device, seed: u64) -> Result<Transformer, ModelError> {
        Ok(initialize(self.build(device)?, self.init, seed))
    }

    /// Builds the model on `device` with zero weights, to be loaded from a file.
    pub(crate) fn build(&self, device: &Device) -> Result<Transformer, ModelError> {
        self.validate()?;
        let device = &device.clone().without_autodiff();
        let embedding = |rows| Embedding {
            weight: placeholder([rows, self.d_model], device),
        };
        Ok(Transformer {
            token_embedding: embedding(self.vocab_size),
            position_embedding: (self.position == Position::Learned)
                .then(|| embedding(self.context_length)),
            embedding_norm: self
                .embedding_norm
                .then(|| Norm::new(self, self.d_model, device))
                .flatten(),
            encoder: Encoder::new(self, device),
            blocks: (0..self.n_layers)
                .map(|layer| {
                    if self.has_encoder() {
                        Block::with_cross_attention(self, layer, device)
                    } else {
                        Block::new(self, layer, device)
                    }
                })
                .collect(),
            final_norm: self
                .has_final_norm()
                .then(|| Norm::new(self, self.d_model, device))
                .flatten(),
            head_transform: HeadTransform::new(self, device),
            head: Head {
                weight: (!self.tied_head)
                    .then(|| placeholder([self.d_model, self.vocab_size], device)),
                bias: self
                    .bias
                    .head
                    .then(|| Param::from_tensor(Tensor::zeros([self.vocab_size], device))),
                quantized: None,
            },
            quantized_embedding: None,
            attached: None,
            sinusoidal_table: (self.position == Position::Sinusoidal)
                .then(|| sinusoidal_table(self.context_length, self.d_model, device)),
            rope: (self.position == Position::Rotary).then(|| Rope::new(self)),
            precision: Precision::F32,
            config: self.clone(),
        })
    }
}

impl Transformer {
    /// Computes the logits of the next token at each position, or in an encoder of the token itself:
    /// `[batch, seq]` to `[batch, seq, vocab_size]`.
    ///
    /// An encoder-decoder model takes its source from the context
    /// ([`with_source`](ForwardContext::with_source)) or from the cache.
    ///
    /// # Panics
    /// If cached and new tokens together exceed `context_length`, or both the model and rows have adapters. Ids must
    /// be below `vocab_size`.
    pub fn forward<P: Probe>(
        &self,
        tokens: Tensor<2, Int>,
        ctx: &mut ForwardContext<'_, P>,
    ) -> Tensor<3> {
        let hidden = self.hidden_states(tokens, ctx);
        self.logits(hidden, ctx)
    }

    /// Runs [`forward`](Self::forward) on rows that continue the cached sequences in `slots`, and
    /// adds the tokens to the cache.
    ///
    /// # Panics
    /// If the number of slots is not the number of rows, if `slots` contains duplicates and rows have more
    /// than one token, if cached and new tokens together exceed the cache's capacity or the context, or if
    /// no page is free.
    pub fn forward_cached(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut KvCache,
        slots: &[usize],
    ) -> Tensor<3> {
        self.forward(
            tokens,
            &mut ForwardContext::inference().with_cache(cache, slots),
        )
    }

    /// Computes the input of the output layer: `[batch, seq]` to `[batch, seq, d_model]`.
    pub fn hidden_states<P: Probe>(
        &self,
        tokens: Tensor<2, Int>,
        ctx: &mut ForwardContext<'_, P>,
    ) -> Tensor<3> {
        let seq = tokens.dims()[1];
        if let Some((source, lengths)) = ctx.take_source() {
            let encoded = self.encode(source, lengths.clone(), ctx);
            ctx.set_encoded(encoded, lengths);
        }
        let mut x = self.embed(tokens, ctx);
        for (layer, block) in self.blocks.iter().enumerate() {
            ctx.set_layer(Some(layer));
            x = block.forward(x, ctx);
        }
        ctx.set_layer(None);
        ctx.advance_cache(seq);
        self.apply_final_norm(x, ctx)
    }

    /// Runs a single block, with a context that no other block has used.
    pub(crate) fn forward_block<P: Probe>(
        &self,
        layer: usize,
        x: Tensor<3>,
        ctx: &mut ForwardContext<'_, P>,
    ) -> Tensor<3> {
        ctx.set_positions(&self.config, self.rope.as_ref(), &x);
        ctx.set_layer(Some(layer));
        self.blocks[layer].forward(x, ctx)
    }

    /// Runs a single block of the encoder, with a context that no other block has used.
    pub(crate) fn forward_encoder_block<P: Probe>(
        &self,
        layer: usize,
        x: Tensor<3>,
        ctx: &mut ForwardContext<'_, P>,
    ) -> Tensor<3> {
        ctx.set_positions(&self.config, self.rope.as_ref(), &x);
        ctx.set_layer(Some(layer));
        self.require_encoder().blocks[layer].forward(x, ctx)
    }

    /// Converts the output of the last block to the input of the output layer.
    fn apply_final_norm<P: Probe>(
        &self,
        x: Tensor<3>,
        ctx: &mut ForwardContext<'_, P>,
    ) -> Tensor<3> {
        final_norm(self.final_norm.as_ref(), x, ctx)
    }

    /// Applies the output layer: `[batch, seq, d_model]` to `[batch, seq, vocab_size]`.
    pub fn logits<P: Probe>(
        &self,
        hidden: Tensor<3>,
        ctx: &mut ForwardContext<'_, P>,
    ) -> Tensor<3> {
        let hidden = match &self.head_transform {
            Some(transform) => {
                let hidden = transform.forward(hidden);
                ctx.record(Hook::HeadTransform, &hidden);
                hidden
            }
            None => hidden,
        };
        let logits = self.output_layer().logits(hidden);
        ctx.record(Hook::Logits, &logits);
        logits
    }

    /// Computes the sum of `-ln p(target)` in nats over all positions whose target is not
    /// [`IGNORE`](crate::IGNORE), `[1]`. `tokens` is `[batch, seq]`, `targets` the same in row-major
    /// order.
    ///
    /// Divide by the number of targets in the whole step (not in this micro-batch) to make gradient
    /// accumulation equal to one big batch. A probe also receives the logits.
    ///
    /// # Panics
    /// If the number of targets is not `batch * seq`.
    ///
    /// # Example
    ///
    /// ```
    /// use burn::tensor::{Device, Int, Tensor};
    /// use nextword_model::{ForwardContext, IGNORE, presets};
    ///
    /// let device = Device::flex();
    /// let model = presets::shakespeare_char_cpu(65).init(&device, 1)?;
    /// let tokens = Tensor::<2, Int>::from_ints([[5, 6, 7]], &device);
    /// let targets = [6, 7, IGNORE]; // the last position has no target
    /// let sum = model.loss_sum(tokens, &targets, &mut ForwardContext::inference());
    /// let loss = f64::from(sum.into_scalar::<f32>()) / 2.0;
    /// assert!((loss - 65f64.ln()).abs() < 0.5); // an untrained model guesses
    /// # Ok::<(), nextword_model::ModelError>(())
    /// ```
    pub fn loss_sum<P: Probe>(
        &self,
        tokens: Tensor<2, Int>,
        targets: &[u32],
        ctx: &mut ForwardContext<'_, P>,
    ) -> Tensor<1> {
        let hidden = self.hidden_states(tokens, ctx);
        self.loss_from_hidden(hidden, targets, ctx)
    }

    /// Computes the sum of `-ln p(target)` of each sequence in nats, over its positions whose target is not
    /// [`IGNORE`](crate::IGNORE), `[batch]`. `tokens` is `[batch, seq]`, `targets` the same in row-major order.
    ///
    /// It is for losses of whole sequences, such as those of preferences; [`loss_sum`](Self::loss_sum) takes less time.
    ///
    /// # Panics
    /// If the number of targets is not `batch * seq`.
    ///
    /// # Example
    ///
    /// ```
    /// use burn::tensor::{Device, Int, Tensor};
    /// use nextword_model::{ForwardContext, IGNORE, NoProbe, presets};
    ///
    /// let device = Device::flex();
    /// let model = presets::shakespeare_char_cpu(65).init(&device, 1)?;
    /// let tokens = Tensor::<2, Int>::from_ints([[5, 6], [5, 7]], &device);
    /// let targets = [6, IGNORE, 7, 8]; // one target in the first sequence, two in the second
    /// let ctx = &mut ForwardContext::<NoProbe>::inference();
    /// let losses = model.sequence_losses(tokens, &targets, ctx).into_data();
    /// let losses: Vec<f32> = losses.try_to_vec().unwrap();
    /// assert!(losses[0] < 5.0 && losses[1] > 5.0); // an untrained model guesses: ln 65 = 4.2 each
    /// # Ok::<(), nextword_model::ModelError>(())
    /// ```
    pub fn sequence_losses<P: Probe>(
        &self,
        tokens: Tensor<2, Int>,
        targets: &[u32],
        ctx: &mut ForwardContext<'_, P>,
    ) -> Tensor<1> {
        let hidden = self.transformed(self.hidden_states(tokens, ctx));
        nextword_kernels::cross_entropy_per_sequence(hidden, self.output_layer(), targets)
    }

    /// The losses of sequences, from the output of the last block.
    pub(crate) fn sequence_losses_from_residual<P: Probe>(
        &self,
        x: Tensor<3>,
        targets: &[u32],
        ctx: &mut ForwardContext<'_, P>,
    ) -> Tensor<1> {
        let hidden = self.transformed(self.apply_final_norm(x, ctx));
        nextword_kernels::cross_entropy_per_sequence(hidden, self.output_layer(), targets)
    }

    /// The loss, from the output of the last block.
    pub(crate) fn loss_from_residual<P: Probe>(
        &self,
        x: Tensor<3>,
        targets: &[u32],
        ctx: &mut ForwardContext<'_, P>,
    ) -> Tensor<1> {
        let hidden = self.apply_final_norm(x, ctx);
        self.loss_from_hidden(hidden, targets, ctx)
    }

    fn loss_from_hidden<P: Probe>(
        &self,
        hidden: Tensor<3>,
        targets: &[u32],
        ctx: &mut ForwardContext<'_, P>,
    ) -> Tensor<1> {
        if ctx.is_probed() {
            self.logits(hidden.clone(), ctx);
        }
        nextword_kernels::cross_entropy_sum(self.transformed(hidden), self.output_layer(), targets)
    }

    /// The input of the output layer's product.
    fn transformed(&self, hidden: Tensor<3>) -> Tensor<3> {
        match &self.head_transform {
            Some(transform) => transform.forward(hidden),
            None => hidden,
        }
    }

    /// The output layer's weight, if it is quantized.
    fn quantized_head(&self) -> Option<&QuantizedMatrix> {
        if self.config.tied_head {
            self.quantized_embedding.as_ref()
        } else {
            self.head.quantized.as_ref()
        }
    }

    fn output_layer(&self) -> OutputLayer {
        let head = self.head.weight.as_ref().map(Param::val);
        let weight = match (self.quantized_head(), head) {
            (Some(weight), _) => OutputWeight::Quantized(weight.clone()),
            (None, Some(weight)) => OutputWeight::Matrix(weight),
            (None, None) => OutputWeight::Table(self.token_embedding.weight.val()),
        };
        OutputLayer {
            weight,
            bias: self.head.bias.as_ref().map(Param::val),
            soft_cap: self.config.logit_soft_cap,
            precision: self.precision,
        }
    }

    /// Sets the precision of matrix products. Weights, norms, attention scores and the loss stay in
    /// f32. Has no effect on quantized weights.
    ///
    /// # Errors
    /// [`ModelError::Config`] if the model's device does not support it.
    pub fn with_precision(self, precision: Precision) -> Result<Self, ModelError> {
        if !precision.is_supported(&self.device()) {
            return Err(ModelError::config(
                "precision",
                "this device does not support bf16",
                "use precision = \"f32\", or device = \"flex\"",
            ));
        }
        Ok(self.set_precision(precision))
    }

    /// Sets the precision of all arithmetic to f32.
    #[must_use]
    pub fn in_f32(self) -> Self {
        self.set_precision(Precision::F32)
    }

    fn set_precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        for (_, linear) in self.linears_mut() {
            linear.precision = precision;
        }
        self
    }

    /// The configuration of this model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Bytes of weights that the forward pass of one token reads: all weights except the rows of the
    /// embedding tables that are not looked up, and the encoder, which runs once per source.
    pub fn bytes_per_token(&self) -> usize {
        let counts = self.config.parameter_counts();
        let read =
            self.config.vocab_size * self.config.d_model * usize::from(self.config.tied_head);
        let tables = counts.token_embedding - read;
        let mut bytes = 4 * (counts.total() - tables - counts.position_embedding);
        bytes -= 4 * self.config.encoder_weights_per_source();
        let linears = self.linears().into_iter();
        let linears = linears.filter(|(name, _)| !name.starts_with("encoder."));
        let linears = linears.filter_map(|(_, linear)| linear.quantized());
        for weight in linears.chain(self.quantized_head()) {
            let [d_in, d_out] = weight.shape();
            bytes = bytes - 4 * d_in * d_out + weight.bytes();
        }
        bytes
    }

    /// The device of the weights.
    pub fn device(&self) -> Device {
        self.token_embedding.weight.val().device()
    }
}

/// Applies the norm after a stack's last block, if there is one.
pub(crate) fn final_norm<P: Probe>(
    norm: Option<&Norm>,
    x: Tensor<3>,
    ctx: &mut ForwardContext<'_, P>,
) -> Tensor<3> {
    match norm {
        Some(norm) => {
            let x = norm.forward(x);
            ctx.record(Hook::FinalNorm, &x);
            x
        }
        None => x,
    }
}
