//! What happens to each element of a product before it is written.

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
