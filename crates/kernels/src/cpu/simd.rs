//! Compiles each kernel for all instruction sets from one source.
//!
//! A kernel is a function generic over [`pulp::Simd`]; [`dispatch!`] compiles it once per
//! instruction set and selects the best one at run time. Multiplies and adds are fused where the
//! machine supports it, so results differ in the last bits between instruction sets, but never
//! between runs or thread counts on one machine.

use std::any::TypeId;
use std::sync::OnceLock;

use pulp::{Scalar, Scalar256b, Simd};

use super::isa::Isa;

/// The instruction set of a kernel, as the type that selects pulp's implementation. It does not
/// distinguish the extensions of AVX-512, which only matrix products use.
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

/// The level of [`Isa::current`].
pub(crate) fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| Level::new(Isa::current()))
}

impl Level {
    fn new(isa: Isa) -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if isa >= Isa::Avx512
                && let Some(simd) = pulp::x86::V4::try_new()
            {
                return Self::V4(simd);
            }
            if isa >= Isa::Avx2
                && let Some(simd) = pulp::x86::V3::try_new()
            {
                return Self::V3(simd);
            }
        }
        #[cfg(target_arch = "aarch64")]
        if isa >= Isa::Neon
            && let Some(simd) = pulp::aarch64::Neon::try_new()
        {
            return Self::Neon(simd);
        }
        let _ = isa;
        Self::Scalar(Scalar::new())
    }
}

/// Returns the token of an instruction set, in a function that is compiled for it.
///
/// # Safety
/// The machine must support the instruction set.
#[inline(always)]
pub(crate) unsafe fn token<S: Simd>() -> S {
    const { assert!(size_of::<S>() == 0, "tokens have no data") };
    // SAFETY: a type without data has one value, and the caller guarantees what it stands for.
    unsafe { std::mem::zeroed() }
}

/// Defines `fn name(args)`, which runs `body(simd, args)` compiled for the best instruction set.
/// `body` must be generic over `S: Simd` and marked `#[inline(always)]`.
///
/// With `unsafe fn name(args)`, `body` is unsafe too, and its contract is that of `name`.
macro_rules! dispatch {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? => $body:path) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            $crate::cpu::simd::dispatch!(@ {} $body, [$($arg: $ty),*], [$($ret)?])
        }
    };
    ($(#[$meta:meta])* $vis:vis unsafe fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? => $body:path) => {
        $(#[$meta])*
        $vis unsafe fn $name($($arg: $ty),*) $(-> $ret)? {
            $crate::cpu::simd::dispatch!(@ {unsafe} $body, [$($arg: $ty),*], [$($ret)?])
        }
    };
    (@ {$($unsafe:tt)?} $body:path, [$($arg:ident: $ty:ty),*], [$($ret:ty)?]) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
        #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
        $($unsafe)? fn v4(simd: pulp::x86::V4, $($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the caller upholds the contract of the body.
            $($unsafe)? { $body(simd, $($arg),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
        $($unsafe)? fn v3(simd: pulp::x86::V3, $($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the caller upholds the contract of the body.
            $($unsafe)? { $body(simd, $($arg),*) }
        }
        match $crate::cpu::simd::level() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `V4` token exists only on machines with these instruction sets.
            $crate::cpu::simd::Level::V4(simd) => unsafe { v4(simd, $($arg),*) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `V3` token exists only on machines with these instruction sets.
            $crate::cpu::simd::Level::V3(simd) => unsafe { v3(simd, $($arg),*) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: the caller upholds the contract of the body.
            $crate::cpu::simd::Level::Neon(simd) => $($unsafe)? { $body(simd, $($arg),*) },
            // SAFETY: the caller upholds the contract of the body.
            $crate::cpu::simd::Level::Scalar(simd) => $($unsafe)? { $body(simd, $($arg),*) },
        }
    }};
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

    /// `a * b + c`, fused if the instruction set has an instruction for it.
    #[inline(always)]
    fn fma(self, a: Self::f32s, b: Self::f32s, c: Self::f32s) -> Self::f32s {
        // For arrays, pulp always fuses; without an instruction, that is a slow library call.
        let is_array = TypeId::of::<Self>() == TypeId::of::<Scalar256b>();
        if is_array && !cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
            return self.add_f32s(self.mul_f32s(a, b), c);
        }
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

/// Prefetches the cache line of `ptr`, which need not be valid, for writing.
#[inline(always)]
pub(crate) fn prefetch(ptr: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch accepts any address, and SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_ET0 }>(ptr.cast());
    }
    let _ = ptr;
}

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
