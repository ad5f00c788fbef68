//! Ranks as processes, over MPI.
//!
//! MPI only copies here, so that every library gives the same bytes. Nothing blocks inside MPI: a blocking call spins on
//! a core that the kernels need, and could not end when the program is asked to.

use std::ops::Range;
use std::time::Duration;

use mpi::datatype::{Partition, PartitionMut};
use mpi::environment::{Universe, library_version, processor_name};
use mpi::request::{Request, Scope, scope};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives};
use mpi::{Count, Threading};

use crate::shards::consecutive;
use crate::{Control, Gather, Launched, ParallelError, Scatter, Transport};

/// Tests of a request before the thread sleeps between two.
const SPINS: usize = 50;

/// Time between two tests of a request: MPI makes progress only while it is called.
const POLL: Duration = Duration::from_micros(50);

/// The world of MPI, owned by the thread that initialized it.
pub(crate) struct MpiTransport {
    world: SimpleCommunicator,
    control: Control,
    /// Dropped last: ends MPI.
    _universe: Universe,
}

impl MpiTransport {
    /// Initializes MPI.
    pub(crate) fn new(control: Control, launched: Launched) -> Result<Self, ParallelError> {
        let started = mpi::initialize_with_threading(Threading::Funneled);
        let Some((universe, threading)) = started else {
            return Err(ParallelError::Start(
                "it is initialized already".to_string(),
            ));
        };
        let world = universe.world();
        if threading < Threading::Funneled {
            let problem =
                "the library does not support threads; hint: use one that was built with them";
            return Err(ParallelError::Start(problem.to_string()));
        }
        if world.size() as usize != launched.ranks {
            return Err(ParallelError::Start(format!(
                "the launcher started {} ranks, but the library counts {}; hint: this build needs the mpirun of {}",
                launched.ranks,
                world.size(),
                library()
            )));
        }
        Ok(Self {
            world,
            control,
            _universe: universe,
        })
    }

    /// Waits for a request, or ends the job if that was asked for.
    fn wait<'a, D: ?Sized, S: Scope<'a>>(&self, mut request: Request<'a, D, S>) {
        let mut tests = 0;
        while let Err(pending) = request.test() {
            request = pending;
            if let Some(code) = self.control.abort_code() {
                self.world.abort(code);
            }
            tests += 1;
            if tests > SPINS {
                std::thread::sleep(POLL);
            }
        }
    }

    /// Starts what is given, and waits for it.
    fn move_parts(
        &self,
        scatter: Option<Scatter<'_>>,
        gather: Option<Gather<'_>>,
    ) -> Result<(), ParallelError> {
        let (rank, size) = (self.world.rank() as usize, self.world.size() as usize);
        let mut scatter = match scatter {
            Some(scatter) => {
                let (counts, offsets) = counts_and_offsets(scatter.parts)?;
                let outgoing = Partition::new(scatter.values, counts, offsets);
                let own = scatter.parts[rank].len();
                let (counts, offsets) = counts_and_offsets(&consecutive((0..size).map(|_| own)))?;
                let incoming = PartitionMut::new(scatter.received, counts, offsets);
                Some((outgoing, incoming))
            }
            None => None,
        };
        let mut gather = match gather {
            Some(gather) => {
                let (counts, offsets) = counts_and_offsets(gather.parts)?;
                let values = PartitionMut::new(gather.values, counts, offsets);
                Some((gather.part, values))
            }
            None => None,
        };
        let world = &self.world;
        scope(|scope| {
            // In this order on all ranks: MPI matches collective calls by it.
            let gathered = gather.as_mut().map(|(part, values)| {
                world.immediate_all_gather_varcount_into(scope, *part, values)
            });
            let scattered = scatter.as_mut().map(|(outgoing, incoming)| {
                world.immediate_all_to_all_varcount_into(scope, outgoing, incoming)
            });
            // Each test makes progress on both.
            if let Some(request) = gathered {
                self.wait(request);
            }
            if let Some(request) = scattered {
                self.wait(request);
            }
        });
        Ok(())
    }

    /// Sends `part` to all ranks, into `values[parts[r]]` for rank `r`.
    fn gather_into<T: mpi::traits::Equivalence>(
        &self,
        part: &[T],
        parts: &[Range<usize>],
        values: &mut [T],
    ) -> Result<(), ParallelError> {
        let (counts, offsets) = counts_and_offsets(parts)?;
        let mut partition = PartitionMut::new(values, counts, offsets);
        scope(|scope| {
            let world = &self.world;
            self.wait(world.immediate_all_gather_varcount_into(scope, part, &mut partition));
        });
        Ok(())
    }
}

/// Name and version of the MPI library, in one line.
pub(crate) fn library() -> String {
    let version = library_version().unwrap_or_default();
    version.lines().next().unwrap_or_default().to_string()
}

/// Lengths and starts of ranges, as MPI has them.
fn counts_and_offsets(parts: &[Range<usize>]) -> Result<(Vec<Count>, Vec<Count>), ParallelError> {
    let number = |n: usize| Count::try_from(n).map_err(|_| ParallelError::TooLong { len: n });
    let counts = parts.iter().map(|part| number(part.len()));
    let offsets = parts.iter().map(|part| number(part.start));
    Ok((
        counts.collect::<Result<_, _>>()?,
        offsets.collect::<Result<_, _>>()?,
    ))
}

impl Transport for MpiTransport {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn size(&self) -> usize {
        self.world.size() as usize
    }

    fn host(&self) -> String {
        processor_name().unwrap_or_else(|_| "unknown".to_string())
    }

    fn has_processes(&self) -> bool {
        true
    }

    fn scatter(&mut self, scatter: Scatter<'_>) -> Result<(), ParallelError> {
        self.move_parts(Some(scatter), None)
    }

    fn gather(&mut self, gather: Gather<'_>) -> Result<(), ParallelError> {
        self.move_parts(None, Some(gather))
    }

    fn gather_and_scatter(
        &mut self,
        gather: Gather<'_>,
        scatter: Scatter<'_>,
    ) -> Result<(), ParallelError> {
        self.move_parts(Some(scatter), Some(gather))
    }

    fn gather_bytes(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, ParallelError> {
        // One byte more: the address of an empty slice of bytes is 1, which is MPI_IN_PLACE.
        let message = [bytes, &[0]].concat();
        let mut lengths = vec![0_u64; self.size()];
        let ones = consecutive(lengths.iter().map(|_| 1));
        self.gather_into(&[message.len() as u64], &ones, &mut lengths)?;
        let parts = consecutive(lengths.iter().map(|len| *len as usize));
        let mut all = vec![0; parts.last().map_or(0, |last| last.end)];
        self.gather_into(&message, &parts, &mut all)?;
        let own = |part: Range<usize>| all[part.start..part.end.saturating_sub(1)].to_vec();
        Ok(parts.into_iter().map(own).collect())
    }

    fn abort(&mut self, code: i32) {
        self.world.abort(code);
    }
}
