//! One step of gradient descent: the loss at one position, and how a step changes the weights.

use serde::Serialize;

use crate::adapted::{graph_with_adapter, is_adapter_weight};
use crate::address::weight_axes;
use crate::evaluate::{Arrays, Inputs, evaluate};
use crate::gradient::gradients;
use crate::graph::{Node, PROBABILITIES};
use crate::trace::Trace;

/// Steps are computed for models and prompts up to this number of parameters times positions.
const MAX_PRODUCTS: usize = 1 << 24;

/// The learning rate that is tried first.
const FIRST_RATE: f64 = 0.1;

/// Learning rates to try, each a tenth of the previous one.
const RATES: i32 = 7;

/// The distance for finite differences.
const DISTANCE: f64 = 1e-5;

/// One step of gradient descent on the loss at one position, for one next token. Training averages the loss
/// over all positions, and its optimizer scales the gradients; the principle is the same. Of a model with an adapter,
/// only the low-rank matrices change.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GradientStep {
    /// The position whose logits are graded: that of the first prediction.
    pub position: usize,
    /// The token that should come next, or stand there in an encoder.
    pub target: u32,
    /// Its text.
    pub text: String,
    /// Whether it is the token that the model generated.
    pub generated: bool,
    /// Its probability.
    pub probability: f64,
    /// The loss: `-ln` of the probability.
    pub loss: f64,
    /// The address of the weight with the largest gradient.
    pub weight: String,
    /// The value of that weight.
    pub value: f64,
    /// The derivative of the loss by that weight, by backpropagation.
    pub gradient: f64,
    /// The same by finite differences: the loss with a slightly larger weight minus the loss with a slightly
    /// smaller one, divided by their distance.
    pub finite_difference: f64,
    /// The learning rate: the largest of 0.1, 0.01, … 0.0000001 that lowers the loss.
    pub learning_rate: f64,
    /// The weight after the step: `value - learning_rate * gradient`.
    pub new_value: f64,
    /// The probability after a step of all weights.
    pub new_probability: f64,
    /// The loss after a step of all weights.
    pub new_loss: f64,
    /// The size of the gradient of each parameter of the model, in the order of their names.
    pub norms: Vec<GradientNorm>,
}

/// The size of the gradient of one parameter of the model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GradientNorm {
    /// The parameter.
    pub name: String,
    /// Its number of values.
    pub count: usize,
    /// The L2 norm of its gradient.
    pub norm: f64,
}

/// The steps towards the generated token and towards the most likely other one, after the prompt. Empty if
/// the model or the prompt is too large; without those for which no step lowers the loss, as for a token that is
/// already certain.
pub(crate) fn gradient_steps(
    trace: &Trace,
    weights: &Arrays,
    text: &dyn Fn(u32) -> String,
) -> Vec<GradientStep> {
    let positions = trace.prompt_len.max(trace.source.len());
    let parameters = trace.config.parameter_counts().total();
    if parameters.saturating_mul(positions) > MAX_PRODUCTS {
        return Vec::new();
    }
    let position = trace.focus();
    let Some(generated) = trace.next_id(position) else {
        return Vec::new();
    };
    let forward = Forward {
        graph: graph_with_adapter(&trace.config, trace.prompt_lengths(), &trace.adapted),
        ids: trace.prompt_inputs(),
        position,
        trains_adapter: !trace.adapted.is_empty(),
    };
    let values = evaluate(&forward.graph, weights, forward.ids, &[]);
    let row = values[PROBABILITIES].row(position);
    let others = (0..row.len() as u32).filter(|id| *id != generated);
    let other = others.max_by(|a, b| row[*a as usize].total_cmp(&row[*b as usize]));
    let targets = std::iter::once(generated).chain(other);
    targets
        .filter_map(|target| {
            let mut step = forward.step(&values, weights, target)?;
            step.text = text(target);
            step.generated = target == generated;
            Some(step)
        })
        .collect()
}

/// The forward pass over a prompt.
struct Forward<'a> {
    graph: Vec<Node>,
    ids: Inputs<'a>,
    position: usize,
    /// Whether only the matrices of the adapter are trained.
    trains_adapter: bool,
}

impl Forward<'_> {
    /// The probability of `target` with these weights.
    fn probability(&self, weights: &Arrays, target: u32) -> f64 {
        let values = evaluate(&self.graph, weights, self.ids, &[]);
        values[PROBABILITIES].at(&[self.position, target as usize])
    }

    /// The step towards `target`; `None` if no step lowers its loss, or if its loss or gradient is not finite.
    fn step(&self, values: &Arrays, weights: &Arrays, target: u32) -> Option<GradientStep> {
        let probability = values[PROBABILITIES].at(&[self.position, target as usize]);
        let loss = 0.0 - probability.ln();
        let mut gradients = gradients(
            &self.graph,
            values,
            weights,
            self.ids,
            self.position,
            target,
        );
        if self.trains_adapter {
            gradients.retain(|name, _| is_adapter_weight(name));
        }
        let (name, at) = largest(&gradients)?;
        let (value, gradient) = (weights[name].data[at], gradients[name].data[at]);
        let mut changed = weights.clone();
        let mut loss_with = |x: f64| {
            if let Some(weight) = changed.get_mut(name) {
                weight.data[at] = x;
            }
            -self.probability(&changed, target).ln()
        };
        let finite_difference =
            (loss_with(value + DISTANCE) - loss_with(value - DISTANCE)) / (2.0 * DISTANCE);
        let (learning_rate, new_probability) = self.descend(weights, &gradients, loss, target)?;
        let new_loss = 0.0 - new_probability.ln(); // Not -0 for a certain token.
        let all = [loss, gradient, finite_difference, new_loss];
        all.iter().all(|x| x.is_finite()).then(|| GradientStep {
            position: self.position,
            target,
            text: String::new(),
            generated: false,
            probability,
            loss,
            weight: weight_address(name, &weights[name].shape, at),
            value,
            gradient,
            finite_difference,
            learning_rate,
            new_value: value - learning_rate * gradient,
            new_probability,
            new_loss,
            norms: gradients
                .iter()
                .map(|(name, gradient)| GradientNorm {
                    name: name.clone(),
                    count: gradient.data.len(),
                    norm: gradient.data.iter().map(|x| x * x).sum::<f64>().sqrt(),
                })
                .collect(),
        })
    }

    /// The largest learning rate whose step lowers `loss`, that of `target`, and the probability of `target`
    /// then. `None` if no rate does.
    fn descend(
        &self,
        weights: &Arrays,
        gradients: &Arrays,
        loss: f64,
        target: u32,
    ) -> Option<(f64, f64)> {
        (0..RATES).find_map(|power| {
            let rate = FIRST_RATE / 10f64.powi(power);
            let mut moved = weights.clone();
            for (name, gradient) in gradients {
                let Some(weight) = moved.get_mut(name) else {
                    continue;
                };
                for (w, g) in weight.data.iter_mut().zip(&gradient.data) {
                    *w -= rate * g;
                }
            }
            let probability = self.probability(&moved, target);
            (-probability.ln() < loss).then_some((rate, probability))
        })
    }
}

/// Name and index of the largest gradient.
fn largest(gradients: &Arrays) -> Option<(&str, usize)> {
    let all = gradients.iter().flat_map(|(name, gradient)| {
        let values = gradient.data.iter().enumerate();
        values.map(move |(at, x)| (name.as_str(), at, x.abs()))
    });
    let found = all.max_by(|a, b| a.2.total_cmp(&b.2))?;
    Some((found.0, found.1))
}

fn weight_address(name: &str, shape: &[usize], at: usize) -> String {
    let axes = weight_axes(shape.len());
    match shape {
        [_, width] => format!(
            "{name}[{}={},{}={}]",
            axes[0],
            at / width,
            axes[1],
            at % width
        ),
        _ => format!("{name}[{}={at}]", axes[0]),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn::tensor::Device;
    use nextword_model::presets;

    use super::*;
    use crate::evaluate::weights_of;

    #[test]
    fn an_address_names_row_and_column() {
        assert_eq!(weight_address("w", &[2, 3], 4), "w[row=1,column=1]");
        assert_eq!(weight_address("b", &[3], 2), "b[number=2]");
    }

    #[test]
    fn a_step_that_does_not_lower_the_loss_is_left_out() {
        let model = presets::statquest(5).init(&Device::flex(), 7).unwrap();
        let mut weights = weights_of(&model);
        let forward = Forward {
            graph: crate::graph::graph(model.config(), 3),
            ids: (&[1, 0, 2]).into(),
            position: 2,
            trains_adapter: false,
        };
        let step = |weights: &Arrays| {
            let values = evaluate(&forward.graph, weights, forward.ids, &[]);
            forward.step(&values, weights, 1)
        };
        let found = step(&weights).unwrap();
        assert!(found.new_loss < found.loss && found.learning_rate > 0.0);
        // The token is certain: its loss is 0, and so is every gradient.
        weights.get_mut("head.bias").unwrap().data[1] = 1e4;
        assert_eq!(step(&weights), None);
    }

    #[test]
    fn the_largest_gradient_may_be_negative() {
        let array = |data: &[f64]| crate::Array {
            shape: vec![data.len()],
            data: data.to_vec(),
        };
        let all = [("a", array(&[1.0, 2.0])), ("b", array(&[0.5, -3.0]))];
        let all: Arrays = all.map(|(name, x)| (name.to_string(), x)).into();
        assert_eq!(largest(&all), Some(("b", 1)));
    }
}
