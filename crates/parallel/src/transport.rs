//! Moving bytes between ranks.

use std::ops::Range;

use crate::ParallelError;

/// Numbers of which each rank gets a part: `values[parts[r]]` goes to rank `r`. `received` gets the part of this rank from
/// each rank, in the order of the ranks: `size` times the length of `parts[rank]`.
#[derive(Debug)]
pub struct Scatter<'a> {
    /// The numbers of this rank.
    pub values: &'a [f32],
    /// The part of each rank.
    pub parts: &'a [Range<usize>],
    /// The parts that this rank receives.
    pub received: &'a mut [f32],
}

/// Numbers of which each rank has a part: `values[parts[r]]` gets that of rank `r`.
#[derive(Debug)]
pub struct Gather<'a> {
    /// The part of this rank.
    pub part: &'a [f32],
    /// The part of each rank.
    pub parts: &'a [Range<usize>],
    /// All parts.
    pub values: &'a mut [f32],
}

/// Moves data between ranks, without computing anything with it. All ranks make the same calls in the same order.
///
/// [`Group::start`](crate::Group::start) owns a transport in a thread of its own.
pub trait Transport {
    /// The number of this rank, from 0.
    fn rank(&self) -> usize;

    /// The number of ranks.
    fn size(&self) -> usize;

    /// The name of this rank's machine.
    fn host(&self) -> String;

    /// Whether all ranks are processes of their own, which can end by themselves.
    fn has_processes(&self) -> bool;

    /// Sends each rank its part of some numbers.
    ///
    /// # Errors
    /// [`ParallelError::Lost`] if a rank is gone.
    fn scatter(&mut self, scatter: Scatter<'_>) -> Result<(), ParallelError>;

    /// Sends all ranks the part of this one.
    ///
    /// # Errors
    /// [`ParallelError::Lost`] if a rank is gone.
    fn gather(&mut self, gather: Gather<'_>) -> Result<(), ParallelError>;

    /// Does both, at the same time if it can. Another rank may make the two calls one after the other, in this order.
    ///
    /// # Errors
    /// [`ParallelError::Lost`] if a rank is gone.
    fn gather_and_scatter(
        &mut self,
        gather: Gather<'_>,
        scatter: Scatter<'_>,
    ) -> Result<(), ParallelError> {
        self.gather(gather)?;
        self.scatter(scatter)
    }

    /// Sends `bytes` to all ranks and returns those of all ranks, which may have different lengths.
    ///
    /// # Errors
    /// [`ParallelError::Lost`] if a rank is gone.
    fn gather_bytes(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, ParallelError>;

    /// Ends all ranks with exit code `code`. May return, if the ranks are threads.
    fn abort(&mut self, code: i32);
}
