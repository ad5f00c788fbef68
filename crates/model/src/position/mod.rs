//! How the model knows a token's place: added encodings, turned queries and keys, or biased scores.

mod alibi;
mod rotary;
mod sinusoidal;

use serde::{Deserialize, Serialize};

pub use alibi::alibi_slopes;
pub(crate) use rotary::Rotation;
pub use rotary::{RotaryConfig, RotaryScaling};
pub(crate) use sinusoidal::sinusoidal_table;

/// How the model knows a token's place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Position {
    /// Fixed sine and cosine waves, added to the embedding (Vaswani et al. 2017).
    Sinusoidal,
    /// A learned vector for each place, added to the embedding (GPT-2).
    #[default]
    Learned,
    /// Queries and keys are turned by angles that grow with the place (Su et al. 2021,
    /// arXiv 2104.09864), in the rotate-half layout of Llama and Hugging Face.
    Rotary,
    /// Scores fall linearly with distance (Press et al. 2021, arXiv 2108.12409).
    Alibi,
    /// Nothing but the causal mask (Kazemnejad et al. 2023, arXiv 2305.19466).
    None,
}
