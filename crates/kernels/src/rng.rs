//! Counter-based random numbers.

pub use nextword_base::CounterRng;
pub(crate) use nextword_base::rng::{GOLDEN_GAMMA as GOLDEN, mix};
