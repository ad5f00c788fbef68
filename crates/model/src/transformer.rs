//! The whole network: token ids in, logits out.

use burn::module::{Module, Param};
use burn::nn::Embedding;
use burn::tensor::{Device, Int, Tensor};
use nextword_kernels::{OutputLayer, OutputWeight, Precision, QuantizedMatrix};

use crate::linear::placeholder;
use crate::position::{Rotation, sinusoidal_table};
use crate::{
    Block, Hook, KvCache, ModelConfig, ModelError, Norm, Pass, Position, Probe, init::initialize,
};

/// A decoder-only Transformer.
#[derive(Module, Debug)]
pub struct Transformer {
    /// One vector for each token, `[vocab_size, d_model]`.
    pub token_embedding: Embedding,
    /// One vector for each place, `[context_length, d_model]`; learned positions only.
    pub position_embedding: Option<Embedding>,
    /// The stack.
    pub blocks: Vec<Block>,
    /// After the last block, where norms stand before the sublayers.
    pub final_norm: Option<Norm>,
    /// From `d_model` numbers to one logit for each token.
    pub head: Head,
    /// The token embedding in 8 or 4 bits, `[d_model, vocab_size]`; its own weight is then of no size.
    #[module(skip)]
    pub(crate) quantized_table: Option<QuantizedMatrix>,
    #[module(skip)]
    waves: Option<Tensor<2>>,
    #[module(skip)]
    rotary: Option<Rotation>,
    #[module(skip)]
    precision: Precision,
    #[module(skip)]
    config: ModelConfig,
}

/// The output layer. Its weight is absent where it reuses the token embedding's.
#[derive(Module, Debug)]
pub struct Head {
    /// `[d_model, vocab_size]`.
    pub weight: Option<Param<Tensor<2>>>,
    /// `[vocab_size]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// The weight in 8 or 4 bits; its own is then of no size.
    #[module(skip)]
    pub(crate) quantized: Option<QuantizedMatrix>,
}

impl ModelConfig {
    /// Builds the model on `device` with weights drawn from `seed`.
    ///
    /// # Errors
    /// [`ModelError::Config`] if the configuration describes no model.
    pub fn init(&self, device: &Device, seed: u64) -> Result<Transformer, ModelError> {
        Ok(initialize(self.build(device)?, self.init, seed))
    }

    /// Builds the model on `device` with zeros for weights, to be filled from a file.
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
            blocks: (0..self.n_layers)
                .map(|layer| Block::new(self, layer, device))
                .collect(),
            final_norm: self
                .has_final_norm()
                .then(|| Norm::new(self, self.d_model, device))
                .flatten(),
            head: Head {
                weight: (!self.tied_head)
                    .then(|| placeholder([self.d_model, self.vocab_size], device)),
                bias: self
                    .bias
                    .head
                    .then(|| Param::from_tensor(Tensor::zeros([self.vocab_size], device))),
                quantized: None,
            },
            quantized_table: None,
            waves: (self.position == Position::Sinusoidal)
                .then(|| sinusoidal_table(self.context_length, self.d_model, device)),
            rotary: (self.position == Position::Rotary).then(|| Rotation::new(self)),
            precision: Precision::F32,
            config: self.clone(),
        })
    }
}

impl Transformer {
    /// Logits for the token after each of `tokens`: `[batch, seq]` to `[batch, seq, vocab_size]`.
    ///
    /// # Panics
    /// If `tokens` together with what the pass's cache holds are longer than `context_length`.
    /// Ids must be below `vocab_size`.
    pub fn forward<P: Probe>(&self, tokens: Tensor<2, Int>, pass: &mut Pass<'_, P>) -> Tensor<3> {
        let hidden = self.hidden(tokens, pass);
        self.logits(hidden, pass)
    }

    /// As [`forward`](Self::forward), for rows that continue the cached sequences of `slots`. The
    /// tokens are added to the cache.
    pub fn forward_cached(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut KvCache,
        slots: &[usize],
    ) -> Tensor<3> {
        self.forward(tokens, &mut Pass::plain().continuing(cache, slots))
    }

    /// What enters the output layer: `[batch, seq]` to `[batch, seq, d_model]`.
    pub fn hidden<P: Probe>(&self, tokens: Tensor<2, Int>, pass: &mut Pass<'_, P>) -> Tensor<3> {
        let seq = tokens.dims()[1];
        let mut x = self.embedded(tokens, pass);
        for (layer, block) in self.blocks.iter().enumerate() {
            pass.enter(Some(layer));
            x = block.forward(x, pass);
        }
        pass.enter(None);
        pass.finish(seq);
        self.finished(x, pass)
    }

    /// What enters the first block: `[batch, seq]` to `[batch, seq, d_model]`.
    pub(crate) fn embedded<P: Probe>(
        &self,
        tokens: Tensor<2, Int>,
        pass: &mut Pass<'_, P>,
    ) -> Tensor<3> {
        pass.enter(None);
        self.embed(tokens, pass)
    }

    /// One block by itself, in a pass of its own.
    pub(crate) fn block<P: Probe>(
        &self,
        layer: usize,
        x: Tensor<3>,
        pass: &mut Pass<'_, P>,
    ) -> Tensor<3> {
        pass.locate(&self.config, self.rotary.as_ref(), &x);
        pass.enter(Some(layer));
        self.blocks[layer].forward(x, pass)
    }

    /// From what leaves the last block to what enters the output layer.
    fn finished<P: Probe>(&self, x: Tensor<3>, pass: &mut Pass<'_, P>) -> Tensor<3> {
        match &self.final_norm {
            Some(norm) => {
                let x = norm.forward(x);
                pass.see(Hook::FinalNorm, &x);
                x
            }
            None => x,
        }
    }

    /// The output layer: `[batch, seq, d_model]` to `[batch, seq, vocab_size]`.
    pub fn logits<P: Probe>(&self, hidden: Tensor<3>, pass: &mut Pass<'_, P>) -> Tensor<3> {
        let logits = self.output_layer().logits(hidden);
        pass.see(Hook::Logits, &logits);
        logits
    }

    /// The sum of `-ln p(target)` in nats over all places whose target is not
    /// [`IGNORE`](crate::IGNORE), `[1]`. `tokens` is `[batch, seq]`, `targets` row by row.
    ///
    /// Dividing by the number of counted targets of the whole step (not of this micro-batch) makes
    /// accumulation equal one big batch. A watched pass sees logits.
    ///
    /// # Panics
    /// If there are not `batch * seq` targets.
    pub fn loss_sum<P: Probe>(
        &self,
        tokens: Tensor<2, Int>,
        targets: &[u32],
        pass: &mut Pass<'_, P>,
    ) -> Tensor<1> {
        let hidden = self.hidden(tokens, pass);
        self.loss_of_hidden(hidden, targets, pass)
    }

    /// The loss from what leaves the last block.
    pub(crate) fn loss_from<P: Probe>(
        &self,
        x: Tensor<3>,
        targets: &[u32],
        pass: &mut Pass<'_, P>,
    ) -> Tensor<1> {
        let hidden = self.finished(x, pass);
        self.loss_of_hidden(hidden, targets, pass)
    }

    fn loss_of_hidden<P: Probe>(
        &self,
        hidden: Tensor<3>,
        targets: &[u32],
        pass: &mut Pass<'_, P>,
    ) -> Tensor<1> {
        if pass.is_watched() {
            self.logits(hidden.clone(), pass);
        }
        nextword_kernels::cross_entropy_sum(hidden, self.output_layer(), targets)
    }

    /// The output layer's weight, where it is quantized.
    fn quantized_head(&self) -> Option<&QuantizedMatrix> {
        if self.config.tied_head {
            self.quantized_table.as_ref()
        } else {
            self.head.quantized.as_ref()
        }
    }

    fn output_layer(&self) -> OutputLayer {
        let own = self.head.weight.as_ref().map(Param::val);
        let weight = match (self.quantized_head(), own) {
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

    /// Word embedding plus position encoding.
    fn embed<P: Probe>(&self, tokens: Tensor<2, Int>, pass: &mut Pass<'_, P>) -> Tensor<3> {
        let x = match &self.quantized_table {
            Some(table) => nextword_kernels::embed_quantized(table, tokens),
            None => nextword_kernels::embed(self.token_embedding.weight.val(), tokens),
        };
        let x = match self.config.embedding_scale {
            Some(scale) => x * scale,
            None => x,
        };
        pass.see(Hook::Embed, &x);
        pass.locate(&self.config, self.rotary.as_ref(), &x);
        assert!(
            pass.places().sight().keys() <= self.config.context_length,
            "{} tokens do not fit a context of {}",
            pass.places().sight().keys(),
            self.config.context_length
        );
        let table = match (&self.position_embedding, &self.waves) {
            (Some(learned), _) => Some(learned.weight.val()),
            (None, waves) => waves.clone(),
        };
        let x = match table {
            Some(table) => {
                let places = pass.places().pick(table).cast(x.dtype());
                pass.see(Hook::PosEmbed, &places);
                x + places
            }
            None => x,
        };
        pass.drop_some(Hook::Embed, x, self.config.dropout.embedding)
    }

    /// The same model with matrix products in `precision`; weights, norms, attention's scores and the
    /// loss stay in f32. Of no effect on quantized weights.
    ///
    /// # Errors
    /// [`ModelError::Config`] if the model's device cannot do it.
    pub fn with_precision(self, precision: Precision) -> Result<Self, ModelError> {
        if !precision.is_supported(&self.device()) {
            return Err(ModelError::config(
                "precision",
                "this device has no bf16 products",
                "use precision = \"f32\", or device = \"flex\"",
            ));
        }
        Ok(self.set_precision(precision))
    }

    /// The same model with all arithmetic in f32.
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

    /// The configuration that built this model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Bytes of weights that one token's forward pass reads: all but the rows of the embedding tables
    /// that it does not look up.
    pub fn bytes_per_token(&self) -> usize {
        let counts = self.config.counts();
        let tables = counts.token_embedding * usize::from(!self.config.tied_head);
        let mut bytes = 4 * (counts.total() - tables - counts.position_embedding);
        let linears = self.linears().into_iter();
        let linears = linears.filter_map(|(_, linear)| linear.quantized());
        for weight in linears.chain(self.quantized_head()) {
            let [d_in, d_out] = weight.shape();
            bytes = bytes - 4 * d_in * d_out + weight.bytes();
        }
        bytes
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.token_embedding.weight.val().device()
    }
}
