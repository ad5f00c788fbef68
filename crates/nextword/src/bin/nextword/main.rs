//! `nextword`: train, run and explain decoder-only Transformers from the terminal.
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
mod logging;
mod models;
mod output;
mod output_file;
mod run_config;
mod session;
mod signals;

use std::process::ExitCode;

use clap::CommandFactory;

use crate::cli::{Cli, Command};

/// Training allocates and frees the same large arrays in every step. The system allocator returns
/// their pages to the kernel each time; mimalloc keeps them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    quiet_graphics_drivers();
    let cli = command_line::parse();
    logging::init(cli.verbose);
    match exit::catch_panics(|| run(cli.command)) {
        Ok(code) => code,
        Err(error) if exit::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::eprint_line(&format!("error: {}", exit::message(&error)));
            exit::code(&error).into()
        }
    }
}

/// Sets a variable without which graphics drivers print an error for each device that they look at.
#[allow(unsafe_code)]
fn quiet_graphics_drivers() {
    const VARIABLE: &str = "XDG_RUNTIME_DIR";
    if cfg!(unix) && std::env::var_os(VARIABLE).is_none() {
        // SAFETY: this is the first statement of the program, so that no other thread reads the environment.
        unsafe { std::env::set_var(VARIABLE, std::env::temp_dir()) };
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Train(args) => return commands::train::run(&args),
        Command::Resume(args) => return commands::resume::run(&args),
        Command::Generate(args) => commands::generate::run(&args)?,
        Command::Explain(args) => commands::explain::run(&args)?,
        Command::Chat(args) => commands::chat::run(&args)?,
        Command::Serve(args) => commands::serve::run(&args)?,
        Command::Prepare(args) => commands::prepare::run(&args)?,
        Command::Eval(args) => commands::eval::run(&args)?,
        Command::Quantize(args) => commands::quantize::run(&args)?,
        Command::Import(args) => commands::import::run(&args)?,
        Command::Export(args) => commands::export::run(&args)?,
        Command::Inspect(args) => commands::inspect::run(&args)?,
        Command::Plan(args) => commands::plan::run(&args)?,
        Command::Plot(args) => commands::plot::run(&args)?,
        Command::Devices(args) => commands::devices::run(&args)?,
        Command::Bench(args) => commands::bench::run(&args)?,
        Command::Completions(args) => commands::completions::run(&args, Cli::command())?,
    }
    Ok(ExitCode::SUCCESS)
}
