//! Training and evaluating on several ranks: `--ranks`, joining the others, and ending together.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueHint};
use nextword_parallel::{Division, Group, HAS_MPI, Launched, has_child, launch_command};
use nextword_train::{RunConfig, RunSetup, StopReason, Worker};

use crate::exit::Code;
use crate::{exit, output, signals};

/// How to get a build with MPI.
const BUILD: &str = "cargo build --release -p nextword --features mpi";

/// How long a rank with an error waits for a lower one, which may have the same error, to tell it and end the run. Open
/// MPI takes two seconds to end all ranks.
const PRECEDENCE_DELAY: Duration = Duration::from_secs(4);

/// How long `mpirun` may run after the ranks of this machine have ended.
const LAUNCHER_TIMEOUT: Duration = Duration::from_secs(7);

/// How often the end of `mpirun` is looked for.
const POLL: Duration = Duration::from_millis(50);

/// The group of this process, once it has joined one.
static GROUP: OnceLock<Group> = OnceLock::new();

/// `--ranks` and `--hosts`.
#[derive(Debug, Args)]
pub(crate) struct RankArgs {
    /// Run on N processes that mpirun starts; the results are those of one process, with the same train.lanes
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    ranks: Option<usize>,
    /// Start them on the machines that FILE lists, as mpirun's --hostfile
    #[arg(long, value_name = "FILE", requires = "ranks", value_hint = ValueHint::FilePath)]
    hosts: Option<PathBuf>,
}

impl RankArgs {
    /// Runs this command on each rank with `mpirun`, if several are asked for, and returns the exit code. `config` reads
    /// the configuration, whose lanes they must be able to share.
    pub(crate) fn launch(
        &self,
        config: impl FnOnce() -> anyhow::Result<RunConfig>,
    ) -> anyhow::Result<Option<ExitCode>> {
        self.launch_checked(|ranks| {
            let train = config()?.train;
            Division::new(train.accumulation, train.lanes, ranks)
                .map_err(nextword_train::TrainError::from)?;
            Ok(())
        })
    }

    /// The same, on any number of ranks.
    pub(crate) fn launch_any(&self) -> anyhow::Result<Option<ExitCode>> {
        self.launch_checked(|_| Ok(()))
    }

    /// Whether several ranks are asked for, or this is one of them.
    pub(crate) fn is_distributed(&self) -> bool {
        self.ranks.is_some_and(|ranks| ranks > 1) || Launched::from_environment().is_some()
    }

    fn launch_checked(
        &self,
        check: impl FnOnce(usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<Option<ExitCode>> {
        let Some(ranks) = self.ranks.filter(|ranks| *ranks > 1) else {
            return Ok(None);
        };
        if Launched::from_environment().is_some() {
            return Err(exit::usage(
                "--ranks starts ranks itself; hint: leave it out of a command that mpirun or srun starts",
            ));
        }
        if !HAS_MPI {
            return Err(exit::usage(format!(
                "--ranks {ranks}: this build has one rank; hint: {BUILD}, with MPI and libclang installed \
                 (Debian: openmpi-bin libopenmpi-dev libclang-dev)"
            )));
        }
        check(ranks)?;
        let program = std::env::current_exe()?;
        let arguments = without_rank_arguments(std::env::args_os().skip(1));
        let hosts = self.hosts.as_deref();
        let command = launch_command(ranks, hosts, is_open_mpi(), program.as_os_str(), arguments);
        run_launcher(command).map(Some)
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

/// Runs `mpirun` and returns its exit code. The first signal asks the ranks to save and stop, by SIGUSR1: on any other,
/// Open MPI kills them within a second. The next one ends them at once.
#[cfg(unix)]
fn run_launcher(mut command: Command) -> anyhow::Result<ExitCode> {
    use std::os::unix::process::CommandExt as _;
    use std::process::Stdio;

    // In a process group of its own, it does not get the terminal's Ctrl-C, nor its input.
    command.process_group(0).stdin(Stdio::null());
    let mut child = command.spawn().map_err(|error| {
        exit::usage(format!(
            "cannot start mpirun: {error}; hint: install MPI (Debian: openmpi-bin)"
        ))
    })?;
    let process = child.id().to_string();
    signals::on_each(move |earlier| {
        let signal = if earlier == 0 { "-USR1" } else { "-TERM" };
        // If it has ended, there is nothing to stop.
        let _ = Command::new("kill").args([signal, &process]).status();
    })?;
    let Some(status) = wait_for_launcher(&mut child)? else {
        child.kill()?;
        child.wait()?;
        return Err(anyhow::anyhow!(
            "the ranks on this machine have ended, but mpirun is waiting for machines that it cannot reach; hint: end \
             nextword there if it still runs"
        ));
    };
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(Code::Failure as u8)))
}

/// Waits for `mpirun`. `None` if it has not ended long after the ranks of this machine: it waits for machines whose
/// network is down as long as TCP tries to send to them.
#[cfg(unix)]
fn wait_for_launcher(
    child: &mut std::process::Child,
) -> std::io::Result<Option<std::process::ExitStatus>> {
    // This link leads to the program even if another version was installed meanwhile.
    let program = std::fs::metadata("/proc/self/exe").ok();
    let process = child.id();
    let has_rank = || {
        program
            .as_ref()
            .and_then(|program| has_child(process, program))
            == Some(true)
    };
    let mut last_seen = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if has_rank() {
            last_seen = Some(Instant::now());
        }
        if last_seen.is_some_and(|seen: Instant| seen.elapsed() > LAUNCHER_TIMEOUT) {
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

/// Other systems have no such signals.
#[cfg(not(unix))]
fn run_launcher(_command: Command) -> anyhow::Result<ExitCode> {
    Err(exit::usage(
        "--ranks needs Linux or macOS; hint: start the ranks with mpiexec",
    ))
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
             train, resume and eval run on several"
        ))),
        None => Ok(()),
    }
}

/// Gives each rank of a machine a GPU of its own, if the device has no number.
pub(crate) fn choose_device(config: &mut RunConfig) {
    config.device = rank_device(&config.device);
}

/// The device of this rank, where the user named `device`.
pub(crate) fn rank_device(device: &str) -> String {
    let is_gpu = ["cuda", "rocm", "wgpu", "vulkan", "metal"].contains(&device);
    match Launched::from_environment().filter(|_| is_gpu) {
        Some(launched) => format!("{device}:{}", launched.local_rank),
        None => device.to_string(),
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
    signals::stop_on_user_signal(&stop, false)?;
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
    if group.is_first_alive() {
        return true;
    }
    let start = Instant::now();
    while start.elapsed() < PRECEDENCE_DELAY {
        std::thread::sleep(Duration::from_millis(50));
        if group.is_first_alive() {
            return false;
        }
    }
    true
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
