//! `nextword resume RUN`.

use std::process::ExitCode;

use nextword_model::write_atomically;
use nextword_train::{RunConfig, RunFolder, Trainer, parse_config, prepare_run, to_toml};

use crate::args::ResumeArgs;
use crate::commands::train;
use crate::planning::Plan;
use crate::{console, exit, records, signals};

/// Keys, and sections, that may change without making it another run.
const CHANGEABLE: [&str; 6] = [
    "train.steps",
    "train.log_every",
    "checkpoint.",
    "validation.",
    "samples.",
    "probes.",
];

/// Continues a run.
pub(crate) fn run(args: &ResumeArgs) -> anyhow::Result<ExitCode> {
    if !records::is_run(&args.run) {
        let problem = if args.run.exists() {
            "is no run's folder: it holds no run.toml"
        } else {
            "does not exist"
        };
        return Err(exit::bad_file(format!(
            "`{}` {problem}; hint: give the folder of a run, as in runs/NAME",
            args.run.display()
        )));
    }
    check_keys(&args.set)?;
    let (folder, stored) = RunFolder::open(&args.run)?;
    let changed = change(&stored, &folder, &args.set)?;
    let mut config = changed.clone();
    if let Some(device) = &args.device {
        config.device.clone_from(device);
    }
    let ingredients = prepare_run(config)?;
    train::warn_of_memory(&ingredients, &Plan::of(&ingredients))?;
    let stop = signals::stop_flag()?;
    let mut hooks = train::hooks(&ingredients);
    let config_path = folder.config_path();
    let trainer = Trainer::resume(ingredients, folder)?;
    if changed != stored {
        // The next resume shall go as far as this one was told to.
        write_atomically(&config_path, to_toml(&changed)?.as_bytes())?;
    }

    let mut reporter = console::reporter(args.quiet, args.json);
    Ok(train::finish(&trainer.run(
        reporter.as_mut(),
        &mut hooks,
        &stop,
    )?))
}

fn change(stored: &RunConfig, folder: &RunFolder, set: &[String]) -> anyhow::Result<RunConfig> {
    if set.is_empty() {
        return Ok(stored.clone());
    }
    Ok(parse_config(&to_toml(stored)?, &folder.config_path(), set)?)
}

fn check_keys(set: &[String]) -> anyhow::Result<()> {
    for assignment in set {
        let key = assignment.split('=').next().unwrap_or_default().trim();
        let may_change =
            |known: &str| key == known || known.ends_with('.') && key.starts_with(known);
        // Without `=` it is no assignment at all, which its parser says better.
        if assignment.contains('=') && !CHANGEABLE.iter().any(|known| may_change(known)) {
            return Err(exit::usage(format!(
                "--set {assignment}: `{key}` cannot change in the middle of a run; hint: only \
                 train.steps, train.log_every, checkpoint.*, validation.*, samples.* and probes.* can; \
                 `start_from` begins a new run from a record"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_that_keep_the_run_the_same_may_change() {
        let check = |set: &str| check_keys(&[set.to_string()]);
        for fine in [
            "train.steps=9",
            "checkpoint.every=5",
            "samples.prompts=[\"a\"]",
        ] {
            assert!(check(fine).is_ok(), "{fine}");
        }
        for wrong in [
            "train.batch_size=9",
            "seed=3",
            "model.n_layers=9",
            "train.stepsize=1",
        ] {
            let message = check(wrong).map_err(|e| e.to_string());
            assert!(
                message.is_err_and(|m| m.contains("cannot change")),
                "{wrong}"
            );
        }
    }
}
