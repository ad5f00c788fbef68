//! Compiles each kernel for all instruction sets from one source.
//!
//! A kernel is a function generic over [`pulp::Simd`]; [`dispatch!`] compiles it once per
//! instruction set and selects the best one at run time. Multiplies and adds are fused where the
//! machine supports it, so results differ in the last bits between instruction sets, but never
//! between runs or thread counts on one machine.

use std::sync::OnceLock;

use pulp::{Scalar, Simd};

/// An instruction set available on this machine.
#[derive(Clone, Copy)]
pub(crate) enum Level {
    /// AVX-512: 16 lanes.
    #[cfg(target_arch = "x86_64")]
    V4(pulp::x86::V4),
    /// AVX2 and FMA: 8 lanes.
    #[cfg(target_arch = "x86_64")]
    V3(pulp::x86::V3),
    /// NEON: 4 lanes.
    #[cfg(target_arch = "aarch64")]
    Neon(pulp::aarch64::Neon),
    /// Portable scalar code.
    Scalar(Scalar),
}

/// The instruction set used by all kernels: the best available, or the one named by the environment
/// variable `NEXTWORD_SIMD` (`scalar`, `avx2`), which exists for tests.
pub(crate) fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let cap = std::env::var("NEXTWORD_SIMD").unwrap_or_default();
        detect(&cap)
    })
}

#[cfg(target_arch = "x86_64")]
fn detect(cap: &str) -> Level {
    if cap == "scalar" {
        return Level::Scalar(Scalar::new());
    }
    match pulp::x86::V4::try_new() {
        Some(simd) if cap != "avx2" => Level::V4(simd),
        _ => pulp::x86::V3::try_new().map_or(Level::Scalar(Scalar::new()), Level::V3),
    }
}

#[cfg(target_arch = "aarch64")]
fn detect(cap: &str) -> Level {
    match pulp::aarch64::Neon::try_new() {
        Some(simd) if cap != "scalar" => Level::Neon(simd),
        _ => Level::Scalar(Scalar::new()),
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detect(_cap: &str) -> Level {
    Level::Scalar(Scalar::new())
}

/// Name of the instruction set in use, for logs and benchmarks.
pub fn isa_name() -> &'static str {
    match level() {
        #[cfg(target_arch = "x86_64")]
        Level::V4(_) => "avx512",
        #[cfg(target_arch = "x86_64")]
        Level::V3(_) => "avx2",
        #[cfg(target_arch = "aarch64")]
        Level::Neon(_) => "neon",
        Level::Scalar(_) => "scalar",
    }
}

/// Defines `fn name(args)`, which runs `body(simd, args)` compiled for the best instruction set.
/// `body` must be generic over `S: Simd` and marked `#[inline(always)]`.
macro_rules! dispatch {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? => $body:path) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
            #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
            fn v4(simd: pulp::x86::V4, $($arg: $ty),*) $(-> $ret)? {
                $body(simd, $($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
            fn v3(simd: pulp::x86::V3, $($arg: $ty),*) $(-> $ret)? {
                $body(simd, $($arg),*)
            }
            match $crate::cpu::simd::level() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: a `V4` token exists only on machines with these instruction sets.
                $crate::cpu::simd::Level::V4(simd) => unsafe { v4(simd, $($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: a `V3` token exists only on machines with these instruction sets.
                $crate::cpu::simd::Level::V3(simd) => unsafe { v3(simd, $($arg),*) },
                #[cfg(target_arch = "aarch64")]
                $crate::cpu::simd::Level::Neon(simd) => $body(simd, $($arg),*),
                $crate::cpu::simd::Level::Scalar(simd) => $body(simd, $($arg),*),
            }
        }
    };
}
pub(crate) use dispatch;

/// Short names for register operations.
pub(crate) trait Ops: Simd {
    /// Number of f32 lanes in a register.
    const LANES: usize = Self::F32_LANES;

    /// A register of zeros.
    #[inline(always)]
    fn zero(self) -> Self::f32s {
        self.splat_f32s(0.0)
    }

    /// Loads a register from an unaligned address.
    ///
    /// # Safety
    /// `LANES` floats from `ptr` on must be readable.
    #[inline(always)]
    unsafe fn load(self, ptr: *const f32) -> Self::f32s {
        // SAFETY: the caller guarantees that `LANES` floats from `ptr` on are readable; any bit
        // pattern is a valid register.
        unsafe { ptr.cast::<Self::f32s>().read_unaligned() }
    }

    /// Stores a register to an unaligned address.
    ///
    /// # Safety
    /// `LANES` floats from `ptr` on must be writable.
    #[inline(always)]
    unsafe fn store(self, ptr: *mut f32, value: Self::f32s) {
        // SAFETY: the caller guarantees that `LANES` floats from `ptr` on are writable.
        unsafe { ptr.cast::<Self::f32s>().write_unaligned(value) }
    }

    /// `a * b + c`.
    #[inline(always)]
    fn fma(self, a: Self::f32s, b: Self::f32s, c: Self::f32s) -> Self::f32s {
        self.mul_add_e_f32s(a, b, c)
    }

    /// `a * b + c` with a scalar `c`, for polynomials.
    #[inline(always)]
    fn horner(self, a: Self::f32s, b: Self::f32s, c: f32) -> Self::f32s {
        self.mul_add_e_f32s(a, b, self.splat_f32s(c))
    }

    /// The lane indices 0, 1, 2 ... as floats.
    #[inline(always)]
    fn iota(self) -> Self::f32s {
        const STEPS: [f32; 64] = {
            let mut steps = [0.0; 64];
            let mut i = 0;
            while i < 64 {
                steps[i] = i as f32;
                i += 1;
            }
            steps
        };
        const { assert!(Self::LANES <= 64) };
        // SAFETY: `STEPS` has 64 elements, and no register has more lanes.
        unsafe { self.load(STEPS.as_ptr()) }
    }
}

impl<S: Simd> Ops for S {}

/// `for_lanes!(simd, len, |offset, part| body)` runs `body` for each register of `0..len`: `part` is
/// `None` for full registers, and the number of remaining elements for the last, partial one.
///
/// A macro rather than a function with a closure: closures cannot be forced inline, and an outlined
/// one would lose the instruction set and run about ten times slower.
macro_rules! for_lanes {
    ($simd:expr, $len:expr, |$offset:ident, $part:ident| $body:expr) => {{
        let (lanes, len): (usize, usize) = ($crate::cpu::simd::lanes($simd), $len);
        let mut next = 0;
        while next + lanes <= len {
            let ($offset, $part) = (next, None::<usize>);
            $body;
            next += lanes;
        }
        if next < len {
            let ($offset, $part) = (next, Some(len - next));
            $body;
        }
    }};
}
pub(crate) use for_lanes;

/// Number of f32 lanes in a register.
#[inline(always)]
pub(crate) fn lanes<S: Simd>(_: S) -> usize {
    S::LANES
}

/// Loads a full or partial register (missing lanes are 0).
///
/// # Safety
/// `part` (or `LANES`) floats from `from + offset` on must be readable.
#[inline(always)]
pub(crate) unsafe fn load_part<S: Simd>(
    s: S,
    from: *const f32,
    offset: usize,
    part: Option<usize>,
) -> S::f32s {
    // SAFETY: the caller guarantees that the `part` (or `LANES`) floats read are valid.
    unsafe {
        match part {
            None => s.load(from.add(offset)),
            Some(n) => s.partial_load_f32s(std::slice::from_raw_parts(from.add(offset), n)),
        }
    }
}

/// Stores a full or partial register.
///
/// # Safety
/// `part` (or `LANES`) floats from `to + offset` on must be writable.
#[inline(always)]
pub(crate) unsafe fn store_part<S: Simd>(
    s: S,
    to: *mut f32,
    offset: usize,
    part: Option<usize>,
    value: S::f32s,
) {
    // SAFETY: the caller guarantees that the `part` (or `LANES`) floats written are valid.
    unsafe {
        match part {
            None => s.store(to.add(offset), value),
            Some(n) => {
                s.partial_store_f32s(std::slice::from_raw_parts_mut(to.add(offset), n), value);
            }
        }
    }
}

/// Sets the lanes beyond the end of a partial register to 0.
#[inline(always)]
pub(crate) fn zero_tail<S: Simd>(s: S, value: S::f32s, part: Option<usize>) -> S::f32s {
    fill_tail(s, value, s.zero(), part)
}

/// Replaces the lanes beyond the end of a partial register by those of `fill`.
#[inline(always)]
pub(crate) fn fill_tail<S: Simd>(
    s: S,
    value: S::f32s,
    fill: S::f32s,
    part: Option<usize>,
) -> S::f32s {
    match part {
        None => value,
        Some(n) => {
            let inside = s.less_than_f32s(s.iota(), s.splat_f32s(n as f32));
            s.select_f32s(inside, value, fill)
        }
    }
}
