//! The settings of an adapter, with the names that PEFT gives them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::weights::layout;
use crate::{ModelConfig, ModelError};

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
    fn named(name: &str) -> Option<Self> {
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

/// The linear layers of the blocks of `config`: paths without `.weight`, and shapes, `[d_in, d_out]`.
pub fn linear_modules(config: &ModelConfig) -> Vec<(String, [usize; 2])> {
    let matrices = layout(config).into_iter().filter_map(|(name, shape)| {
        let name = name.strip_suffix(".weight")?;
        let [d_in, d_out] = shape[..].try_into().ok()?;
        let is_in_block = name.starts_with("blocks.");
        is_in_block.then(|| (name.to_string(), [d_in, d_out]))
    });
    matrices.collect()
}

/// The parameters of `config` of which an adapter may have a full copy, and their shapes: all except the matrices
/// that get low-rank updates.
pub(super) fn copyable_parameters(config: &ModelConfig) -> BTreeMap<String, Vec<usize>> {
    let mut parameters: BTreeMap<_, _> = layout(config).into_iter().collect();
    for (name, _) in linear_modules(config) {
        parameters.remove(&format!("{name}.weight"));
    }
    parameters
}

/// The block and the kind of the linear layer `name`.
fn parts(name: &str) -> Option<(usize, TargetModule)> {
    let layer = name.strip_prefix("blocks.")?.split('.').next()?;
    let module = TargetModule::named(name.rsplit('.').next()?)?;
    Some((layer.parse().ok()?, module))
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

    /// The linear layers of `config` that get an adapter: paths and shapes, `[d_in, d_out]`.
    ///
    /// # Errors
    /// [`ModelError::Lora`] if a value is invalid, no layer is selected, or the rank exceeds a dimension of one.
    pub fn modules(&self, config: &ModelConfig) -> Result<Vec<(String, [usize; 2])>, ModelError> {
        self.validate()?;
        let [first, last] = self
            .layers
            .unwrap_or([0, config.n_layers.saturating_sub(1)]);
        if first > last || last >= config.n_layers {
            let problem = format!("[{first}, {last}] is not a range of blocks");
            let hint = format!(
                "the first and the last block of {}, counted from 0",
                config.n_layers
            );
            return Err(ModelError::lora("layers", problem, hint));
        }
        let all = linear_modules(config);
        let is_target = |name: &str| {
            parts(name).is_some_and(|(layer, module)| {
                (first..=last).contains(&layer) && self.target_modules.contains(module)
            })
        };
        let targets = all.iter().filter(|(name, _)| is_target(name));
        let targets: Vec<_> = targets.cloned().collect();
        if targets.is_empty() {
            let known = TargetModule::ALL.into_iter().filter(|module| {
                all.iter()
                    .any(|(name, _)| parts(name).is_some_and(|(_, found)| found == *module))
            });
            let known: Vec<_> = known.map(TargetModule::name).collect();
            return Err(ModelError::lora(
                "target_modules",
                "the model has none of these layers",
                format!("its blocks have {}", known.join(", ")),
            ));
        }
        let mut limits = targets
            .iter()
            .map(|(name, [d_in, d_out])| (name, *d_in.min(d_out)));
        if let Some((name, limit)) = limits.find(|(_, limit)| self.rank > *limit) {
            let problem = format!(
                "{} exceeds the smaller dimension of `{name}`, {limit}",
                self.rank
            );
            return Err(ModelError::lora("rank", problem, "use a smaller rank"));
        }
        Ok(targets)
    }

    /// The parameters of `config` of which a full copy is trained: names and shapes as in a weights file.
    ///
    /// # Errors
    /// [`ModelError::Lora`] if the model does not have such a part.
    pub fn saved_parameters(
        &self,
        config: &ModelConfig,
    ) -> Result<Vec<(String, Vec<usize>)>, ModelError> {
        self.validate()?;
        let is_part = |part: &str, name: &str| match part {
            "norms" => name.contains("norm."),
            _ => name.split('.').next() == Some(part),
        };
        let layout = layout(config);
        for part in &self.modules_to_save {
            if part == "head" && config.tied_head {
                let problem = "the output layer shares the weights of the token embedding";
                let hint = "use token_embedding instead of head";
                return Err(ModelError::lora("modules_to_save", problem, hint));
            }
            if !layout.iter().any(|(name, _)| is_part(part, name)) {
                let problem = format!("the model does not have `{part}`");
                let hint = "leave it out";
                return Err(ModelError::lora("modules_to_save", problem, hint));
            }
        }
        let saved = layout
            .into_iter()
            .filter(|(name, _)| self.modules_to_save.iter().any(|part| is_part(part, name)));
        Ok(saved.collect())
    }

    /// Number of parameters of an adapter of a model of `config`.
    ///
    /// # Errors
    /// As [`modules`](Self::modules) and [`saved_parameters`](Self::saved_parameters).
    ///
    /// ```
    /// use nextword_model::{LoraConfig, TargetModules, presets};
    ///
    /// let target_modules = TargetModules::Attention;
    /// let config = LoraConfig { rank: 8, target_modules, ..LoraConfig::default() };
    /// let parameters = config.parameters(&presets::gpt2(12, 12, 768))?;
    /// assert_eq!(parameters, 12 * 4 * 8 * (768 + 768));
    /// # Ok::<(), nextword_model::ModelError>(())
    /// ```
    pub fn parameters(&self, config: &ModelConfig) -> Result<usize, ModelError> {
        let modules = self.modules(config)?.into_iter();
        let modules = modules.map(|(_, [d_in, d_out])| {
            self.rank * (d_in + d_out) + if self.use_dora { d_out } else { 0 }
        });
        let saved = self.saved_parameters(config)?.into_iter();
        let saved = saved.map(|(_, shape)| shape.iter().product::<usize>());
        Ok(modules.chain(saved).sum())
    }
}
