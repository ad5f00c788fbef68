//! Position encodings: added to embeddings, applied to queries and keys, or added to scores.

mod alibi;
mod rotary;
mod sinusoidal;

use serde::{Deserialize, Serialize};

pub use alibi::alibi_slopes;
pub(crate) use rotary::Rope;
pub use rotary::{RotaryConfig, RotaryScaling};
pub(crate) use sinusoidal::sinusoidal_table;

/// How token positions are encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Position {
    /// Fixed sines and cosines, added to the embedding (Vaswani et al. 2017).
    Sinusoidal,
    /// A learned vector for each position, added to the embedding (GPT-2).
    #[default]
    Learned,
    /// `RoPE`: queries and keys are rotated by angles proportional to the position (Su et al. 2021,
    /// arXiv 2104.09864), in the rotate-half layout of Llama and Hugging Face.
    Rotary,
    /// `ALiBi`: scores fall linearly with distance (Press et al. 2021, arXiv 2108.12409).
    Alibi,
    /// No encoding: only the causal mask gives the order (Kazemnejad et al. 2023, arXiv 2305.19466).
    None,
}
