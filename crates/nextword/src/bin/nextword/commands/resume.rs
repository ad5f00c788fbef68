//! `nextword resume RUN`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueHint};
use nextword_data::DataError;
use nextword_train::plan::Plan;
use nextword_train::{
    RunConfig, RunFolder, TrainError, Trainer, parse_stored_config, prepare_stored_run, to_toml,
};

use crate::session::Session;
use crate::{exit, models, run_config};

/// `resume RUN`.
#[derive(Debug, Args)]
#[allow(clippy::doc_markdown)] // Doc comments are help texts, shown verbatim.
pub(crate) struct ResumeArgs {
    /// Run folder, e.g. runs/NAME
    #[arg(value_hint = ValueHint::DirPath)]
    run: PathBuf,
    /// Device to run on [default: the run's]
    #[arg(long, short)]
    device: Option<String>,
    /// Override one key: train.steps, train.log_every, any key of checkpoint, validation, samples and
    /// probes, or data.path of data that was moved (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print only warnings and errors
    #[arg(long, short)]
    quiet: bool,
    /// Print events to standard output as JSON, one object per line
    #[arg(long)]
    json: bool,
}

/// Keys and sections that may change when a run is resumed.
const CHANGEABLE: [&str; 10] = [
    "train.steps",
    "train.log_every",
    "checkpoint.",
    "validation.",
    "samples.",
    "probes.",
    // The place of the data, not the data itself: its hash is checked.
    "data.path",
    "data.paths",
    "data.prepared",
    "data.tokenizer.file",
];

/// Resumes a run.
pub(crate) fn run(args: &ResumeArgs) -> anyhow::Result<ExitCode> {
    if !models::is_run(&args.run) {
        if !args.run.exists() {
            return Err(models::missing(&args.run, "a run folder, e.g. runs/NAME"));
        }
        return Err(exit::bad_file(format!(
            "`{}` is not a run folder (run.toml is missing); hint: pass a run folder, e.g. runs/NAME",
            args.run.display()
        )));
    }
    check_keys(&args.set)?;
    let (folder, stored) = RunFolder::open(&args.run)?;
    let changed = apply_overrides(&stored, &folder, &args.set)?;
    let mut config = changed.clone();
    if let Some(device) = &args.device {
        config.device.clone_from(device);
    }
    let setup = prepare_stored_run(config).map_err(moved_data)?;
    run_config::check_resources(&Plan::estimate(&setup), folder.path())?;
    let session = Session::new(&setup, args.quiet, args.json)?;
    let trainer = Trainer::resume(setup, folder)?;
    if changed != stored {
        // Stored so that the next resume uses the same overrides.
        trainer.store_config(&changed)?;
    }
    session.run(trainer)
}

/// Adds to the error of missing data how to name its new place.
fn moved_data(error: TrainError) -> anyhow::Error {
    match error {
        TrainError::Data(DataError::Missing { path }) => exit::bad_file(format!(
            "`{}`, which this run reads, does not exist; hint: if it was moved, add --set data.path=FILE (or \
             data.prepared=FOLDER)",
            path.display()
        )),
        error => error.into(),
    }
}

/// Returns the stored configuration with the `--set` overrides.
fn apply_overrides(
    stored: &RunConfig,
    folder: &RunFolder,
    set: &[String],
) -> anyhow::Result<RunConfig> {
    if set.is_empty() {
        return Ok(stored.clone());
    }
    Ok(parse_stored_config(
        &to_toml(stored)?,
        &folder.config_path(),
        set,
    )?)
}

fn check_keys(set: &[String]) -> anyhow::Result<()> {
    for assignment in set {
        let key = assignment.split('=').next().unwrap_or_default().trim();
        let may_change =
            |known: &str| key == known || known.ends_with('.') && key.starts_with(known);
        // A missing `=` is reported by the parser, with a better message.
        if assignment.contains('=') && !CHANGEABLE.iter().any(|known| may_change(known)) {
            return Err(exit::usage(format!(
                "--set {assignment}: `{key}` cannot change when a run is resumed; hint: only \
                 train.steps, train.log_every, checkpoint.*, validation.*, samples.*, probes.* and the path of \
                 the data can; to start a new run from this model, set `start_from`"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_resumable_keys_may_change() {
        let check = |set: &str| check_keys(&[set.to_string()]);
        for allowed in [
            "train.steps=9",
            "checkpoint.every=5",
            "samples.prompts=[\"a\"]",
            "data.path=moved.txt",
        ] {
            assert!(check(allowed).is_ok(), "{allowed}");
        }
        for refused in [
            "train.batch_size=9",
            "seed=3",
            "model.n_layers=9",
            "train.stepsize=1",
            "data.seed=2",
            "data.pathology=x",
        ] {
            let message = check(refused).map_err(|e| e.to_string());
            assert!(
                message.is_err_and(|m| m.contains("cannot change")),
                "{refused}"
            );
        }
    }
}
