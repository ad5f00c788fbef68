//! Memory that training steps use again.
//!
//! Each step takes and gives back arrays of the same sizes. Here they wait for the next one: no page
//! is asked of the system or cleared anew, and nothing is filled with zeros that will be overwritten.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::Bytes;
use burn_std::{AccessError, AccessPolicy, AllocationController, AllocationProperty};

/// Shorter arrays are cheap to ask of the allocator.
const LEAST: usize = 1 << 12;

/// All arrays together take at most so much (a fourth) more than were in use at once.
const SLACK: usize = 4;

static POOL: Mutex<Option<Pool>> = Mutex::new(None);

/// Arrays that nobody uses at the moment.
#[derive(Default)]
struct Pool {
    free: HashMap<usize, Vec<Vec<f32>>>,
    /// Numbers in free arrays.
    idle: usize,
    /// Numbers in arrays that are in use, and the most that ever were.
    live: usize,
    most: usize,
}

fn pool() -> MutexGuard<'static, Option<Pool>> {
    // The pool is sound at every moment: a panic elsewhere changes nothing.
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    fn take(&mut self, len: usize) -> Option<Vec<f32>> {
        self.live += len;
        self.most = self.most.max(self.live);
        let values = self.free.get_mut(&len)?.pop()?;
        self.idle -= len;
        Some(values)
    }

    fn give(&mut self, values: Vec<f32>) {
        let len = values.len();
        self.live -= len;
        if self.idle + self.live + len > self.most + self.most / SLACK {
            // The sizes have changed: what lies here fits no more.
            self.free.clear();
            self.idle = 0;
            self.most = self.live + len;
        }
        self.idle += len;
        self.free.entry(len).or_default().push(values);
    }
}

/// An array of numbers that goes back to the pool.
#[derive(Debug)]
pub(crate) struct Buffer(Vec<f32>);

impl Buffer {
    /// `len` numbers of any value: the caller writes all of them.
    pub(crate) fn new(len: usize) -> Self {
        if len < LEAST {
            return Self(vec![UNWRITTEN; len]);
        }
        let found = pool().get_or_insert_default().take(len);
        let mut values = found.unwrap_or_else(|| vec![0.0; len]);
        if cfg!(debug_assertions) {
            values.fill(UNWRITTEN);
        }
        Self(values)
    }

    /// `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        if len < LEAST {
            return Self(vec![0.0; len]);
        }
        let found = pool().get_or_insert_default().take(len);
        let mut values = found.unwrap_or_default();
        values.clear();
        values.resize(len, 0.0);
        Self(values)
    }

    /// A copy of `values`.
    pub(crate) fn of(values: &[f32]) -> Self {
        let mut buffer = Self::new(values.len());
        buffer.copy_from_slice(values);
        buffer
    }

    /// The numbers as the memory of a tensor.
    pub(crate) fn into_bytes(self) -> Bytes {
        let len = size_of_val(&*self.0);
        // SAFETY: all of the memory is initialized f32, which are plain bytes.
        unsafe { Bytes::from_controller(Box::new(self), len) }
    }
}

/// What an array holds that is yet to be written: something that would be noticed in builds with
/// debug assertions.
const UNWRITTEN: f32 = if cfg!(debug_assertions) {
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
        Self::of(self)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.0);
        if values.len() >= LEAST {
            pool().get_or_insert_default().give(values);
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
        // SAFETY: the bytes of the borrowed numbers; the caller writes none that is uninitialized.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), len) })
    }

    fn memory(&self, _policy: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
        let len = size_of_val(&*self.0);
        // SAFETY: the bytes of the borrowed numbers.
        Ok(unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), len) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_comes_back() {
        let mut pool = Pool::default();
        assert_eq!(pool.take(3), None);
        pool.give(vec![1.0, 2.0, 3.0]);
        assert_eq!(pool.take(4), None);
        assert_eq!(pool.take(3), Some(vec![1.0, 2.0, 3.0]));
        assert_eq!((pool.idle, pool.live), (0, 7));
    }

    #[test]
    fn zeros_are_zeros_in_used_memory_too() {
        let len = LEAST + 12_347;
        for _ in 0..3 {
            let mut zeros = Buffer::zeros(len);
            assert_eq!(zeros.len(), len);
            assert!(zeros.iter().all(|x| *x == 0.0));
            zeros.fill(7.0);
            drop(zeros.into_bytes());
        }
    }

    #[test]
    fn what_lies_idle_is_bounded_by_what_was_in_use() {
        let mut pool = Pool::default();
        for len in 1..1000 {
            let values = pool.take(len).unwrap_or_else(|| vec![0.0; len]);
            pool.give(values);
            let all = pool.idle + pool.live;
            assert!(
                all <= pool.most + pool.most / SLACK,
                "{all} of {}",
                pool.most
            );
        }
        assert_eq!(pool.live, 0);
        // One large array does not stay for ever.
        let large = pool.take(1 << 20).unwrap_or_else(|| vec![0.0; 1 << 20]);
        pool.give(large);
        for _ in 0..3 {
            let values = pool.take(500).unwrap_or_else(|| vec![0.0; 500]);
            let more = pool.take(1 << 19).unwrap_or_else(|| vec![0.0; 1 << 19]);
            pool.give(more);
            pool.give(values);
        }
        assert!(pool.idle < 1 << 20, "{}", pool.idle);
    }
}
