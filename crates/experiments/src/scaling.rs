//! The model and the number of updates that fit into a given time.

use std::time::Duration;

use nextword_model::ModelConfig;
use nextword_train::plan::Plan;
use nextword_train::{RunConfig, RunSetup, ScheduleConfig, TrainError, prepare_run};
use serde::{Deserialize, Serialize};

use crate::ExperimentError;

/// Tokens per parameter at which a model of a given compute has the lowest loss (Hoffmann et al. 2022, "Training
/// Compute-Optimal Large Language Models").
pub const TOKENS_PER_PARAMETER: f64 = 20.0;

/// Epochs up to which repeated text is almost as good as new text (Muennighoff et al. 2023, "Scaling Data-Constrained
/// Language Models").
pub const MAX_EPOCHS: f64 = 4.0;

/// The share of the time that training takes; the rest is for reading data and saving.
const TIME_SHARE: f64 = 0.95;

/// Time to measure one size.
const MEASUREMENT: Duration = Duration::from_secs(5);

/// Sizes that are measured at most.
const MAX_MEASUREMENTS: usize = 4;

/// Validations of the run.
const VALIDATIONS: u64 = 10;

/// Layers and widths, from small to large: deeper models are also wider.
const SIZES: [(usize, usize); 18] = [
    (1, 32),
    (2, 32),
    (2, 64),
    (3, 96),
    (4, 128),
    (4, 192),
    (4, 256),
    (6, 256),
    (6, 320),
    (6, 384),
    (8, 448),
    (8, 512),
    (10, 640),
    (12, 768),
    (16, 1024),
    (24, 1024),
    (24, 1536),
    (32, 2048),
];

/// Why a planned model is not larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SizeLimit {
    /// A larger model would see too few tokens in the time.
    Time,
    /// A larger model would see the text more than [`MAX_EPOCHS`] times.
    Data,
    /// A larger model does not fit into memory.
    Memory,
    /// There is no larger size.
    Largest,
}

/// A run that fits into a given time.
#[derive(Clone, Debug)]
pub struct TimedPlan {
    /// Its configuration.
    pub config: RunConfig,
    /// Its cost, with measured speed.
    pub plan: Plan,
    /// Tokens that it trains on.
    pub tokens: u64,
    /// Why the model is not larger.
    pub limit: SizeLimit,
    /// Whether more updates would see the text more than [`MAX_EPOCHS`] times, so that the run takes less than the time.
    pub is_shortened: bool,
}

/// Chooses layers, width and number of updates for `config`, so that a run takes about `minutes` on its device: the largest
/// model that sees [`TOKENS_PER_PARAMETER`] tokens per parameter in that time. All other settings stay, except those that
/// follow from the number of updates. `on_measure` receives each size, in layers and width, before it is measured.
///
/// # Errors
/// [`ExperimentError::Option`] for minutes that are not positive and for models in `start_from`, whose size is given; errors
/// of the configuration, the data and the device.
///
/// ```no_run
/// use nextword_experiments::scaling::plan_for_minutes;
/// use nextword_train::read_config;
///
/// let config = read_config("configs/quickstart.toml".as_ref(), &[])?;
/// let planned = plan_for_minutes(&config, 30.0, &mut |layers, width| println!("measuring {layers} x {width}"))?;
/// println!("{} updates", planned.config.train.steps);
/// # Ok::<(), nextword_experiments::ExperimentError>(())
/// ```
pub fn plan_for_minutes(
    config: &RunConfig,
    minutes: f64,
    on_measure: &mut dyn FnMut(usize, usize),
) -> Result<TimedPlan, ExperimentError> {
    if !(minutes.is_finite() && minutes > 0.0) {
        let problem = format!("{minutes} minutes are not a time");
        return Err(ExperimentError::option(
            "--minutes",
            problem,
            "use a number above 0",
        ));
    }
    if config.start_from.is_some() {
        return Err(ExperimentError::option(
            "--minutes",
            "start_from determines the size of the model",
            "leave out --minutes: `nextword plan CONFIG` estimates the time",
        ));
    }
    let seconds = 60.0 * TIME_SHARE * minutes;
    let mut at_size = |size: (usize, usize)| measure(config, size, on_measure);
    // A small size measures quickly what the machine can do.
    let mut chosen = 2;
    let mut current = at_size(SIZES[chosen])?;
    if let Some(shortage) = current.plan.memory_shortage() {
        return Err(ExperimentError::Memory(shortage));
    }
    let mut limit = SizeLimit::Largest;
    for _ in 1..MAX_MEASUREMENTS {
        let (next, why) = largest_size(config, &current, seconds);
        limit = why;
        if next == chosen {
            break;
        }
        let measured = at_size(SIZES[next])?;
        if measured.plan.memory_shortage().is_some() {
            limit = SizeLimit::Memory;
            break;
        }
        (chosen, current) = (next, measured);
    }
    finish(current, seconds, limit)
}

/// A size with its measured speed.
struct MeasuredSize {
    setup: RunSetup,
    plan: Plan,
}

impl MeasuredSize {
    fn tokens_per_second(&self) -> f64 {
        self.plan
            .measured
            .map_or(1.0, |speed| speed.tokens_per_second)
    }

    fn flops_per_second(&self) -> f64 {
        self.plan
            .measured
            .map_or(1.0, |speed| speed.flops_per_second)
    }

    /// Tokens that may be trained on before the text is repeated too often.
    fn max_tokens(&self) -> f64 {
        let loader = &self.setup.loader;
        let steps = loader.sequences_per_epoch() as f64 / loader.sequences_per_step() as f64;
        MAX_EPOCHS * steps * loader.targets_per_step()
    }
}

fn measure(
    config: &RunConfig,
    (layers, width): (usize, usize),
    on_measure: &mut dyn FnMut(usize, usize),
) -> Result<MeasuredSize, TrainError> {
    on_measure(layers, width);
    let mut config = config.clone();
    config.model = resized(&config.model, layers, width);
    config.expect_parameters = None;
    let setup = prepare_run(config)?;
    let plan = Plan::estimate(&setup);
    if plan.memory_shortage().is_some() {
        return Ok(MeasuredSize { setup, plan });
    }
    let plan = plan.with_speed_within(&setup, MEASUREMENT)?;
    Ok(MeasuredSize { setup, plan })
}

/// `model` with other sizes. Heads have 64 values, or 32 in narrow models.
fn resized(model: &ModelConfig, layers: usize, width: usize) -> ModelConfig {
    let head = if width.is_multiple_of(64) && width >= 192 {
        64
    } else {
        32
    };
    let heads = width / head;
    let sharing = model
        .n_kv_heads
        .map(|kv| (model.n_heads / kv.max(1)).max(1));
    ModelConfig {
        n_layers: layers,
        n_heads: heads,
        n_kv_heads: sharing
            .map(|sharing| (heads / sharing).max(1))
            .filter(|kv| heads.is_multiple_of(*kv)),
        head_dim: None,
        d_model: width,
        d_ff: None,
        n_encoder_layers: None,
        score_width: None,
        ..model.clone()
    }
}

/// The index of the largest size that fits, with the speed of `current`, and why the next one does not.
fn largest_size(config: &RunConfig, current: &MeasuredSize, seconds: f64) -> (usize, SizeLimit) {
    let mut found = (0, SizeLimit::Largest);
    for (index, (layers, width)) in SIZES.into_iter().enumerate() {
        let mut model = resized(&config.model, layers, width);
        model.vocab_size = current.setup.config.model.vocab_size;
        let tokens = TOKENS_PER_PARAMETER * model.parameter_counts().total() as f64;
        let flops = tokens * model.training_flops(current.setup.config.sequence_length()) as f64;
        let limit = if flops > seconds * current.flops_per_second() {
            SizeLimit::Time
        } else if tokens > current.max_tokens() {
            SizeLimit::Data
        } else {
            found = (index, SizeLimit::Largest);
            continue;
        };
        return (found.0, limit);
    }
    found
}

/// Fills the time with updates.
fn finish(
    size: MeasuredSize,
    seconds: f64,
    limit: SizeLimit,
) -> Result<TimedPlan, ExperimentError> {
    let validation = validation_seconds(&size);
    let possible = (seconds - validation).max(0.0) * size.tokens_per_second();
    let tokens = possible.min(size.max_tokens());
    let per_step = size.setup.loader.targets_per_step();
    let steps = (tokens / per_step).floor().max(1.0) as u64;
    let mut config = size.setup.config.clone();
    let earlier_steps = std::mem::replace(&mut config.train.steps, steps);
    config.train.epochs = None;
    config.validation.every = (steps / VALIDATIONS).max(1);
    config.schedule.end_step = None;
    config.schedule.warmup_steps = warmup(config.schedule.warmup_steps, earlier_steps, steps);
    config.validate()?;
    // The cost of the run as it is now.
    let mut plan = Plan::estimate(&prepare_run(config.clone())?);
    plan.measured = size.plan.measured.map(|mut speed| {
        speed.training_seconds = steps as f64 * per_step / size.tokens_per_second();
        speed.validation_seconds = validation;
        speed
    });
    Ok(TimedPlan {
        config,
        plan,
        tokens: (steps as f64 * per_step) as u64,
        limit,
        is_shortened: possible > size.max_tokens(),
    })
}

/// The warmup of a run of `steps` updates that has `warmup` with `earlier_steps`: a default stays one.
fn warmup(warmup: u64, earlier_steps: u64, steps: u64) -> u64 {
    if warmup == ScheduleConfig::default_warmup(earlier_steps) {
        ScheduleConfig::default_warmup(steps)
    } else {
        warmup.min(steps / 10)
    }
}

/// Seconds of all validations.
fn validation_seconds(size: &MeasuredSize) -> f64 {
    let config = &size.setup.config;
    let before = match config.validation.every {
        0 => 1,
        every => config.train.steps.div_ceil(every),
    };
    let all = size
        .plan
        .measured
        .map_or(0.0, |speed| speed.validation_seconds);
    all * (VALIDATIONS + 1) as f64 / before.max(1) as f64
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use nextword_data::Builtin;
    use nextword_model::presets;

    use super::*;

    #[test]
    fn a_default_warmup_follows_the_number_of_steps() {
        assert_eq!(warmup(4, 40, 5000), 100);
        assert_eq!(warmup(100, 2000, 50), 5);
        // Chosen by the user.
        assert_eq!(warmup(7, 40, 5000), 7);
        assert_eq!(warmup(7, 40, 50), 5);
    }

    #[test]
    fn sizes_grow_and_are_valid_for_every_kind_of_model() {
        for model in [presets::shakespeare_char_cpu(99), presets::llama_like(99)] {
            let models = SIZES.map(|(layers, width)| resized(&model, layers, width));
            assert!(models.iter().all(|model| model.validate().is_ok()));
            let counts = models.map(|model| model.parameter_counts().total());
            assert!(counts.is_sorted_by(|a, b| a < b), "{counts:?}");
        }
    }

    #[test]
    fn sizes_that_depend_on_the_width_are_not_kept() {
        let model = ModelConfig {
            n_encoder_layers: Some(7),
            score_width: Some(256.0),
            ..presets::llama_like(99)
        };
        let resized = resized(&model, 4, 128);
        assert_eq!(
            (resized.n_encoder_layers, resized.score_width),
            (None, None)
        );
    }

    #[test]
    fn a_planned_run_fits_the_time_and_the_text() {
        let mut config = RunConfig::default();
        config.data.builtin = Some(Builtin::Stories);
        config.data.documents = 200;
        config.model.context_length = 32;
        config.train.batch_size = 4;
        let mut sizes = Vec::new();
        let planned = plan_for_minutes(&config, 0.05, &mut |layers, width| {
            sizes.push((layers, width));
        })
        .unwrap();
        assert!((1..=MAX_MEASUREMENTS).contains(&sizes.len()), "{sizes:?}");
        let speed = planned.plan.measured.unwrap();
        let seconds = speed.training_seconds + speed.validation_seconds;
        assert!(
            seconds <= 3.0 || planned.config.train.steps == 1,
            "{seconds}"
        );
        assert!(planned.plan.data.epochs <= MAX_EPOCHS + 0.1);
        let text = nextword_train::to_toml(&planned.config).unwrap();
        let read = nextword_train::parse_config(&text, "planned.toml".as_ref(), &[]).unwrap();
        assert_eq!(read.train.steps, planned.config.train.steps);
        assert!(plan_for_minutes(&config, f64::NAN, &mut |_, _| {}).is_err());
    }
}
