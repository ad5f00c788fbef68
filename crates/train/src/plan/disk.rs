//! Number of checkpoints that a run leaves on disk.

use crate::RunConfig;

/// The number of checkpoints on disk at the end of the run, as [`prune`](crate::checkpoint::prune) leaves
/// them: the newest `keep_last`, and of the older ones those at multiples of `keep_every`.
pub(super) fn retained_checkpoints(config: &RunConfig) -> u64 {
    let (steps, checkpoint) = (config.train.steps, config.checkpoint);
    // One at each multiple of `every`, and one at the last step.
    let saved = match checkpoint.every {
        0 => 1,
        every => steps.div_ceil(every),
    };
    let newest = saved.min(checkpoint.keep_last as u64);
    // The last step is among the newest, so all older ones are at multiples of `every`.
    let older = saved - newest;
    let permanent = match checkpoint.keep_every {
        0 => 0,
        keep_every => older / (keep_every / gcd(keep_every, checkpoint.every)),
    };
    newest + permanent
}

/// The greatest common divisor.
fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use super::*;
    use crate::checkpoint::prune;

    fn checkpoints(steps: u64, every: u64, keep_last: usize, keep_every: u64) -> RunConfig {
        let mut config = RunConfig::default();
        config.train.steps = steps;
        config.checkpoint.every = every;
        config.checkpoint.keep_last = keep_last;
        config.checkpoint.keep_every = keep_every;
        config
    }

    #[test]
    fn retained_checkpoints_are_counted_once() {
        for (keep_every, expected) in [
            (0, 2),
            (500, 3), // 500, 900, 1000
            (150, 4), // 300, 600, 900, 1000
            (1, 10),
            (5000, 2),
        ] {
            let config = checkpoints(1000, 100, 2, keep_every);
            assert_eq!(retained_checkpoints(&config), expected, "{keep_every}");
        }
        assert_eq!(retained_checkpoints(&checkpoints(1000, 0, 2, 1)), 1);
    }

    /// Saves empty checkpoints at the steps of `config` and prunes after each. Returns how many remain.
    fn simulate_run(config: &RunConfig) -> u64 {
        let folder = tempfile::tempdir().unwrap();
        let every = config.checkpoint.every;
        let steps = 1..=config.train.steps;
        let is_saved =
            |step: &u64| *step == config.train.steps || every > 0 && step.is_multiple_of(every);
        for step in steps.filter(is_saved) {
            let checkpoint = folder.path().join(format!("step-{step:08}"));
            fs::create_dir(&checkpoint).unwrap();
            fs::write(checkpoint.join("MANIFEST.json"), "{}").unwrap();
            prune(folder.path(), &config.checkpoint).unwrap();
        }
        fs::read_dir(folder.path()).unwrap().count() as u64
    }

    #[test]
    fn retained_checkpoints_are_those_that_prune_keeps() {
        for steps in [1, 6, 10, 13] {
            for every in [0, 1, 3, 4, 5] {
                for keep_last in 1..=3 {
                    for keep_every in [0, 1, 2, 4, 6, 20] {
                        let config = checkpoints(steps, every, keep_last, keep_every);
                        assert_eq!(
                            retained_checkpoints(&config),
                            simulate_run(&config),
                            "{steps} steps, {:?}",
                            config.checkpoint
                        );
                    }
                }
            }
        }
    }
}
