//! Counter-based random numbers.

pub use nextword_base::CounterRng;
