//! `nextword completions SHELL`.

use clap::Args;
use clap_complete::Shell;

use crate::output;

/// `completions SHELL`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Shell to generate the script for
    shell: Shell,
}

/// Prints the completion script of `command`.
pub(crate) fn run(args: &CompletionsArgs, mut command: clap::Command) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "nextword", &mut script);
    output::print_bytes(&script)
}
