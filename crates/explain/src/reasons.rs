//! Why each step of the forward pass exists, in a sentence or two.

use crate::adapted::{BASE, LORA_A, LORA_B};
use crate::graph::{Node, Op, PROBABILITIES};

/// Why a Transformer has the step of `node`; empty for steps that only rename a tensor.
pub(crate) fn reason(node: &Node) -> &'static str {
    match &node.op {
        Op::Embed { .. } => {
            "A network can only add and multiply, so each token needs values to work with. Training gives \
             similar values to tokens that are used in similar ways."
        }
        Op::LearnedPositions { .. } => {
            "Attention by itself ignores order: without positions, the last token would see the same set \
             of tokens whichever came first."
        }
        Op::Sinusoidal => {
            "Attention by itself ignores order: without positions, the last token would see the same set \
             of tokens whichever came first. Sines and cosines stay between −1 and 1 at any position. f says \
             how fast a wave oscillates: fast waves tell neighbours apart, slow ones distant tokens, and a \
             sine with its cosine gives each position a direction of its own."
        }
        Op::Rope { .. } => {
            "When query and key are both rotated, their product depends only on how far apart the two \
             tokens are, and a rotation does not change their lengths."
        }
        Op::Scores {
            default_scale,
            causal,
            ..
        } => score_reason(*default_scale, *causal),
        Op::Softmax { .. } if node.name == PROBABILITIES && node.is_bidirectional() => {
            "Probabilities can be compared, and they can be graded: the loss in training is −ln of the \
             probability of the token that really stood there."
        }
        Op::WeightedSum { .. } if node.is_cross() => {
            "This is where the output learns about the input: the decoder's own tokens say nothing about it."
        }
        Op::Linear { .. } if node.is_cross() => {
            "Queries come from the decoder, keys and values from the encoder's output, so that each word of the \
             output can look up the words of the input that matter for it."
        }
        Op::Linear { .. } | Op::Activate { .. } | Op::Norm { .. }
            if node.name.starts_with("mlm_head") =>
        {
            "The blocks work out what a token means. This layer turns that into a form that can be compared with \
             the embeddings of the vocabulary."
        }
        Op::Softmax { .. } if node.name == PROBABILITIES => {
            "Probabilities can be sampled from, and they can be graded: the loss in training is −ln of \
             the probability of the token that really came next."
        }
        Op::Softmax { .. } => {
            "Softmax makes all weights positive with a sum of 1, so that the result is a weighted mean, \
             however many tokens there are."
        }
        Op::WeightedSum { .. } => {
            "This is where a token learns about the others: outside of attention, every step treats each token on its own."
        }
        Op::AddScaled { .. } => {
            "The base model stays as it is, and the adapter learns only the difference: two thin matrices instead of a \
             whole one, which take a fraction of the memory and can be removed or exchanged."
        }
        Op::Linear { .. } | Op::OutputProjection { .. } if node.name.ends_with(BASE) => {
            "Training the adapter leaves these weights unchanged, so everything that the base model has learned is \
             still there."
        }
        Op::Linear { .. } | Op::OutputProjection { .. } if node.name.ends_with(LORA_A) => {
            "What finetuning changes can be described by a few directions. The rank is their number, and A chooses them."
        }
        Op::Linear { .. } if node.name.ends_with(LORA_B) => {
            "B says what follows from each of these directions. It begins with zeros, so that training starts at the \
             base model."
        }
        Op::OutputProjection { weight: None, .. } => {
            "Several heads can look for several things at once; side by side, their outputs are as wide as \
             the residual stream."
        }
        Op::OutputProjection { .. } => {
            "Several heads look for several things at once; this matrix decides what each of them adds to \
             the token's vector."
        }
        Op::Norm { .. } if node.name.contains("attn.hook_") => {
            "Queries and keys of any length would make the scores arbitrarily large; with equal lengths, \
             softmax stays in the range where it can still learn."
        }
        Op::Norm { .. } => {
            "Vectors grow with everything that layers add to them. A norm brings them back to one scale, so \
             that the next layer works in its usual range and training stays stable."
        }
        Op::Activate { .. } | Op::Gate { .. } => {
            "Without a curved function in between, two linear layers would do no more than a single one."
        }
        Op::SoftCap { .. } => {
            "The cap limits how sure of a token the model can become, which keeps training stable."
        }
        Op::Add { b, .. } if b.ends_with("hook_pos_embed") => {
            "Adding keeps the vector short, and the model learns to tell meaning and position apart."
        }
        Op::Add { .. } => {
            "What was there is kept, so that each layer has to learn only a correction. In training, the \
             gradient passes through the sum unchanged and reaches the first layers."
        }
        Op::Copy { .. } => "",
        Op::Linear { .. } => linear_reason(node),
    }
}

fn score_reason(default_scale: bool, causal: bool) -> &'static str {
    match (default_scale, causal) {
        (true, true) => {
            "A product of longer vectors sums more terms: its typical size grows with √d. Divided by √d, scores \
             stay moderate; large ones would make softmax put everything on one token, which leaves almost no \
             gradient to learn from. Later tokens are masked, because they do not exist yet when the next one \
             is predicted."
        }
        (true, false) => {
            "A product of longer vectors sums more terms: its typical size grows with √d. Divided by √d, scores \
             stay moderate; large ones would make softmax put everything on one token, which leaves almost no \
             gradient to learn from. No token is masked, because all of them are known before anything is \
             predicted."
        }
        (false, true) => {
            "The scale keeps scores moderate; large ones would make softmax put everything on one token, which \
             leaves almost no gradient to learn from. Later tokens are masked, because they do not exist yet \
             when the next one is predicted."
        }
        (false, false) => {
            "The scale keeps scores moderate; large ones would make softmax put everything on one token, which \
             leaves almost no gradient to learn from. No token is masked, because all of them are known before \
             anything is predicted."
        }
    }
}

fn linear_reason(node: &Node) -> &'static str {
    let hook = node.name.rsplit_once("hook_").map_or("", |(_, hook)| hook);
    match hook {
        "q" | "q_before_norm" => {
            "What a token looks for is not what it is: a pronoun looks for a noun. So each token gets a \
             query besides its key, and attention can go one way without going back."
        }
        "k" | "k_before_norm" => {
            "The key decides whether a token is found, the value what it then hands over. With two vectors, \
             the model can learn these apart."
        }
        "v" => {
            "The key says where to look, the value what is found there: only what helps other tokens is \
             passed on, not the whole vector."
        }
        "pre" | "pre_linear" => {
            "Attention only mixes tokens. The feed-forward layer computes something new from each of them, \
             and in large models it holds most of what was learned."
        }
        "mlp_out" | "mlp_out_before_norm" => {
            "The result has to be as wide as the residual stream, to which it is added."
        }
        _ => {
            "One weighted sum for each token of the vocabulary compares the final vector with all of them \
             at once."
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::graph;
    use nextword_model::presets;

    #[test]
    fn every_step_that_computes_something_has_a_reason() {
        for name in presets::NAMES {
            let Some(config) = presets::by_name(name, 9) else {
                continue;
            };
            for node in graph(&config, 2) {
                let is_copy = matches!(node.op, Op::Copy { .. });
                assert_eq!(reason(&node).is_empty(), is_copy, "{name}: {}", node.name);
            }
        }
    }
}
