//! Starting ranks: the environment that `mpirun` and `srun` give them, and the command that starts them.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::Command;

/// The place of this process among those that `mpirun` or `srun` started, from environment variables: known before MPI
/// is initialized, and in builds without it.
///
/// ```
/// use nextword_parallel::Launched;
///
/// let variables = [("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "2"),
///     ("OMPI_COMM_WORLD_LOCAL_RANK", "0"), ("OMPI_COMM_WORLD_LOCAL_SIZE", "2")];
/// let find = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
/// let launched = Launched::from_variables(find).unwrap();
/// assert_eq!((launched.rank, launched.ranks), (2, 4));
/// assert_eq!((launched.local_rank, launched.local_ranks), (0, 2));
/// assert_eq!(Launched::from_variables(|_| None), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launched {
    /// The number of this rank.
    pub rank: usize,
    /// The number of ranks: at least 2.
    pub ranks: usize,
    /// The number of this rank among those on this machine.
    pub local_rank: usize,
    /// The number of ranks on this machine.
    pub local_ranks: usize,
}

/// Slurm's variables of the local rank and of the local ranks.
const SLURM_LOCAL: [&str; 2] = ["SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"];

/// Variables of Open MPI, of MPICH's Hydra and of Slurm: ranks, rank, local rank, local ranks. Hydra may start ranks with
/// Slurm, which then counts Hydra's own processes, and `srun --mpi=pmi2` sets the first two of Hydra but not its local ones.
const VARIABLES: [[&str; 4]; 3] = [
    [
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ],
    ["PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"],
    [
        "SLURM_STEP_NUM_TASKS",
        "SLURM_PROCID",
        SLURM_LOCAL[0],
        SLURM_LOCAL[1],
    ],
];

impl Launched {
    /// Reads the environment of this process. `None` if it was started alone.
    pub fn from_environment() -> Option<Self> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// Reads the variables that `find` returns.
    pub fn from_variables(find: impl Fn(&str) -> Option<String>) -> Option<Self> {
        VARIABLES.iter().find_map(|names| {
            // Slurm writes `4(x2)` for two machines with four each.
            let number = |name: &str| {
                let value = find(name)?;
                let digits = value.split(|c: char| !c.is_ascii_digit()).next()?;
                digits.parse::<usize>().ok()
            };
            let ranks = number(names[0]).filter(|ranks| *ranks > 1)?;
            let rank = number(names[1]).filter(|rank| *rank < ranks)?;
            let [own_local, slurm_local] = [[names[2], names[3]], SLURM_LOCAL]
                .map(|[rank, ranks]| Some((number(rank)?, number(ranks).unwrap_or(1).max(1))));
            let (local_rank, local_ranks) = own_local.or(slurm_local).unwrap_or((0, 1));
            Some(Self {
                rank,
                ranks,
                local_rank,
                local_ranks,
            })
        })
    }

    /// The threads of each rank on a machine with `cores` cores.
    pub fn threads(&self, cores: usize) -> usize {
        (cores / self.local_ranks).max(1)
    }
}

/// The command that starts `ranks` processes of `program`, on this machine or on those of the file `hosts`. By default,
/// Open MPI binds each rank to one or a few cores and refuses to run as root or with more ranks than cores; this command
/// does none of that. `is_open_mpi` is false for MPICH's `mpirun`.
///
/// ```
/// use nextword_parallel::launch_command;
///
/// let command = launch_command(4, None, true, "nextword".as_ref(), ["train".into(), "c.toml".into()]);
/// let line: Vec<_> = command.get_args().map(|part| part.to_string_lossy()).collect();
/// assert_eq!(line.join(" "), "-n 4 --bind-to none --oversubscribe -q nextword train c.toml");
/// ```
pub fn launch_command(
    ranks: usize,
    hosts: Option<&Path>,
    is_open_mpi: bool,
    program: &OsStr,
    arguments: impl IntoIterator<Item = OsString>,
) -> Command {
    let mut command = Command::new("mpirun");
    command.arg("-n").arg(ranks.to_string());
    if is_open_mpi {
        command.args(["--bind-to", "none"]);
        match hosts {
            Some(hosts) => command.arg("--hostfile").arg(hosts),
            // Quiet: what it says about failed ranks is long, and they say it themselves.
            None => command.args(["--oversubscribe", "-q"]),
        };
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1");
        command.env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    } else {
        command.args(["-bind-to", "none"]);
        if let Some(hosts) = hosts {
            command.arg("-f").arg(hosts);
        }
    }
    command.arg(program).args(arguments);
    command
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn launched(variables: &[(&str, &str)]) -> Option<Launched> {
        Launched::from_variables(|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_string())
        })
    }

    #[test]
    fn the_variables_of_each_launcher_are_read() {
        let mpich = [
            ("PMI_SIZE", "2"),
            ("PMI_RANK", "1"),
            ("MPI_LOCALRANKID", "1"),
            ("MPI_LOCALNRANKS", "2"),
        ];
        let expected = Launched {
            rank: 1,
            ranks: 2,
            local_rank: 1,
            local_ranks: 2,
        };
        assert_eq!(launched(&mpich), Some(expected));
        let slurm = [
            ("SLURM_STEP_NUM_TASKS", "8"),
            ("SLURM_PROCID", "5"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_STEP_TASKS_PER_NODE", "4(x2)"),
        ];
        let expected = Launched {
            rank: 5,
            ranks: 8,
            local_rank: 1,
            local_ranks: 4,
        };
        assert_eq!(launched(&slurm), Some(expected));
        let pmi2 = [("PMI_SIZE", "8"), ("PMI_RANK", "5")];
        assert_eq!(launched(&[&pmi2[..], &slurm].concat()), Some(expected));
    }

    #[test]
    fn ranks_that_hydra_starts_with_slurm_are_counted_by_hydra() {
        let hydra = [
            ("PMI_SIZE", "4"),
            ("PMI_RANK", "3"),
            ("MPI_LOCALRANKID", "1"),
            ("MPI_LOCALNRANKS", "2"),
        ];
        let proxies = [
            ("SLURM_STEP_NUM_TASKS", "2"),
            ("SLURM_PROCID", "1"),
            ("SLURM_LOCALID", "0"),
            ("SLURM_STEP_TASKS_PER_NODE", "1(x2)"),
        ];
        let expected = Launched {
            rank: 3,
            ranks: 4,
            local_rank: 1,
            local_ranks: 2,
        };
        assert_eq!(launched(&[hydra, proxies].concat()), Some(expected));
    }

    #[test]
    fn one_rank_and_incomplete_variables_start_no_group() {
        assert_eq!(
            launched(&[("OMPI_COMM_WORLD_SIZE", "1"), ("OMPI_COMM_WORLD_RANK", "0")]),
            None
        );
        assert_eq!(launched(&[("OMPI_COMM_WORLD_SIZE", "4")]), None);
        assert_eq!(launched(&[("PMI_SIZE", "2"), ("PMI_RANK", "2")]), None);
        assert_eq!(launched(&[("PMI_SIZE", "two"), ("PMI_RANK", "1")]), None);
    }

    #[test]
    fn ranks_share_the_cores_of_their_machine() {
        let launched = Launched {
            rank: 0,
            ranks: 8,
            local_rank: 0,
            local_ranks: 4,
        };
        assert_eq!([16, 6, 2].map(|cores| launched.threads(cores)), [4, 1, 1]);
    }

    #[test]
    fn other_machines_come_from_a_file() {
        let line = |is_open_mpi| {
            let command = launch_command(2, Some("hosts".as_ref()), is_open_mpi, "n".as_ref(), []);
            let parts: Vec<_> = command
                .get_args()
                .map(OsStr::to_string_lossy)
                .map(std::borrow::Cow::into_owned)
                .collect();
            parts.join(" ")
        };
        assert_eq!(line(true), "-n 2 --bind-to none --hostfile hosts n");
        assert_eq!(line(false), "-n 2 -bind-to none -f hosts n");
    }
}
