//! Interpretation of a trace: predictions, the logit lens, and direct logit attribution.

use nextword_model::NormPlacement;
use serde::{Deserialize, Serialize};

use crate::adapted::{BASE, LORA_A};
use crate::array::Array;
use crate::evaluate::{Arrays, eval_node, moments};
use crate::explainer::Explanation;
use crate::graph::{Node, Op, PROBABILITIES};

/// A token with its probability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenProb {
    /// The token.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// Its probability.
    pub probability: f64,
}

/// The model's next-token prediction at one position.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// The position.
    pub position: usize,
    /// The token that followed: the prompt's own next token, or the sampled one.
    #[serde(rename = "next")]
    pub actual: Option<TokenProb>,
    /// Whether that token is part of the prompt.
    #[serde(rename = "given")]
    pub in_prompt: bool,
    /// Its surprisal in bits: `-log2` of its probability.
    #[serde(rename = "surprise")]
    pub surprisal: Option<f64>,
    /// The most likely tokens.
    pub top: Vec<TokenProb>,
}

/// One stage of the logit lens: the predictions if the residual stream went straight to the output layer
/// (nostalgebraist 2020, "interpreting GPT: the logit lens").
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LensStage {
    /// The part of the model after which the residual stream is read, as text.
    pub after: String,
    /// The tensor that is read.
    pub tensor: String,
    /// The most likely tokens at each position; for a large model only where tokens were sampled.
    pub top: Vec<Vec<TokenProb>>,
}

/// How much each part of the model added to one logit (direct logit attribution).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Contribution {
    /// The position whose logits are attributed.
    pub position: usize,
    /// The token of the logit.
    pub token: TokenProb,
    /// The model's logit (before a soft cap, if there is one).
    pub logit: f64,
    /// The logit after the soft cap, from which the probability is computed; `None` without a soft cap.
    pub capped_logit: Option<f64>,
    /// The sum of the parts, which equals the logit up to rounding.
    pub sum: f64,
    /// The parts.
    pub parts: Vec<Part>,
}

/// One part of a logit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// The layer that it comes from.
    pub layer: Option<usize>,
    /// The head that it comes from.
    pub head: Option<usize>,
    /// Its contribution to the logit.
    pub value: f64,
}

impl Explanation<'_> {
    /// The `count` most likely tokens of `probabilities`.
    pub fn top_tokens(&self, probabilities: &[f64], count: usize) -> Vec<TokenProb> {
        let mut order: Vec<u32> = (0..probabilities.len() as u32).collect();
        let more_likely = |a: &u32, b: &u32| {
            let order = probabilities[*b as usize].total_cmp(&probabilities[*a as usize]);
            order.then(a.cmp(b)) // As greedy decoding breaks ties.
        };
        if count < order.len() {
            order.select_nth_unstable_by(count, more_likely);
            order.truncate(count);
        }
        order.sort_by(more_likely);
        let order = order.into_iter();
        order
            .map(|id| self.token_prob(id, probabilities[id as usize]))
            .collect()
    }

    fn token_prob(&self, id: u32, probability: f64) -> TokenProb {
        TokenProb {
            id,
            text: self.explainer.token_text(id),
            probability,
        }
    }

    /// The next-token prediction at each position.
    ///
    /// # Example
    ///
    /// ```
    /// # use nextword_explain::Explainer;
    /// # use nextword_generate::{TextGenerator, TextOptions};
    /// # let model = nextword_model::ModelDir::open("../../docs/models/statquest".as_ref())?;
    /// # let generator = TextGenerator::open(&model, &burn::tensor::Device::flex())?;
    /// let explainer = Explainer::new(generator);
    /// let explanation = explainer.explain("what is statquest", &TextOptions::default())?;
    /// let predictions = explanation.predictions(2); // the two most likely tokens at each position
    /// assert_eq!(predictions[2].top[0].text, "<EOS>"); // after "what is statquest"
    /// assert!(predictions[2].surprisal.unwrap() < 0.1); // bits; "<EOS>" does come next
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn predictions(&self, count: usize) -> Vec<Prediction> {
        let trace = &self.trace;
        let rows = trace.value(PROBABILITIES).rows().enumerate();
        rows.map(|(position, row)| {
            let actual = trace.next_id(position);
            let actual = actual.map(|id| self.token_prob(id, row[id as usize]));
            Prediction {
                position,
                in_prompt: trace.sample_after(position).is_none(),
                surprisal: actual.as_ref().map(|token| -token.probability.log2()),
                actual,
                top: self.top_tokens(row, count),
            }
        })
        .collect()
    }

    /// The logit lens: predictions from the residual stream after the embedding, and after attention and
    /// feed-forward of each layer.
    pub fn logit_lens(&self, count: usize) -> Vec<LensStage> {
        let all: Vec<usize> = (0..self.trace.ids.len()).collect();
        self.logit_lens_at(count, &all)
    }

    /// The logit lens at `positions` only; the lists of other positions are empty.
    pub(crate) fn logit_lens_at(&self, count: usize, positions: &[usize]) -> Vec<LensStage> {
        let trace = &self.trace;
        let is_stage = |node: &&Node| {
            let is_after_sublayer =
                node.name.contains("hook_resid_mid") || node.name.contains("hook_resid_post");
            let is_embedding = node.name == "blocks.0.hook_resid_pre";
            !node.is_in_encoder() && (is_after_sublayer || is_embedding)
        };
        let stages = trace.graph.iter().filter(is_stage);
        stages
            .map(|node| {
                let layer = node.layer.unwrap_or(0) + 1;
                let after = if node.name.ends_with("pre") {
                    "the embedding".to_string()
                } else if trace.config.has_encoder()
                    && !node.name.ends_with("mid")
                    && (node.name.ends_with("mid_cross") || trace.config.d_ff() == 0)
                {
                    format!("cross-attention of layer {layer}")
                } else if node.name.ends_with("mid") || trace.config.d_ff() == 0 {
                    format!("attention of layer {layer}")
                } else {
                    format!("feed-forward of layer {layer}")
                };
                let rows = trace.value(&node.name).rows().enumerate();
                LensStage {
                    after,
                    tensor: node.name.clone(),
                    top: rows
                        .map(|(at, x)| {
                            let top = positions
                                .contains(&at)
                                .then(|| self.top_tokens(&self.unembed(x), count));
                            top.unwrap_or_default()
                        })
                        .collect(),
                }
            })
            .collect()
    }

    /// The probabilities that the model computes from the residual vector `x` as the output of its last block.
    fn unembed(&self, x: &[f64]) -> Vec<f64> {
        let graph = &self.trace.graph;
        let blocks = graph.iter().rposition(|node| node.layer.is_some());
        let (blocks, after) = graph.split_at(blocks.map_or(0, |last| last + 1));
        let row = |width: usize| vec![1, width];
        let input = Array {
            shape: row(x.len()),
            data: x.to_vec(),
        };
        let last = blocks.last().map(|node| node.name.clone());
        let mut values: Arrays = last.map(|name| (name, input)).into_iter().collect();
        for node in after {
            let node = Node {
                shape: row(node.shape[1]),
                ..node.clone()
            };
            let value = eval_node(&node, &values, self.explainer.weights(), &[]);
            values.insert(node.name, value);
        }
        values
            .remove(PROBABILITIES)
            .map(|p| p.data)
            .unwrap_or_default()
    }

    /// The output layer's weights for `token`.
    fn unembedding_column(&self, token: usize) -> Box<dyn Iterator<Item = f64> + '_> {
        let weights = self.explainer.weights();
        match weights.get("head.weight") {
            Some(head) => Box::new(head.rows().map(move |row| row[token])),
            None => {
                let table = &weights["token_embedding.weight"];
                Box::new(table.row(token).iter().copied())
            }
        }
    }

    fn unembedding_bias(&self, token: usize) -> f64 {
        let bias = self.explainer.weights().get("head.bias");
        bias.map_or(0.0, |bias| bias.data[token])
    }

    /// Normalizes `part` by the scale of `total` and its own mean, which makes the norm of a sum the sum
    /// of its normalized parts. `add_bias` adds the norm's bias.
    fn normalize(&self, node: &Node, total: &[f64], part: &[f64], add_bias: bool) -> Vec<f64> {
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
        let scale = moments(total, *centered, *eps).scale;
        let mean = moments(part, *centered, *eps).mean;
        let offset = f64::from(u8::from(*unit_offset));
        let bias = bias
            .as_ref()
            .filter(|_| add_bias)
            .map(|name| &weights[name].data);
        let part = part.iter().enumerate();
        part.map(|(i, x)| {
            let factor = offset + weights[weight].data[i];
            (x - mean) / scale * factor + bias.map_or(0.0, |bias| bias[i])
        })
        .collect()
    }

    /// How much embeddings, heads and layers added to the logit of `token` at `position`. Norms use
    /// their actual scale, so that the logit is a sum. Of an encoder-decoder model, the parts are those of the decoder.
    /// In models with `head_transform` a logit is not such a sum.
    pub fn contribution(&self, position: usize, token: u32) -> Contribution {
        let trace = &self.trace;
        let mut parts = ResidualParts::default();
        for node in &trace.graph {
            self.track_parts(node, position, &mut parts);
        }
        let mut attributed: Vec<Part> = parts
            .items
            .into_iter()
            .map(|(mut part, x)| {
                part.value = self
                    .unembedding_column(token as usize)
                    .zip(&x)
                    .map(|(w, x)| w * x)
                    .sum();
                part
            })
            .collect();
        if self.explainer.weights().contains_key("head.bias") {
            attributed.push(part(
                "output layer bias",
                None,
                None,
                self.unembedding_bias(token as usize),
            ));
        }
        let name = trace
            .config
            .logit_soft_cap
            .map_or("logits", |_| "logits_before_cap");
        let probability = trace.value(PROBABILITIES).at(&[position, token as usize]);
        Contribution {
            position,
            token: self.token_prob(token, probability),
            logit: trace.value(name).at(&[position, token as usize]),
            capped_logit: trace
                .config
                .logit_soft_cap
                .map(|_| trace.value("logits").at(&[position, token as usize])),
            sum: attributed.iter().map(|part| part.value).sum(),
            parts: attributed,
        }
    }

    /// Applies `node` to the parts of the residual stream at `position`.
    fn track_parts(&self, node: &Node, position: usize, parts: &mut ResidualParts) {
        if node.is_in_encoder() {
            return;
        }
        let values = &self.trace.values;
        let hook = node.name.rsplit_once("hook_").map_or("", |(_, hook)| hook);
        let hook = hook.strip_suffix(BASE).unwrap_or(hook);
        let row = |name: &str| values[name].row(position).to_vec();
        match (&node.op, hook) {
            (Op::Embed { .. }, _) => parts.add("token embedding", None, None, row(&node.name)),
            (Op::LearnedPositions { .. } | Op::Sinusoidal, _) => {
                parts.add("position encoding", None, None, row(&node.name));
            }
            (Op::OutputProjection { .. }, hook) if !hook.ends_with(LORA_A) => {
                self.start_sublayer(parts);
                self.add_heads(node, position, parts);
            }
            (Op::Linear { .. }, "mlp_out" | "mlp_out_before_norm") => {
                self.start_sublayer(parts);
                let name = format!("feed-forward of layer {}", node.layer.unwrap_or(0) + 1);
                parts.add(&name, node.layer, None, row(&node.name));
            }
            (Op::AddScaled { b, scale, .. }, hook) => {
                let sublayer = match hook.trim_end_matches("_before_norm") {
                    "attn_out" => "attention output",
                    "cross_attn_out" => "cross-attention output",
                    "mlp_out" => "feed-forward output",
                    _ => return,
                };
                let layer = node.layer.unwrap_or(0) + 1;
                let update = row(b).into_iter().map(|x| x * scale).collect();
                let name = format!("adapter of the {sublayer} of layer {layer}");
                parts.add(&name, node.layer, None, update);
            }
            (Op::Norm { input, bias, .. }, _) => {
                let Some(first) = self.first_normalized_part(node, hook, parts) else {
                    return;
                };
                let total = row(input);
                for (_, x) in &mut parts.items[first..] {
                    *x = self.normalize(node, &total, x, false);
                }
                if let Some(bias) = bias {
                    let bias = self.explainer.weights()[bias].data.clone();
                    parts.add("norm bias", node.layer, None, bias);
                }
            }
            _ => {}
        }
    }

    /// A sublayer's output is added to the residual stream, or replaces it in a model without residuals.
    fn start_sublayer(&self, parts: &mut ResidualParts) {
        if !self.trace.config.residual {
            parts.items.clear();
        }
        parts.sublayer_start = parts.items.len();
    }

    /// Index of the first part that this norm rescales: 0 where it rescales the residual stream itself,
    /// the sublayer's first part where it rescales a sublayer's output. `None` where it only computes a
    /// sublayer's input.
    fn first_normalized_part(
        &self,
        node: &Node,
        hook: &str,
        parts: &ResidualParts,
    ) -> Option<usize> {
        let post = self.trace.config.norm_placement == NormPlacement::Post;
        match hook {
            "attn_out" | "cross_attn_out" | "mlp_out" => Some(parts.sublayer_start),
            "normalized" if post || node.layer.is_none() => Some(0),
            "full_embed" => Some(0),
            _ => None,
        }
    }

    /// Adds each head's part of the attention output.
    fn add_heads(&self, node: &Node, position: usize, parts: &mut ResidualParts) {
        let Op::OutputProjection {
            input,
            weight,
            bias,
        } = &node.op
        else {
            return;
        };
        let (values, weights) = (&self.trace.values, self.explainer.weights());
        let (heads, seq, width) = {
            let shape = &values[input].shape;
            (shape[0], shape[1], shape[2])
        };
        let layer = node.layer.unwrap_or(0) + 1;
        for head in 0..heads {
            let z = values[input].row(head * seq + position);
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
            let kind = if node.is_cross() {
                "cross-attention head"
            } else {
                "head"
            };
            let name = format!("{kind} {} of layer {layer}", head + 1);
            parts.add(&name, node.layer, Some(head), x);
        }
        if let Some(bias) = bias {
            let kind = if node.is_cross() {
                "cross-attention"
            } else {
                "attention"
            };
            let name = format!("{kind} bias of layer {layer}");
            parts.add(&name, node.layer, None, weights[bias].data.clone());
        }
    }
}

/// The parts whose sum is the residual stream at one position.
#[derive(Default)]
struct ResidualParts {
    items: Vec<(Part, Vec<f64>)>,
    /// Index of the latest sublayer's first part.
    sublayer_start: usize,
}

impl ResidualParts {
    fn add(&mut self, name: &str, layer: Option<usize>, head: Option<usize>, x: Vec<f64>) {
        self.items.push((part(name, layer, head, 0.0), x));
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
