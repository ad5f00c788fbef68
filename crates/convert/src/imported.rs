//! The options and the result of an import.

use nextword_model::{ModelCard, ModelConfig, ModelOrigin};

/// What [`import_with`](crate::import_with) can do differently.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Where the files were downloaded, for the model's card.
    pub origin: Option<ModelOrigin>,
    /// Whether to write the quantized matrices of a GGUF file as floats, which can be trained further.
    pub dequantize: bool,
}

/// The result of an import.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The foreign `model_type`, or the architecture of a GGUF file.
    pub model_type: &'static str,
    /// The architecture.
    pub config: ModelConfig,
    /// The model card, with the special tokens.
    pub card: ModelCard,
    /// Whether the model has a chat template.
    pub has_chat_template: bool,
    /// The EOS token, if no file declares one, so that it was guessed by its name.
    pub guessed_eos: Option<String>,
    /// The EOS ids in the files that the vocabulary does not have, so that they are left out.
    pub eos_outside_vocabulary: Vec<u32>,
}
