//! What an operation of the forward pass is.

use nextword_model::FeedForwardKind;
use serde::Serialize;

/// An axis of a tensor, by what is counted along it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// The tokens that ask, or simply the tokens.
    Position,
    /// The tokens that are looked at.
    Key,
    /// Attention heads (key/value heads for keys and values).
    Head,
    /// Numbers of a token.
    Dim,
    /// Tokens of the vocabulary.
    Token,
}

impl Axis {
    /// Its name in an address, where `square` says that the tensor has a key axis too.
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

/// How one tensor follows from others. Names in `of` and the like are tensors of the same graph;
/// `weight`, `bias` and `table` are the record's.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[allow(missing_docs)] // Fields are named by what they are.
pub enum Op {
    /// A row of the table for each token id, times the scale if there is one.
    Embed { table: String, scale: Option<f64> },
    /// A row of the table for each place.
    Places { table: String },
    /// `sin` and `cos` of the place times a frequency.
    Waves,
    /// The same numbers under another name.
    Copy { of: String },
    /// `a + b`.
    Add { a: String, b: String },
    /// Normalization over the last axis; `centered` subtracts the mean first, and with a
    /// `unit_offset` `1 + weight` stands for the weight.
    Norm {
        of: String,
        centered: bool,
        eps: f64,
        weight: String,
        unit_offset: bool,
        bias: Option<String>,
    },
    /// `x W + b`; `heads` cuts the result into heads, `transposed` reads `W` as `[out, in]`.
    Linear {
        of: String,
        weight: String,
        bias: Option<String>,
        heads: Option<usize>,
        transposed: bool,
    },
    /// The heads side by side, then `x W + b` if there is a weight.
    Join {
        of: String,
        weight: Option<String>,
        bias: Option<String>,
    },
    /// Pairs of numbers turned by the place times their frequency; those beyond the pairs stay.
    Turn { of: String, frequencies: Vec<f64> },
    /// `q . k * scale`, which is `1 / sqrt(d)` as a rule, minus infinity where a token may not look; with a cap squeezed by
    /// `cap * tanh(x / cap)`, with slopes less for distance.
    Scores {
        q: String,
        k: String,
        scale: f64,
        usual: bool,
        cap: Option<f64>,
        window: Option<usize>,
        slopes: Vec<f64>,
    },
    /// `e^x` divided by the sum over the last axis.
    Softmax { of: String },
    /// Sum of the values, each times its percentage.
    Mix { pattern: String, v: String },
    /// An activation of each number.
    Activate { of: String, function: Function },
    /// `function(gate) * up`.
    Gate {
        gate: String,
        up: String,
        function: Function,
    },
    /// `cap * tanh(x / cap)`.
    Cap { of: String, cap: f64 },
}

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Function {
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

impl Function {
    pub(crate) fn of(kind: FeedForwardKind) -> Self {
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
    /// `TransformerLens`'s name.
    pub name: String,
    /// The block, or none outside.
    pub layer: Option<usize>,
    /// How it follows from others.
    pub op: Op,
    /// What is counted along each axis.
    pub axes: Vec<Axis>,
    /// Length of each axis.
    pub shape: Vec<usize>,
    /// Whether the forward pass shows it. What it does not show follows from what it shows.
    pub seen: bool,
}

impl Node {
    /// Whether it has a query and a key axis.
    pub fn is_square(&self) -> bool {
        self.axes.contains(&Axis::Key)
    }

    /// Name of each axis in an address.
    pub fn axis_names(&self) -> Vec<&'static str> {
        let square = self.is_square();
        self.axes.iter().map(|axis| axis.name(square)).collect()
    }
}
