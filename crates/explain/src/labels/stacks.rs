//! Labels of steps that differ between stacks: the encoder, cross-attention, masked prediction, bidirectional prompts.

use nextword_model::Architecture;

use super::{Label, new_label};
use crate::graph::{Node, Op, PROBABILITIES};

/// `label`, in the words for the stack that `node` is part of.
pub(super) fn in_stack(node: &Node, label: Label) -> Label {
    let hook = node.name.rsplit_once("hook_").map_or("", |(_, hook)| hook);
    if node.is_cross() {
        return cross_attention(hook, label);
    }
    if node.name.starts_with("mlm_head") {
        return head_transform(hook, label);
    }
    let is_prefix = node.architecture == Architecture::Prefix;
    let (term, purpose) = match &node.op {
        Op::Scores { .. } if node.is_bidirectional() => (
            "StatQuest: similarities; scaled dot products, unmasked",
            "How well a token's query matches another token's key. Every token attends to all tokens, also to \
             later ones: the whole text is known.",
        ),
        Op::Scores { .. } if is_prefix => (
            "StatQuest: similarities; scaled dot products, unmasked within the prompt",
            "How well a token's query matches another token's key. Tokens of the prompt attend to the whole \
             prompt, also to later tokens; those of the completion to themselves and to earlier tokens.",
        ),
        Op::WeightedSum { .. } if node.is_bidirectional() || is_prefix => {
            ("StatQuest: self-attention values", label.purpose)
        }
        Op::Softmax { .. } if node.name == PROBABILITIES && node.is_bidirectional() => {
            return Label {
                title: "token probabilities",
                ..label
            };
        }
        _ if node.name == "logits" && node.is_bidirectional() => (
            label.term,
            "One value for each token of the vocabulary: the larger, the more likely it stands at this position.",
        ),
        _ => return label,
    };
    Label {
        term,
        purpose,
        ..label
    }
}

/// The labels of cross-attention, which StatQuest calls encoder-decoder attention.
fn cross_attention(hook: &str, label: Label) -> Label {
    let formula = label.formula.clone();
    let (title, term, purpose) = match hook {
        "q" | "q_before_norm" => (
            "cross-attention query",
            "StatQuest: encoder-decoder attention; query of the output word",
            "What this token of the output looks for in the input.",
        ),
        "k" | "k_before_norm" => (
            "cross-attention key",
            "StatQuest: encoder-decoder attention; key of the input word",
            "What this token of the input, as the encoder understands it, offers for the output's queries to \
             match.",
        ),
        "v" => (
            "cross-attention value",
            "StatQuest: encoder-decoder attention; value of the input word",
            "What this token of the input passes on to the output tokens that attend to it.",
        ),
        "attn_scores" => (
            "cross-attention scores",
            "StatQuest: similarities between output and input words",
            "How well the query of each output token matches the key of each input token. Nothing is masked, \
             since the whole input is known.",
        ),
        "pattern" => (
            "cross-attention weights",
            "StatQuest: percentages; which input word does this output word look at?",
            "The scores, turned into weights: how much of each input token's value goes into this output token. \
             Each row adds up to 100 %.",
        ),
        "z" => (
            "cross-attention head output",
            "StatQuest: encoder-decoder attention values",
            "The sum of all input tokens' values, each multiplied by its attention weight.",
        ),
        "cross_attn_out" | "cross_attn_out_before_norm" => (
            "cross-attention output",
            "output projection W_O of the concatenated heads of cross-attention",
            "What the input adds to each output token.",
        ),
        _ => return label,
    };
    Label {
        formula,
        ..new_label(title, term, "", purpose)
    }
}

/// The labels of the layer before the output layer.
fn head_transform(hook: &str, label: Label) -> Label {
    let (title, purpose) = match hook {
        "pre" => (
            "head transform",
            "Weighted sums of each token's final vector, which prepare it for the comparison with the vocabulary.",
        ),
        "post" => (
            "head transform activations",
            "The activation function damps negative values.",
        ),
        _ => (
            "head transform, normalized",
            "The input of the output layer.",
        ),
    };
    Label {
        title,
        term: "BERT's layer before the output layer",
        purpose,
        ..label
    }
}
