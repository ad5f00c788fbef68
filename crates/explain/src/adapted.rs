//! The operations of a model with an adapter: each adapted linear layer, the two products of its update, and their sum.

use std::collections::BTreeMap;

use nextword_model::{ModelConfig, Transformer};

use crate::evaluate::{Arrays, weights_of};
use crate::graph::{Axis, Lengths, Node, Op, graph};

/// Ends the name of the tensor that an adapted layer computes without its update.
pub(crate) const BASE: &str = "_base";
/// Ends the name of `x A`, which the forward pass reports.
pub(crate) const LORA_A: &str = "_lora";
/// Ends the name of `(x A) B`.
pub(crate) const LORA_B: &str = "_lora_b";

/// The update of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdaptedModule {
    /// Columns of `A`.
    pub rank: usize,
    /// Factor on `(x A) B`.
    pub scale: f64,
}

/// Linear layers with an update, by path: `blocks.0.attention.query`.
pub type AdaptedModules = BTreeMap<String, AdaptedModule>;

/// The layers of `model` with an update; none if its adapter has magnitudes (`DoRA`), which do more than add.
pub(crate) fn adapted_modules(model: &Transformer) -> AdaptedModules {
    let adapter = model.adapter().filter(|adapter| !adapter.config.use_dora);
    let modules = adapter.map(|adapter| adapter.modules).unwrap_or_default();
    let modules = modules.into_iter().map(|(path, module)| {
        let scale = f64::from(module.scale);
        let rank = module.rank;
        (path, AdaptedModule { rank, scale })
    });
    modules.collect()
}

/// Whether the adapter of `model` has magnitudes.
pub(crate) fn has_magnitudes(model: &Transformer) -> bool {
    model
        .adapter()
        .is_some_and(|adapter| adapter.config.use_dora)
}

/// Whether a weight belongs to an adapter.
pub(crate) fn is_adapter_weight(name: &str) -> bool {
    name.ends_with(".lora.a") || name.ends_with(".lora.b")
}

/// The base model's values of the parameters that the adapter of `adapted` replaces. `tuned` has those of the explained
/// model.
pub(crate) fn base_values(adapted: Transformer, tuned: &Arrays) -> Arrays {
    let adapter = adapted.adapter();
    if !adapter.is_some_and(|adapter| adapter.config.use_dora || !adapter.saved.is_empty()) {
        return Arrays::new();
    }
    let mut base = weights_of(&adapted.without_adapter());
    base.retain(|name, array| {
        tuned
            .get(name)
            .is_some_and(|tuned| tuned.data != array.data)
    });
    base
}

/// Sets the parameters that `base` has to `base + scale * (tuned - base)`.
pub(crate) fn interpolate(tuned: &mut Arrays, base: &Arrays, scale: f64) {
    for (name, base) in base {
        let Some(tuned) = tuned.get_mut(name) else {
            continue;
        };
        for (tuned, base) in tuned.data.iter_mut().zip(&base.data) {
            *tuned = base + scale * (*tuned - base);
        }
    }
}

/// Multiplies the scale of every update in `graph` by `factor`.
pub(crate) fn scale_updates(graph: &mut [Node], factor: f64) {
    for node in graph {
        if let Op::AddScaled { scale, .. } = &mut node.op {
            *scale *= factor;
        }
    }
}

/// Returns the operations of a forward pass over inputs of these lengths with the updates of `modules`.
///
/// The tensor `NAME` of an adapted layer is the sum of `NAME_base` and `scale` times `NAME_lora_b`, which is the product
/// of `x A` with `B`. The forward pass reports the sum and `x A`, for the query as `hook_q_lora`; the other two follow
/// from their operands.
///
/// # Example
///
/// ```
/// use nextword_explain::{AdaptedModule, graph_with_adapter};
/// use nextword_model::presets;
///
/// let module = AdaptedModule { rank: 1, scale: 2.0 };
/// let modules = [("blocks.0.attention.query".to_string(), module)].into();
/// let nodes = graph_with_adapter(&presets::statquest(5), 4, &modules); // four tokens
/// let query = nodes.iter().position(|node| node.name == "blocks.0.attn.hook_q").unwrap();
/// let names = nodes[query - 3..query].iter().map(|node| node.name.replace("blocks.0.attn.hook_q_", ""));
/// assert_eq!(names.collect::<Vec<_>>(), ["base", "lora", "lora_b"]);
/// assert_eq!(nodes[query - 2].shape, [4, 1]); // [tokens, rank]
/// ```
pub fn graph_with_adapter(
    config: &ModelConfig,
    lengths: impl Into<Lengths>,
    modules: &AdaptedModules,
) -> Vec<Node> {
    let nodes = graph(config, lengths);
    if modules.is_empty() {
        return nodes;
    }
    let nodes = nodes.into_iter().flat_map(|node| {
        let weight = match &node.op {
            Op::Linear { weight, .. } => Some(weight),
            Op::OutputProjection { weight, .. } => weight.as_ref(),
            _ => None,
        };
        let path = weight.and_then(|weight| weight.strip_suffix(".weight"));
        let adapted = path.and_then(|path| Some((path.to_string(), *modules.get(path)?)));
        match adapted {
            Some((path, module)) => adapt(node, &path, module),
            None => vec![node],
        }
    });
    nodes.collect()
}

/// The operations that replace the linear layer `node`.
fn adapt(node: Node, path: &str, module: AdaptedModule) -> Vec<Node> {
    let name = |suffix: &str| format!("{}{suffix}", node.name);
    let (a, b) = (format!("{path}.lora.a"), format!("{path}.lora.b"));
    let (down, heads) = match &node.op {
        Op::OutputProjection { input, .. } => {
            let down = Op::OutputProjection {
                input: input.clone(),
                weight: Some(a),
                bias: None,
            };
            (down, None)
        }
        Op::Linear { input, heads, .. } => (linear(input.clone(), a, None), *heads),
        _ => return vec![node],
    };
    let computed = |suffix: &str, op: Op| Node {
        name: name(suffix),
        op,
        observed: false,
        ..node.clone()
    };
    let base = computed(BASE, node.op.clone());
    let projected = projected_name(path);
    let position = node.axes.iter().position(|axis| *axis == Axis::Position);
    let seq = position.map_or(0, |at| node.shape[at]);
    let down = Node {
        name: projected.clone(),
        op: down,
        axes: vec![Axis::Position, Axis::Dim],
        shape: vec![seq, module.rank],
        observed: true,
        ..node.clone()
    };
    let up = computed(LORA_B, linear(projected, b, heads));
    let sum = Op::AddScaled {
        a: name(BASE),
        b: name(LORA_B),
        scale: module.scale,
    };
    let sum = Node { op: sum, ..node };
    vec![base, down, up, sum]
}

/// The name under which the forward pass reports `x A` of the layer `path`: `blocks.0.attn.hook_q_lora`.
fn projected_name(path: &str) -> String {
    let (block, layer) = path.rsplit_once('.').unwrap_or(("", path));
    let (block, hook) = match block.rsplit_once('.') {
        Some((block, "attention")) => (block, "attn.hook_"),
        Some((block, "cross_attention")) => (block, "cross_attn.hook_"),
        Some((block, _)) => (block, "mlp.hook_"),
        None => (block, ""),
    };
    let layer = match layer {
        "query" => "q",
        "key" => "k",
        "value" => "v",
        "output" => "out",
        other => other,
    };
    format!("{block}.{hook}{layer}{LORA_A}")
}

/// A linear layer without bias.
fn linear(input: String, weight: String, heads: Option<usize>) -> Op {
    Op::Linear {
        input,
        weight,
        bias: None,
        heads,
        transposed: false,
    }
}

#[cfg(test)]
mod tests {
    use nextword_model::presets;

    use super::*;
    use crate::labels::label;

    #[test]
    fn every_operation_of_an_adapter_has_a_label_and_a_reason() {
        let config = presets::shakespeare_char_cpu(9);
        let module = AdaptedModule {
            rank: 2,
            scale: 0.5,
        };
        let layers = ["attention.query", "attention.output", "feed_forward.down"];
        let modules = layers.map(|layer| (format!("blocks.0.{layer}"), module));
        let plain = graph(&config, 3);
        let adapted = graph_with_adapter(&config, 3, &modules.into());
        assert_eq!(adapted.len(), plain.len() + 3 * layers.len());
        let new = adapted.iter().filter(|node| !plain.contains(node));
        let mut count = 0;
        for node in new {
            let label = label(node);
            assert!(
                !label.why.is_empty() && label.title != "logits",
                "{}",
                node.name
            );
            count += 1;
        }
        assert_eq!(count, 4 * layers.len());
    }

    #[test]
    fn the_forward_pass_reports_the_sum_and_its_first_product() {
        let config = presets::statquest(5);
        let module = AdaptedModule {
            rank: 1,
            scale: 2.0,
        };
        let modules = [("blocks.0.attention.value".to_string(), module)].into();
        let mut nodes = graph_with_adapter(&config, 2, &modules);
        let names = ["v_base", "v_lora", "v_lora_b", "v"];
        let found = nodes.iter().filter(|node| node.name.contains("hook_v"));
        let found: Vec<_> = found
            .map(|node| (node.name.as_str(), node.observed))
            .collect();
        let reported = |name| matches!(name, "v" | "v_lora");
        let expected = names.map(|name| (format!("blocks.0.attn.hook_{name}"), reported(name)));
        let expected: Vec<_> = expected
            .iter()
            .map(|(name, seen)| (name.as_str(), *seen))
            .collect();
        assert_eq!(found, expected);
        scale_updates(&mut nodes, 0.5);
        let scale = nodes.iter().find_map(|node| match node.op {
            Op::AddScaled { scale, .. } => Some(scale),
            _ => None,
        });
        assert_eq!(scale, Some(1.0));
    }
}
