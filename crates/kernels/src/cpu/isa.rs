//! The instruction sets that the kernels are compiled for, and the one that they use.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// An instruction set of a CPU. Those of one architecture are ordered: each includes all lower ones.
///
/// # Examples
/// ```
/// use nextword_kernels::Isa;
///
/// assert_eq!("avx2".parse(), Ok(Isa::Avx2));
/// assert!(Isa::Scalar <= Isa::current());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, auto-vectorized for the target's baseline (SSE2, NEON).
    Scalar,
    /// NEON, of 64-bit Arm.
    Neon,
    /// AVX2 with FMA, of x86-64.
    Avx2,
    /// AVX-512 F, BW, CD, DQ and VL.
    Avx512,
    /// AVX-512 with int8 dot products (VNNI).
    Avx512Vnni,
    /// AVX-512 with VNNI and bf16 dot products.
    Avx512Bf16,
}

/// The value of `NEXTWORD_SIMD` is not the name of an instruction set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownIsa(String);

impl Isa {
    /// Name of the environment variable that caps the instruction set.
    pub const VARIABLE: &str = "NEXTWORD_SIMD";

    /// All instruction sets, from lowest to highest.
    const ALL: [Self; 6] = [
        Self::Scalar,
        Self::Neon,
        Self::Avx2,
        Self::Avx512,
        Self::Avx512Vnni,
        Self::Avx512Bf16,
    ];

    /// Returns the instruction set that all kernels use: the machine's highest, or a lower one if
    /// `NEXTWORD_SIMD` names it. Detected once; an unknown name is ignored, and
    /// [`from_env`](Self::from_env) reports it.
    pub fn current() -> Self {
        static CURRENT: OnceLock<Isa> = OnceLock::new();
        *CURRENT.get_or_init(|| {
            let highest = detect();
            match Self::from_env() {
                Ok(Some(cap)) => highest.min(cap).available_up_to(),
                Ok(None) | Err(_) => highest,
            }
        })
    }

    /// Returns the instruction set that `NEXTWORD_SIMD` names; `None` if it is unset or empty.
    ///
    /// # Errors
    /// [`UnknownIsa`] if the value is not the [name](Self::name) of an instruction set.
    pub fn from_env() -> Result<Option<Self>, UnknownIsa> {
        match std::env::var_os(Self::VARIABLE) {
            None => Ok(None),
            Some(name) if name.is_empty() => Ok(None),
            Some(name) => name.to_string_lossy().parse().map(Some),
        }
    }

    /// The name of the instruction set: `scalar`, `neon`, `avx2`, `avx512`, `avx512vnni` or
    /// `avx512bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512vnni",
            Self::Avx512Bf16 => "avx512bf16",
        }
    }

    /// Returns the highest instruction set of this architecture that is not above `self`.
    fn available_up_to(self) -> Self {
        let exists = |isa: &Self| match isa {
            Self::Scalar => true,
            Self::Neon => cfg!(target_arch = "aarch64"),
            _ => cfg!(target_arch = "x86_64"),
        };
        let is_candidate = |isa: &Self| *isa <= self && exists(isa);
        let highest = Self::ALL.into_iter().rfind(is_candidate);
        highest.unwrap_or(Self::Scalar)
    }

    /// Returns the instruction sets that the kernels may use.
    #[cfg(test)]
    pub(crate) fn available() -> impl Iterator<Item = Self> {
        let current = Self::current();
        let lower = Self::ALL.into_iter().filter(move |isa| *isa <= current);
        lower.filter(|isa| isa.available_up_to() == *isa)
    }

    /// Returns the lower of this instruction set and the current one.
    ///
    /// Every selection of a kernel calls this, so a requested instruction set never leads to an
    /// unsupported instruction.
    pub(crate) fn clamp_to_current(self) -> Self {
        self.min(Self::current())
    }
}

impl FromStr for Isa {
    type Err = UnknownIsa;

    fn from_str(name: &str) -> Result<Self, UnknownIsa> {
        let same = |isa: &Self| isa.name().eq_ignore_ascii_case(name);
        let unknown = || UnknownIsa(name.to_string());
        Self::ALL.into_iter().find(same).ok_or_else(unknown)
    }
}

impl fmt::Display for UnknownIsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (value, names) = (&self.0, Isa::ALL.map(Isa::name).join(", "));
        write!(
            f,
            "unknown instruction set `{value}`; expected one of {names}"
        )
    }
}

impl std::error::Error for UnknownIsa {}

#[cfg(target_arch = "x86_64")]
fn detect() -> Isa {
    if !pulp::x86::V3::is_available() {
        Isa::Scalar
    } else if !pulp::x86::V4::is_available() || !is_x86_feature_detected!("f16c") {
        // To the compiler, `avx512f` includes `f16c`, which pulp does not check.
        Isa::Avx2
    } else if !is_x86_feature_detected!("avx512vnni") {
        Isa::Avx512
    } else if !is_x86_feature_detected!("avx512bf16") {
        Isa::Avx512Vnni
    } else {
        Isa::Avx512Bf16
    }
}

#[cfg(target_arch = "aarch64")]
fn detect() -> Isa {
    if pulp::aarch64::Neon::is_available() {
        Isa::Neon
    } else {
        Isa::Scalar
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detect() -> Isa {
    Isa::Scalar
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn names_parse_in_any_case_and_others_are_errors() {
        for isa in Isa::ALL {
            assert_eq!(isa.name().parse(), Ok(isa));
            assert_eq!(isa.name().to_uppercase().parse(), Ok(isa));
        }
        let error = "sse9".parse::<Isa>().unwrap_err().to_string();
        assert!(
            error.contains("`sse9`") && error.contains("avx2"),
            "{error}"
        );
    }

    #[test]
    fn environment_caps_the_current_instruction_set() {
        if let Ok(Some(cap)) = Isa::from_env() {
            assert!(Isa::current() <= cap);
        }
        assert!(Isa::available().any(|isa| isa == Isa::current()));
        assert!(Isa::available().any(|isa| isa == Isa::Scalar));
    }
}
