//! A model with its tokenizer.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};
use nextword_data::{Sources, Tokenizer};
use nextword_eval::{TextReport, TextSettings, evaluate_text};
use nextword_generate::{Completion, GenerateError, TextGenerator, TextOptions};
use nextword_model::{
    Architecture, AttentionMask, ForwardContext, ModelCard, ModelDir, Probe, Transformer,
};
use nextword_train::{TrainedModel, resolve_model_dir};

use crate::{Activations, Control, Result, default_device};

/// A model with its tokenizer and card: trained here ([`Training`](crate::Training)), opened from a
/// folder, or put together from parts.
///
/// ```
/// use nextword::prelude::*;
///
/// # fn main() -> nextword::Result<()> {
/// let model = LanguageModel::open("../../docs/models/letters")?;
/// let text = model.generate("One day", &TextOptions::greedy().with_max_tokens(10))?;
/// assert_eq!(text.chars().count(), 10); // One token is one character.
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct LanguageModel {
    generator: TextGenerator,
}

impl LanguageModel {
    /// Opens a model folder, an adapter folder, the best model of a run folder, or a GGUF file, on the CPU (in a build
    /// without the backends `flex` and `ndarray`, on a GPU). For an adapter in another place than its base, see
    /// [`nextword_convert::open_model`].
    ///
    /// # Errors
    /// If the folder does not contain a valid model with its tokenizer.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_on(path, &default_device().open()?)
    }

    /// Opens a model on a device.
    ///
    /// ```
    /// use nextword::prelude::*;
    ///
    /// # fn main() -> nextword::Result<()> {
    /// let device = "auto".parse::<DeviceName>()?.open()?; // A GPU, if there is one.
    /// let model = LanguageModel::open_on("../../docs/models/letters", &device)?;
    /// assert_eq!(model.card().name, "letters");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If the folder does not contain a valid model with its tokenizer.
    pub fn open_on(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let path = resolve_model_dir(path.as_ref());
        let model = nextword_convert::open_model(&path, None)?;
        Ok(TextGenerator::open(&model, device)?.into())
    }

    /// Combines a model (not on an autodiff device) with its tokenizer.
    ///
    /// ```
    /// use nextword::prelude::*;
    ///
    /// # fn main() -> nextword::Result<()> {
    /// let tokenizer = TokenizerConfig::bytes().build("")?;
    /// let config = ModelConfig { vocab_size: tokenizer.vocab_size(), ..ModelConfig::default() };
    /// let device = nextword::default_device().open()?;
    /// let model = LanguageModel::new(config.init(&device, 7)?, tokenizer)?;
    /// assert_eq!(model.tokenizer().vocab_size(), 257);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If the model has fewer tokens than the tokenizer.
    pub fn new(model: Transformer, tokenizer: Arc<dyn Tokenizer>) -> Result<Self> {
        Ok(TextGenerator::without_card(model, tokenizer)?.into())
    }

    /// Continues `prompt` and returns the new text.
    ///
    /// # Errors
    /// For invalid options, or if the model produces NaN or infinity.
    pub fn generate(&self, prompt: &str, options: &TextOptions) -> Result<String> {
        Ok(self.generator.complete(prompt, options)?.text)
    }

    /// Continues `prompt` and passes each new text to `on_delta`, which may return
    /// [`ControlFlow::Break`](std::ops::ControlFlow::Break) to stop. The deltas add up to the completion's text.
    ///
    /// ```
    /// use nextword::prelude::*;
    ///
    /// # fn main() -> nextword::Result<()> {
    /// let model = LanguageModel::open("../../docs/models/letters")?;
    /// let mut text = String::new();
    /// let options = TextOptions::default().with_max_tokens(20);
    /// let completion = model.stream("One day", &options, |delta| text.push_str(delta))?;
    /// assert_eq!(text, completion.text);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// For invalid options, or if the model produces NaN or infinity.
    pub fn stream<C: Control>(
        &self,
        prompt: &str,
        options: &TextOptions,
        mut on_delta: impl FnMut(&str) -> C,
    ) -> Result<Completion> {
        let mut completions = self.generator.generate(&[prompt], options, |_, delta| {
            on_delta(delta).into_control_flow()
        })?;
        let only = completions.pop();
        Ok(only.unwrap_or_else(|| unreachable!("each prompt has a completion")))
    }

    /// Runs the model on `prompt` and returns every intermediate tensor. An empty prompt is one token, as in
    /// [`TextGenerator::generate`].
    ///
    /// ```
    /// use nextword::prelude::*;
    ///
    /// # fn main() -> nextword::Result<()> {
    /// let model = LanguageModel::open("../../docs/models/letters")?;
    /// let activations = model.inspect("abc")?;
    /// let seq = activations.tokens().len();
    /// let attention = activations.get("blocks.0.attn.hook_pattern").unwrap();
    /// assert_eq!(attention.shape[1..], [seq, seq]); // One matrix for each head.
    /// assert!(attention.rows().all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-5));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If the prompt does not fit the model's context.
    pub fn inspect(&self, prompt: &str) -> Result<Activations> {
        let ids = self.encode(prompt)?;
        let tokenizer = self.tokenizer();
        let token_text = |id: &u32| tokenizer.token_text(*id).unwrap_or_default();
        let mut activations = Activations::new(ids.iter().map(token_text).collect());
        self.run_probe(&ids, &mut activations);
        Ok(activations)
    }

    /// Runs the model on `prompt` with a probe of your own, which receives every intermediate tensor
    /// in the order of computation. In an encoder-decoder model the prompt is the source, and the decoder
    /// computes its first token. An empty prompt is one token, as in [`TextGenerator::generate`].
    ///
    /// ```
    /// use nextword::burn::tensor::Tensor;
    /// use nextword::prelude::*;
    ///
    /// struct Shapes(Vec<String>);
    ///
    /// impl Probe for Shapes {
    ///     fn record<const D: usize>(&mut self, site: Site, tensor: &Tensor<D>) {
    ///         self.0.push(format!("{site} {:?}", tensor.dims()));
    ///     }
    /// }
    ///
    /// # fn main() -> nextword::Result<()> {
    /// let model = LanguageModel::open("../../docs/models/statquest")?;
    /// let mut probe = Shapes(Vec::new());
    /// model.inspect_with("what is statquest", &mut probe)?;
    /// assert_eq!(probe.0[0], "hook_embed [1, 4, 2]"); // Three words and <EOS>, two values each.
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If the prompt does not fit the model's context.
    pub fn inspect_with(&self, prompt: &str, probe: &mut impl Probe) -> Result<()> {
        let ids = self.encode(prompt)?;
        self.run_probe(&ids, probe);
        Ok(())
    }

    /// The ids of `prompt` with the model's template: at least one, also of an empty prompt.
    fn encode(&self, prompt: &str) -> Result<Vec<u32>> {
        let encoding = self
            .generator
            .encode_prompt(prompt, &TextOptions::default())?;
        let context_length = self.transformer().config().context_length;
        let tokens = encoding.ids.len();
        if tokens > context_length {
            return Err(GenerateError::TooLong {
                tokens,
                context_length,
            }
            .into());
        }
        Ok(encoding.ids)
    }

    fn run_probe(&self, ids: &[u32], probe: &mut impl Probe) {
        let model = self.transformer();
        let signed: Vec<i32> = ids.iter().map(|id| id.cast_signed()).collect();
        let data = TensorData::new(signed, [1, ids.len()]);
        let tokens = Tensor::<2, Int>::from_data(data, &model.device());
        let mut ctx = ForwardContext::with_probe(probe);
        match model.config().architecture {
            Architecture::EncoderDecoder => {
                let start = self.generator.target_start_id().cast_signed();
                let target = Tensor::from_ints([[start]], &model.device());
                model.forward(target, &mut ctx.with_source(tokens, vec![ids.len()]));
            }
            Architecture::Prefix => {
                let mask = AttentionMask::causal(vec![0], ids.len()).with_prefix(vec![ids.len()]);
                model.forward(tokens, &mut ctx.with_mask(mask));
            }
            Architecture::Decoder | Architecture::Encoder => {
                model.forward(tokens, &mut ctx);
            }
        }
    }

    /// The loss, perplexity and bits per byte of the model on `text`, read as [`evaluate_text`] describes.
    ///
    /// # Errors
    /// If the text has fewer than two tokens.
    pub fn evaluate(&self, text: &str) -> Result<TextReport> {
        let sources = Sources::from_documents([text]);
        Ok(evaluate_text(
            self.transformer(),
            self.tokenizer().as_ref(),
            &self.card().special,
            sources.chunks_for(self.tokenizer().text_cuts()),
            TextSettings::default(),
        )?)
    }

    /// Writes a model folder, which the program can open too. An earlier model in `path` is replaced
    /// atomically. An adapter is added to the weights that are written.
    ///
    /// # Errors
    /// If it cannot be written, or if the model has an adapter and quantized weights, in which most of the adapter
    /// would be lost.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let tokenizer = self.tokenizer().to_json()?;
        let model = self.transformer();
        if model.has_adapter() {
            let merged = model.clone().merge_adapter()?;
            ModelDir::save(path.as_ref(), &merged, &tokenizer, self.card())?;
        } else {
            ModelDir::save(path.as_ref(), model, &tokenizer, self.card())?;
        }
        Ok(())
    }

    /// The network.
    pub fn transformer(&self) -> &Transformer {
        self.generator.model()
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<dyn Tokenizer> {
        self.generator.tokenizer()
    }

    /// The model card: data, seed, steps and losses.
    pub fn card(&self) -> &ModelCard {
        self.generator.card()
    }

    /// The generator, for several prompts at once.
    pub fn generator(&self) -> &TextGenerator {
        &self.generator
    }
}

impl From<TextGenerator> for LanguageModel {
    fn from(generator: TextGenerator) -> Self {
        Self { generator }
    }
}

impl TryFrom<TrainedModel> for LanguageModel {
    type Error = crate::Error;

    fn try_from(trained: TrainedModel) -> Result<Self> {
        let TrainedModel {
            model,
            tokenizer,
            card,
            ..
        } = trained;
        Ok(TextGenerator::new(model, tokenizer, card)?.into())
    }
}
