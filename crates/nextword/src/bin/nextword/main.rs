//! `nextword`: train, run and explain Transformers from the terminal.
//!
//! Results go to standard output, everything else to standard error. For exit codes, see [`exit`].

// Burn's nested tensor types overflow the default limit in release builds with wgpu.
#![recursion_limit = "256"]

mod args;
mod chat_input;
mod cli;
mod command_line;
mod commands;
mod console;
mod exit;
mod format;
mod history;
mod hooks;
mod hub_models;
mod logging;
mod models;
mod output;
mod output_file;
mod prompt;
mod ranks;
mod run_config;
mod session;
mod signals;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::CommandFactory;
use nextword_parallel::Launched;

use crate::cli::{Cli, Command};

/// Training allocates and frees the same large arrays in every step. The system allocator returns
/// their pages to the kernel each time; mimalloc keeps them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = command_line::parse();
    if may_open_gpu(&cli.command, std::env::args_os().skip(1)) {
        quiet_graphics_drivers();
    }
    if let Some(launched) = Launched::from_environment() {
        share_cores(launched);
    }
    logging::init(cli.verbose);
    match exit::catch_panics(|| run(cli.command)) {
        Ok(code) => code,
        Err(error) if exit::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => ranks::fail(&error),
    }
}

/// Whether a command may look for graphics devices: its arguments name one, or a configuration can.
fn may_open_gpu(command: &Command, mut arguments: impl Iterator<Item = OsString>) -> bool {
    let reads_config = matches!(
        command,
        Command::Train(_)
            | Command::Resume(_)
            | Command::Sweep(_)
            | Command::SweepRun
            | Command::Doctor(_)
            | Command::Plan(_)
            | Command::Devices(_)
    );
    let names_gpu = |argument: OsString| {
        let argument = argument.to_string_lossy();
        ["auto", "wgpu", "vulkan"]
            .iter()
            .any(|name| argument.contains(name))
    };
    reads_config || arguments.any(names_gpu)
}

/// Sets a variable without which graphics drivers print an error for each device that they look at: the folder
/// of the desktop's socket. There can be no socket in this one, so that drivers find none, and nobody else can
/// create one for them to find.
#[allow(unsafe_code)]
fn quiet_graphics_drivers() {
    const VARIABLE: &str = "XDG_RUNTIME_DIR";
    if cfg!(unix) && std::env::var_os(VARIABLE).is_none() {
        // SAFETY: the program has no other thread yet that could read the environment: until now, it has only
        // parsed its arguments.
        unsafe { std::env::set_var(VARIABLE, "/dev/null") };
    }
}

/// Limits the threads of this rank to its share of the machine's cores, unless the user has set their number.
#[allow(unsafe_code)]
fn share_cores(launched: Launched) {
    const VARIABLE: &str = "RAYON_NUM_THREADS";
    if std::env::var_os(VARIABLE).is_none() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // SAFETY: as above, there is no other thread yet.
        unsafe { std::env::set_var(VARIABLE, launched.threads(cores).to_string()) };
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Train(args) => commands::train::run(&args),
        Command::Resume(args) => commands::resume::run(&args),
        Command::Eval(args) => commands::eval::run(&args),
        command => {
            ranks::refuse()?;
            run_alone(command)
        }
    }
}

/// Runs a command that one process runs.
fn run_alone(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Train(_) | Command::Resume(_) | Command::Eval(_) => {}
        Command::Sweep(args) => return commands::sweep::run(&args),
        Command::SweepRun => return commands::sweep::run_one(),
        Command::Watch(args) => commands::watch::run(&args)?,
        Command::Compare(args) => commands::compare::run(&args)?,
        Command::Doctor(args) => return commands::doctor::run(&args),
        Command::ExportMetrics(args) => commands::export_metrics::run(&args)?,
        Command::Generate(args) => commands::generate::run(&args)?,
        Command::Fill(args) => commands::fill::run(&args)?,
        Command::Embed(args) => commands::embed::run(&args)?,
        Command::Explain(args) => commands::explain::run(&args)?,
        Command::Chat(args) => commands::chat::run(&args)?,
        Command::Serve(args) => commands::serve::run(&args)?,
        Command::Preview(args) => commands::preview::run(&args)?,
        Command::Prepare(args) => commands::prepare::run(&args)?,
        Command::Quantize(args) => commands::quantize::run(&args)?,
        Command::Import(args) => commands::import::run(&args)?,
        Command::Export(args) => commands::export::run(&args)?,
        Command::Inspect(args) => commands::inspect::run(&args)?,
        Command::Merge(args) => commands::merge::run(&args)?,
        Command::Plan(args) => commands::plan::run(&args)?,
        Command::Plot(args) => commands::plot::run(&args)?,
        Command::Devices(args) => commands::devices::run(&args)?,
        Command::Bench(args) => commands::bench::run(&args)?,
        Command::Completions(args) => commands::completions::run(&args, Cli::command())?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn only_commands_that_may_open_a_gpu_change_the_environment() {
        for (line, expected) in [
            ("generate r x", false),
            ("generate r x --device ndarray", false),
            ("inspect r", false),
            ("generate r x --device wgpu:1", true),
            ("generate r x -dvulkan", true),
            ("serve r --device=auto", true),
            ("chat r -d wgpu:software", true),
            ("train c.toml", true),
            ("plan c.toml", true),
            ("resume r", true),
            ("devices", true),
        ] {
            let line: Vec<&str> = std::iter::once("nextword").chain(line.split(' ')).collect();
            let cli = Cli::try_parse_from(&line).unwrap();
            let arguments = line.iter().map(OsString::from);
            assert_eq!(may_open_gpu(&cli.command, arguments), expected, "{line:?}");
        }
    }
}
