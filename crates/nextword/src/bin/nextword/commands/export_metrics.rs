//! `nextword export-metrics RUN --format csv|tensorboard`.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use clap::{Args, ValueEnum, ValueHint};
use nextword_experiments::export::{to_csv, to_tensorboard};
use nextword_experiments::read_metrics;

use crate::output_file::{self, ForceArgs, Kind};
use crate::{exit, models, output};

/// `export-metrics RUN`.
#[derive(Debug, Args)]
pub(crate) struct ExportMetricsArgs {
    /// Run folder
    #[arg(value_hint = ValueHint::DirPath)]
    run: PathBuf,
    /// Format of the output
    #[arg(long, value_enum)]
    format: Format,
    /// File to write [default: standard output for CSV, and for TensorBoard a file in RUN/tensorboard; its name must
    /// contain "tfevents"]
    #[arg(long, short, value_hint = ValueHint::FilePath)]
    out: Option<PathBuf>,
    #[command(flatten)]
    force: ForceArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Comma-separated values, one row per logged step or validation
    Csv,
    /// An event file of TensorBoard
    Tensorboard,
}

/// Writes the metrics of a run.
pub(crate) fn run(args: &ExportMetricsArgs) -> anyhow::Result<()> {
    if !models::is_run(&args.run) {
        return Err(exit::bad_file(format!(
            "`{}` is not a run folder (run.toml is missing); hint: pass a run folder, e.g. runs/NAME",
            args.run.display()
        )));
    }
    let metrics = args.run.join("metrics.jsonl");
    let lines = read_metrics(&metrics)?;
    if args.format == Format::Csv {
        let text = to_csv(&lines);
        let Some(file) = &args.out else {
            return output::print(&text);
        };
        output_file::check(file, Kind::MetricsTable, args.force)?;
        return output_file::write(file, text.as_bytes());
    }
    let elapsed = lines.last().map_or(0.0, |line| line.elapsed);
    let start = (modified(&metrics)? - elapsed).max(0.0);
    let file = match &args.out {
        Some(file) => named_for_tensorboard(file)?,
        None => {
            let folder = args.run.join("tensorboard");
            std::fs::create_dir_all(&folder)?;
            folder.join("events.out.tfevents.nextword")
        }
    };
    output_file::check(&file, Kind::MetricsEvents, args.force)?;
    output_file::write(&file, &to_tensorboard(&lines, start))
}

/// The time of the last change of a file, in seconds since 1970.
fn modified(file: &Path) -> anyhow::Result<f64> {
    let time = std::fs::metadata(file)?.modified()?;
    Ok(time.duration_since(UNIX_EPOCH)?.as_secs_f64())
}

fn named_for_tensorboard(file: &Path) -> anyhow::Result<PathBuf> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    if name.contains("tfevents") {
        return Ok(file.to_path_buf());
    }
    Err(exit::usage(format!(
        "`{}`: TensorBoard reads only files whose names contain \"tfevents\"; hint: use --out \
         FOLDER/events.out.tfevents.run",
        file.display()
    )))
}
