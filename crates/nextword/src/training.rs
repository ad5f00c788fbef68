//! Training in memory.

use std::fmt;
use std::ops::ControlFlow;

use nextword_data::Dataset;
use nextword_model::ModelConfig;
use nextword_train::{
    InMemoryTrainer, LoraSettings, Reporter, RunConfig, RunSetup, ScheduleConfig, StepReport,
    StopFlag, TrainError, UnsetKeys, ValidationReport,
};

use crate::{Control, LanguageModel, Result, default_device};

type Callback<'a, T> = Box<dyn FnMut(&T) -> ControlFlow<()> + 'a>;

/// Trains a model on a dataset in memory: without a folder, a configuration file or output.
///
/// The defaults are those of `nextword train`, and so are the results: with the same configuration, text
/// and seed the weights are bit for bit the same.
///
/// ```
/// use nextword::prelude::*;
///
/// # fn main() -> nextword::Result<()> {
/// let dataset = Dataset::from_text(&"to be or not to be ".repeat(20), &TokenizerConfig::chars())?;
/// let mut losses = Vec::new();
/// let model = Training::new(&dataset)
///     .model(ModelConfig { n_layers: 1, d_model: 16, context_length: 16, ..ModelConfig::default() })
///     .steps(30)
///     .on_step(|step| losses.push(step.loss))
///     .run()?;
/// assert_eq!(model.card().step, 30);
/// assert!(losses[29] < losses[0]);
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is trained before `run`"]
pub struct Training<'a> {
    dataset: &'a Dataset,
    config: RunConfig,
    initial: Option<LanguageModel>,
    callbacks: Callbacks<'a>,
}

impl fmt::Debug for Training<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Training")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Callbacks<'a> {
    step: Option<Callback<'a, StepReport>>,
    validation: Option<Callback<'a, ValidationReport>>,
    warning: Option<Callback<'a, str>>,
}

impl<'a> Training<'a> {
    /// Trains on `dataset` with the default configuration: a small GPT, 1000 steps, the CPU.
    pub fn new(dataset: &'a Dataset) -> Self {
        let config = RunConfig {
            name: "model".to_string(),
            device: default_device().to_string(),
            ..RunConfig::default()
        };
        Self::from_config(dataset, config)
    }

    /// Trains with the configuration of a run, which [`read_config`](nextword_train::read_config) reads
    /// from a file. Its data source, checkpoints, samples and probes are not used.
    pub fn from_config(dataset: &'a Dataset, config: RunConfig) -> Self {
        Self {
            dataset,
            config,
            initial: None,
            callbacks: Callbacks::default(),
        }
    }

    /// Sets the architecture. A `vocab_size` of 0 becomes that of the tokenizer.
    pub fn model(mut self, config: ModelConfig) -> Self {
        self.config.model = config;
        self
    }

    /// Continues the training of `model` on its device, with a new optimizer. The dataset must have been
    /// tokenized by the model's tokenizer: see [`Dataset::with_tokenizer`]. The trained model has the prompt
    /// template, the chat templates and the special tokens of `model`.
    ///
    /// ```
    /// use nextword::prelude::*;
    ///
    /// # fn main() -> nextword::Result<()> {
    /// # let text = "to be or not to be ".repeat(20);
    /// # let config = ModelConfig { n_layers: 1, d_model: 8, context_length: 8, ..ModelConfig::default() };
    /// let dataset = Dataset::from_text(&text, &TokenizerConfig::chars())?;
    /// let model = Training::new(&dataset).model(config).steps(5).run()?;
    /// let model = Training::new(&dataset).start_from(&model).steps(5).run()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn start_from(mut self, model: &LanguageModel) -> Self {
        self.config.model = model.transformer().config().clone();
        let template = &model.card().prompt_template;
        self.config.samples.prompt_template.clone_from(template);
        self.initial = Some(model.clone());
        self
    }

    /// Trains an adapter of the model in [`start_from`](Self::start_from) instead of its weights. Learning rate, warmup,
    /// weight decay and `beta2` that are at their defaults become those of `LoRA` runs (see
    /// [`RunConfig::apply_lora_defaults`]). [`LanguageModel::save`] adds the adapter to the weights.
    ///
    /// ```
    /// use nextword::prelude::*;
    /// use nextword::train::LoraSettings;
    ///
    /// # fn main() -> nextword::Result<()> {
    /// # let text = "to be or not to be ".repeat(20);
    /// # let config = ModelConfig { n_layers: 1, d_model: 8, context_length: 8, ..ModelConfig::default() };
    /// let dataset = Dataset::from_text(&text, &TokenizerConfig::chars())?;
    /// let base = Training::new(&dataset).model(config).steps(5).run()?;
    /// let lora = LoraSettings { rank: 2, ..LoraSettings::default() };
    /// let tuned = Training::new(&dataset).start_from(&base).lora(lora).steps(5).run()?;
    /// let embedding = |model: &LanguageModel| model.transformer().token_embedding.weight.to_data();
    /// assert_eq!(embedding(&tuned), embedding(&base)); // stays as it is
    /// assert!(tuned.transformer().has_adapter());
    /// # Ok(())
    /// # }
    /// ```
    pub fn lora(mut self, settings: LoraSettings) -> Self {
        self.config.lora = Some(settings);
        self
    }

    /// Sets the number of updates. A warmup that is at its default, or does not fit, becomes that for this number (see
    /// [`ScheduleConfig::default_warmup`]).
    pub fn steps(mut self, steps: u64) -> Self {
        let warmup = &mut self.config.schedule.warmup_steps;
        if *warmup >= steps || *warmup == ScheduleConfig::default_warmup(self.config.train.steps) {
            *warmup = ScheduleConfig::default_warmup(steps);
        }
        self.config.train.steps = steps;
        self
    }

    /// Sets the number of sequences per update.
    pub fn batch_size(mut self, batch_size: usize) -> Self {
        self.config.train.batch_size = batch_size;
        self
    }

    /// Sets the maximum learning rate, and the minimum to a tenth of it.
    pub fn learning_rate(mut self, learning_rate: f64) -> Self {
        self.config.schedule.learning_rate = learning_rate;
        self.config.schedule.min_learning_rate = learning_rate / 10.0;
        self
    }

    /// Sets the seed of all randomness: initial weights, data order, dropout.
    pub fn seed(mut self, seed: u64) -> Self {
        self.config.seed = seed;
        self
    }

    /// Sets the device by its name: `flex`, `wgpu`, `cuda:1`, `auto`. After [`start_from`](Self::start_from)
    /// it has no effect, because the training continues on the device of the model.
    pub fn device(mut self, name: impl Into<String>) -> Self {
        self.config.device = name.into();
        self
    }

    /// Changes any other setting.
    ///
    /// ```
    /// use nextword::prelude::*;
    ///
    /// # fn main() -> nextword::Result<()> {
    /// # let dataset = Dataset::from_text(&"ab".repeat(100), &TokenizerConfig::chars())?;
    /// # let config = ModelConfig { n_layers: 1, d_model: 8, context_length: 8, ..ModelConfig::default() };
    /// let model = Training::new(&dataset)
    ///     .model(config)
    ///     .steps(4)
    ///     .configure(|config| {
    ///         config.optimizer.weight_decay = 0.0;
    ///         config.validation.every = 2;
    ///     })
    ///     .on_validation(|report| println!("step {}: {:.3} nats", report.step, report.loss))
    ///     .run()?;
    /// assert!(model.card().validation_loss.is_some());
    /// # Ok(())
    /// # }
    /// ```
    pub fn configure(mut self, change: impl FnOnce(&mut RunConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Calls `callback` after each update. It may return [`ControlFlow::Break`] to stop the training
    /// after this step.
    ///
    /// ```
    /// use std::ops::ControlFlow;
    ///
    /// use nextword::prelude::*;
    ///
    /// # fn main() -> nextword::Result<()> {
    /// # let dataset = Dataset::from_text(&"ab".repeat(100), &TokenizerConfig::chars())?;
    /// # let config = ModelConfig { n_layers: 1, d_model: 8, context_length: 8, ..ModelConfig::default() };
    /// let model = Training::new(&dataset)
    ///     .model(config)
    ///     .on_step(|step| if step.step < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    ///     .run()?;
    /// assert_eq!(model.card().step, 3);
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_step<C: Control>(mut self, mut callback: impl FnMut(&StepReport) -> C + 'a) -> Self {
        self.callbacks.step = Some(Box::new(move |step| callback(step).into_control_flow()));
        self
    }

    /// Calls `callback` after each validation: every 250 steps, unless `validation.every` differs, and
    /// after the last one. It may return [`ControlFlow::Break`] to stop the training.
    pub fn on_validation<C: Control>(
        mut self,
        mut callback: impl FnMut(&ValidationReport) -> C + 'a,
    ) -> Self {
        self.callbacks.validation =
            Some(Box::new(move |report| callback(report).into_control_flow()));
        self
    }

    /// Calls `callback` with warnings, such as text that the tokenizer cannot encode.
    pub fn on_warning(mut self, mut callback: impl FnMut(&str) + 'a) -> Self {
        self.callbacks.warning = Some(Box::new(move |warning| {
            callback(warning);
            ControlFlow::Continue(())
        }));
        self
    }

    /// Trains until the last step, early stopping (`validation.patience`), or a callback that stops.
    ///
    /// # Errors
    /// If the configuration is invalid or does not fit the dataset, the device does not work, or the
    /// training diverges.
    pub fn run(mut self) -> Result<LanguageModel> {
        if self.config.lora.is_some() {
            let RunConfig {
                schedule,
                optimizer,
                train,
                ..
            } = &self.config;
            self.config.unset = UnsetKeys::at_defaults(schedule, optimizer, train.steps);
        }
        let dataset = self.dataset.clone();
        let trainer = match &self.initial {
            Some(model) => {
                model.card().check_templates()?;
                let transformer = model.transformer();
                let device = transformer.device();
                let setup = RunSetup::from_dataset_on(self.config, dataset, &device)?;
                check_tokenizer(&setup, model)?;
                InMemoryTrainer::from_model(setup, transformer.clone())?
            }
            None => InMemoryTrainer::new(RunSetup::from_dataset(self.config, dataset)?)?,
        };
        let stop = StopFlag::default();
        let mut reporter = CallbackReporter {
            callbacks: self.callbacks,
            stop: &stop,
        };
        let mut trained = trainer.run(&mut reporter, &stop)?;
        if let Some(model) = &self.initial {
            // Training does not change these.
            let (from, to) = (model.card(), &mut trained.card);
            to.special.clone_from(&from.special);
            to.chat_templates.clone_from(&from.chat_templates);
        }
        trained.try_into()
    }
}

fn check_tokenizer(setup: &RunSetup, model: &LanguageModel) -> Result<()> {
    if setup.dataset.tokenizer.hash() == model.tokenizer().hash() {
        return Ok(());
    }
    Err(TrainError::config(
        "start_from",
        "the dataset was tokenized with another tokenizer than that of the model",
        "build it with Dataset::with_tokenizer",
    )
    .into())
}

struct CallbackReporter<'a> {
    callbacks: Callbacks<'a>,
    stop: &'a StopFlag,
}

fn call<T: ?Sized>(callback: &mut Option<Callback<'_, T>>, report: &T, stop: &StopFlag) {
    if let Some(callback) = callback
        && callback(report).is_break()
    {
        stop.raise();
    }
}

impl Reporter for CallbackReporter<'_> {
    fn stepped(&mut self, report: &StepReport, _logged: bool) {
        call(&mut self.callbacks.step, report, self.stop);
    }

    fn validated(&mut self, report: &ValidationReport) {
        call(&mut self.callbacks.validation, report, self.stop);
    }

    fn warned(&mut self, message: &str) {
        call(&mut self.callbacks.warning, message, self.stop);
    }
}
