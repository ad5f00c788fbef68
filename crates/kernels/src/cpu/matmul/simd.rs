//! A thin abstraction over vector registers, so that each kernel is written once.
//!
//! The methods are `inline(always)`: they inherit the target features of the kernel entry point
//! they are inlined into. Calling one anywhere else is undefined behavior on a machine without
//! those features, hence `unsafe`.

/// An instruction set with vector registers of `LANES` f32 elements.
///
/// # Safety
/// All methods require the target features of the implementation, and valid pointers to the
/// number of elements they access.
pub(crate) trait Simd: Copy {
    /// The register type.
    type V: Copy;
    /// Number of elements in a register.
    const LANES: usize;
    /// Returns a register of zeros.
    unsafe fn zero() -> Self::V;
    /// Broadcasts `*p` to all lanes.
    unsafe fn splat(p: *const f32) -> Self::V;
    /// Loads `LANES` elements from `p`.
    unsafe fn load(p: *const f32) -> Self::V;
    /// Stores `LANES` elements to `p`.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// Loads `n < LANES` elements from `p` and zeroes the remaining lanes.
    unsafe fn load_partial(p: *const f32, n: usize) -> Self::V;
    /// Stores the first `n < LANES` elements to `p`.
    unsafe fn store_partial(p: *mut f32, v: Self::V, n: usize);
    /// Computes `a * b + c`.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Sums the lanes in a fixed order.
    unsafe fn sum(v: Self::V) -> f32;
    /// Prefetches the cache line of `p` for writing. `p` need not be valid.
    unsafe fn prefetch(p: *const f32);
}

/// Plain Rust: eight lanes in an array, which the compiler maps to SSE2 or NEON registers.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

/// Computes `a * b + c`, fused only where the target has an instruction for it: the library
/// fallback of `mul_add` would be far too slow.
#[inline(always)]
pub(crate) fn fma_scalar(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

impl Simd for Scalar {
    type V = [f32; 8];
    const LANES: usize = 8;
    #[inline(always)]
    unsafe fn zero() -> Self::V {
        [0.0; 8]
    }
    #[inline(always)]
    unsafe fn splat(p: *const f32) -> Self::V {
        // SAFETY: the caller guarantees that `p` is valid.
        [unsafe { *p }; 8]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: the caller guarantees eight valid elements at `p`.
        unsafe { p.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: the caller guarantees eight valid elements at `p`.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_partial(p: *const f32, n: usize) -> Self::V {
        let mut v = [0.0; 8];
        // SAFETY: the caller guarantees `n < 8` valid elements at `p`.
        unsafe { p.copy_to_nonoverlapping(v.as_mut_ptr(), n) };
        v
    }
    #[inline(always)]
    unsafe fn store_partial(p: *mut f32, v: Self::V, n: usize) {
        // SAFETY: the caller guarantees `n < 8` valid elements at `p`.
        unsafe { p.copy_from_nonoverlapping(v.as_ptr(), n) };
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, mut c: Self::V) -> Self::V {
        for i in 0..8 {
            c[i] = fma_scalar(a[i], b[i], c[i]);
        }
        c
    }
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const f32) {}
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Simd;
    #[allow(clippy::wildcard_imports, reason = "dozens of intrinsics")]
    use core::arch::x86_64::*;

    /// AVX2 and FMA registers.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2;

    /// AVX-512 registers.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512;

    /// Defines a method whose body is one unsafe expression.
    macro_rules! method {
        ($($name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? = $body:expr;)*) => {$(
            #[inline(always)]
            unsafe fn $name($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller guarantees the target features and valid pointers.
                unsafe { $body }
            }
        )*};
    }

    /// Returns the lane mask of a partial AVX2 access, read from a window of ones and zeros.
    #[inline(always)]
    unsafe fn mask_avx2(n: usize) -> __m256i {
        const WINDOW: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
        debug_assert!(n <= 8);
        // SAFETY: `n <= 8`, so the eight elements from `8 - n` lie within the window.
        unsafe { _mm256_loadu_si256(WINDOW.as_ptr().add(8 - n).cast()) }
    }

    impl Simd for Avx2 {
        type V = __m256;
        const LANES: usize = 8;
        method! {
            zero() -> __m256 = _mm256_setzero_ps();
            splat(p: *const f32) -> __m256 = _mm256_set1_ps(*p);
            load(p: *const f32) -> __m256 = _mm256_loadu_ps(p);
            store(p: *mut f32, v: __m256) = _mm256_storeu_ps(p, v);
            load_partial(p: *const f32, n: usize) -> __m256 = _mm256_maskload_ps(p, mask_avx2(n));
            store_partial(p: *mut f32, v: __m256, n: usize) = _mm256_maskstore_ps(p, mask_avx2(n), v);
            fma(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
            sum(v: __m256) -> f32 = {
                let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
            };
            prefetch(p: *const f32) = _mm_prefetch::<_MM_HINT_ET0>(p.cast());
        }
    }

    impl Simd for Avx512 {
        type V = __m512;
        const LANES: usize = 16;
        method! {
            zero() -> __m512 = _mm512_setzero_ps();
            splat(p: *const f32) -> __m512 = _mm512_set1_ps(*p);
            load(p: *const f32) -> __m512 = _mm512_loadu_ps(p);
            store(p: *mut f32, v: __m512) = _mm512_storeu_ps(p, v);
            load_partial(p: *const f32, n: usize) -> __m512 =
                _mm512_maskz_loadu_ps((1 << n) - 1, p);
            store_partial(p: *mut f32, v: __m512, n: usize) =
                _mm512_mask_storeu_ps(p, (1 << n) - 1, v);
            fma(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
            sum(v: __m512) -> f32 = {
                let high = _mm512_extractf32x8_ps::<1>(v);
                Avx2::sum(_mm256_add_ps(_mm512_castps512_ps256(v), high))
            };
            prefetch(p: *const f32) = _mm_prefetch::<_MM_HINT_ET0>(p.cast());
        }
    }
}
