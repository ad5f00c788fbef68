//! Detection of the CPU's instruction sets.

use std::sync::OnceLock;

/// An instruction set level. Each level includes all lower ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, auto-vectorized for the target's baseline (SSE2, NEON).
    Scalar,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with int8 dot products (VNNI).
    Avx512Vnni,
    /// AVX-512 with VNNI and bf16 dot products.
    Avx512Bf16,
}

impl Isa {
    /// All levels, from lowest to highest.
    pub const ALL: [Self; 5] = [
        Self::Scalar,
        Self::Avx2,
        Self::Avx512,
        Self::Avx512Vnni,
        Self::Avx512Bf16,
    ];

    /// Returns the highest level of this machine, detected once.
    pub fn detect() -> Self {
        static LEVEL: OnceLock<Isa> = OnceLock::new();
        *LEVEL.get_or_init(detect)
    }

    /// Returns the levels supported by this machine.
    pub fn available() -> impl Iterator<Item = Self> {
        let highest = Self::detect();
        Self::ALL.into_iter().filter(move |&isa| isa <= highest)
    }

    /// Returns the lower of this level and the machine's highest.
    ///
    /// Every dispatch calls this, so a requested level never leads to an unsupported
    /// instruction.
    pub(crate) fn clamp_to_machine(self) -> Self {
        self.min(Self::detect())
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Isa {
    if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")) {
        return Isa::Scalar;
    }
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    if !avx512 {
        return Isa::Avx2;
    }
    if !is_x86_feature_detected!("avx512vnni") {
        return Isa::Avx512;
    }
    if is_x86_feature_detected!("avx512bf16") {
        Isa::Avx512Bf16
    } else {
        Isa::Avx512Vnni
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Isa {
    Isa::Scalar
}
