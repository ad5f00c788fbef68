//! Moving bytes between ranks.

use std::ops::Range;

use crate::ParallelError;

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

    /// Sends `send[parts[r]]` to each rank `r`. `received` gets the part of this rank from each rank, in the order of
    /// the ranks: `size` times the length of `parts[rank]`.
    ///
    /// # Errors
    /// [`ParallelError::Lost`] if a rank is gone.
    fn exchange_parts(
        &mut self,
        send: &[f32],
        parts: &[Range<usize>],
        received: &mut [f32],
    ) -> Result<(), ParallelError>;

    /// Sends `part` to all ranks. `values[parts[r]]` gets that of each rank `r`.
    ///
    /// # Errors
    /// [`ParallelError::Lost`] if a rank is gone.
    fn gather_parts(
        &mut self,
        part: &[f32],
        parts: &[Range<usize>],
        values: &mut [f32],
    ) -> Result<(), ParallelError>;

    /// Sends `bytes` to all ranks and returns those of all ranks, which may have different lengths.
    ///
    /// # Errors
    /// [`ParallelError::Lost`] if a rank is gone.
    fn gather_bytes(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, ParallelError>;

    /// Ends all ranks with exit code `code`. May return, if the ranks are threads.
    fn abort(&mut self, code: i32);
}
