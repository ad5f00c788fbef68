//! Estimates of a run on several ranks.

use std::str::FromStr;

use nextword_parallel::Division;
use serde::{Deserialize, Serialize};

use super::Plan;
use crate::{RunSetup, TrainError};

/// What a run costs on several ranks, each on a machine (or GPU) like the measured one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankPlan {
    /// Number of ranks.
    pub ranks: usize,
    /// Bytes that each rank sends in each step.
    pub sent_bytes: u64,
    /// Seconds of the exchange in each step.
    pub exchange_seconds: f64,
    /// Seconds of the exchange that the backward pass of a rank's last micro-batch does not hide. `None` if the speed was
    /// not measured.
    #[serde(default)]
    pub exposed_seconds: Option<f64>,
    /// Bytes of the optimizer's moments on each rank: a part of them with `parallel.shard_optimizer`.
    #[serde(default)]
    pub optimizer_bytes: u64,
    /// Seconds of a step: a share of the computation, and what of the exchange it does not hide. `None` if the speed was
    /// not measured.
    pub step_seconds: Option<f64>,
    /// The speed per rank, compared with that of one rank; `None` if the speed was not measured.
    pub efficiency: Option<f64>,
    /// The smallest `train.accumulation` with an efficiency of 0.9 or more, with the same `train.batch_size`.
    pub efficient_accumulation: Option<usize>,
}

/// The speed of a network: `1Gb`, `2.5Gb` or `100Mb`, in bits per second.
///
/// ```
/// use nextword_train::plan::LinkSpeed;
///
/// let link: LinkSpeed = "10Gb".parse()?;
/// assert_eq!(link.bytes_per_second(), 1.25e9);
/// assert!("10".parse::<LinkSpeed>().is_err());
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkSpeed(f64);

impl LinkSpeed {
    /// Bytes per second, in each direction.
    pub fn bytes_per_second(self) -> f64 {
        self.0
    }
}

impl FromStr for LinkSpeed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let units = [("Gb", 1e9), ("Mb", 1e6)];
        let parsed = units.iter().find_map(|(unit, factor)| {
            let number: f64 = text.strip_suffix(unit)?.trim().parse().ok()?;
            (number.is_finite() && number > 0.0).then_some(number * factor / 8.0)
        });
        parsed
            .map(Self)
            .ok_or_else(|| "write bits per second, such as 1Gb, 10Gb or 100Mb".to_string())
    }
}

/// An efficiency that is worth the machines.
const EFFICIENT: f64 = 0.9;

/// The backward pass's share of the time of a micro-batch.
const BACKWARD: f64 = 2.0 / 3.0;

impl Plan {
    /// Adds the cost on `ranks` ranks over `link`. The speed, if it is to be known, must have been measured before.
    ///
    /// # Errors
    /// [`TrainError::Parallel`] if that many ranks cannot share a step.
    ///
    /// ```
    /// use nextword_data::{Dataset, TokenizerConfig};
    /// use nextword_train::plan::Plan;
    /// use nextword_train::{RunConfig, RunSetup};
    ///
    /// let dataset = Dataset::from_text(&"to be or not to be ".repeat(50), &TokenizerConfig::chars())?;
    /// let mut config = RunConfig::default();
    /// (config.train.accumulation, config.train.lanes) = (8, 8);
    /// let setup = RunSetup::from_dataset(config, dataset)?;
    /// let plan = Plan::estimate(&setup).with_ranks(&setup, 4, "1Gb".parse().unwrap())?;
    /// let (ranks, parameters) = (plan.ranks.unwrap(), plan.parameters.total as u64);
    /// assert_eq!(ranks.sent_bytes, 2 * 4 * parameters * 3 / 4);
    /// # Ok::<(), nextword_train::TrainError>(())
    /// ```
    pub fn with_ranks(
        mut self,
        setup: &RunSetup,
        ranks: usize,
        link: LinkSpeed,
    ) -> Result<Self, TrainError> {
        let train = setup.config.train;
        Division::new(train.accumulation, train.lanes, ranks)?;
        let lora = self.lora.as_ref().map(|lora| lora.trained_parameters);
        let trained = lora.unwrap_or(self.parameters.total);
        let sent_bytes = 2 * 4 * trained as u64 * (ranks as u64 - 1) / ranks as u64;
        let exchange_seconds = sent_bytes as f64 / link.bytes_per_second();
        let steps = self.data.steps.max(1) as f64;
        let alone = self.measured.map(|speed| speed.training_seconds / steps);
        let exposed_seconds = alone.map(|alone| {
            let micro_batch = alone / train.accumulation as f64;
            self.exposed_seconds(setup, trained, exchange_seconds, micro_batch)
        });
        let known = alone.zip(exposed_seconds);
        let step_seconds = known.map(|(alone, exposed)| alone / ranks as f64 + exposed);
        let efficiency = alone
            .zip(step_seconds)
            .map(|(alone, step)| alone / ranks as f64 / step);
        let efficient_accumulation = known.map(|(alone, exposed)| {
            let micro_batch = alone / train.accumulation as f64;
            let needed = EFFICIENT / (1.0 - EFFICIENT) * exposed * ranks as f64;
            let micro_batches = (needed / micro_batch.max(1e-12)).ceil() as usize;
            micro_batches.max(1).next_multiple_of(ranks)
        });
        let shard_count = if setup.config.parallel.shard_optimizer {
            ranks
        } else {
            1
        };
        let all = self.memory_bytes.by_part.optimizer;
        let own = all.div_ceil(shard_count);
        self.memory_bytes.by_part.optimizer = own;
        self.memory_bytes.total -= all - own;
        self.ranks = Some(RankPlan {
            ranks,
            sent_bytes,
            exchange_seconds,
            exposed_seconds,
            optimizer_bytes: own as u64,
            step_seconds,
            efficiency,
            efficient_accumulation,
        });
        Ok(self)
    }

    /// What is left of an exchange of `exchange` seconds after the backward pass of the last micro-batch, which takes
    /// `micro_batch` seconds with its forward pass. The gradients of the embeddings are known last.
    fn exposed_seconds(
        &self,
        setup: &RunSetup,
        trained: usize,
        exchange: f64,
        micro_batch: f64,
    ) -> f64 {
        let model = &setup.config.model;
        let counts = &self.parameters.by_part;
        let known_last = match self.lora {
            Some(_) => 0,
            None => counts.token_embedding + counts.position_embedding,
        };
        let last = (known_last as f64 / trained.max(1) as f64).min(1.0);
        let hidden = if model.supports_loss_in_parts() {
            BACKWARD * micro_batch
        } else {
            0.0
        };
        let left = |exchange: f64| (exchange - hidden).max(exchange * last);
        if setup.config.parallel.shard_optimizer {
            // The updated weights, half of the bytes, are sent after it.
            exchange / 2.0 + left(exchange / 2.0)
        } else {
            left(exchange)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use nextword_data::{Dataset, TokenizerConfig};

    use super::*;
    use crate::RunConfig;
    use crate::plan::MeasuredSpeed;

    fn plan(seconds_per_step: f64) -> (RunSetup, Plan) {
        let text = "to be or not to be ".repeat(50);
        let dataset = Dataset::from_text(&text, &TokenizerConfig::chars()).unwrap();
        let mut config = RunConfig::default();
        (config.train.accumulation, config.train.lanes) = (8, 8);
        let setup = RunSetup::from_dataset(config, dataset).unwrap();
        let mut plan = Plan::estimate(&setup);
        plan.measured = Some(MeasuredSpeed {
            steps: 1,
            tokens: 1,
            first_loss: 1.0,
            tokens_per_second: 1.0,
            flops_per_second: 1.0,
            training_seconds: seconds_per_step * plan.data.steps as f64,
            validation_seconds: 0.0,
        });
        (setup, plan)
    }

    #[test]
    fn what_the_backward_pass_does_not_hide_is_added_to_a_share_of_the_computation() {
        // A short backward pass hides a part of the exchange, a long one all but that of the embeddings.
        for seconds in [0.04, 400.0] {
            let (setup, plan) = plan(seconds);
            let counts = plan.parameters;
            let link = "100Mb".parse().unwrap();
            let ranks = plan.with_ranks(&setup, 4, link).unwrap().ranks.unwrap();
            assert!((ranks.exchange_seconds - ranks.sent_bytes as f64 / 12.5e6).abs() < 1e-12);
            let embeddings = counts.by_part.token_embedding + counts.by_part.position_embedding;
            let last = embeddings as f64 / counts.total as f64;
            let backward = seconds / 8.0 * 2.0 / 3.0;
            let expected = if seconds < 1.0 {
                ranks.exchange_seconds - backward
            } else {
                ranks.exchange_seconds * last
            };
            let exposed = ranks.exposed_seconds.unwrap();
            assert!((exposed - expected).abs() < 1e-9, "{ranks:?}");
            assert!((ranks.step_seconds.unwrap() - seconds / 4.0 - exposed).abs() < 1e-9);
            let efficiency = seconds / 4.0 / (seconds / 4.0 + exposed);
            assert!((ranks.efficiency.unwrap() - efficiency).abs() < 1e-9);
        }
    }

    #[test]
    fn shards_divide_the_moments_and_leave_half_of_the_exchange_exposed() {
        let (mut setup, plan) = plan(400.0);
        let (all, total) = (plan.memory_bytes.by_part.optimizer, plan.memory_bytes.total);
        setup.config.parallel.shard_optimizer = true;
        let link = "100Mb".parse().unwrap();
        let plan = plan.with_ranks(&setup, 4, link).unwrap();
        let ranks = plan.ranks.unwrap();
        assert_eq!(ranks.optimizer_bytes, all.div_ceil(4) as u64);
        assert_eq!(plan.memory_bytes.by_part.optimizer, all.div_ceil(4));
        assert_eq!(plan.memory_bytes.total, total - (all - all.div_ceil(4)));
        let exposed = ranks.exposed_seconds.unwrap();
        let half = ranks.exchange_seconds / 2.0;
        assert!(half < exposed && exposed < 1.5 * half, "{ranks:?}");
    }

    #[test]
    fn the_accumulation_named_as_efficient_is() {
        for seconds in [0.01, 1.0, 100.0] {
            let (setup, plan) = plan(seconds);
            let link = "1Gb".parse().unwrap();
            let ranks = plan.with_ranks(&setup, 8, link).unwrap().ranks.unwrap();
            let accumulation = ranks.efficient_accumulation.unwrap();
            let efficiency = |accumulation: usize| {
                let compute = seconds / 8.0 * accumulation as f64 / 8.0;
                compute / (compute + ranks.exposed_seconds.unwrap())
            };
            assert!(efficiency(accumulation) >= EFFICIENT - 1e-9, "{ranks:?}");
            let fewer = accumulation - 8;
            assert!(fewer == 0 || efficiency(fewer) < EFFICIENT, "{ranks:?}");
        }
    }

    #[test]
    fn ranks_that_cannot_share_a_step_are_refused() {
        let (setup, plan) = plan(1.0);
        let error = plan.with_ranks(&setup, 3, "1Gb".parse().unwrap());
        assert!(error.unwrap_err().to_string().contains("1, 2, 4 or 8"));
    }
}
