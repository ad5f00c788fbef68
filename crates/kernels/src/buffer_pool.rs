//! A pool of reusable f32 buffers.
//!
//! Each training step allocates and frees buffers of the same sizes. Pooling them avoids page
//! faults in fresh memory, and zero-filling memory that is about to be overwritten.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::Bytes;
use burn_std::{AccessError, AccessPolicy, AllocationController, AllocationProperty};

/// Shorter buffers are not pooled: they are cheap to allocate.
const MIN_POOLED_LEN: usize = 1 << 12;

/// Idle and used buffers together may exceed the peak use by `1 / IDLE_FRACTION` of it.
const IDLE_FRACTION: usize = 4;

static POOL: Mutex<Option<Pool>> = Mutex::new(None);

/// Idle buffers, and statistics of those in use.
#[derive(Default)]
struct Pool {
    free: HashMap<usize, Vec<Vec<f32>>>,
    /// Total length of the idle buffers.
    idle: usize,
    /// Total length of the buffers in use, and its peak.
    in_use: usize,
    peak: usize,
}

fn pool() -> MutexGuard<'static, Option<Pool>> {
    // The pool is in a valid state whenever the lock is released, even after a panic.
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    fn acquire(&mut self, len: usize) -> Option<Vec<f32>> {
        self.in_use += len;
        self.peak = self.peak.max(self.in_use);
        let values = self.free.get_mut(&len)?.pop()?;
        self.idle -= len;
        Some(values)
    }

    fn release_idle(&mut self) {
        self.free.clear();
        self.idle = 0;
        self.peak = self.in_use;
    }

    fn release(&mut self, values: Vec<f32>) {
        let len = values.len();
        self.in_use -= len;
        if self.idle + self.in_use + len > self.peak + self.peak / IDLE_FRACTION {
            // The sizes have changed, so the idle buffers no longer fit.
            self.release_idle();
            self.peak += len;
        }
        self.idle += len;
        self.free.entry(len).or_default().push(values);
    }
}

/// Frees the idle buffers.
pub(crate) fn release_idle() {
    if let Some(pool) = pool().as_mut() {
        pool.release_idle();
    }
}

/// An f32 buffer that returns to the pool when dropped.
#[derive(Debug)]
pub(crate) struct Buffer(Vec<f32>);

impl Buffer {
    /// Returns `len` elements with unspecified values; the caller must write all of them.
    pub(crate) fn new(len: usize) -> Self {
        if len < MIN_POOLED_LEN {
            return Self(vec![POISON; len]);
        }
        let reused = pool().get_or_insert_default().acquire(len);
        let mut values = reused.unwrap_or_else(|| vec![0.0; len]);
        if cfg!(debug_assertions) {
            values.fill(POISON);
        }
        Self(values)
    }

    /// Returns `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        if len < MIN_POOLED_LEN {
            return Self(vec![0.0; len]);
        }
        let reused = pool().get_or_insert_default().acquire(len);
        let mut values = reused.unwrap_or_default();
        values.clear();
        values.resize(len, 0.0);
        Self(values)
    }

    /// Copies `values` into a new buffer.
    pub(crate) fn from_slice(values: &[f32]) -> Self {
        let mut buffer = Self::new(values.len());
        buffer.copy_from_slice(values);
        buffer
    }

    /// Converts the buffer into the storage of a tensor.
    pub(crate) fn into_bytes(self) -> Bytes {
        let len = size_of_val(&*self.0);
        // SAFETY: `Buffer` owns `len` bytes of initialized f32 values, aligned as `alloc_align`
        // reports, and every bit pattern is a valid byte.
        unsafe { Bytes::from_controller(Box::new(self), len) }
    }
}

/// Initial value of unwritten elements: NaN with debug assertions, so that reading one is detected.
const POISON: f32 = if cfg!(debug_assertions) {
    f32::NAN
} else {
    0.0
};

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Self {
        Self::from_slice(self)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.0);
        if values.len() >= MIN_POOLED_LEN {
            pool().get_or_insert_default().release(values);
        }
    }
}

impl AllocationController for Buffer {
    fn alloc_align(&self) -> usize {
        align_of::<f32>()
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Other
    }

    unsafe fn memory_mut(
        &mut self,
        _policy: AccessPolicy,
    ) -> Result<&mut [MaybeUninit<u8>], AccessError> {
        let len = size_of_val(&*self.0);
        // SAFETY: the slice covers exactly the bytes of the mutably borrowed f32 values; by the
        // contract of `memory_mut` the caller never writes uninitialized bytes.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), len) })
    }

    fn memory(&self, _policy: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
        let len = size_of_val(&*self.0);
        // SAFETY: the slice covers exactly the bytes of the borrowed f32 values.
        Ok(unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), len) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_buffer_is_reused() {
        let mut pool = Pool::default();
        assert_eq!(pool.acquire(3), None);
        pool.release(vec![1.0, 2.0, 3.0]);
        assert_eq!(pool.acquire(4), None);
        assert_eq!(pool.acquire(3), Some(vec![1.0, 2.0, 3.0]));
        assert_eq!((pool.idle, pool.in_use), (0, 7));
    }

    #[test]
    fn released_idle_buffers_are_not_reused() {
        let mut pool = Pool::default();
        assert_eq!(pool.acquire(3), None);
        assert_eq!(pool.acquire(5), None);
        pool.release(vec![1.0; 5]);
        assert_eq!((pool.idle, pool.in_use), (5, 3));
        pool.release_idle();
        assert_eq!((pool.idle, pool.in_use, pool.peak), (0, 3, 3));
        assert_eq!(pool.acquire(5), None);
    }

    #[test]
    fn zeros_clears_reused_memory() {
        let len = MIN_POOLED_LEN + 12_347;
        for _ in 0..3 {
            let mut zeros = Buffer::zeros(len);
            assert_eq!(zeros.len(), len);
            assert!(zeros.iter().all(|x| *x == 0.0));
            zeros.fill(7.0);
            drop(zeros.into_bytes());
        }
    }

    #[test]
    fn idle_memory_is_bounded_by_peak_use() {
        let mut pool = Pool::default();
        for len in 1..1000 {
            let values = pool.acquire(len).unwrap_or_else(|| vec![0.0; len]);
            pool.release(values);
            let total = pool.idle + pool.in_use;
            assert!(
                total <= pool.peak + pool.peak / IDLE_FRACTION,
                "{total} of {}",
                pool.peak
            );
        }
        assert_eq!(pool.in_use, 0);
        // One large buffer is not kept forever.
        let large = pool.acquire(1 << 20).unwrap_or_else(|| vec![0.0; 1 << 20]);
        pool.release(large);
        for _ in 0..3 {
            let values = pool.acquire(500).unwrap_or_else(|| vec![0.0; 500]);
            let more = pool.acquire(1 << 19).unwrap_or_else(|| vec![0.0; 1 << 19]);
            pool.release(more);
            pool.release(values);
        }
        assert!(pool.idle < 1 << 20, "{}", pool.idle);
    }
}
