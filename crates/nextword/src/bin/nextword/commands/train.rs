//! `nextword train CONFIG`.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use nextword_parallel::Group;
use nextword_train::plan::Plan;
use nextword_train::{RunConfig, RunFolder, Trainer, is_unstarted, prepare_run};

use crate::args::ConfigArgs;
use crate::commands::plan::print_plan;
use crate::commands::watch;
use crate::ranks::RankArgs;
use crate::session::Session;
use crate::{exit, ranks, run_config};

/// `train CONFIG`.
#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    run: ConfigArgs,
    #[command(flatten)]
    ranks: RankArgs,
    /// Device to run on: auto, flex, ndarray, wgpu, wgpu:N, wgpu:software, vulkan, metal, cuda, rocm
    /// [default: the configuration's]
    #[arg(long, short)]
    device: Option<String>,
    /// Check the configuration and the data, and print the estimated cost of the run, without writing anything
    #[arg(long)]
    dry_run: bool,
    /// Show the curves of the run in a browser, on this machine only
    #[arg(long, conflicts_with = "dry_run")]
    watch: bool,
    /// Print only warnings and errors
    #[arg(long, short)]
    quiet: bool,
    /// Print events to standard output as JSON, one object per line
    #[arg(long)]
    json: bool,
}

/// Starts a new run.
pub(crate) fn run(args: &TrainArgs) -> anyhow::Result<ExitCode> {
    let load = || args.run.load(args.device.as_deref());
    let group = if args.dry_run {
        ranks::refuse()?;
        Group::alone()
    } else {
        if let Some(code) = args.ranks.launch(load)? {
            return Ok(code);
        }
        ranks::join()?
    };
    let mut config = load()?;
    let device = config.device.clone();
    ranks::choose_device(&mut config);
    let path = config.folder();
    if !args.dry_run && group.is_first() {
        refuse_existing(&path)?;
    }
    let mut setup = prepare_run(config)?;
    setup.group = group;
    if !setup.group.is_first() {
        return ranks::work(setup);
    }
    let plan = Plan::estimate(&setup);
    if args.dry_run {
        run_config::print_warnings(&setup);
        print_plan(&plan.with_baselines(&setup)?, args.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    run_config::check_resources(&plan, &path)?;

    let session = Session::new(&setup, args.quiet, args.json)?;
    // Stored without the number of this rank's GPU, so that each rank of a resumed run chooses its own.
    let stored = RunConfig {
        device,
        ..setup.config.clone()
    };
    let folder = RunFolder::create(&path, &stored)?;
    let config_path = folder.config_path();
    // A run that failed to start has nothing to resume; free its folder for another run.
    let trainer =
        Trainer::begin(setup, folder).inspect_err(|_| drop(std::fs::remove_file(&config_path)))?;
    if args.watch {
        watch::spawn(path)?;
    }
    session.run(trainer)
}

/// Refuses a folder with a run, or one that another process uses, as [`RunFolder::create`] does, but before the data is
/// read, which may take long.
fn refuse_existing(path: &Path) -> anyhow::Result<()> {
    RunFolder::check_unused(path)?;
    if !path.join("run.toml").exists() || is_unstarted(path) {
        return Ok(());
    }
    let shown = path.display();
    Err(exit::usage(format!(
        "{shown}: this folder already contains a run; hint: resume it with `nextword resume {shown}`, \
         or name the new run with --set name=NAME"
    )))
}
