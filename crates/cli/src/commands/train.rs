//! `nextword train CONFIG`.

use std::path::Path;
use std::process::ExitCode;

use nextword_train::{
    Ingredients, Outcome, RunConfig, RunFolder, StopReason, TrainError, Trainer, prepare_run,
    read_config,
};

use crate::args::TrainArgs;
use crate::exit::{self, Code};
use crate::planning::Plan;
use crate::sampling::Sampling;
use crate::{commands, console, output, resources, signals};

/// Trains a new run.
pub(crate) fn run(args: &TrainArgs) -> anyhow::Result<ExitCode> {
    let config = config(&args.config, &args.set, args.device.as_deref())?;
    let path = config.folder();
    refuse_existing(&path)?;
    let ingredients = prepare_run(config)?;
    let plan = Plan::of(&ingredients);
    if args.dry_run {
        let plan = plan.with_baselines(&ingredients)?;
        commands::plan::show(&plan, args.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    warn_of_memory(&ingredients, &plan)?;

    let stop = signals::stop_flag()?;
    let mut hooks = hooks(&ingredients);
    let folder = RunFolder::create(&path, &ingredients.config)?;
    let config_path = folder.config_path();
    // A run that could not begin has nothing to resume: its folder is free again.
    let trainer = Trainer::begin(ingredients, folder)
        .inspect_err(|_| drop(std::fs::remove_file(&config_path)))?;
    let mut reporter = console::reporter(args.quiet, args.json);
    Ok(finish(&trainer.run(
        reporter.as_mut(),
        &mut hooks,
        &stop,
    )?))
}

/// The configuration in `path` with what the command line sets anew.
pub(crate) fn config(
    path: &Path,
    set: &[String],
    device: Option<&str>,
) -> anyhow::Result<RunConfig> {
    let read = read_config(path, set).map_err(|error| match error {
        // A command line that names no configuration is at fault, not a data file.
        TrainError::Io { .. } => exit::usage(format!(
            "{error}; hint: give a configuration's TOML file, as in configs/quickstart.toml"
        )),
        other => other.into(),
    });
    let mut config = read?;
    if let Some(device) = device {
        config.device = device.to_string();
    }
    Ok(config)
}

/// How sampling puts prompts in this run.
pub(crate) fn hooks(ingredients: &Ingredients) -> Sampling {
    Sampling {
        prompt_template: ingredients.config.samples.prompt_template.clone(),
    }
}

/// Refuses what cannot fit into memory and warns of what may not.
pub(crate) fn warn_of_memory(ingredients: &Ingredients, plan: &Plan) -> anyhow::Result<()> {
    if let Some(warning) = resources::check(&ingredients.config.device, &plan.estimate)? {
        output::note(&format!("warning: {warning}"));
    }
    Ok(())
}

/// The exit code of a run that ended; tells how to go on with one that was interrupted.
pub(crate) fn finish(outcome: &Outcome) -> ExitCode {
    if outcome.reason != StopReason::Interrupted {
        return ExitCode::SUCCESS;
    }
    output::note(&console::resume_hint(&outcome.folder));
    Code::Interrupted.into()
}

/// The same refusal as the folder's own, but before the data is read, which may take long.
fn refuse_existing(path: &Path) -> anyhow::Result<()> {
    if !path.join("run.toml").exists() {
        return Ok(());
    }
    let shown = path.display();
    Err(exit::usage(format!(
        "{shown}: there is a run in this folder already; hint: continue it with `nextword resume \
         {shown}`, or give the new run another --set name=NAME"
    )))
}
