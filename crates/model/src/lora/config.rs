//! The settings of an adapter, with the names that PEFT gives them.

use serde::{Deserialize, Serialize};

use crate::ModelError;

/// The names in [`LoraConfig::modules_to_save`].
pub const SAVED_MODULES: [&str; 3] = ["token_embedding", "head", "norms"];

/// How an adapter is made.
///
/// ```
/// use nextword_model::{LoraConfig, presets};
///
/// let config = LoraConfig { rank: 8, ..LoraConfig::default() };
/// let model = presets::gpt2(12, 12, 768);
/// let modules = config.modules(&model)?;
/// assert_eq!(modules.len(), 12 * 6); // all matrices of the blocks
/// assert_eq!(modules[0], ("blocks.0.attention.query".to_owned(), [768, 768]));
/// assert_eq!(config.scale(), 4.0); // alpha / rank
/// # Ok::<(), nextword_model::ModelError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Columns of `A` and rows of `B`.
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: f64,
    /// Probability of dropping an input of the adapter in training.
    pub dropout: f64,
    /// The linear layers with an adapter.
    pub target_modules: TargetModules,
    /// First and last block with an adapter; `None` means all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<[usize; 2]>,
    /// Whether the scale is `alpha / sqrt(rank)` (Kalajdzievski 2023, arXiv 2312.03732) instead of `alpha / rank`.
    pub use_rslora: bool,
    /// Whether magnitudes are trained besides (`DoRA`, Liu et al. 2024, arXiv 2402.09353).
    pub use_dora: bool,
    /// Parts of the model of which a full copy is trained: `token_embedding`, `head`, `norms`.
    pub modules_to_save: Vec<String>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            target_modules: TargetModules::AllLinear,
            layers: None,
            use_rslora: false,
            use_dora: false,
            modules_to_save: Vec::new(),
        }
    }
}

/// Which linear layers get an adapter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Names", into = "Names")]
pub enum TargetModules {
    /// `"all-linear"`: all matrices of the blocks.
    #[default]
    AllLinear,
    /// `"attention"`: query, key, value and output.
    Attention,
    /// `"feed-forward"`: gate, up and down.
    FeedForward,
    /// A list of layers. Models without one of them are adapted without it.
    List(Vec<TargetModule>),
}

/// A linear layer of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TargetModule {
    /// `query`.
    Query,
    /// `key`.
    Key,
    /// `value`.
    Value,
    /// `output`: attention's output projection.
    Output,
    /// `gate` of gated feed-forward layers.
    Gate,
    /// `up`.
    Up,
    /// `down`.
    Down,
}

impl TargetModule {
    /// All linear layers of a block, in the order of the forward pass.
    pub const ALL: [Self; 7] = [
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Output,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];

    /// The last part of the layer's path.
    pub fn name(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Key => "key",
            Self::Value => "value",
            Self::Output => "output",
            Self::Gate => "gate",
            Self::Up => "up",
            Self::Down => "down",
        }
    }

    /// The layer with this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|module| module.name() == name)
    }

    fn is_attention(self) -> bool {
        matches!(self, Self::Query | Self::Key | Self::Value | Self::Output)
    }
}

impl TargetModules {
    /// Whether a layer gets an adapter.
    pub fn contains(&self, module: TargetModule) -> bool {
        match self {
            Self::AllLinear => true,
            Self::Attention => module.is_attention(),
            Self::FeedForward => !module.is_attention(),
            Self::List(list) => list.contains(&module),
        }
    }
}

/// Target modules in a file: one name or a list of names.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Names {
    One(String),
    Many(Vec<String>),
}

impl From<TargetModules> for Names {
    fn from(modules: TargetModules) -> Self {
        match modules {
            TargetModules::AllLinear => Self::One("all-linear".to_string()),
            TargetModules::Attention => Self::One("attention".to_string()),
            TargetModules::FeedForward => Self::One("feed-forward".to_string()),
            TargetModules::List(list) => {
                Self::Many(list.iter().map(|m| m.name().to_string()).collect())
            }
        }
    }
}

impl TryFrom<Names> for TargetModules {
    type Error = String;

    fn try_from(names: Names) -> Result<Self, String> {
        let list = match names {
            Names::One(name) => match name.as_str() {
                "all-linear" => return Ok(Self::AllLinear),
                "attention" => return Ok(Self::Attention),
                "feed-forward" => return Ok(Self::FeedForward),
                _ => vec![name],
            },
            Names::Many(list) => list,
        };
        let named = |name: String| {
            TargetModule::named(&name).ok_or_else(|| {
                let known = TargetModule::ALL.map(TargetModule::name).join(", ");
                format!(
                    "`{name}` is not a target module; hint: use \"all-linear\", \"attention\", \"feed-forward\", or a \
                     list of {known}"
                )
            })
        };
        let modules = list.into_iter().map(named);
        Ok(Self::List(modules.collect::<Result<_, _>>()?))
    }
}

impl LoraConfig {
    /// The factor on `A B`.
    pub fn scale(&self) -> f64 {
        if self.use_rslora {
            self.alpha / (self.rank as f64).sqrt()
        } else {
            self.alpha / self.rank as f64
        }
    }

    /// Checks the values that do not depend on a model.
    ///
    /// # Errors
    /// [`ModelError::Lora`] with the key.
    pub fn validate(&self) -> Result<(), ModelError> {
        if self.rank == 0 {
            let hint = "use 8 or 16; larger for more data";
            return Err(ModelError::lora("rank", "0 is not a rank", hint));
        }
        if !self.alpha.is_finite() || self.alpha <= 0.0 {
            let problem = format!("{} is not a positive number", self.alpha);
            return Err(ModelError::lora("alpha", problem, "use twice the rank"));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let problem = format!("{} is not a valid dropout rate", self.dropout);
            let hint = "use a value of at least 0.0 and less than 1.0";
            return Err(ModelError::lora("dropout", problem, hint));
        }
        let mut saved = self.modules_to_save.iter();
        if let Some(name) = saved.find(|name| !SAVED_MODULES.contains(&name.as_str())) {
            let problem = format!("`{name}` is not a part of which a copy can be trained");
            let hint = format!("use some of {}", SAVED_MODULES.join(", "));
            return Err(ModelError::lora("modules_to_save", problem, hint));
        }
        Ok(())
    }
}
