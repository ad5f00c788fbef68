//! Measures the speed of a run within a few seconds, however large its model.

use std::time::{Duration, Instant};

use burn::module::Module;
use nextword_data::TokenBatch;

use super::speed::evaluations;
use super::{MeasuredSpeed, Plan};
use crate::{RunSetup, Stepper, TrainError};

/// Tokens of the first, smallest part of a micro-batch.
const FIRST_TOKENS: usize = 16;

/// Factor by which the next part is larger at most: the time of a small one says little about a large one.
const MAX_GROWTH: f64 = 8.0;

/// Share of the time left that the next part may take by its estimate.
const USABLE: f64 = 0.6;

/// Parts faster than this are timed again, since the first time is slower. On a GPU all are, as far as the time
/// allows: their programs are compiled during the first one.
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

        let repeats = Repeats {
            on_gpu: setup.is_on_gpu(),
            start,
            limit,
        };
        let part = first_rows(&whole, 1, FIRST_TOKENS);
        let max_lr = config.schedule.learning_rate;
        let update_seconds = repeats.seconds(|| time_update(&mut stepper, &part, max_lr));
        let left = || limit.saturating_sub(start.elapsed()).as_secs_f64();
        let measured = Measurement::within(&whole, flops, left, |part| {
            let mut loss = f64::NAN;
            let seconds = repeats.seconds(|| {
                let time;
                (time, loss) = time_gradients(&stepper, part);
                time
            });
            (seconds, loss)
        });
        let (part, loss, cost) = (measured.part, measured.loss, measured.cost);
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

/// What is timed twice.
#[derive(Clone, Copy, Debug)]
struct Repeats {
    on_gpu: bool,
    /// When the measurement began, and how long it may take.
    start: Instant,
    limit: Duration,
}

impl Repeats {
    /// The seconds of a run of `time`, which returns its duration: of the faster one if it is timed twice.
    fn seconds(self, mut time: impl FnMut() -> Duration) -> f64 {
        let first = time();
        let again = first < REPEATED || self.on_gpu && self.start.elapsed() < self.limit;
        let fastest = if again { first.min(time()) } else { first };
        fastest.as_secs_f64()
    }
}

/// What was measured of a micro-batch.
#[derive(Clone, Debug)]
struct Measurement {
    /// The largest part that was timed.
    part: TokenBatch,
    /// Its loss.
    loss: f64,
    cost: Cost,
}

impl Measurement {
    /// Times larger and larger parts of `whole`, as long as `left` seconds are enough. `time` returns the seconds of
    /// forward and backward pass of a part, and its loss.
    fn within(
        whole: &TokenBatch,
        flops: impl Fn(&TokenBatch) -> f64,
        left: impl Fn() -> f64,
        mut time: impl FnMut(&TokenBatch) -> (f64, f64),
    ) -> Self {
        let mut part = first_rows(whole, 1, FIRST_TOKENS);
        let (fastest, mut loss) = time(&part);
        let smallest = flops(&part);
        let mut cost = Cost::of_one(smallest, fastest);
        while let Some(next) = largest_part(whole, |next| {
            let growth = flops(next) / flops(&part);
            growth > 1.0 && growth <= MAX_GROWTH && cost.seconds(flops(next)) <= USABLE * left()
        }) {
            part = next;
            let seconds;
            (seconds, loss) = time(&part);
            cost = Cost::of_two((smallest, fastest), (flops(&part), seconds));
        }
        Self { part, loss, cost }
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
    let rows: Vec<usize> = (0..rows.min(batch.batch)).collect();
    batch.select(&rows, tokens.min(batch.seq))
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

/// The time of the update of all parameters; the first one also allocates the moments. The learning rate is 0, so
/// that the weights stay.
fn time_update(stepper: &mut Stepper, part: &TokenBatch, max_lr: f64) -> Duration {
    let gradients = stepper.gradients(std::slice::from_ref(part), 0);
    let start = Instant::now();
    stepper.update(gradients, 0.0, max_lr);
    let _ = stepper.model().device().sync();
    start.elapsed()
}

/// The time of forward and backward pass of `part`, and its loss.
fn time_gradients(stepper: &Stepper, part: &TokenBatch) -> (Duration, f64) {
    let start = Instant::now();
    // Reading the loss waits for the device.
    let loss = stepper.gradients(std::slice::from_ref(part), 0).loss;
    (start.elapsed(), loss)
}

/// Estimates the seconds of all validations, whose forward passes are a third of a training step.
fn validation_seconds(setup: &RunSetup, seq: usize, seconds_per_flop: f64) -> f64 {
    let per_token = setup.config.model.forward_flops(seq) as f64 * seconds_per_flop;
    let tokens =
        evaluations(setup).map(|(windows, times)| windows.len() as u64 * seq as u64 * times);
    tokens.sum::<u64>() as f64 * per_token
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
            ..TokenBatch::default()
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
    fn the_first_loss_is_that_of_a_step() {
        let setup = setup();
        let plan = Plan::estimate(&setup);
        let steps = plan.clone().with_speed(&setup, 1).unwrap();
        let within = plan.with_speed_within(&setup, Duration::from_secs(10));
        let [steps, within] = [steps, within.unwrap()].map(|plan| plan.measured.unwrap());
        assert!(
            (steps.first_loss - within.first_loss).abs() < 0.2,
            "{steps:?} {within:?}"
        );
    }

    /// Measures a batch of 64 sequences of 256 tokens on a device that takes `fixed` seconds and `per_flop`, within
    /// `limit` seconds. Returns the tokens of the largest part, its estimate for the whole batch relative to the true
    /// seconds, and the seconds that all took.
    fn measure(fixed: f64, per_flop: f64, limit: f64) -> (usize, f64, f64) {
        let ids = vec![1; 64 * 256];
        let whole = TokenBatch {
            batch: 64,
            seq: 256,
            inputs: ids.clone(),
            targets: ids,
            ..TokenBatch::default()
        };
        let flops = |part: &TokenBatch| (part.batch * part.seq * (1000 + part.seq)) as f64;
        let seconds = |part: &TokenBatch| fixed + per_flop * flops(part);
        let elapsed = std::cell::Cell::new(0.0);
        let measured = Measurement::within(
            &whole,
            flops,
            || limit - elapsed.get(),
            |part| {
                elapsed.set(elapsed.get() + seconds(part));
                (seconds(part), 1.0)
            },
        );
        let ratio = measured.cost.seconds(flops(&whole)) / seconds(&whole);
        (measured.part.inputs.len(), ratio, elapsed.get())
    }

    #[test]
    fn a_part_predicts_the_time_of_the_whole_batch() {
        let all = 64 * 256;
        for fixed in [0.0, 1e-3, 0.05, 0.5] {
            for per_flop in [1e-12, 1e-9, 1e-8, 1e-6] {
                let of_whole = fixed + per_flop * (all * 1256) as f64;
                for share in [0.02, 0.1, 0.5, 1.0, 10.0] {
                    let limit = share * of_whole;
                    let (tokens, ratio, elapsed) = measure(fixed, per_flop, limit);
                    let case = format!("{fixed} {per_flop} {share}: {tokens} {ratio} {elapsed}");
                    // The first part is timed in any case.
                    let first = fixed + per_flop * (FIRST_TOKENS * (1000 + FIRST_TOKENS)) as f64;
                    assert!(elapsed <= limit.max(first) * (1.0 + 1e-9), "{case}");
                    if tokens > FIRST_TOKENS {
                        assert!((ratio - 1.0).abs() < 1e-6, "{case}");
                    }
                    if fixed == 0.0 || share >= 10.0 {
                        assert!(tokens > FIRST_TOKENS, "{case}");
                    }
                    if share >= 10.0 {
                        assert_eq!(tokens, all, "{case}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_gpu_is_timed_again_after_its_programs_are_compiled() {
        let seconds = Duration::from_secs;
        let (enough, none) = (Duration::MAX, Duration::ZERO);
        for (on_gpu, limit, first, expected) in [
            (true, enough, seconds(5), 1.0),
            (true, none, seconds(5), 5.0), // The limit is used up.
            (false, enough, seconds(5), 5.0),
            (false, none, REPEATED / 3, 0.1),
            (true, none, REPEATED / 3, 0.1),
        ] {
            let mut times = [first, seconds(1)].into_iter();
            let start = Instant::now();
            let repeats = Repeats {
                on_gpu,
                start,
                limit,
            };
            let found = repeats.seconds(|| times.next().unwrap());
            assert!(
                (found - expected).abs() < 1e-9,
                "{on_gpu} {first:?}: {found}"
            );
            let is_repeated = times.next().is_none();
            assert_eq!(is_repeated, expected < 5.0, "{on_gpu} {first:?}");
        }
    }
}
