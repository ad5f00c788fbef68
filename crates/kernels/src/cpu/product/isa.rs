//! Detection of the instruction sets that the kernels can use.

use std::sync::OnceLock;

/// An instruction set level; each level includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust that the compiler vectorises for the baseline of the target (SSE2, NEON).
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with the int8 dot products (VNNI).
    Avx512Vnni,
    /// AVX-512 with VNNI and the bf16 dot products.
    Avx512Bf16,
}

impl Isa {
    /// All levels, lowest first.
    pub const ALL: [Self; 5] = [
        Self::Portable,
        Self::Avx2,
        Self::Avx512,
        Self::Avx512Vnni,
        Self::Avx512Bf16,
    ];

    /// The highest level of this machine; detected once.
    pub fn detect() -> Self {
        static LEVEL: OnceLock<Isa> = OnceLock::new();
        *LEVEL.get_or_init(detect)
    }

    /// The levels that this machine can run.
    pub fn available() -> impl Iterator<Item = Self> {
        let top = Self::detect();
        Self::ALL.into_iter().filter(move |&isa| isa <= top)
    }

    /// This level, or the machine's highest where that is lower.
    ///
    /// Every dispatch goes through here, so that a level asked for by a caller can never reach
    /// an instruction that the machine lacks.
    pub(crate) fn clamp_to_machine(self) -> Self {
        self.min(Self::detect())
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Isa {
    if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")) {
        return Isa::Portable;
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
    Isa::Portable
}
