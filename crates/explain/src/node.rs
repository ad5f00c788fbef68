//! The operations of the forward pass.

use nextword_model::FeedForwardKind;
use serde::Serialize;

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
    /// `causal`: later tokens are masked, as are those outside the window; otherwise nothing is masked.
    /// With a cap: `cap * tanh(x / cap)`. With slopes (`ALiBi`): minus slope times distance.
    Scores {
        q: String,
        k: String,
        scale: f64,
        #[serde(rename = "usual")]
        default_scale: bool,
        cap: Option<f64>,
        causal: bool,
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
    /// The block; `None` outside of blocks.
    pub layer: Option<usize>,
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
