//! The memory of a quantized matrix: its own, or bytes that it shares with others, such as a mapped file.

use std::marker::PhantomData;
use std::ops::Deref;

use bytes::Bytes;

use super::{Line, PANEL};

/// Types without padding for which any bytes are valid, so that bytes can be read as them.
///
/// # Safety
/// The type must have no padding, and every bit pattern must be valid.
pub(crate) unsafe trait Plain: Copy {
    /// The value of the bytes of a file, which are little-endian.
    fn from_file(bytes: &[u8]) -> Self;
}

// SAFETY: 64 bytes.
unsafe impl Plain for Line {
    fn from_file(bytes: &[u8]) -> Self {
        let mut line = Self([0; 64]);
        line.0.copy_from_slice(bytes);
        line
    }
}

// SAFETY: an array of integers.
unsafe impl Plain for [u16; PANEL] {
    fn from_file(bytes: &[u8]) -> Self {
        let mut halves = [0; PANEL];
        for (half, bytes) in halves.iter_mut().zip(bytes.as_chunks().0) {
            *half = u16::from_le_bytes(*bytes);
        }
        halves
    }
}

/// A read-only array.
#[derive(Clone, Debug)]
pub(crate) enum Storage<T> {
    Owned(Vec<T>),
    Shared(SharedArray<T>),
}

/// Bytes that are aligned for `T`, and as many as whole values take.
#[derive(Clone, Debug)]
pub(crate) struct SharedArray<T> {
    bytes: Bytes,
    element: PhantomData<T>,
}

impl<T: Plain> Storage<T> {
    /// Uses `bytes` of a file where they are, or copies them if their alignment or order of bytes is not that of
    /// memory. Bytes after the last whole value are left out.
    pub(crate) fn share(bytes: Bytes) -> Self {
        let is_usable = bytes.as_ptr().cast::<T>().is_aligned()
            && bytes.len().is_multiple_of(size_of::<T>())
            && cfg!(target_endian = "little");
        if !is_usable {
            return Self::copy(&bytes);
        }
        Self::Shared(SharedArray {
            bytes,
            element: PhantomData,
        })
    }

    /// Copies `bytes` of a file.
    pub(crate) fn copy(bytes: &[u8]) -> Self {
        let values = bytes.chunks_exact(size_of::<T>()).map(T::from_file);
        Self::Owned(values.collect())
    }
}

impl<T> From<Vec<T>> for Storage<T> {
    fn from(values: Vec<T>) -> Self {
        Self::Owned(values)
    }
}

impl<T: Plain> Deref for Storage<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        match self {
            Self::Owned(values) => values,
            Self::Shared(array) => {
                let len = array.bytes.len() / size_of::<T>();
                // SAFETY: `share` checked the alignment; any bytes are a valid `T`, and they are borrowed with `self`.
                unsafe { std::slice::from_raw_parts(array.bytes.as_ptr().cast(), len) }
            }
        }
    }
}
