//! Operations with a hand-written backward pass on Burn's flex backend.
//!
//! An [`Op`] works on flat f32 slices. [`apply`] registers it in Burn's autodiff graph if an input
//! is on an autodiff device, and otherwise just runs it.

use std::fmt::Debug;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Flex};
use burn::tensor::{DType, Device, Shape, Tensor};

pub(crate) use crate::buffer_pool::Buffer;

/// An operation with `N` input tensors and one output.
pub(crate) trait Op<const N: usize>: Clone + Debug + Send + 'static {
    /// Values that the backward pass needs besides inputs and output.
    type Saved: Clone + Debug + Send + 'static;

    /// Which inputs the backward pass may read.
    const SAVES_INPUT: [bool; N];

    /// Whether the backward pass reads the output.
    const SAVES_OUTPUT: bool = false;

    /// Which inputs the backward pass reads to compute the gradients of the inputs in `needs_grad`.
    fn saves_inputs(&self, needs_grad: [bool; N]) -> [bool; N] {
        let _ = needs_grad;
        Self::SAVES_INPUT
    }

    /// Computes the output. A backward pass for the inputs in `needs_grad` may follow; there is none if it is all false.
    fn forward(&self, inputs: [&[f32]; N], needs_grad: [bool; N]) -> (Buffer, Self::Saved);

    /// Returns the gradients of the inputs for which [`BackwardContext::needs_grad`] is true.
    fn backward(&self, ctx: BackwardContext<'_, Self::Saved, N>) -> [Option<Buffer>; N];
}

/// The inputs of a backward pass.
pub(crate) struct BackwardContext<'a, S, const N: usize> {
    /// The saved inputs; empty where [`Op::saves_inputs`] is false.
    pub(crate) inputs: [&'a [f32]; N],
    /// The saved output; empty unless [`Op::SAVES_OUTPUT`].
    pub(crate) output: &'a [f32],
    /// Values that the forward pass returned besides its output.
    pub(crate) saved: S,
    /// Gradient of the output.
    pub(crate) grad: &'a [f32],
    /// Which inputs need a gradient.
    pub(crate) needs_grad: [bool; N],
}

/// An input tensor of any rank.
pub(crate) struct Input {
    primitive: FlexTensor,
    /// The input's node in the autodiff graph, and whether it is tracked.
    node: Option<(NodeGuard, bool)>,
}

impl Input {
    /// Whether the input needs a gradient.
    fn is_tracked(&self) -> bool {
        self.node
            .as_ref()
            .is_some_and(|(_, is_tracked)| *is_tracked)
    }
}

impl<const D: usize> From<Tensor<D>> for Input {
    /// # Panics
    /// If the tensor is not on the flex backend.
    fn from(tensor: Tensor<D>) -> Self {
        let on_flex = "the caller checked `is_flex_f32`";
        if tensor.device().is_autodiff() {
            let tracked = tensor.try_into_primitive::<Autodiff<Flex>>();
            let tracked = tracked.unwrap_or_else(|e| unreachable!("{on_flex}: {e:?}"));
            let is_tracked = tracked.is_tracked();
            let (primitive, node) = tracked.into_parts();
            let node = Some((node, is_tracked));
            return Self { primitive, node };
        }
        let primitive = tensor.try_into_primitive::<Flex>();
        let primitive = primitive.unwrap_or_else(|e| unreachable!("{on_flex}: {e:?}"));
        Self {
            primitive,
            node: None,
        }
    }
}

/// Returns whether the fast implementations support `tensor`: flex backend and f32.
pub(crate) fn is_flex_f32<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.dtype() == DType::F32 && tensor.device() == Device::flex()
}

/// Runs `op` on `inputs` and returns an output of `shape`.
pub(crate) fn apply<O: Op<N>, const N: usize, const D: usize>(
    op: O,
    inputs: [Input; N],
    shape: [usize; D],
) -> Tensor<D> {
    let autodiff = inputs.iter().any(|input| input.node.is_some());
    let inputs = inputs.map(|input| Input {
        primitive: input.primitive.to_contiguous(),
        ..input
    });
    if !autodiff {
        let slices = inputs.each_ref().map(|input| values(&input.primitive));
        let (values, _) = op.forward(slices, [false; N]);
        return Tensor::from_primitive::<Flex>(from_buffer(values, shape));
    }
    let needs_grad = inputs.each_ref().map(Input::is_tracked);
    let primitives = inputs.each_ref().map(|input| input.primitive.clone());
    let guards = inputs.map(|input| match input.node {
        Some((node, _)) => node,
        None => FloatTensor::<Autodiff<Flex>>::new(input.primitive).node(),
    });
    let shapes = primitives.each_ref().map(|p| p.layout().shape().clone());
    let slices = primitives.each_ref().map(values);
    let step = BackwardStep(op.clone());
    let output = match step
        .prepare::<NoCheckpointing>(guards)
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(prep) => {
            let (values, saved) = op.forward(slices, needs_grad);
            let output = from_buffer(values, shape);
            let mut saved_inputs = primitives.map(Some);
            let is_saved = op.saves_inputs(needs_grad);
            for (input, is_saved) in saved_inputs.iter_mut().zip(is_saved) {
                input.take_if(|_| !is_saved);
            }
            let state = SavedState {
                shapes,
                inputs: saved_inputs,
                output: O::SAVES_OUTPUT.then(|| output.clone()),
                saved,
            };
            prep.finish(state, output)
        }
        OpsKind::UnTracked(prep) => {
            let (values, _) = op.forward(slices, [false; N]);
            prep.finish(from_buffer(values, shape))
        }
    };
    Tensor::from_primitive::<Autodiff<Flex>>(output)
}

/// Converts a flex tensor outside the autodiff graph to a contiguous primitive.
pub(crate) fn into_contiguous<const D: usize>(tensor: Tensor<D>) -> FlexTensor {
    let primitive = tensor.try_into_primitive::<Flex>();
    let primitive =
        primitive.unwrap_or_else(|e| unreachable!("the caller checked `is_flex_f32`: {e:?}"));
    primitive.to_contiguous()
}

/// The elements of a contiguous tensor.
pub(crate) fn values(tensor: &FlexTensor) -> &[f32] {
    tensor
        .as_slice()
        .unwrap_or_else(|| unreachable!("the tensor is contiguous and f32"))
}

/// Creates a tensor of `shape` that owns `values`.
///
/// # Panics
/// If the number of values is not that of the shape's elements.
pub(crate) fn from_buffer(values: Buffer, shape: impl Into<Shape>) -> FlexTensor {
    let layout = Layout::contiguous(shape.into());
    assert_eq!(
        values.len(),
        layout.num_elements(),
        "a buffer and the shape of its tensor differ in length"
    );
    FlexTensor::new(values.into_bytes(), layout, DType::F32)
}

#[derive(Clone, Debug)]
struct SavedState<S, const N: usize> {
    shapes: [Shape; N],
    inputs: [Option<FlexTensor>; N],
    output: Option<FlexTensor>,
    saved: S,
}

#[derive(Debug)]
struct BackwardStep<O>(O);

impl<O: Op<N>, const N: usize> Backward<Flex, N> for BackwardStep<O> {
    type State = SavedState<O::Saved, N>;

    fn backward(
        self,
        ops: Ops<Self::State, N>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let Ops {
            parents,
            node,
            state,
        } = ops;
        let grad = grads.consume::<Flex>(&node).to_contiguous();
        let input_grads = self.0.backward(BackwardContext {
            inputs: state
                .inputs
                .each_ref()
                .map(|input| saved_values(input.as_ref())),
            output: saved_values(state.output.as_ref()),
            saved: state.saved,
            grad: values(&grad),
            needs_grad: parents.each_ref().map(Option::is_some),
        });
        let gradients = parents.into_iter().zip(input_grads).zip(state.shapes);
        for ((parent, gradient), shape) in gradients {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                grads.register::<Flex>(parent.id, from_buffer(gradient, shape));
            }
        }
    }
}

fn saved_values(tensor: Option<&FlexTensor>) -> &[f32] {
    tensor.map_or(&[][..], values)
}
