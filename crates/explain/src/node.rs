//! The operations of the forward pass.

use nextword_model::{Architecture, FeedForwardKind};
use serde::{Deserialize, Serialize};

/// Begins the names of tensors and weights of the encoder in encoder-decoder models.
pub(crate) const ENCODER: &str = "encoder.";

/// The meaning of a tensor axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// Token positions; query positions where the tensor also has a key axis.
    Position,
    /// Key positions.
    Key,
    /// Attention heads (key/value heads for keys and values).
    Head,
    /// Elements of a token's vector.
    Dim,
    /// Tokens of the vocabulary.
    Token,
}

impl Axis {
    /// Its name in an address. `square` is whether the tensor has both a query and a key axis.
    pub fn name(self, square: bool) -> &'static str {
        match self {
            Self::Position if square => "query",
            Self::Position => "position",
            Self::Key => "key",
            Self::Head => "head",
            Self::Dim => "dim",
            Self::Token => "token",
        }
    }
}

/// Which tokens the rows of a tensor belong to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// The input of the only stack, or of the decoder.
    #[default]
    Target,
    /// The input of the encoder in encoder-decoder models.
    Source,
}

impl Input {
    #[allow(clippy::trivially_copy_pass_by_ref)] // Serde's signature.
    fn is_target(&self) -> bool {
        *self == Self::Target
    }
}

/// The attention that a head belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionKind {
    /// Self-attention of the only stack, or of the decoder.
    #[default]
    SelfAttention,
    /// Self-attention of the encoder in encoder-decoder models.
    Encoder,
    /// Attention of the decoder to the encoder's output.
    Cross,
}

impl AttentionKind {
    /// The attention that `node` is part of.
    pub fn of(node: &Node) -> Self {
        if node.is_in_encoder() {
            Self::Encoder
        } else if node.is_cross() {
            Self::Cross
        } else {
            Self::SelfAttention
        }
    }

    #[allow(clippy::trivially_copy_pass_by_ref)] // Serde's signature.
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::SelfAttention
    }
}

/// Number of tokens of each input of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// Tokens of the only stack, or of the decoder.
    pub target: usize,
    /// Tokens of the encoder in encoder-decoder models; without effect in others.
    pub source: usize,
    /// Tokens of the prompt in prefix models, which see each other; without effect in others.
    pub prompt: usize,
}

impl From<usize> for Lengths {
    /// A prompt of `count` tokens, without completion.
    fn from(count: usize) -> Self {
        Self {
            target: count,
            source: count,
            prompt: count,
        }
    }
}

impl Lengths {
    /// The number of tokens of `input`.
    pub fn of(self, input: Input) -> usize {
        match input {
            Input::Target => self.target,
            Input::Source => self.source,
        }
    }
}

/// How one tensor is computed from others. `input` and the like name tensors of the same graph;
/// `weight`, `bias` and `table` name parameters of the model.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[allow(missing_docs)] // The field names are self-explanatory.
pub enum Op {
    /// The table's row of each token id, times the scale if there is one.
    Embed { table: String, scale: Option<f64> },
    /// The table's row of each position.
    #[serde(rename = "places")]
    LearnedPositions { table: String },
    /// `sin` and `cos` of the position times a frequency.
    #[serde(rename = "waves")]
    Sinusoidal,
    /// The same values under another name.
    Copy {
        #[serde(rename = "of")]
        input: String,
    },
    /// `a + b`.
    Add { a: String, b: String },
    /// `a + scale * b`: the output of a linear layer, and the update that its adapter adds.
    AddScaled { a: String, b: String, scale: f64 },
    /// Normalization over the last axis. `centered` subtracts the mean first; with `unit_offset` the
    /// factor is `1 + weight`.
    Norm {
        #[serde(rename = "of")]
        input: String,
        centered: bool,
        eps: f64,
        weight: String,
        unit_offset: bool,
        bias: Option<String>,
    },
    /// `x W + b`. `heads` splits the result into heads; `transposed` reads `W` as `[out, in]`.
    Linear {
        #[serde(rename = "of")]
        input: String,
        weight: String,
        bias: Option<String>,
        heads: Option<usize>,
        transposed: bool,
    },
    /// The concatenated heads, then `x W + b` if there is a weight.
    #[serde(rename = "join")]
    OutputProjection {
        #[serde(rename = "of")]
        input: String,
        weight: Option<String>,
        bias: Option<String>,
    },
    /// Pairs of elements rotated by the position times their frequency. Elements beyond the pairs are
    /// unchanged.
    #[serde(rename = "turn")]
    Rope {
        #[serde(rename = "of")]
        input: String,
        frequencies: Vec<f64>,
    },
    /// `q . k * scale`, and minus infinity where masked. `default_scale`: the scale is `1 / sqrt(d)`.
    /// `causal`: later tokens are masked, except among the first `prefix` ones; otherwise no token is. With a
    /// window, tokens at that distance or more are masked.
    /// With a cap: `cap * tanh(x / cap)`. With slopes (`ALiBi`): minus slope times distance.
    Scores {
        q: String,
        k: String,
        scale: f64,
        #[serde(rename = "usual")]
        default_scale: bool,
        cap: Option<f64>,
        causal: bool,
        #[serde(skip_serializing_if = "is_zero")]
        prefix: usize,
        window: Option<usize>,
        slopes: Vec<f64>,
    },
    /// `e^x` divided by the sum over the last axis.
    Softmax {
        #[serde(rename = "of")]
        input: String,
    },
    /// Sum of the values, each times its attention weight.
    #[serde(rename = "mix")]
    WeightedSum { pattern: String, v: String },
    /// An activation function, elementwise.
    Activate {
        #[serde(rename = "of")]
        input: String,
        function: ActivationFn,
    },
    /// `function(gate) * up`.
    Gate {
        gate: String,
        up: String,
        function: ActivationFn,
    },
    /// `cap * tanh(x / cap)`.
    #[serde(rename = "cap")]
    SoftCap {
        #[serde(rename = "of")]
        input: String,
        cap: f64,
    },
}

#[allow(clippy::trivially_copy_pass_by_ref)] // Serde's signature.
fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Op {
    /// Whether a query attends to a key, both by their positions. True for operations other than scores.
    pub fn is_visible(&self, query: usize, key: usize) -> bool {
        let Self::Scores {
            causal,
            prefix,
            window,
            ..
        } = self
        else {
            return true;
        };
        let in_order = !causal || key <= query || query.max(key) < *prefix;
        in_order && window.is_none_or(|window| query.abs_diff(key) < window)
    }
}

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationFn {
    /// `x Phi(x)`.
    Gelu,
    /// GELU by its tanh approximation.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)^2`.
    ReluSquared,
    /// `x sigmoid(x)`.
    Silu,
}

impl ActivationFn {
    /// The activation function of a feed-forward layer.
    pub(crate) fn from_kind(kind: FeedForwardKind) -> Self {
        match kind {
            FeedForwardKind::None | FeedForwardKind::Gelu | FeedForwardKind::Geglu => Self::Gelu,
            FeedForwardKind::GeluTanh | FeedForwardKind::GegluTanh => Self::GeluTanh,
            FeedForwardKind::Relu => Self::Relu,
            FeedForwardKind::ReluSquared => Self::ReluSquared,
            FeedForwardKind::Silu | FeedForwardKind::Swiglu => Self::Silu,
        }
    }

    /// The function's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_tanh",
            Self::Relu => "relu",
            Self::ReluSquared => "relu²",
            Self::Silu => "silu",
        }
    }
}

/// A tensor of the forward pass and how it is computed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Node {
    /// Name as in `TransformerLens`.
    pub name: String,
    /// The block of its stack; `None` outside of blocks.
    pub layer: Option<usize>,
    /// The tokens that its rows (positions or queries) belong to.
    #[serde(skip_serializing_if = "Input::is_target")]
    pub rows: Input,
    /// The tokens that its keys belong to, if it has a key axis.
    #[serde(skip_serializing_if = "Input::is_target")]
    pub keys: Input,
    /// The architecture of the model.
    #[serde(skip)]
    pub architecture: Architecture,
    /// How it is computed from others.
    pub op: Op,
    /// Meaning of each axis.
    pub axes: Vec<Axis>,
    /// Length of each axis.
    pub shape: Vec<usize>,
    /// Whether the forward pass reports this tensor to probes. All other tensors are computed from
    /// reported ones.
    #[serde(rename = "seen")]
    pub observed: bool,
}

impl Node {
    /// Whether it is part of cross-attention, between queries of the decoder and the encoder's output.
    pub fn is_cross(&self) -> bool {
        self.name.contains("cross_attn") || self.name.contains("ln_cross")
    }

    /// Whether it is part of the encoder of an encoder-decoder model.
    pub fn is_in_encoder(&self) -> bool {
        self.name.starts_with(ENCODER)
    }

    /// Whether the tokens of its stack see each other in both directions.
    pub fn is_bidirectional(&self) -> bool {
        self.is_in_encoder() || self.architecture == Architecture::Encoder
    }

    /// Whether it has both a query and a key axis.
    pub fn is_square(&self) -> bool {
        self.axes.contains(&Axis::Key)
    }

    /// Name of each axis in an address.
    pub fn axis_names(&self) -> Vec<&'static str> {
        let square = self.is_square();
        self.axes.iter().map(|axis| axis.name(square)).collect()
    }
}
