//! `nextword sweep CONFIG --vary KEY=VALUE,VALUE`.

mod launcher;
mod progress;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueHint};
use nextword_experiments::{
    Budget, ExperimentError, Metric, Sweep, SweepOptions, SweepReport, Variation,
};
use nextword_plot::{Curve, Figure};

use crate::args::ConfigArgs;
use crate::exit::Code;
use crate::output_file::{self, ForceArgs, Kind};
use crate::{console, exit, output, signals};

pub(crate) use launcher::run_one;

/// `sweep CONFIG`.
#[derive(Debug, Args)]
#[allow(clippy::doc_markdown)] // Doc comments are help texts, shown verbatim.
pub(crate) struct SweepArgs {
    #[command(flatten)]
    run: ConfigArgs,
    /// Values of one configuration key, e.g. --vary model.n_layers=2,4,6 (repeatable: every combination is trained)
    #[arg(long, value_name = "KEY=VALUE,...")]
    vary: Vec<String>,
    /// Number of seeds for each combination; the same seeds, and so the same order of the data, for all
    #[arg(long, value_name = "N", default_value_t = 3)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// Number of updates of each run [default: the configuration's]
    #[arg(long, value_name = "N", conflicts_with_all = ["tokens", "minutes"])]
    steps: Option<u64>,
    /// Number of tokens that each run trains on
    #[arg(long, value_name = "N", conflicts_with = "minutes")]
    tokens: Option<u64>,
    /// Minutes that each run trains: its number of updates follows from the measured speed
    #[arg(long, value_name = "N")]
    minutes: Option<f64>,
    /// Remove models and checkpoints of all runs except the K with the lowest losses, once all have ended
    #[arg(long, value_name = "K")]
    keep_best: Option<usize>,
    /// Number of runs at a time [default: as many as there are cores, if memory allows; 1 measures speeds]
    #[arg(long, value_name = "N")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    parallel: Option<usize>,
    /// Folder of the sweep, with a run folder for each run [default: the folder of the configuration's run]
    #[arg(long, short, value_hint = ValueHint::DirPath)]
    out: Option<PathBuf>,
    /// Plot the losses of all arms in the terminal and into sweep.svg in the sweep's folder
    #[arg(long, conflicts_with = "json")]
    plot: bool,
    /// Print the result as JSON, which is also in results.json in the sweep's folder
    #[arg(long)]
    json: bool,
    /// Print only warnings and errors besides the result
    #[arg(long, short)]
    quiet: bool,
}

impl SweepArgs {
    fn options(&self) -> anyhow::Result<SweepOptions> {
        let path = self.run.path();
        // Errors of the configuration alone are reported as those of `train`.
        self.run.load(None)?;
        let text = std::fs::read_to_string(path)
            .map_err(|e| exit::usage(format!("`{}` cannot be read: {e}", path.display())))?;
        let vary: Result<Vec<Variation>, ExperimentError> =
            self.vary.iter().map(|text| text.parse()).collect();
        let budget = match (self.steps, self.tokens, self.minutes) {
            (Some(steps), ..) => Some(Budget::Steps(steps)),
            (_, Some(tokens), _) => Some(Budget::Tokens(tokens)),
            (.., minutes) => minutes.map(Budget::Minutes),
        };
        Ok(SweepOptions {
            config_path: path.to_path_buf(),
            config_text: text,
            set: self.run.overrides().to_vec(),
            vary: vary?,
            seeds: self.seeds,
            budget,
            folder: self.out.clone(),
            keep_best: self.keep_best,
            parallel: self.parallel,
        })
    }
}

/// Trains what is not trained yet, and prints the comparison.
pub(crate) fn run(args: &SweepArgs) -> anyhow::Result<ExitCode> {
    let options = args.options()?;
    let stop = signals::sweep_stop_flag()?;
    let sweep = Sweep::prepare(options)?;
    let drawing = sweep.folder().join("sweep.svg");
    if args.plot {
        output_file::check(&drawing, Kind::Drawing, ForceArgs { force: false })?;
    }
    let runs = sweep.runs();
    let (parallel, threads) = sweep.parallelism();
    if !args.quiet {
        output::eprint_line(&progress::overview(
            &runs,
            sweep.folder(),
            parallel,
            threads,
        ));
    }
    let observer = progress::Progress::new(&runs, args.quiet);
    let report = sweep.run(&launcher::Processes, &observer, &stop)?;
    output::eprint_progress("");
    if args.json {
        output::print_json(&report)?;
    } else {
        for line in table::lines(&report) {
            output::print_line(&line)?;
        }
    }
    if args.plot {
        plot(&report, &drawing)?;
    }
    if report.is_complete() {
        return Ok(ExitCode::SUCCESS);
    }
    output::eprint_line(&format!(
        "not all runs have ended; continue with the same command: {} sweep …",
        console::program()
    ));
    let code = if stop.is_raised() {
        Code::Interrupted
    } else {
        Code::Failure
    };
    Ok(code.into())
}

/// Draws the mean loss of each arm by step.
fn plot(report: &SweepReport, file: &Path) -> anyhow::Result<()> {
    let mut curves = Vec::new();
    for arm in &report.arms {
        let mut curve = Curve::new(arm.name.clone());
        for (step, loss) in arm.mean_curve(report.metric)? {
            match report.metric {
                Metric::ValidationLoss => curve.push(step, None, Some(loss)),
                Metric::TrainingLoss => curve.push(step, Some(loss), None),
            }
        }
        curves.push(curve);
    }
    curves.retain(|curve| !curve.is_empty());
    let figure = Figure::new(curves, false)?;
    output::print(&figure.to_braille(console::columns(), console::has_colors()))?;
    output_file::write(file, figure.to_svg().as_bytes())
}
