//! Training on several ranks: `--ranks`, joining the others, and ending together.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueHint};
use nextword_parallel::{Division, Group, HAS_MPI, Launched, launch_command};
use nextword_train::{RunConfig, RunSetup, StopReason, Worker};

use crate::exit::Code;
use crate::{exit, output, signals};

/// How to get a build with MPI.
const BUILD: &str = "cargo build --release -p nextword --features mpi";

/// How long a rank with an error waits for a lower one, which may have the same error and tell it.
const PRECEDENCE: Duration = Duration::from_millis(1500);

/// The group of this process, once it has joined one.
static GROUP: OnceLock<Group> = OnceLock::new();

/// `--ranks` and `--hosts`.
#[derive(Debug, Args)]
pub(crate) struct RankArgs {
    /// Train on N processes that mpirun starts; the results are those of one process with the same train.lanes
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    ranks: Option<usize>,
    /// Start them on the machines that FILE lists, as mpirun's --hostfile
    #[arg(long, value_name = "FILE", requires = "ranks", value_hint = ValueHint::FilePath)]
    hosts: Option<PathBuf>,
}

impl RankArgs {
    /// Becomes `mpirun` with this command for each rank, if several are asked for. `config` reads the configuration,
    /// whose lanes they must be able to share.
    pub(crate) fn launch(
        &self,
        config: impl FnOnce() -> anyhow::Result<RunConfig>,
    ) -> anyhow::Result<()> {
        let Some(ranks) = self.ranks.filter(|ranks| *ranks > 1) else {
            return Ok(());
        };
        if Launched::from_environment().is_some() {
            return Err(exit::usage(
                "--ranks starts ranks itself; hint: leave it out of a command that mpirun or srun starts",
            ));
        }
        let train = config()?.train;
        Division::new(train.accumulation, train.lanes, ranks)
            .map_err(nextword_train::TrainError::from)?;
        if !HAS_MPI {
            return Err(exit::usage(format!(
                "--ranks {ranks}: this build trains on one rank; hint: {BUILD}, with MPI and libclang installed \
                 (Debian: openmpi-bin libopenmpi-dev libclang-dev)"
            )));
        }
        let program = std::env::current_exe()?;
        let arguments = without_rank_arguments(std::env::args_os().skip(1));
        let hosts = self.hosts.as_deref();
        let command = launch_command(ranks, hosts, is_open_mpi(), program.as_os_str(), arguments);
        Err(replace_process(command))
    }
}

/// Whether the `mpirun` of this machine is that of Open MPI.
fn is_open_mpi() -> bool {
    let version = Command::new("mpirun").arg("--version").output();
    version.is_ok_and(|found| String::from_utf8_lossy(&found.stdout).contains("Open MPI"))
}

/// The arguments without `--ranks` and `--hosts` and their values.
fn without_rank_arguments(
    arguments: impl Iterator<Item = std::ffi::OsString>,
) -> Vec<std::ffi::OsString> {
    let mut is_value = false;
    arguments
        .filter(|argument| {
            if std::mem::take(&mut is_value) {
                return false;
            }
            let text = argument.to_string_lossy();
            is_value = text == "--ranks" || text == "--hosts";
            !is_value && !text.starts_with("--ranks=") && !text.starts_with("--hosts=")
        })
        .collect()
}

/// Becomes `command`, so that signals and the exit code are its own. Returns only if that fails.
#[cfg(unix)]
fn replace_process(mut command: Command) -> anyhow::Error {
    use std::os::unix::process::CommandExt as _;
    let error = command.exec();
    exit::usage(format!(
        "cannot start mpirun: {error}; hint: install MPI (Debian: openmpi-bin)"
    ))
}

/// Other systems cannot replace a process.
#[cfg(not(unix))]
fn replace_process(_command: Command) -> anyhow::Error {
    exit::usage("--ranks needs Linux or macOS; hint: start the ranks with mpiexec")
}

/// Joins the ranks that `mpirun` or `srun` started with this one. This one alone, if they started none.
pub(crate) fn join() -> anyhow::Result<Group> {
    let Some(launched) = Launched::from_environment() else {
        return Ok(Group::alone());
    };
    let group = join_launched(launched)?;
    tracing::info!(rank = group.rank(), ranks = group.size(), "joined");
    Ok(GROUP.get_or_init(|| group).clone())
}

#[cfg(feature = "mpi")]
fn join_launched(launched: Launched) -> anyhow::Result<Group> {
    Ok(Group::mpi(launched)?)
}

#[cfg(not(feature = "mpi"))]
fn join_launched(launched: Launched) -> anyhow::Result<Group> {
    Err(exit::usage(format!(
        "started as one of {} ranks, but this build trains on one; hint: {BUILD}",
        launched.ranks
    )))
}

/// Refuses a command that one process runs in one of several ranks.
pub(crate) fn refuse() -> anyhow::Result<()> {
    match Launched::from_environment() {
        Some(Launched { ranks, .. }) => Err(exit::usage(format!(
            "started as one of {ranks} ranks, but this command runs on one; hint: start it without mpirun or srun; only \
             train and resume run on several"
        ))),
        None => Ok(()),
    }
}

/// Gives each rank of a machine a GPU of its own, if the device has no number.
pub(crate) fn choose_device(config: &mut RunConfig) {
    let is_gpu = ["cuda", "rocm", "wgpu", "vulkan", "metal"].contains(&&*config.device);
    if let Some(launched) = Launched::from_environment().filter(|_| is_gpu) {
        config.device = format!("{}:{}", config.device, launched.local_rank);
    }
}

/// Describes the ranks of a run, such as `4 ranks (2 on node1, 2 on node2), 8 lanes`.
pub(crate) fn describe(setup: &RunSetup) -> Option<String> {
    let (group, lanes) = (&setup.group, setup.config.train.lanes);
    let mut hosts: Vec<(&str, usize)> = Vec::new();
    for host in group.hosts() {
        match hosts.iter_mut().find(|(name, _)| *name == host) {
            Some((_, ranks)) => *ranks += 1,
            None => hosts.push((host, 1)),
        }
    }
    let hosts: Vec<String> = hosts
        .iter()
        .map(|(host, ranks)| format!("{ranks} on {host}"))
        .collect();
    let size = group.size();
    (size > 1).then(|| format!("{size} ranks ({}), {lanes} lanes", hosts.join(", ")))
}

/// Trains on a rank other than 0.
pub(crate) fn work(setup: RunSetup) -> anyhow::Result<ExitCode> {
    let group = setup.group.clone();
    let stop = signals::stop_flag(false)?;
    let reason = Worker::new(setup).run(&stop)?;
    group.finish()?;
    Ok(match reason {
        StopReason::Interrupted => Code::Interrupted.into(),
        _ => ExitCode::SUCCESS,
    })
}

/// Ends this process after `error`, and with it all ranks. An error that several ranks have is printed by the first.
pub(crate) fn fail(error: &anyhow::Error) -> ExitCode {
    let code = exit::code(error);
    let message = exit::message(error);
    let Some(group) = GROUP.get() else {
        let is_first = Launched::from_environment().is_none_or(|launched| launched.rank == 0);
        if is_first {
            output::eprint_line(&format!("error: {message}"));
        }
        return code.into();
    };
    if has_precedence(group) {
        output::eprint_line(&format!("error: {}: {message}", group.name(group.rank())));
    }
    group.abort(code as u8);
    code.into()
}

/// Whether this rank prints its error: no lower one ends the run within a moment.
fn has_precedence(group: &Group) -> bool {
    let start = Instant::now();
    while !group.is_first_alive() && start.elapsed() < PRECEDENCE {
        std::thread::sleep(Duration::from_millis(50));
    }
    start.elapsed() >= PRECEDENCE || group.lost_rank().is_none() || group.is_first_alive()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_started_with_the_same_arguments() {
        let line = "train c.toml --ranks 4 --set name=a --hosts=h --hosts f --ranks=2 -q";
        let arguments = line.split(' ').map(Into::into);
        let kept = without_rank_arguments(arguments);
        assert_eq!(kept, ["train", "c.toml", "--set", "name=a", "-q"]);
    }
}
