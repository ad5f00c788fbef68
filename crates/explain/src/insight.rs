//! What follows from the numbers: guesses along the way, and who spoke for the chosen word.

use nextword_model::NormPlacement;
use serde::{Deserialize, Serialize};

use crate::evaluate::{moments, softmax};
use crate::explainer::Explanation;
use crate::graph::{Node, Op, PROBABILITIES};
use crate::trace::Trace;

/// A token with its probability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Guess {
    /// The token.
    pub id: u32,
    /// How it is shown.
    pub text: String,
    /// Its probability.
    pub probability: f64,
}

/// What the model expects after one token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NextWord {
    /// The token's position.
    pub position: usize,
    /// What in fact came next: the prompt's own next token, or the one that was chosen.
    pub next: Option<Guess>,
    /// Whether the prompt gave it.
    pub given: bool,
    /// How surprising it was, in bits: `-log2` of its probability.
    pub surprise: Option<f64>,
    /// The likeliest.
    pub top: Vec<Guess>,
}

/// What the output layer would make of the numbers as they are after one step (nostalgebraist 2020,
/// "interpreting GPT: the logit lens").
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Lens {
    /// After what, in words.
    pub after: String,
    /// The tensor that was read.
    pub tensor: String,
    /// For each position the likeliest tokens; for a large model only where tokens were chosen.
    pub top: Vec<Vec<Guess>>,
}

/// How much each part added to one logit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Contribution {
    /// After which position.
    pub position: usize,
    /// The token whose logit this is.
    pub token: Guess,
    /// The model's logit (before a soft cap, if there is one).
    pub logit: f64,
    /// The sum of the parts.
    pub sum: f64,
    /// The parts.
    pub parts: Vec<Part>,
}

/// One part of a logit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// The layer it stems from.
    pub layer: Option<usize>,
    /// The head it stems from.
    pub head: Option<usize>,
    /// What it adds.
    pub value: f64,
}

impl Explanation<'_> {
    /// The `count` likeliest tokens of `probabilities`.
    pub fn guesses(&self, probabilities: &[f64], count: usize) -> Vec<Guess> {
        let mut order: Vec<u32> = (0..probabilities.len() as u32).collect();
        let likelier =
            |a: &u32, b: &u32| probabilities[*b as usize].total_cmp(&probabilities[*a as usize]);
        if count < order.len() {
            order.select_nth_unstable_by(count, likelier);
            order.truncate(count);
        }
        order.sort_by(likelier);
        let order = order.into_iter();
        order
            .map(|id| self.guess(id, probabilities[id as usize]))
            .collect()
    }

    fn guess(&self, id: u32, probability: f64) -> Guess {
        Guess {
            id,
            text: self.explainer.text(id),
            probability,
        }
    }

    /// What the model expects after each token.
    pub fn next_words(&self, count: usize) -> Vec<NextWord> {
        let trace = &self.trace;
        let rows = trace.value(PROBABILITIES).rows().enumerate();
        rows.map(|(position, row)| {
            let next = trace.next(position);
            let next = next.map(|id| self.guess(id, row[id as usize]));
            NextWord {
                position,
                given: position + 1 < trace.prompt,
                surprise: next.as_ref().map(|next| -next.probability.log2()),
                next,
                top: self.guesses(row, count),
            }
        })
        .collect()
    }

    /// What the output layer reads after the embedding, and after attention and feed-forward of each
    /// layer.
    pub fn lens(&self, count: usize) -> Vec<Lens> {
        let all: Vec<usize> = (0..self.trace.ids.len()).collect();
        self.lens_at(count, &all)
    }

    /// The same at `positions` alone; the others' guesses are left empty.
    pub(crate) fn lens_at(&self, count: usize, positions: &[usize]) -> Vec<Lens> {
        let trace = &self.trace;
        let stage = |node: &&Node| {
            node.name.contains("hook_resid_mid")
                || node.name.contains("hook_resid_post")
                || node.name == "blocks.0.hook_resid_pre"
        };
        let stages = trace.graph.iter().filter(stage);
        stages
            .map(|node| {
                let layer = node.layer.unwrap_or(0) + 1;
                let after = if node.name.ends_with("pre") {
                    "the embedding".to_string()
                } else if node.name.ends_with("mid") || trace.config.d_ff() == 0 {
                    format!("attention of layer {layer}")
                } else {
                    format!("feed-forward of layer {layer}")
                };
                let rows = trace.value(&node.name).rows().enumerate();
                Lens {
                    after,
                    tensor: node.name.clone(),
                    top: rows
                        .map(|(at, x)| {
                            let asked = positions.contains(&at);
                            let read = asked.then(|| self.guesses(&self.read_out(x), count));
                            read.unwrap_or_default()
                        })
                        .collect(),
                }
            })
            .collect()
    }

    /// The probabilities that the final norm and the output layer make of a token's numbers.
    fn read_out(&self, x: &[f64]) -> Vec<f64> {
        let mut x = x.to_vec();
        for node in self.trace.graph.iter().filter(|node| node.layer.is_none()) {
            if matches!(node.op, Op::Norm { .. }) {
                x = self.normalize(node, &x, &x, true);
            }
        }
        let weights = self.explainer.weights();
        let bias = weights.get("head.bias").map(|bias| bias.data.clone());
        let mut logits = bias.unwrap_or_else(|| vec![0.0; self.trace.config.vocab_size]);
        match weights.get("head.weight") {
            Some(head) => {
                for (row, x) in head.rows().zip(&x) {
                    for (logit, w) in logits.iter_mut().zip(row) {
                        *logit += w * x;
                    }
                }
            }
            None => {
                let table = weights["token_embedding.weight"].rows();
                for (logit, row) in logits.iter_mut().zip(table) {
                    *logit += row.iter().zip(&x).map(|(w, x)| w * x).sum::<f64>();
                }
            }
        }
        if let Some(cap) = self.trace.config.logit_soft_cap {
            for logit in &mut logits {
                *logit = cap * (*logit / cap).tanh();
            }
        }
        let mut probabilities = vec![0.0; logits.len()];
        softmax(&logits, &mut probabilities);
        probabilities
    }

    /// The output layer's weights for `token`.
    fn output(&self, token: usize) -> Box<dyn Iterator<Item = f64> + '_> {
        let weights = self.explainer.weights();
        match weights.get("head.weight") {
            Some(head) => Box::new(head.rows().map(move |row| row[token])),
            None => {
                let table = &weights["token_embedding.weight"];
                Box::new(table.row(token).iter().copied())
            }
        }
    }

    fn bias(&self, token: usize) -> f64 {
        let bias = self.explainer.weights().get("head.bias");
        bias.map_or(0.0, |bias| bias.data[token])
    }

    /// The norm of `part`, with mean and scale: those of `whole` for the scale, its own for the mean,
    /// which makes the norm a sum over parts. `shift` adds the norm's bias.
    fn normalize(&self, node: &Node, whole: &[f64], part: &[f64], shift: bool) -> Vec<f64> {
        let Op::Norm {
            centered,
            eps,
            weight,
            unit_offset,
            bias,
            ..
        } = &node.op
        else {
            return part.to_vec();
        };
        let weights = self.explainer.weights();
        let scale = moments(whole, *centered, *eps).scale;
        let mean = moments(part, *centered, *eps).mean;
        let offset = f64::from(u8::from(*unit_offset));
        let bias = bias
            .as_ref()
            .filter(|_| shift)
            .map(|name| &weights[name].data);
        let part = part.iter().enumerate();
        part.map(|(i, x)| {
            let factor = offset + weights[weight].data[i];
            (x - mean) / scale * factor + bias.map_or(0.0, |bias| bias[i])
        })
        .collect()
    }

    /// How much embedding, heads and layers added to the logit of `token` after `position`. Norms
    /// are taken with the scale that they had, which makes the logit a sum.
    pub fn contribution(&self, position: usize, token: u32) -> Contribution {
        let trace = &self.trace;
        let mut parts = Parts::default();
        for node in &trace.graph {
            self.follow(node, position, &mut parts);
        }
        let mut found: Vec<Part> = parts
            .of
            .into_iter()
            .map(|(mut part, x)| {
                part.value = self
                    .output(token as usize)
                    .zip(&x)
                    .map(|(w, x)| w * x)
                    .sum();
                part
            })
            .collect();
        if self.explainer.weights().contains_key("head.bias") {
            found.push(part(
                "output layer's bias",
                None,
                None,
                self.bias(token as usize),
            ));
        }
        let name = trace
            .config
            .logit_soft_cap
            .map_or("logits", |_| "logits_before_cap");
        let probability = trace.value(PROBABILITIES).at(&[position, token as usize]);
        Contribution {
            position,
            token: self.guess(token, probability),
            logit: trace.value(name).at(&[position, token as usize]),
            sum: found.iter().map(|part| part.value).sum(),
            parts: found,
        }
    }

    /// What `node` does to the parts of the residual stream at `position`.
    fn follow(&self, node: &Node, position: usize, parts: &mut Parts) {
        let values = &self.trace.values;
        let hook = node.name.rsplit_once("hook_").map_or("", |(_, hook)| hook);
        let row = |name: &str| values[name].row(position).to_vec();
        match (&node.op, hook) {
            (Op::Embed { .. }, _) => parts.add("word embedding", None, None, row(&node.name)),
            (Op::Places { .. } | Op::Waves, _) => {
                parts.add("position encoding", None, None, row(&node.name));
            }
            (Op::Join { .. }, _) => {
                self.begin_sublayer(parts);
                self.heads(node, position, parts);
            }
            (Op::Linear { .. }, "mlp_out" | "mlp_out_before_norm") => {
                self.begin_sublayer(parts);
                let name = format!("feed-forward of layer {}", node.layer.unwrap_or(0) + 1);
                parts.add(&name, node.layer, None, row(&node.name));
            }
            (Op::Norm { of, bias, .. }, _) => {
                let Some(normalized) = self.normalized_parts(node, hook, parts) else {
                    return;
                };
                let whole = row(of);
                for (_, x) in &mut parts.of[normalized..] {
                    *x = self.normalize(node, &whole, x, false);
                }
                if let Some(bias) = bias {
                    let bias = self.explainer.weights()[bias].data.clone();
                    parts.add("norm's bias", node.layer, None, bias);
                }
            }
            _ => {}
        }
    }

    /// A sublayer's result comes to the stream, or without residuals takes its place.
    fn begin_sublayer(&self, parts: &mut Parts) {
        if !self.trace.config.residual {
            parts.of.clear();
        }
        parts.sublayer = parts.of.len();
    }

    /// From which part on this norm rescales them: all where it rescales the stream itself, a
    /// sublayer's where it rescales its result, none where it makes a sublayer's input.
    fn normalized_parts(&self, node: &Node, hook: &str, parts: &Parts) -> Option<usize> {
        let post = self.trace.config.norm_placement == NormPlacement::Post;
        match hook {
            "attn_out" | "mlp_out" => Some(parts.sublayer),
            "normalized" if post || node.layer.is_none() => Some(0),
            _ => None,
        }
    }

    /// Each head's part of attention's result.
    fn heads(&self, node: &Node, position: usize, parts: &mut Parts) {
        let Op::Join { of, weight, bias } = &node.op else {
            return;
        };
        let (values, weights) = (&self.trace.values, self.explainer.weights());
        let (heads, seq, width) = {
            let shape = &values[of].shape;
            (shape[0], shape[1], shape[2])
        };
        let layer = node.layer.unwrap_or(0) + 1;
        for head in 0..heads {
            let z = values[of].row(head * seq + position);
            let mut x = vec![0.0; self.trace.config.d_model];
            for (i, z) in z.iter().enumerate() {
                match weight {
                    Some(weight) => {
                        let row = weights[weight].row(head * width + i);
                        for (x, w) in x.iter_mut().zip(row) {
                            *x += z * w;
                        }
                    }
                    None => x[head * width + i] = *z,
                }
            }
            let name = format!("head {} of layer {layer}", head + 1);
            parts.add(&name, node.layer, Some(head), x);
        }
        if let Some(bias) = bias {
            let name = format!("attention's bias of layer {layer}");
            parts.add(&name, node.layer, None, weights[bias].data.clone());
        }
    }
}

/// Parts of the residual stream at one position.
#[derive(Default)]
struct Parts {
    of: Vec<(Part, Vec<f64>)>,
    /// Where those of the latest sublayer begin.
    sublayer: usize,
}

impl Parts {
    fn add(&mut self, name: &str, layer: Option<usize>, head: Option<usize>, x: Vec<f64>) {
        self.of.push((part(name, layer, head, 0.0), x));
    }
}

fn part(name: &str, layer: Option<usize>, head: Option<usize>, value: f64) -> Part {
    Part {
        name: name.to_string(),
        layer,
        head,
        value,
    }
}

/// A percentage above this takes all.
const SATURATED: f64 = 0.999;

/// What is worth pointing out, in words.
pub(crate) fn notes(trace: &Trace) -> Vec<String> {
    let mut notes = Vec::new();
    for node in trace.graph.iter().filter(|node| node.is_square()) {
        let Op::Softmax { .. } = node.op else {
            continue;
        };
        let (seq, layer) = (trace.ids.len(), node.layer.unwrap_or(0));
        if seq < 4 {
            continue;
        }
        let pattern = trace.value(&node.name);
        let z = trace.value(&format!("blocks.{layer}.attn.hook_z"));
        let norms: Vec<f64> = (0..node.shape[0])
            .map(|head| {
                (0..seq)
                    .map(|row| length(z.row(head * seq + row)))
                    .sum::<f64>()
            })
            .collect();
        let loudest = norms.iter().copied().fold(0.0, f64::max);
        for (head, norm) in norms.iter().enumerate() {
            let rows = (1..seq).map(|query| &pattern.row(head * seq + query)[..=query]);
            let top = |row: &[f64]| row.iter().copied().fold(0.0, f64::max);
            let name = format!("head {} of layer {}", head + 1, layer + 1);
            if *norm < 0.01 * loudest || loudest <= 0.0 {
                notes.push(format!(
                    "{name} is silent here: its values are less than a hundredth of the loudest \
                     head's"
                ));
            } else if rows.clone().all(|row| top(row) > SATURATED) {
                notes.push(format!(
                    "{name} is saturated: every row puts more than 99.9 % on one token, so its \
                     percentages hardly learn any more"
                ));
            } else if rows.clone().skip(1).all(|row| row[0] > 0.9) {
                notes.push(format!(
                    "{name} looks at the first token from everywhere, as heads do that have \
                     nothing to add"
                ));
            } else if rows.clone().all(|row| top(row) < 1.05 / row.len() as f64) {
                notes.push(format!(
                    "{name} looks at all tokens alike: it has not learned to choose"
                ));
            }
        }
    }
    notes
}

fn length(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}
