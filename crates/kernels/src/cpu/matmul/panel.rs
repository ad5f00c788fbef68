//! The layout of packed panels, which operands are copied to before a product.

/// Shape and element format of the panels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PanelLayout {
    /// Number of rows or columns in a full panel.
    pub(crate) width: usize,
    /// The last panel is zero-padded to a multiple of this.
    pub(crate) pad: usize,
    pub(crate) format: Format,
}

/// Content of a 32-bit word of a packed panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// One f32 element.
    F32,
    /// Two bf16 elements adjacent along k, the first in the lower half.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(dead_code, reason = "only x86-64 kernels use pairs")
    )]
    Bf16Pair,
}

impl Format {
    /// Returns the number of elements along k in a word.
    pub(crate) fn elements_per_word(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16Pair => 2,
        }
    }
}
