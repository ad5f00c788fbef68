//! Compares the kernels' thread pool with rayon's: the latency of short calls, and a sequence of calls
//! as in a training step.
//!
//! ```text
//! cargo run --release -p nextword-kernels --example thread_pool
//! ```

#![allow(clippy::print_stdout)]

use std::hint::{black_box, spin_loop};
use std::time::{Duration, Instant};

use nextword_kernels::parallel_for_each;
use rayon::prelude::*;

/// A parallel call: the number of tasks, and the duration of each.
type Call = (usize, Duration);

/// Runs a number of tasks.
type Pool = fn(usize, &(dyn Fn(usize) + Sync));

const POOLS: [(&str, Pool); 3] = [("kernels", kernels), ("rayon", rayon), ("serial", serial)];

/// Repetitions of each measurement; the median counts.
const ROUNDS: usize = 301;

/// Tasks and microseconds per task of the parallel calls of one block's forward and backward pass of a
/// small model on two cores: norms, projections, attention, activations, weight gradients.
const BLOCK: [(usize, u64); 14] = [
    (3, 10),
    (4, 90),
    (8, 25),
    (4, 30),
    (3, 10),
    (4, 120),
    (6, 15),
    (4, 120),
    (4, 240),
    (6, 20),
    (4, 240),
    (8, 60),
    (4, 180),
    (3, 15),
];

/// Serial work between two calls of a step: tensors are allocated and the graph is walked.
const GAP: Duration = Duration::from_micros(4);

fn kernels(count: usize, task: &(dyn Fn(usize) + Sync)) {
    // The cost lets even two tasks run in parallel.
    parallel_for_each(count, 1 << 20, task);
}

fn rayon(count: usize, task: &(dyn Fn(usize) + Sync)) {
    (0..count).into_par_iter().with_max_len(1).for_each(task);
}

fn serial(count: usize, task: &(dyn Fn(usize) + Sync)) {
    (0..count).for_each(task);
}

/// Keeps a core busy.
fn work(duration: Duration) {
    let start = Instant::now();
    while start.elapsed() < duration {
        spin_loop();
    }
}

/// Median seconds of `round`.
fn median(mut round: impl FnMut()) -> f64 {
    let mut seconds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            round();
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[ROUNDS / 2]
}

/// Median microseconds of a sequence of calls, with `gap` of serial work after each.
fn time(pool: Pool, calls: &[Call], gap: Duration) -> f64 {
    let round = || {
        for (count, duration) in calls {
            pool(*count, &|task| {
                work(*duration);
                black_box(task);
            });
            work(gap);
        }
    };
    1e6 * median(round)
}

fn main() {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    println!("{threads} threads, median of {ROUNDS}, microseconds\n");
    println!("{:24}{:>10}{:>10}{:>10}", "", "kernels", "rayon", "serial");
    let print = |label: &str, calls: &[Call], gap: Duration| {
        let times = POOLS.map(|(_, pool)| time(pool, calls, gap));
        let [kernels, rayon, serial] = times;
        println!("{label:24}{kernels:10.1}{rayon:10.1}{serial:10.1}");
    };
    for micros in [0, 2, 10, 50, 250] {
        for tasks in [2, 8] {
            let calls = [(tasks, Duration::from_micros(micros))];
            print(&format!("{tasks} tasks of {micros} us"), &calls, GAP);
        }
    }
    let step = BLOCK.map(|(tasks, micros)| (tasks, Duration::from_micros(micros)));
    print("one block of a step", &step, GAP);
    let late = Duration::from_micros(300);
    print("the same, rare calls", &step, late);
}
