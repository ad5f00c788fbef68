//! Names of the steps: the standard term first, then StatQuest's term and other names.

mod stacks;

use std::borrow::Cow;

use serde::Serialize;

use crate::adapted::{BASE, LORA_A, LORA_B};
use crate::graph::{Node, Op, PROBABILITIES};
use crate::reasons::reason;

use self::stacks::in_stack;

/// The names of a tensor, its formula and its purpose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Label {
    /// The standard term.
    pub title: &'static str,
    /// StatQuest's term and other names.
    pub term: &'static str,
    /// How it is computed.
    pub formula: Cow<'static, str>,
    /// The purpose of the step.
    #[serde(rename = "words")]
    pub purpose: &'static str,
    /// Why a Transformer has this step; empty for steps that only rename a tensor.
    pub why: &'static str,
}

/// Returns the label of `node`.
pub fn label(node: &Node) -> Label {
    let label = Label {
        why: reason(node),
        ..in_stack(node, label_with_bias(node))
    };
    let (Op::Linear { bias: None, .. }
    | Op::OutputProjection { bias: None, .. }
    | Op::Norm { bias: None, .. }) = node.op
    else {
        return label;
    };
    let formula = label
        .formula
        .trim_end_matches(" + bias")
        .trim_end_matches(" + b");
    Label {
        formula: formula.to_owned().into(),
        ..label
    }
}

/// The label of `node`, with a bias in the formula of every operation that can have one.
fn label_with_bias(node: &Node) -> Label {
    if let Some(label) = adapter_label(node) {
        return label;
    }
    match &node.op {
        Op::Embed { scale, .. } => new_label(
            "token embedding",
            "StatQuest: word embedding",
            match scale {
                Some(_) => "row of the embedding table × scale",
                None => "row of the embedding table",
            },
            "Each token becomes a vector of values learned in training: its row of the embedding table.",
        ),
        Op::LearnedPositions { .. } => new_label(
            "learned position embedding",
            "StatQuest: position encoding",
            "row of the position table",
            "Each position has its own learned vector, so that token order matters.",
        ),
        Op::Sinusoidal => new_label(
            "position encoding",
            "sinusoidal positional encoding",
            "sin(p · f) in even dimensions, cos(p · f) in odd ones",
            "Each element is the value of a sinusoid at the token's position p, so that token order matters. \
             Pair i of the d dimensions has the frequency f = 10000^(−2i/d).",
        ),
        Op::Rope { .. } => new_label(
            if node.name.ends_with("_k") {
                "rotated key"
            } else {
                "rotated query"
            },
            "rotary position embedding (RoPE)",
            "pairs (x, y) → (x cos a − y sin a, y cos a + x sin a), a = p · f",
            "Pairs of elements are rotated by an angle that grows with the position, so that attention \
             scores depend on the distance between two tokens.",
        ),
        Op::Scores {
            default_scale,
            cap,
            slopes,
            ..
        } => score_label(*default_scale, cap.is_some(), !slopes.is_empty()),
        Op::Softmax { .. } if node.name == PROBABILITIES => new_label(
            "next-token probabilities",
            "softmax of the logits",
            "e^x / Σ e^x",
            "The logits, turned into probabilities that add up to 100 %.",
        ),
        Op::Softmax { .. } => new_label(
            "attention weights",
            "StatQuest: percentages; softmax of the scores",
            "e^x / Σ e^x",
            "The scores, turned into weights: how much of each token's value goes into this token. Each row \
             adds up to 100 %.",
        ),
        Op::WeightedSum { .. } => new_label(
            "head output",
            "StatQuest: masked self-attention values",
            "Σ attention weight × value",
            "The sum of all visible tokens' values, each multiplied by its attention weight.",
        ),
        Op::OutputProjection { weight: None, .. } => new_label(
            "attention output",
            "concatenated heads",
            "[z of each head, side by side]",
            "What attention adds to each token.",
        ),
        Op::OutputProjection { .. } => new_label(
            "attention output",
            "output projection W_O of the concatenated heads",
            "[z of all heads] W + b",
            "The outputs of all heads, projected back to the width of the residual stream.",
        ),
        _ => label_outside_attention(node),
    }
}

/// The labels of the operations that an adapter adds, and of the layer that it adapts.
fn adapter_label(node: &Node) -> Option<Label> {
    if let Some(name) = node.name.strip_suffix(BASE) {
        return Some(Label {
            term: "base layer: without the adapter",
            ..label_by_hook(name, false)
        });
    }
    if node.name.ends_with(LORA_A) {
        return Some(new_label(
            "adapter: x A",
            "LoRA: the input, projected down to the rank of the adapter",
            "x A",
            "A few weighted sums of each token's vector, which the adapter has learned to look at.",
        ));
    }
    if node.name.ends_with(LORA_B) {
        return Some(new_label(
            "adapter: update",
            "LoRA: projected up to the width of the layer's output",
            "(x A) B",
            "What the adapter adds to the layer's output, before it is multiplied by its scale.",
        ));
    }
    let Op::AddScaled { .. } = node.op else {
        return None;
    };
    Some(Label {
        term: "with the adapter",
        formula: "base layer + s · update".into(),
        ..label_by_hook(&node.name, false)
    })
}

/// The label of attention scores: with the default scale or another, with or without soft cap and
/// `ALiBi`.
fn score_label(default_scale: bool, is_capped: bool, has_alibi: bool) -> Label {
    let mut formula = if default_scale {
        "q · k / √d"
    } else {
        "q · k × scale"
    }
    .to_string();
    if is_capped {
        formula = format!("c · tanh({formula} / c)");
    }
    if has_alibi {
        formula.push_str(" − m · distance");
    }
    let term = match (is_capped, has_alibi) {
        (false, false) => "StatQuest: similarities; scaled, masked dot products",
        (true, false) => "StatQuest: similarities; scaled dot products with soft cap",
        (false, true) => "StatQuest: similarities; scaled dot products with ALiBi",
        (true, true) => "StatQuest: similarities; with soft cap and ALiBi",
    };
    let purpose = if has_alibi {
        "How well a token's query matches another token's key, minus a penalty for distance. A token \
         attends to itself and to earlier tokens, never to later ones."
    } else {
        "How well a token's query matches another token's key. A token attends to itself and to earlier \
         tokens, never to later ones."
    };
    Label {
        formula: formula.into(),
        ..new_label("attention scores", term, "", purpose)
    }
}

/// The label of a norm. With a unit offset its factor is `1 + weight`.
fn norm_label(node: &Node, centered: bool, unit_offset: bool) -> Label {
    let formula = match (centered, unit_offset) {
        (true, false) => "(x − mean) / √(variance + ε) × weight + bias",
        (true, true) => "(x − mean) / √(variance + ε) × (1 + weight) + bias",
        (false, false) => "x / √(mean of x² + ε) × weight",
        (false, true) => "x / √(mean of x² + ε) × (1 + weight)",
    };
    if node.name.contains("attn.hook_") {
        let (title, term) = if node.name.ends_with("_k") {
            ("normalized key", "QK norm of the key")
        } else {
            ("normalized query", "QK norm of the query")
        };
        return new_label(
            title,
            term,
            formula,
            "Queries and keys are scaled to the same size, so that attention scores stay moderate.",
        );
    }
    let term = if node.name.ends_with("full_embed") {
        "normalized embedding"
    } else if node.name.ends_with("attn_out") {
        "normalized attention output"
    } else if node.name.ends_with("mlp_out") {
        "normalized feed-forward output"
    } else {
        "normalized residual stream"
    };
    if centered {
        return new_label(
            "layer norm",
            term,
            formula,
            "Each token's vector is shifted to mean 0 and scaled to variance 1, then scaled and shifted \
             by learned parameters.",
        );
    }
    new_label(
        "RMS norm",
        term,
        formula,
        "Each token's vector is scaled to the same size, then multiplied by learned weights.",
    )
}

/// Labels of the steps around attention.
fn label_outside_attention(node: &Node) -> Label {
    const ACTIVATION: &str = "The activation function damps negative values, so that hidden units can switch on and off.";
    match &node.op {
        Op::Norm {
            centered,
            unit_offset,
            ..
        } => norm_label(node, *centered, *unit_offset),
        Op::Activate { .. } => new_label(
            "feed-forward activations",
            "hidden units after the activation function f",
            "f(x)",
            ACTIVATION,
        ),
        Op::Gate { .. } => new_label(
            "gated feed-forward activations",
            "hidden units after the activation function f and the gate",
            "f(gate) × x",
            ACTIVATION,
        ),
        Op::SoftCap { .. } => new_label(
            "logits",
            "StatQuest: output layer; with soft cap",
            "c · tanh(x / c)",
            "The soft cap limits the logits to values between −c and c.",
        ),
        _ => label_by_hook(&node.name, matches!(node.op, Op::Add { .. })),
    }
}

/// The label of the tensor `name`. `is_sum`: whether it is a sum of two others.
fn label_by_hook(name: &str, is_sum: bool) -> Label {
    let hook = name.rsplit_once("hook_").map_or("logits", |(_, hook)| hook);
    match hook {
        "q" | "q_before_norm" => new_label(
            "query",
            "query projection W_Q",
            "x W + b",
            "What this token looks for in other tokens.",
        ),
        "k" | "k_before_norm" => new_label(
            "key",
            "key projection W_K",
            "x W + b",
            "What this token offers for other tokens' queries to match.",
        ),
        "v" => new_label(
            "value",
            "value projection W_V",
            "x W + b",
            "What this token passes on to the tokens that attend to it.",
        ),
        "pre_linear" => new_label(
            "feed-forward linear units",
            "multiplied by the hidden units after the activation function",
            "x W + b",
            "A second set of weighted sums of each token's vector: the gate lets each of them through, or not.",
        ),
        "pre" => new_label(
            "feed-forward hidden units",
            "before the activation function",
            "x W + b",
            "Many weighted sums of each token's vector, computed for each token independently.",
        ),
        "mlp_out" | "mlp_out_before_norm" => new_label(
            "feed-forward output",
            "MLP output",
            "x W + b",
            "The hidden units, projected back to the width of the residual stream.",
        ),
        "attn_out" | "attn_out_before_norm" => new_label(
            "attention output",
            "output projection W_O of the concatenated heads",
            "[z of all heads] W + b",
            "The outputs of all heads, projected back to the width of the residual stream.",
        ),
        "resid_pre" | "embed_sum" if is_sum => new_label(
            "token embedding + position encoding",
            "input of the first layer",
            "embedding + position",
            "Meaning and position of each token in the same vector.",
        ),
        "resid_pre" => new_label(
            "residual stream",
            "input of the layer",
            "unchanged",
            "Each token's vector as output by the previous layer.",
        ),
        "resid_mid" | "resid_mid_cross" | "resid_post" | "attn_sum" | "cross_attn_sum"
        | "mlp_sum"
            if is_sum =>
        {
            new_label(
                "residual connection",
                "skip connection; the new residual stream",
                "residual stream + sublayer output",
                "The layer adds to each token's vector instead of replacing it.",
            )
        }
        "resid_mid" | "resid_mid_cross" | "resid_post" | "attn_sum" | "cross_attn_sum"
        | "mlp_sum" => new_label(
            "residual stream",
            "output of the layer",
            "unchanged",
            "Each token's vector for the next step.",
        ),
        _ => new_label(
            "logits",
            "StatQuest: output layer; unembedding",
            "x W + b",
            "One value for each token of the vocabulary: the larger, the more likely it comes next.",
        ),
    }
}

fn new_label(
    title: &'static str,
    term: &'static str,
    formula: &'static str,
    purpose: &'static str,
) -> Label {
    Label {
        title,
        term,
        formula: formula.into(),
        purpose,
        why: "",
    }
}
