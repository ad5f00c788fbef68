//! What the crates of nextword share below tensors and text.
//!
//! | for | open |
//! |---|---|
//! | random numbers without state | [`rng`] |
//! | files and folders that are complete or absent | [`atomic`] |
//! | SHA-256 of streams | [`hash`] |
//! | free space on a disk | [`free_disk_space`] |
//! | numbers and counts in messages | [`grouped`], [`count`] |
//! | time that a thread has computed | [`thread_cpu_time`] |
//! | files that Git LFS has not fetched | [`git_lfs`] |
//! | targets without loss | [`IGNORE`] |
//!
//! ```
//! use nextword_base::{CounterRng, atomic, hash};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("values.bin");
//! let rng = CounterRng::new(7);
//! let bytes: Vec<u8> = (0..4).flat_map(|i| rng.at(i).to_le_bytes()).collect();
//! atomic::write(&path, &bytes)?;
//! let written = hash::hash_file(&path)?;
//! assert_eq!((written.bytes, written.hex()), (32, hash::sha256_hex(&bytes)));
//! # Ok::<(), std::io::Error>(())
//! ```

pub mod atomic;
mod cpu_time;
mod disk;
mod error;
pub mod git_lfs;
pub mod hash;
mod numbers;
pub mod rng;

pub use cpu_time::thread_cpu_time;
pub use disk::free_disk_space;
pub use error::PathError;
pub use numbers::{count, grouped};
pub use rng::CounterRng;

/// Target id that is excluded from the loss (padding and masked positions).
pub const IGNORE: u32 = u32::MAX;
