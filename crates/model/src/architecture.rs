//! Which stacks of blocks a model has, and which positions its tokens attend to.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The stacks of a model and their attention masks. All stacks consist of the same
/// [`Block`](crate::Block).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// One stack with a causal mask (Radford et al. 2018, GPT).
    #[default]
    Decoder,
    /// One stack whose prompt is bidirectional and whose continuation is causal (Raffel et al. 2020,
    /// arXiv 1910.10683, section 3.2.1).
    Prefix,
    /// One bidirectional stack that predicts masked tokens (Devlin et al. 2018, arXiv 1810.04805,
    /// BERT).
    Encoder,
    /// A bidirectional stack for the source, and a causal one with cross-attention for the target
    /// (Vaswani et al. 2017, arXiv 1706.03762).
    EncoderDecoder,
}

impl Architecture {
    /// The name in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Decoder => "decoder",
            Self::Prefix => "prefix",
            Self::Encoder => "encoder",
            Self::EncoderDecoder => "encoder_decoder",
        }
    }

    /// Whether the model generates text: all except encoders.
    pub fn generates(self) -> bool {
        self != Self::Encoder
    }

    /// Whether the configuration files of older versions have this architecture.
    #[allow(clippy::trivially_copy_pass_by_ref)] // Serde's signature.
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
