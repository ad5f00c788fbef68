//! `nextword plot RUN...`.

use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use nextword_explain::history::SentenceHistory;
use nextword_plot::{AttentionFigure, AttentionStep, Curve, Figure};
use nextword_train::MetricsLine;
use serde_json::json;

use crate::output_file::{self, ForceArgs, Kind};
use crate::{console, exit, history, models, output};

/// `plot RUN...`.
#[derive(Debug, Args)]
pub(crate) struct PlotArgs {
    /// Run folders or metrics.jsonl files
    #[arg(required = true, value_name = "RUN", value_hint = ValueHint::AnyPath)]
    runs: Vec<PathBuf>,
    /// SVG file to write [default: loss.svg in the folder of a single run]
    #[arg(long, short, value_hint = ValueHint::FilePath)]
    out: Option<PathBuf>,
    /// Draw in the terminal; write an SVG file only with --out
    #[arg(long, short)]
    terminal: bool,
    /// Plot attention weights of the run's probe sentences over training instead of losses
    #[arg(long, conflicts_with_all = ["terminal", "log", "json"])]
    attention: bool,
    /// Use a logarithmic loss axis
    #[arg(long)]
    log: bool,
    #[command(flatten)]
    force: ForceArgs,
    /// Print the points as JSON instead of drawing
    #[arg(long, conflicts_with_all = ["out", "terminal", "log"])]
    json: bool,
}

/// Plots loss curves, or attention weights over training.
pub(crate) fn run(args: &PlotArgs) -> anyhow::Result<()> {
    if args.attention {
        return plot_attention(args);
    }
    let file = args.out.clone().or_else(|| default_file(args));
    if let Some(file) = file.as_ref().filter(|_| !args.json) {
        check_drawing(file, args)?;
    }
    let curves = args
        .runs
        .iter()
        .map(|path| read_curve(path))
        .collect::<anyhow::Result<Vec<_>>>()?;
    if args.json {
        return curves.iter().try_for_each(|curve| {
            let (train, validation) = (&curve.train, &curve.validation);
            output::print_json(&json!({"name": curve.name, "loss": train, "val_loss": validation}))
        });
    }
    let figure = Figure::new(curves, args.log)
        .map_err(|error| exit::usage(format!("{error}; hint: omit --log")))?;
    if args.terminal {
        let (columns, has_colors) = (console::columns(), console::has_colors());
        output::print(&figure.to_braille(columns, has_colors))?;
    }
    match file {
        Some(file) => output_file::write(&file, figure.to_svg().as_bytes()),
        None => Ok(()),
    }
}

/// Checks that a drawing can be written to `file`: its name ends in .svg, and it replaces only a drawing.
fn check_drawing(file: &Path, args: &PlotArgs) -> anyhow::Result<()> {
    let extension = file.extension().and_then(|extension| extension.to_str());
    let is_other = extension.is_some_and(|extension| !extension.eq_ignore_ascii_case("svg"));
    if is_other {
        return Err(exit::usage(format!(
            "`{}`: plot writes SVG files; hint: use a name that ends in .svg",
            file.display()
        )));
    }
    output_file::check(file, Kind::Drawing, args.force)
}

/// Plots the attention weights of each probe sentence over training.
fn plot_attention(args: &PlotArgs) -> anyhow::Result<()> {
    let [run] = args.runs.as_slice() else {
        return Err(exit::usage(
            "--attention plots a single run; hint: pass one run folder",
        ));
    };
    let history = history::load(run)?;
    let files: Vec<PathBuf> = (0..history.sentences.len())
        .map(|number| attention_file(args, run, number))
        .collect();
    files
        .iter()
        .try_for_each(|file| check_drawing(file, args))?;
    for (file, sentence) in files.iter().zip(&history.sentences) {
        output_file::write(file, attention_figure(sentence).to_svg().as_bytes())?;
    }
    for note in &history.notes {
        output::eprint_line(&format!("note: {note}"));
    }
    Ok(())
}

/// Returns the file for the sentence `number`: with --out, the others have its name and their number.
fn attention_file(args: &PlotArgs, run: &Path, number: usize) -> PathBuf {
    let first = args
        .out
        .clone()
        .unwrap_or_else(|| run.join("attention.svg"));
    if number == 0 {
        return first;
    }
    let stem = first.file_stem().unwrap_or_default().to_string_lossy();
    let extension = first.extension().unwrap_or_default().to_string_lossy();
    let dot = if extension.is_empty() { "" } else { "." };
    first.with_file_name(format!("{stem}-{}{dot}{extension}", number + 1))
}

/// Returns the weights of a sentence at each step.
fn attention_figure(sentence: &SentenceHistory) -> AttentionFigure<'_> {
    let steps = sentence.steps.iter();
    let tokens = sentence.steps.first();
    AttentionFigure {
        prompt: &sentence.prompt,
        tokens: tokens.map_or(&[], |step| &step.snapshot.tokens),
        steps: steps
            .map(|step| AttentionStep {
                step: step.step,
                weights: &step.snapshot.patterns,
            })
            .collect(),
    }
}

/// Returns the default path of the SVG file.
fn default_file(args: &PlotArgs) -> Option<PathBuf> {
    match args.runs.as_slice() {
        _ if args.terminal => None,
        [run] if run.is_dir() => Some(run.join("loss.svg")),
        _ => Some(PathBuf::from("loss.svg")),
    }
}

/// Reads the curves of a run folder or a metrics file.
fn read_curve(path: &Path) -> anyhow::Result<Curve> {
    let shown = path.display();
    let file = if path.is_dir() {
        path.join("metrics.jsonl")
    } else {
        path.to_path_buf()
    };
    let text = std::fs::read_to_string(&file).map_err(|e| {
        let problem = match e.kind() {
            std::io::ErrorKind::NotFound if models::is_run(path) => {
                "has no metrics.jsonl yet".to_string()
            }
            std::io::ErrorKind::NotFound if path.is_dir() => {
                "is not a run folder (metrics.jsonl is missing)".to_string()
            }
            std::io::ErrorKind::NotFound => "does not exist".to_string(),
            _ => format!("cannot be read: {e}"),
        };
        let hint = if models::is_run(path) {
            "wait until the run has logged some steps"
        } else {
            "pass a run folder, e.g. runs/NAME"
        };
        exit::bad_file(format!("`{shown}` {problem}; hint: {hint}"))
    })?;
    let mut curve = Curve::new(run_name(path));
    let last = text.lines().count();
    for (number, line) in text.lines().enumerate() {
        match serde_json::from_str::<MetricsLine>(line) {
            Ok(line) => curve.push(line.step, line.loss, line.val_loss),
            // The run may still be writing its last line.
            Err(_) if number + 1 == last && !text.ends_with('\n') => {}
            Err(e) => {
                let (file, number) = (file.display(), number + 1);
                return Err(exit::bad_file(format!(
                    "{file}:{number}: invalid metrics line: {e}"
                )));
            }
        }
    }
    if curve.is_empty() {
        return Err(exit::bad_file(format!(
            "`{shown}` has no losses to plot yet; hint: wait until the run has logged some steps"
        )));
    }
    Ok(curve)
}

/// Returns the name of a run in the legend: that of its folder.
fn run_name(path: &Path) -> String {
    let folder = if path.is_dir() {
        Some(path)
    } else {
        path.parent()
    };
    let folder = folder
        .filter(|folder| folder.file_name().is_some())
        .unwrap_or(path);
    folder.file_name().map_or_else(
        || folder.display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_name_is_the_folder_name() {
        assert_eq!(run_name(Path::new("runs/a/metrics.jsonl")), "a");
        assert_eq!(run_name(Path::new("metrics.jsonl")), "metrics.jsonl");
        assert_eq!(run_name(Path::new(env!("CARGO_MANIFEST_DIR"))), "nextword");
    }
}
