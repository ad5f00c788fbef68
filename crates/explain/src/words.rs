//! What each step is called: StatQuest's plain words, and the textbook's beside them.

use std::borrow::Cow;

use serde::Serialize;

use crate::graph::{Node, Op, PROBABILITIES};

/// What a tensor is called and how it comes about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct About {
    /// In plain words.
    pub title: &'static str,
    /// In the textbook's.
    pub term: &'static str,
    /// How it is computed.
    pub formula: Cow<'static, str>,
    /// What it is for.
    pub words: &'static str,
}

/// What `node` is called.
pub fn about(node: &Node) -> About {
    let about = named(node);
    let (Op::Linear { bias: None, .. } | Op::Join { bias: None, .. } | Op::Norm { bias: None, .. }) =
        node.op
    else {
        return about;
    };
    let formula = about
        .formula
        .trim_end_matches(" + bias")
        .trim_end_matches(" + b");
    About {
        formula: formula.to_owned().into(),
        ..about
    }
}

/// The same with a bias wherever there may be one.
fn named(node: &Node) -> About {
    match &node.op {
        Op::Embed { scale, .. } => about_of(
            "word embedding",
            "token embedding",
            match scale {
                Some(_) => "row of the embedding table × scale",
                None => "row of the embedding table",
            },
            "Each word becomes a few numbers, learned in training: its row of a table.",
        ),
        Op::Places { .. } => about_of(
            "position encoding",
            "learned positional embedding",
            "row of the position table",
            "Each place has learned numbers of its own, so that word order counts.",
        ),
        Op::Waves => about_of(
            "position encoding",
            "sinusoidal positional encoding",
            "sin(p · f) in even places, cos(p · f) in odd ones",
            "Each number is read off a wave at the word's place, so that word order counts.",
        ),
        Op::Turn { .. } => about_of(
            "query or key, turned by its position",
            "rotary position embedding (RoPE)",
            "pairs (x, y) → (x cos a − y sin a, y cos a + x sin a), a = p · f",
            "Pairs of numbers are turned by an angle that grows with the place: what is left in the \
             similarity is how far apart two words are.",
        ),
        Op::Scores {
            usual, cap, slopes, ..
        } => similarity(*usual, cap.is_some(), !slopes.is_empty()),
        Op::Softmax { .. } if node.name == PROBABILITIES => about_of(
            "softmax: how likely each next word is",
            "next-token probabilities",
            "e^x / Σ e^x",
            "The output values as percentages, which add up to 100 %.",
        ),
        Op::Softmax { .. } => about_of(
            "percentage",
            "attention weights: softmax of the scores",
            "e^x / Σ e^x",
            "The similarities as percentages: how much of each word's value goes into this word. \
             Each row adds up to 100 %.",
        ),
        Op::Mix { .. } => about_of(
            "masked self-attention values",
            "weighted sum of values (head output z)",
            "Σ percentage × value",
            "Each visible word's value, scaled by its percentage, and added up.",
        ),
        Op::Join { weight: None, .. } => about_of(
            "attention's result, heads side by side",
            "concatenated heads",
            "[z of head 1, z of head 2, …]",
            "What attention found out about each word.",
        ),
        Op::Join { .. } => about_of(
            "attention's result, heads put together",
            "output projection W_O of the concatenated heads",
            "[z of all heads] W + b",
            "What all heads found out about each word, put back into as many numbers as a word has.",
        ),
        _ => around(node),
    }
}

/// Similarities by the usual scale or another, squeezed below a limit or not, less for distance or not.
fn similarity(usual: bool, capped: bool, sloped: bool) -> About {
    let mut formula = if usual {
        "q · k / √d"
    } else {
        "q · k × scale"
    }
    .to_string();
    if capped {
        formula = format!("c · tanh({formula} / c)");
    }
    if sloped {
        formula.push_str(" − m · distance");
    }
    let term = match (capped, sloped) {
        (false, false) => "attention score: scaled, masked dot product",
        (true, false) => "attention score with soft cap: scaled dot product, squeezed below c",
        (false, true) => {
            "attention score with ALiBi: scaled dot product minus slope times distance"
        }
        (true, true) => "attention score with soft cap and ALiBi",
    };
    let words = if sloped {
        "How well a word's query fits another word's key, less for words far behind. A word sees \
         itself and what came before, never the future."
    } else {
        "How well a word's query fits another word's key. A word sees itself and what came before, \
         never the future."
    };
    About {
        formula: formula.into(),
        ..about_of("similarity", term, "", words)
    }
}

/// What a norm is called; with a unit offset its weights are told as what they add to 1.
fn normalized(node: &Node, centered: bool, unit_offset: bool) -> About {
    let formula = match (centered, unit_offset) {
        (true, false) => "(x − mean) / √(variance + ε) × weight + bias",
        (true, true) => "(x − mean) / √(variance + ε) × (1 + weight) + bias",
        (false, false) => "x / √(mean of x² + ε) × weight",
        (false, true) => "x / √(mean of x² + ε) × (1 + weight)",
    };
    if node.name.contains("attn.hook_") {
        return about_of(
            "query or key, normalised",
            "QK norm",
            formula,
            "Queries and keys are brought to the same length, so that similarities stay moderate.",
        );
    }
    let title = if node.name.ends_with("attn_out") {
        "attention's result, normalised"
    } else if node.name.ends_with("mlp_out") {
        "feed-forward's result, normalised"
    } else {
        "normalised numbers"
    };
    if centered {
        return about_of(
            title,
            "layer norm",
            formula,
            "Each word's numbers are moved to mean 0 and spread 1, then scaled and shifted as learned.",
        );
    }
    about_of(
        title,
        "RMS norm",
        formula,
        "Each word's numbers are brought to the same overall size, then scaled as learned.",
    )
}

/// The steps around attention.
fn around(node: &Node) -> About {
    match &node.op {
        Op::Norm {
            centered,
            unit_offset,
            ..
        } => normalized(node, *centered, *unit_offset),
        Op::Activate { .. } | Op::Gate { .. } => about_of(
            "hidden units after the activation",
            "feed-forward activations",
            "f(x), gated: f(gate) × x",
            "What is negative is damped: here a network can say \u{201c}if\u{201d}.",
        ),
        Op::Cap { .. } => about_of(
            "output layer, softly capped",
            "logit soft cap",
            "c · tanh(x / c)",
            "Very large output values are squeezed below a limit.",
        ),
        _ => by_name(node),
    }
}

fn by_name(node: &Node) -> About {
    let is_sum = matches!(node.op, Op::Add { .. });
    let hook = node
        .name
        .rsplit_once("hook_")
        .map_or("logits", |(_, hook)| hook);
    match hook {
        "q" | "q_before_norm" => about_of(
            "query",
            "query projection W_Q",
            "x W + b",
            "What this word asks the others.",
        ),
        "k" | "k_before_norm" => about_of(
            "key",
            "key projection W_K",
            "x W + b",
            "What this word answers to others' queries.",
        ),
        "v" => about_of(
            "value",
            "value projection W_V",
            "x W + b",
            "What this word hands over to those that find it similar.",
        ),
        "pre" | "pre_linear" => about_of(
            "hidden units",
            "feed-forward, first layer",
            "x W + b",
            "Each word by itself: many weighted sums of its numbers.",
        ),
        "mlp_out" | "mlp_out_before_norm" => about_of(
            "feed-forward's result",
            "feed-forward (MLP) output",
            "x W + b",
            "The hidden units put back into as many numbers as a word has.",
        ),
        "resid_pre" if is_sum => about_of(
            "word embedding + position encoding",
            "input of the first block (residual stream)",
            "embedding + position",
            "Meaning and place of each word in the same numbers.",
        ),
        "resid_pre" => about_of(
            "what enters the layer",
            "residual stream",
            "unchanged",
            "Each word's numbers as the layer before left them.",
        ),
        "resid_mid" | "resid_post" | "attn_sum" | "mlp_sum" if is_sum => about_of(
            "residual connection",
            "residual sum (skip connection)",
            "what was there + what is new",
            "The layer adds to what is known about each word instead of replacing it.",
        ),
        "resid_mid" | "resid_post" | "attn_sum" | "mlp_sum" => about_of(
            "what leaves the layer",
            "residual stream",
            "unchanged",
            "Each word's numbers for the next step.",
        ),
        _ => about_of(
            "output layer",
            "logits (unembedding)",
            "x W + b",
            "One number for each word of the vocabulary: the larger, the likelier it comes next.",
        ),
    }
}

fn about_of(
    title: &'static str,
    term: &'static str,
    formula: &'static str,
    words: &'static str,
) -> About {
    About {
        title,
        term,
        formula: formula.into(),
        words,
    }
}
