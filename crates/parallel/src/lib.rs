//! Ranks that train together: processes over MPI, or threads of one process.
//!
//! MPI starts processes, lets them find each other and moves bytes. What this crate adds is the order of additions:
//! a [`Group`] sums numbers over its ranks in the fixed binary tree of [`TreeSum`], so that the bits do not depend on
//! the MPI library, its version or the network, and a rank that sums a part of the terms itself, in the same tree,
//! gets the bits of one process that has them all.
//!
//! | for | open |
//! |---|---|
//! | the ranks and what they exchange | [`Group`] |
//! | how the micro-batches of a step are divided | [`Division`] |
//! | the order of additions | [`TreeSum`] |
//! | how the state of an optimizer is divided | [`Shards`] |
//! | what `mpirun` or `srun` started | [`Launched`] |
//! | another way to move bytes | [`Transport`] |
//!
//! ```
//! use nextword_parallel::{Division, Group};
//!
//! // Eight micro-batches in four lanes over two ranks.
//! let division = Division::new(8, 4, 2)?;
//! assert_eq!(division.micro_batches(1), 4..8);
//!
//! let alone = Group::alone();
//! assert_eq!((alone.rank(), alone.size()), (0, 1));
//! assert_eq!(alone.sum(vec![1.5])?, [1.5]);
//! # Ok::<(), nextword_parallel::ParallelError>(())
//! ```

mod children;
mod control;
mod division;
mod error;
mod exchange;
mod group;
mod launch;
#[cfg(feature = "mpi")]
mod mpi_transport;
mod peers;
mod shards;
mod threads;
mod transport;
mod tree;

pub use children::has_child;
pub use control::Control;
pub use division::Division;
pub use error::ParallelError;
pub use group::Group;
pub use launch::{Launched, launch_command};
pub use shards::{ShardedParameter, Shards, consecutive};
pub use transport::{Gather, Scatter, Transport};
pub use tree::{TreeSum, largest_stack};

/// Whether this build can train over MPI.
pub const HAS_MPI: bool = cfg!(feature = "mpi");
