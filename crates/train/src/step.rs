//! Forward, backward, accumulation and clipping: from batches to gradients.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Gradients as BurnGradients, Int, Tensor, TensorData, Transaction};
use nextword_data::TokenBatch;
use nextword_model::{Dropout, NoProbe, Pass, Probe, Transformer};

/// The gradient of every parameter by name, flat, off the autodiff graph.
#[derive(Clone, Debug)]
pub struct Gradients {
    of: BTreeMap<String, Tensor<1>>,
    /// A factor on all of them, which the optimizer applies in passing.
    scale: f64,
}

impl Default for Gradients {
    fn default() -> Self {
        Self {
            of: BTreeMap::new(),
            scale: 1.0,
        }
    }
}

impl Gradients {
    /// Takes the gradients of `model`'s parameters out of `gradients`.
    fn take(model: &Transformer, gradients: BurnGradients) -> Self {
        let mut taker = Taker {
            gradients,
            path: Vec::new(),
            taken: BTreeMap::new(),
        };
        model.visit(&mut taker);
        Self {
            of: taker.taken,
            ..Self::default()
        }
    }

    /// Adds those of another micro-batch.
    fn add(&mut self, other: Self) {
        for (name, gradient) in other.of {
            let sum = match self.of.remove(&name) {
                Some(sum) => sum + gradient,
                None => gradient,
            };
            self.of.insert(name, sum);
        }
    }

    /// The norm of all gradients together, before clipping: `[1]`, still on the device.
    pub fn norm(&self) -> Option<Tensor<1>> {
        nextword_kernels::sum_of_squares(self.of.values()).map(Tensor::sqrt)
    }

    /// Scales all gradients so that their norm, which is `norm` now, is at most `limit` (0: no
    /// limit). As in `PyTorch`, the factor is `limit / (norm + 1e-6)`, at most 1.
    #[must_use]
    pub fn clip(self, norm: f64, limit: f64) -> Self {
        if limit == 0.0 {
            return self;
        }
        Self {
            scale: (limit / (norm + 1e-6)).min(1.0),
            ..self
        }
    }

    /// The factor that clipping puts on all of them.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// The names in order, with their flat gradients as they were before clipping.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor<1>)> {
        self.of.iter().map(|(name, g)| (name.as_str(), g))
    }

    pub(crate) fn into_map(self) -> BTreeMap<String, Tensor<1>> {
        self.of
    }
}

struct Taker {
    gradients: BurnGradients,
    path: Vec<String>,
    taken: BTreeMap<String, Tensor<1>>,
}

impl ModuleVisitor for Taker {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.val();
        if let Some(gradient) = tensor.grad_remove(&mut self.gradients) {
            let len = tensor.dims().iter().product::<usize>();
            self.taken
                .insert(self.path.join("."), gradient.reshape([len]));
        }
    }
}

/// The mean loss over all counted tokens of `batches` (nats per token, `[1]`, on the device) and its
/// gradients. `model` has autodiff on.
///
/// Each micro-batch's loss is divided by the tokens of the whole step, so that accumulation over
/// unequal micro-batches equals one big batch. `seed` and `step` choose the dropout masks; with
/// `recompute` only what enters each block is kept, to the same result.
pub fn forward_backward(
    model: &Transformer,
    batches: &[TokenBatch],
    seed: u64,
    step: u64,
    recompute: bool,
) -> (Tensor<1>, Gradients) {
    let counted: usize = batches.iter().map(TokenBatch::target_count).sum();
    let mut total: Option<Tensor<1>> = None;
    let mut gradients = Gradients::default();
    let mut first_sequence = 0;
    for batch in batches {
        let dropout = Dropout::training(seed, step, first_sequence);
        let divisor = counted.max(1) as f64;
        let loss = if recompute {
            let (tokens, targets) = (tokens(model, batch), &batch.targets);
            // Summed by itself first, as the other way does.
            let mut parts = Gradients::default();
            let loss = model.recomputed_loss(tokens, targets, divisor, dropout, |part| {
                parts.add(Gradients::take(model, part));
            });
            gradients.add(parts);
            loss
        } else {
            let pass = &mut Pass::<NoProbe>::dropping(dropout);
            let loss = batch_loss(model, batch, pass) / divisor;
            gradients.add(Gradients::take(model, loss.backward()));
            loss.inner()
        };
        total = Some(match total {
            Some(total) => total + loss,
            None => loss,
        });
        first_sequence += batch.batch;
    }
    let total = total.unwrap_or_else(|| Tensor::zeros([1], &model.device().without_autodiff()));
    (total, gradients)
}

/// The sum of the losses over one micro-batch's counted tokens.
pub(crate) fn batch_loss<P: Probe>(
    model: &Transformer,
    batch: &TokenBatch,
    pass: &mut Pass<'_, P>,
) -> Tensor<1> {
    model.loss_sum(tokens(model, batch), &batch.targets, pass)
}

/// The ids that the model reads, `[batch, seq]`, on its device.
fn tokens(model: &Transformer, batch: &TokenBatch) -> Tensor<2, Int> {
    let ids: Vec<i32> = batch.inputs.iter().map(|id| *id as i32).collect();
    let device = model.device().without_autodiff();
    Tensor::from_data(TensorData::new(ids, [batch.batch, batch.seq]), &device)
}

/// Reads two numbers from the device at once.
pub(crate) fn read(a: Tensor<1>, b: Tensor<1>) -> [f64; 2] {
    let values = Transaction::default().register(a).register(b).execute();
    let mut numbers = values
        .into_iter()
        .map(|data| nextword_model::weights::floats(data).first().copied());
    let mut next = || f64::from(numbers.next().flatten().unwrap_or(f32::NAN));
    [next(), next()]
}
