//! What happens to each element of a product before it is written.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::Activation;
use crate::gpu::activation::value;

/// The parts of an epilogue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(in crate::gpu) struct Epilogue {
    pub(in crate::gpu) has_bias: bool,
    /// Whether a tensor of the output's shape is added, before the activation.
    pub(in crate::gpu) has_addend: bool,
    pub(in crate::gpu) activation: Option<Activation>,
}

/// Bias and addend, as far as there are any.
pub(in crate::gpu) type Addends<'a> = [Option<&'a CubeTensor>; 2];

impl Epilogue {
    /// The epilogue of an operation whose operands after input and weight are `rest`, and its bias and addend.
    pub(in crate::gpu) fn of<'a>(
        rest: &[&'a CubeTensor],
        has_bias: bool,
        activation: Option<Activation>,
    ) -> (Self, Addends<'a>) {
        let mut rest = rest.iter().copied();
        let bias = has_bias.then(|| rest.next()).flatten();
        let addend = rest.next();
        let epilogue = Self {
            has_bias: bias.is_some(),
            has_addend: addend.is_some(),
            activation,
        };
        (epilogue, [bias, addend])
    }
}

/// `product + bias + addend`, element `at` of the output, which is in this column.
#[cube]
pub(in crate::gpu) fn added(
    product: f32,
    bias: &[f32],
    addend: &[f32],
    at: usize,
    column: usize,
    #[comptime] epilogue: Epilogue,
) -> f32 {
    let mut sum = product;
    if comptime!(epilogue.has_bias) {
        sum += bias[column];
    }
    if comptime!(epilogue.has_addend) {
        sum += addend[at];
    }
    sum
}

/// The activation function, if there is one.
#[cube]
pub(in crate::gpu) fn activated(x: f32, #[comptime] epilogue: Epilogue) -> f32 {
    if comptime!(epilogue.activation.is_some()) {
        value(
            x,
            comptime!(epilogue.activation.unwrap_or(Activation::Relu)),
        )
    } else {
        x
    }
}
