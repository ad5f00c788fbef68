//! Operations with a hand-written backward pass on Burn's backend for GPUs: the counterpart of
//! `fused` for tensors that lie on a GPU.

use std::fmt::Debug;

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Device, Tensor};
use burn_cubecl::Cube;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

/// An operation with `N` input tensors and one output.
pub(crate) trait Op<const N: usize>: Clone + Debug + Send + 'static {
    /// Tensors that the backward pass needs besides inputs and output.
    type Saved: Clone + Debug + Send + 'static;

    /// Which inputs the backward pass reads.
    const SAVES_INPUT: [bool; N];

    /// Whether the backward pass reads the output.
    const SAVES_OUTPUT: bool = false;

    /// Computes the output from contiguous inputs, of which those with `needs_grad` get a gradient later.
    fn forward(&self, inputs: [&CubeTensor; N], needs_grad: [bool; N])
    -> (CubeTensor, Self::Saved);

    /// Returns the gradients of the inputs for which [`BackwardContext::needs_grad`] is true, in the
    /// inputs' shapes.
    fn backward(&self, ctx: BackwardContext<Self::Saved, N>) -> [Option<CubeTensor>; N];
}

/// The inputs of a backward pass; all tensors are contiguous.
pub(crate) struct BackwardContext<S, const N: usize> {
    /// The saved inputs; `None` where [`Op::SAVES_INPUT`] is false.
    inputs: [Option<CubeTensor>; N],
    /// The saved output; `None` unless [`Op::SAVES_OUTPUT`].
    output: Option<CubeTensor>,
    /// Tensors that the forward pass returned besides its output.
    pub(crate) saved: S,
    /// Gradient of the output.
    pub(crate) grad: CubeTensor,
    /// Which inputs need a gradient.
    pub(crate) needs_grad: [bool; N],
}

impl<S, const N: usize> BackwardContext<S, N> {
    /// A saved input.
    pub(crate) fn input(&self, index: usize) -> &CubeTensor {
        saved(self.inputs[index].as_ref())
    }

    /// The saved output.
    pub(crate) fn output(&self) -> &CubeTensor {
        saved(self.output.as_ref())
    }
}

fn saved(tensor: Option<&CubeTensor>) -> &CubeTensor {
    tensor.unwrap_or_else(|| unreachable!("the operation declares what its backward pass reads"))
}

/// An input tensor of any rank.
pub(crate) struct Input {
    primitive: CubeTensor,
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

    /// The contiguous values.
    pub(crate) fn primitive(&self) -> &CubeTensor {
        &self.primitive
    }
}

impl<const D: usize> From<Tensor<D>> for Input {
    /// # Panics
    /// If the tensor is not on a GPU.
    fn from(tensor: Tensor<D>) -> Self {
        if !tensor.device().is_autodiff() {
            let primitive = primitive(tensor);
            return Self {
                primitive,
                node: None,
            };
        }
        let tracked = tensor.try_into_primitive::<Autodiff<Cube>>();
        let tracked = tracked.unwrap_or_else(|e| unreachable!("{ON_GPU}: {e:?}"));
        let is_tracked = tracked.is_tracked();
        let (primitive, node) = tracked.into_parts();
        Self {
            primitive: into_contiguous(primitive),
            node: Some((node, is_tracked)),
        }
    }
}

const ON_GPU: &str = "the caller checked `is_gpu_f32`";

/// Returns whether the GPU implementations support `tensor`: on a GPU and f32.
pub(crate) fn is_gpu_f32<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.dtype() == DType::F32 && is_gpu(&tensor.device())
}

/// Returns whether `device` is a GPU.
pub(crate) fn is_gpu(device: &Device) -> bool {
    use burn::backend::DispatchDevice;
    let device = device.clone().without_autodiff();
    matches!(device.as_dispatch(), DispatchDevice::Cube(_))
}

/// A tensor outside the autodiff graph as a contiguous primitive.
///
/// # Panics
/// If the tensor is not on a GPU.
pub(crate) fn primitive<const D: usize>(tensor: Tensor<D>) -> CubeTensor {
    let primitive = tensor.try_into_primitive::<Cube>();
    into_contiguous(primitive.unwrap_or_else(|e| unreachable!("{ON_GPU}: {e:?}")))
}

/// Runs `op` on `inputs`, and registers its backward pass if an input is on an autodiff device.
pub(crate) fn apply<O: Op<N>, const N: usize, const D: usize>(
    op: O,
    inputs: [Input; N],
) -> Tensor<D> {
    if inputs.iter().all(|input| input.node.is_none()) {
        let primitives = inputs.each_ref().map(|input| &input.primitive);
        let (output, _) = op.forward(primitives, [false; N]);
        return Tensor::from_primitive::<Cube>(output);
    }
    let primitives = inputs.each_ref().map(|input| input.primitive.clone());
    let needs_grad = inputs.each_ref().map(Input::is_tracked);
    let guards = inputs.map(|input| match input.node {
        Some((node, _)) => node,
        None => FloatTensor::<Autodiff<Cube>>::new(input.primitive).node(),
    });
    let prepared = BackwardStep(op.clone())
        .prepare::<NoCheckpointing>(guards)
        .compute_bound()
        .stateful();
    let (output, saved) = op.forward(primitives.each_ref(), needs_grad);
    let output = match prepared {
        OpsKind::Tracked(prep) => {
            let mut inputs = primitives.map(Some);
            for (input, is_saved) in inputs.iter_mut().zip(O::SAVES_INPUT) {
                input.take_if(|_| !is_saved);
            }
            let state = SavedState {
                inputs,
                output: O::SAVES_OUTPUT.then(|| output.clone()),
                saved,
            };
            prep.finish(state, output)
        }
        OpsKind::UnTracked(prep) => prep.finish(output),
    };
    Tensor::from_primitive::<Autodiff<Cube>>(output)
}

#[derive(Clone, Debug)]
struct SavedState<S, const N: usize> {
    inputs: [Option<CubeTensor>; N],
    output: Option<CubeTensor>,
    saved: S,
}

#[derive(Debug)]
struct BackwardStep<O>(O);

impl<O: Op<N>, const N: usize> Backward<Cube, N> for BackwardStep<O> {
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
        let grad = into_contiguous(grads.consume::<Cube>(&node));
        let gradients = self.0.backward(BackwardContext {
            inputs: state.inputs,
            output: state.output,
            saved: state.saved,
            grad,
            needs_grad: parents.each_ref().map(Option::is_some),
        });
        for (parent, gradient) in parents.into_iter().zip(gradients) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                grads.register::<Cube>(parent.id, gradient);
            }
        }
    }
}
