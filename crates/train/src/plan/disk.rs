//! Disk space of a run, and whether there is enough of it.

use std::fs;
use std::path::Path;

use nextword_base::free_disk_space;
use nextword_model::ByteSize;

use super::Plan;
use crate::RunConfig;

/// A run needs more disk space than is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskShortage {
    /// Not even one checkpoint with the last and the best model fits.
    #[error(
        "saving this run once needs {} of disk space, but only {} are free; hint: free disk space, or set `out` to \
         a folder on another disk", ByteSize(*.needed), ByteSize(*.free)
    )]
    First {
        /// Bytes needed.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// Not all checkpoints fit that the run keeps.
    #[error(
        "the checkpoints and models of this run need {} of disk space, but only {} are free; hint: free disk space, \
         or lower checkpoint.keep_last", ByteSize(*.needed), ByteSize(*.free)
    )]
    All {
        /// Bytes needed.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
}

impl DiskShortage {
    /// Whether nothing can be saved. Otherwise the run may begin, and space may be freed meanwhile.
    pub fn is_certain(&self) -> bool {
        matches!(self, Self::First { .. })
    }

    /// Compares with the bytes that are `free`; `used` bytes of the run are on the disk already.
    fn find(plan: &Plan, used: u64, free: u64) -> Option<Self> {
        let needed = plan.once_bytes().saturating_sub(used);
        if needed > free {
            return Some(Self::First { needed, free });
        }
        let needed = plan.disk_peak_bytes.saturating_sub(used);
        (needed > free).then_some(Self::All { needed, free })
    }
}

impl Plan {
    /// Compares the disk space of a run in `folder`, new or resumed, with what is free now. `None` if it is
    /// enough, or if the system does not report it.
    ///
    /// A run should be refused if the shortage [is certain](DiskShortage::is_certain), else warned about.
    pub fn disk_shortage(&self, folder: &Path) -> Option<DiskShortage> {
        DiskShortage::find(self, folder_bytes(folder), free_disk_space(folder)?)
    }

    /// Bytes of one checkpoint with both models.
    fn once_bytes(&self) -> u64 {
        let trained = self.lora.as_ref().map(|lora| 4 * lora.trained_parameters);
        self.checkpoint_bytes + 2 * trained.unwrap_or(self.memory_bytes.by_part.weights) as u64
    }
}

/// Bytes of the files in `folder`; those that cannot be read count as empty.
fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    let sizes = entries.filter_map(Result::ok).map(|entry| {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder {
            folder_bytes(&entry.path())
        } else {
            entry.metadata().map_or(0, |file| file.len())
        }
    });
    sizes.sum()
}

/// The most bytes that a run of `config` has on disk at a time. A new checkpoint or model is complete before an
/// old one is removed.
pub(super) fn peak_bytes(config: &RunConfig, checkpoint: u64, weights: u64) -> u64 {
    let retained = retained_checkpoints(config);
    let saved = saved_checkpoints(config);
    let replaced = if saved > retained { checkpoint } else { 0 };
    let validations = match config.validation.every {
        0 => 1,
        every => config.train.steps.div_ceil(every),
    };
    let temporary = if saved > 1 || validations > 1 {
        weights
    } else {
        0
    };
    retained * checkpoint + 2 * weights + replaced.max(temporary)
}

/// The number of checkpoints that a run saves: one at each multiple of `every`, and one at the last step.
fn saved_checkpoints(config: &RunConfig) -> u64 {
    match config.checkpoint.every {
        0 => 1,
        every => config.train.steps.div_ceil(every),
    }
}

/// The number of checkpoints on disk at the end of the run, as [`prune`](crate::checkpoint::prune) leaves
/// them: the newest `keep_last`, and of the older ones those at multiples of `keep_every`.
pub(super) fn retained_checkpoints(config: &RunConfig) -> u64 {
    let checkpoint = config.checkpoint;
    let saved = saved_checkpoints(config);
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

    #[test]
    fn a_disk_that_cannot_hold_one_save_is_certainly_too_small() {
        let config = checkpoints(1000, 100, 2, 0);
        assert_eq!(peak_bytes(&config, 30, 10), 2 * 30 + 2 * 10 + 30);
        assert_eq!(
            peak_bytes(&checkpoints(100, 100, 2, 0), 30, 10),
            30 + 2 * 10
        );
        let config = RunConfig {
            data: nextword_data::DataConfig {
                builtin: Some(nextword_data::Builtin::Statquest),
                ..Default::default()
            },
            ..RunConfig::default()
        };
        let config = RunConfig {
            model: nextword_model::presets::statquest(0),
            checkpoint: checkpoints(1000, 100, 2, 0).checkpoint,
            ..config
        };
        let plan = Plan::estimate(&crate::prepare_run(config).unwrap());
        let weights = plan.memory_bytes.by_part.weights as u64;
        assert_eq!(plan.checkpoint_bytes, 3 * weights);
        let (once, all) = (5 * weights, (3 * 3 + 2) * weights);
        let find = |used, free| DiskShortage::find(&plan, used, free);
        assert_eq!(find(0, all), None);
        assert_eq!(
            find(0, all - 1),
            Some(DiskShortage::All {
                needed: all,
                free: all - 1
            })
        );
        assert_eq!(
            find(0, once),
            Some(DiskShortage::All {
                needed: all,
                free: once
            })
        );
        let free = once - 1;
        assert_eq!(
            find(0, free),
            Some(DiskShortage::First { needed: once, free })
        );
        assert_eq!(find(all, 0), None);
        let message = find(0, free).unwrap().to_string();
        for figure in [ByteSize(once).to_string(), ByteSize(free).to_string()] {
            assert!(message.contains(&figure), "{message}");
        }
    }

    #[test]
    fn files_of_a_resumed_run_count_as_used() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("checkpoints/step-1")).unwrap();
        fs::write(folder.path().join("a"), [0; 10]).unwrap();
        fs::write(folder.path().join("checkpoints/step-1/b"), [0; 5]).unwrap();
        assert_eq!(folder_bytes(folder.path()), 15);
        assert_eq!(folder_bytes(&folder.path().join("missing")), 0);
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
