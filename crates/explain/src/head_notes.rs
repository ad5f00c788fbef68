//! Observations about the attention heads, as text.

use crate::graph::{AttentionKind, Op};
use crate::trace::Trace;

/// An attention weight above this counts as 1.
const SATURATED: f64 = 0.999;

/// Observations about the attention heads, as text.
pub(crate) fn notes(trace: &Trace) -> Vec<String> {
    let mut notes = Vec::new();
    for node in trace.graph.iter().filter(|node| node.is_square()) {
        let Op::Softmax { .. } = node.op else {
            continue;
        };
        let (queries, keys, layer) = (node.shape[1], node.shape[2], node.layer.unwrap_or(0));
        if queries < 4 || keys < 4 {
            continue;
        }
        let seq = queries;
        let pattern = trace.value(&node.name);
        let z = trace.value(&node.name.replace("hook_pattern", "hook_z"));
        let visible =
            |query: usize| (0..keys).filter(move |key| trace.is_visible(node, query, *key));
        let norms: Vec<f64> = (0..node.shape[0])
            .map(|head| {
                (0..seq)
                    .map(|row| l2_norm(z.row(head * seq + row)))
                    .sum::<f64>()
            })
            .collect();
        let max_norm = norms.iter().copied().fold(0.0, f64::max);
        for (head, norm) in norms.iter().enumerate() {
            let row = |query: usize| {
                let row = pattern.row(head * seq + query);
                visible(query).map(|key| row[key]).collect::<Vec<f64>>()
            };
            let rows = (1..seq).map(row);
            let max = |row: &[f64]| row.iter().copied().fold(0.0, f64::max);
            let kind = match AttentionKind::of(node) {
                AttentionKind::SelfAttention => "head",
                AttentionKind::Encoder => "encoder head",
                AttentionKind::Cross => "cross-attention head",
            };
            let name = format!("{kind} {} of layer {}", head + 1, layer + 1);
            if *norm < 0.01 * max_norm || max_norm <= 0.0 {
                notes.push(format!(
                    "{name} is inactive here: its outputs are less than a hundredth of the strongest \
                     head's"
                ));
            } else if rows.clone().all(|row| max(&row) > SATURATED) {
                notes.push(format!(
                    "{name} is saturated: every row puts more than 99.9 % on one token, so its \
                     attention weights get almost no gradient"
                ));
            } else if rows.clone().skip(1).all(|row| row[0] > 0.9) {
                notes.push(format!(
                    "{name} attends mostly to the first token from every position (an attention sink), \
                     as is common for heads that have nothing to add"
                ));
            } else if rows.clone().all(|row| max(&row) < 1.05 / row.len() as f64) {
                notes.push(format!(
                    "{name} attends to all tokens equally: it has not learned to select"
                ));
            }
        }
    }
    notes
}

fn l2_norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}
