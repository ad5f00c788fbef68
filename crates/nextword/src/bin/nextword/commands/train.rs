//! `nextword train CONFIG`.

use std::path::Path;
use std::process::ExitCode;

use nextword_train::{
    Outcome, RunConfig, RunFolder, RunSetup, StopReason, TrainError, Trainer, prepare_run,
    read_config,
};

use crate::args::TrainArgs;
use crate::exit::{self, Code};
use crate::hooks::TrainingHooks;
use crate::planning::Plan;
use crate::{commands, console, output, resources, signals};

/// Starts a new run.
pub(crate) fn run(args: &TrainArgs) -> anyhow::Result<ExitCode> {
    let config = load_config(&args.config, &args.set, args.device.as_deref())?;
    let path = config.folder();
    refuse_existing(&path)?;
    let setup = prepare_run(config)?;
    let plan = Plan::estimate(&setup);
    if args.dry_run {
        print_config_warnings(&setup);
        let plan = plan.with_baselines(&setup)?;
        commands::plan::print_plan(&plan, args.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    check_memory(&setup, &plan)?;

    let stop = signals::stop_flag()?;
    let mut hooks = hooks(&setup);
    let folder = RunFolder::create(&path, &setup.config)?;
    let config_path = folder.config_path();
    // A run that failed to start has nothing to resume; free its folder for another run.
    let trainer =
        Trainer::begin(setup, folder).inspect_err(|_| drop(std::fs::remove_file(&config_path)))?;
    let mut reporter = console::reporter(args.quiet, args.json);
    Ok(exit_code(&trainer.run(
        reporter.as_mut(),
        &mut hooks,
        &stop,
    )?))
}

/// Prints the warnings about the configuration, which a run that starts reports itself.
pub(crate) fn print_config_warnings(setup: &RunSetup) {
    for warning in &setup.config.warnings {
        output::eprint_line(&format!("warning: {warning}"));
    }
}

/// Reads the configuration in `path` and applies the command line's overrides.
pub(crate) fn load_config(
    path: &Path,
    set: &[String],
    device: Option<&str>,
) -> anyhow::Result<RunConfig> {
    let config = read_config(path, set).map_err(|error| match error {
        // A missing configuration file is a usage error, not a data error.
        TrainError::Io { .. } => exit::usage(format!(
            "{error}; hint: pass a TOML configuration file, e.g. configs/quickstart.toml"
        )),
        other => other.into(),
    });
    let mut config = config?;
    if let Some(device) = device {
        config.device = device.to_string();
    }
    Ok(config)
}

/// Returns the training hooks, with the run's prompt template.
pub(crate) fn hooks(setup: &RunSetup) -> TrainingHooks {
    TrainingHooks {
        prompt_template: setup.config.samples.prompt_template.clone(),
    }
}

/// Refuses a run that cannot fit into memory and warns about one that may not.
pub(crate) fn check_memory(setup: &RunSetup, plan: &Plan) -> anyhow::Result<()> {
    if let Some(warning) = resources::check(&setup.config.device, &plan.estimate)? {
        output::eprint_line(&format!("warning: {warning}"));
    }
    Ok(())
}

/// Returns the exit code of a finished run. If it was interrupted, prints how to resume it.
pub(crate) fn exit_code(outcome: &Outcome) -> ExitCode {
    if outcome.reason != StopReason::Interrupted {
        return ExitCode::SUCCESS;
    }
    output::eprint_line(&console::resume_hint(&outcome.folder));
    Code::Interrupted.into()
}

/// Refuses a folder with a run, as [`RunFolder::create`] does, but before the data is read, which may
/// take long.
fn refuse_existing(path: &Path) -> anyhow::Result<()> {
    if !path.join("run.toml").exists() {
        return Ok(());
    }
    let shown = path.display();
    Err(exit::usage(format!(
        "{shown}: this folder already contains a run; hint: resume it with `nextword resume {shown}`, \
         or name the new run with --set name=NAME"
    )))
}
