//! Sums numbers over MPI ranks, checks their bits and prints the speed:
//!
//! ```sh
//! cargo build --release -p nextword-parallel --features mpi --example exchange
//! mpirun -n 4 --bind-to none target/release/examples/exchange 10000000
//! ```

#![allow(clippy::print_stdout)]

use std::time::Instant;

use nextword_parallel::{Group, Launched, ParallelError, TreeSum};

/// Numbers that are exchanged at once.
const BUCKET: usize = 1 << 20;

const ROUNDS: usize = 5;

/// Number `index` of `rank`.
fn value(rank: usize, index: usize) -> f32 {
    ((rank * 7919 + index * 104_729) % 9973) as f32 / 13.0
}

fn main() -> Result<(), ParallelError> {
    let total = std::env::args().nth(1).and_then(|count| count.parse().ok());
    let total: usize = total.unwrap_or(10_000_000);
    let group = match Launched::from_environment() {
        Some(launched) => Group::mpi(launched)?,
        None => Group::alone(),
    };
    let (rank, size) = (group.rank(), group.size());
    let starts: Vec<usize> = (0..total).step_by(BUCKET).collect();
    let buckets = || {
        let bucket = |start: &usize| {
            let end = (start + BUCKET).min(total);
            (*start..end)
                .map(|index| value(rank, index))
                .collect::<Vec<f32>>()
        };
        starts.iter().map(bucket).collect::<Vec<_>>()
    };
    let mut fastest = f64::INFINITY;
    for _ in 0..ROUNDS {
        let outgoing = buckets();
        group.gather(Vec::new())?; // All ranks begin at the same time.
        let start = Instant::now();
        for bucket in outgoing {
            group.start_sum(bucket)?;
        }
        let sums = starts.iter().map(|_| group.finish_numbers());
        let sums = sums.collect::<Result<Vec<_>, _>>()?;
        fastest = fastest.min(start.elapsed().as_secs_f64());
        for (index, sum) in sums.iter().flatten().enumerate().step_by(997) {
            let mut tree = TreeSum::default();
            (0..size).for_each(|rank| tree.push(value(rank, index), |a, b| a + b));
            let expected = tree.finish(|a, b| a + b).unwrap_or_default();
            assert_eq!(sum.to_bits(), expected.to_bits(), "number {index}");
        }
    }
    if group.is_first() {
        let sent = 2 * 4 * total * (size - 1) / size;
        let rate = sent as f64 / fastest / 1e9;
        println!(
            "{size} ranks, {total} numbers: {:.1} ms, {rate:.2} GB/s sent by each rank",
            fastest * 1e3
        );
    }
    group.finish()
}
