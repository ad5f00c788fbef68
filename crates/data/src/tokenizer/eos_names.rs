//! Names by which EOS tokens are recognized where no file declares them.

/// Names of EOS tokens; document ends come before chat turn ends.
pub(super) const EOS_NAMES: &[&str] = &[
    "<EOS>",
    "<eos>",
    "[EOS]",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<｜end▁of▁sentence｜>",
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<|return|>",
];

/// Special tokens whose names contain one of these are not EOS tokens.
const NOT_EOS: &[&str] = &[
    "unk", "pad", "bos", "mask", "cls", "sep", "start", "begin", "<s>",
];

/// Whether a token with this name usually ends a text. Use it only where no file says which token does.
///
/// ```
/// assert!(nextword_data::is_eos_name("<|endoftext|>") && !nextword_data::is_eos_name("<|user|>"));
/// ```
pub fn is_eos_name(name: &str) -> bool {
    EOS_NAMES.contains(&name)
}

/// Whether a special token with this name cannot be an EOS token.
pub(crate) fn is_non_eos_name(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    !EOS_NAMES.contains(&name) && NOT_EOS.iter().any(|part| lower.contains(part))
}
