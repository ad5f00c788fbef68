//! Measures the speed of a run within a few seconds, however large its model.

use std::time::{Duration, Instant};

use burn::module::Module;
use nextword_data::TokenBatch;

use super::{MeasuredSpeed, Plan};
use crate::{RunSetup, Stepper, TrainError};

/// Tokens of the first, smallest part of a micro-batch.
const FIRST_TOKENS: usize = 16;

/// Factor by which the next part is larger at most: the time of a small one says little about a large one.
const MAX_GROWTH: f64 = 8.0;

/// Share of the time left that the next part may take by its estimate.
const USABLE: f64 = 0.6;

/// Parts faster than this are measured again, since the first time is slower.
const REPEATED: Duration = Duration::from_millis(300);

impl Plan {
    /// Adds the speed of the run, measured within about `limit` on the largest part of its first micro-batch
    /// for which that is enough, and extrapolated to all steps and validations by the number of operations.
    ///
    /// # Errors
    /// [`TrainError::FirstLoss`] if the loss is not finite, and errors of data and model.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use nextword_data::{Dataset, TokenizerConfig};
    /// use nextword_train::plan::Plan;
    /// use nextword_train::{RunConfig, RunSetup};
    ///
    /// let dataset = Dataset::from_text(&"to be or not to be ".repeat(50), &TokenizerConfig::chars())?;
    /// let setup = RunSetup::from_dataset(RunConfig::default(), dataset)?;
    /// let plan = Plan::estimate(&setup).with_speed_within(&setup, Duration::from_secs(1))?;
    /// let measured = plan.measured.unwrap();
    /// assert!(measured.tokens > 0 && measured.tokens_per_second > 0.0);
    /// # Ok::<(), nextword_train::TrainError>(())
    /// ```
    pub fn with_speed_within(
        mut self,
        setup: &RunSetup,
        limit: Duration,
    ) -> Result<Self, TrainError> {
        let config = &setup.config;
        let start = Instant::now();
        let whole = setup.loader.batch(0, 0)?;
        let model = setup.initial_model()?.train();
        let model = model.with_precision(config.train.precision)?;
        let mut stepper =
            Stepper::new(model, config.optimizer, config.seed, config.train.recompute);
        let flops = |part: &TokenBatch| {
            let tokens = (part.batch * part.seq) as f64;
            tokens * config.model.training_flops(part.seq) as f64
        };

        let mut part = first_rows(&whole, 1, FIRST_TOKENS);
        let update_seconds = time_update(&mut stepper, &part, config.schedule.learning_rate);
        let (seconds, mut loss) = time_gradients(&stepper, &part);
        let mut cost = Cost::of_one(flops(&part), seconds);
        let (smallest, fastest) = (flops(&part), seconds);
        while let Some(next) = largest_part(&whole, |next| {
            let growth = flops(next) / flops(&part);
            let left = limit.saturating_sub(start.elapsed()).as_secs_f64();
            growth > 1.0 && growth <= MAX_GROWTH && cost.seconds(flops(next)) <= USABLE * left
        }) {
            part = next;
            let seconds;
            (seconds, loss) = time_gradients(&stepper, &part);
            cost = Cost::of_two((smallest, fastest), (flops(&part), seconds));
        }
        if !loss.is_finite() {
            return Err(TrainError::FirstLoss { loss });
        }

        let micro_batch_seconds = cost.seconds(flops(&whole));
        let per_step = config.train.accumulation as f64 * micro_batch_seconds + update_seconds;
        let tokens_per_second = self.data.tokens_per_step as f64 / per_step.max(1e-12);
        self.measured = Some(MeasuredSpeed {
            steps: u64::from(part.inputs.len() == whole.inputs.len()),
            tokens: part.inputs.len(),
            first_loss: loss,
            tokens_per_second,
            flops_per_second: flops(&whole) / micro_batch_seconds.max(1e-12),
            training_seconds: per_step * config.train.steps as f64,
            validation_seconds: validation_seconds(setup, whole.seq, cost.per_flop),
        });
        Ok(self)
    }
}

/// Seconds of forward and backward pass: of the gradients of all parameters, whatever the number of tokens,
/// and of each floating-point operation.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cost {
    fixed: f64,
    per_flop: f64,
}

impl Cost {
    fn of_one(flops: f64, seconds: f64) -> Self {
        Self {
            fixed: 0.0,
            per_flop: seconds / flops.max(1.0),
        }
    }

    /// The line through two measurements, of which the second is the larger one.
    fn of_two(small: (f64, f64), large: (f64, f64)) -> Self {
        let proportional = Self::of_one(large.0, large.1);
        let per_flop = (large.1 - small.1) / (large.0 - small.0).max(1.0);
        // Otherwise the measurements disturb each other.
        if per_flop <= 0.0 || per_flop > proportional.per_flop {
            return proportional;
        }
        Self {
            fixed: large.1 - per_flop * large.0,
            per_flop,
        }
    }

    fn seconds(self, flops: f64) -> f64 {
        self.fixed + self.per_flop * flops
    }
}

/// The first `rows` sequences of `batch`, each with its first `tokens` tokens.
fn first_rows(batch: &TokenBatch, rows: usize, tokens: usize) -> TokenBatch {
    let (rows, tokens) = (rows.min(batch.batch), tokens.min(batch.seq));
    let part = |ids: &[u32]| {
        let sequences = ids.chunks(batch.seq.max(1)).take(rows);
        sequences.flat_map(|ids| &ids[..tokens]).copied().collect()
    };
    TokenBatch {
        batch: rows,
        seq: tokens,
        inputs: part(&batch.inputs),
        targets: part(&batch.targets),
    }
}

/// The largest part of `batch` that is `allowed`: longer and longer sequences, then more of them.
fn largest_part(batch: &TokenBatch, allowed: impl Fn(&TokenBatch) -> bool) -> Option<TokenBatch> {
    let rows = (0..=batch.batch.ilog2()).map(|power| 1 << power);
    let rows = rows
        .chain([batch.batch])
        .rev()
        .map(|rows| (rows, batch.seq));
    let lengths = (0..=batch.seq.ilog2()).map(|power| (1, 1 << power)).rev();
    let parts = rows.chain(lengths);
    parts
        .map(|(rows, tokens)| first_rows(batch, rows, tokens))
        .find(allowed)
}

/// The seconds of the update of all parameters. The learning rate is 0, so that the weights stay.
fn time_update(stepper: &mut Stepper, part: &TokenBatch, max_lr: f64) -> f64 {
    let mut elapsed = Duration::ZERO;
    // The first update allocates the moments, so that it is slower.
    for _ in 0..2 {
        if elapsed >= REPEATED {
            break;
        }
        let gradients = stepper.gradients(std::slice::from_ref(part), 0);
        let start = Instant::now();
        stepper.update(gradients, 0.0, max_lr);
        let _ = stepper.model().device().sync();
        elapsed = start.elapsed();
    }
    elapsed.as_secs_f64()
}

/// The seconds of forward and backward pass of `part`, and its loss.
fn time_gradients(stepper: &Stepper, part: &TokenBatch) -> (f64, f64) {
    let time = || {
        let start = Instant::now();
        // Reading the loss waits for the device.
        let loss = stepper.gradients(std::slice::from_ref(part), 0).loss;
        (start.elapsed(), loss)
    };
    let (mut elapsed, loss) = time();
    if elapsed < REPEATED {
        elapsed = elapsed.min(time().0);
    }
    (elapsed.as_secs_f64(), loss)
}

/// Estimates the seconds of all validations, whose forward passes are a third of a training step.
fn validation_seconds(setup: &RunSetup, seq: usize, seconds_per_flop: f64) -> f64 {
    let config = &setup.config;
    let Some(windows) = &setup.validation else {
        return 0.0;
    };
    let tokens = (windows.len() * seq) as f64;
    let once = tokens * config.model.forward_flops(seq) as f64 * seconds_per_flop;
    once * super::speed::validations(config) as f64
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{RunConfig, prepare_run};

    fn setup() -> RunSetup {
        let mut config = RunConfig::default();
        config.data.builtin = Some(nextword_data::Builtin::Stories);
        config.data.documents = 200;
        config.train.batch_size = 6;
        config.train.accumulation = 3;
        config.model.context_length = 48;
        config.model.n_layers = 2;
        config.model.n_heads = 2;
        config.model.d_model = 32;
        prepare_run(config).unwrap()
    }

    #[test]
    fn parts_are_the_start_of_the_batch() {
        let batch = TokenBatch {
            batch: 2,
            seq: 3,
            inputs: vec![1, 2, 3, 4, 5, 6],
            targets: vec![2, 3, 4, 5, 6, 7],
        };
        let part = first_rows(&batch, 2, 2);
        assert_eq!((part.batch, part.seq), (2, 2));
        assert_eq!(part.inputs, [1, 2, 4, 5]);
        assert_eq!(part.targets, [2, 3, 5, 6]);
        let sizes = |limit: usize| {
            largest_part(&batch, |part| part.inputs.len() <= limit)
                .map(|part| (part.batch, part.seq))
        };
        assert_eq!(
            [6, 5, 3, 2, 1, 0].map(sizes),
            [
                Some((2, 3)),
                Some((1, 3)),
                Some((1, 3)),
                Some((1, 2)),
                Some((1, 1)),
                None
            ]
        );
    }

    #[test]
    fn costs_are_a_line_through_two_measurements() {
        let cost = Cost::of_two((10.0, 2.0), (30.0, 3.0));
        assert_eq!((cost.fixed, cost.per_flop), (1.5, 0.05));
        assert!((cost.seconds(100.0) - 6.5).abs() < 1e-12);
        for (small, large) in [((10.0, 2.0), (30.0, 1.0)), ((10.0, 0.5), (30.0, 3.0))] {
            assert_eq!(Cost::of_two(small, large), Cost::of_one(30.0, large.1));
        }
    }

    #[test]
    fn without_time_the_smallest_part_is_measured() {
        let setup = setup();
        let plan = Plan::estimate(&setup);
        let fast = plan
            .clone()
            .with_speed_within(&setup, Duration::ZERO)
            .unwrap();
        let fast = fast.measured.unwrap();
        assert_eq!((fast.tokens, fast.steps), (FIRST_TOKENS, 0));
        let whole = plan
            .with_speed_within(&setup, Duration::from_mins(1))
            .unwrap();
        let whole = whole.measured.unwrap();
        assert_eq!((whole.tokens, whole.steps), (6 * 48, 1));
        assert!(whole.validation_seconds > 0.0 && whole.training_seconds > 0.0);
    }

    #[test]
    fn the_estimate_agrees_with_measured_steps() {
        let setup = setup();
        let plan = Plan::estimate(&setup);
        let steps = plan
            .clone()
            .with_speed(&setup, 5)
            .unwrap()
            .measured
            .unwrap();
        let within = plan
            .with_speed_within(&setup, Duration::from_secs(10))
            .unwrap();
        let within = within.measured.unwrap();
        assert!(
            (steps.first_loss - within.first_loss).abs() < 0.2,
            "{steps:?} {within:?}"
        );
        // Other tests run at the same time.
        let ratio = within.tokens_per_second / steps.tokens_per_second;
        assert!((0.1..10.0).contains(&ratio), "{steps:?} {within:?}");
    }
}
