//! Every explained value is the model's, and its derivation ends in weights and token ids.

use std::collections::{BTreeSet, VecDeque};

use burn::tensor::{Int, Tensor, TensorData};
use nextword_explain::derive::derive;
use nextword_explain::evaluate::{Arrays, weights_of};
use nextword_explain::{Address, Derivation, Node, Op, SOURCE_TOKENS, TOKENS, Trace, TraceOptions};
use nextword_generate::{DecodeOptions, SamplingConfig, generate_ids};
use nextword_model::{
    CounterRng, FeedForwardKind, ForwardContext, ModelConfig, NormKind, NormPlacement, Position,
    Transformer, presets, weights,
};

use crate::random_models::{ALL_OPTIONS, options_used, random_case_model, random_model};
use crate::util::flex;

/// A model, a prompt and generation options.
fn random_case(case: u64) -> (Transformer, Vec<u32>, TraceOptions) {
    let model = random_case_model(case);
    let config = model.config();
    let rng = CounterRng::new(6).stream(case);
    let length = 1 + rng.at(0) % 6;
    let prompt = (1..=length)
        .map(|i| (rng.at(i) % config.vocab_size as u64) as u32)
        .collect();
    let options = TraceOptions {
        sampling: SamplingConfig {
            temperature: 0.9,
            top_k: Some(5),
            seed: case,
            ..SamplingConfig::default()
        },
        max_tokens: 1 + (rng.at(20) % 3) as usize,
        stop_ids: vec![0],
        ..TraceOptions::default()
    };
    (model, prompt, options)
}

fn trace(model: &Transformer, prompt: &[u32], options: &TraceOptions) -> (Trace, Arrays) {
    let weights = weights_of(model);
    let trace = Trace::record(model, &weights, prompt, options).unwrap();
    (trace, weights)
}

fn bits(values: impl IntoIterator<Item = f64>) -> Vec<u32> {
    values.into_iter().map(|x| (x as f32).to_bits()).collect()
}

/// Number of random pairs of model and prompt.
const CASES: u64 = 1000;

#[test]
fn a_thousand_traces_are_complete_and_match_the_recomputation() {
    let (mut seen, mut worst) = (BTreeSet::new(), [[0.0_f64; 2]; 2]);
    for case in 0..CASES {
        let (model, prompt, options) = random_case(case);
        seen.extend(options_used(&model));
        let (trace, weights) = trace(&model, &prompt, &options);
        let verification = &trace.verification;
        assert!(
            verification.is_verified(),
            "case {case}, {:?}: {}",
            trace.config,
            verification.summary()
        );
        assert_eq!(
            verification.differences.len(),
            trace.graph.len(),
            "case {case}: every tensor is compared"
        );
        for d in &verification.differences {
            let maxima = &mut worst[usize::from(trace.bits.is_some())];
            maxima[0] = maxima[0].max(d.step / (d.scale + 0.1));
            maxima[1] = maxima[1].max(d.largest / d.scale.max(1.0));
        }
        let names: BTreeSet<&str> = trace.graph.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(
            names.len(),
            tensors_of(&trace.config),
            "case {case}: {names:?}"
        );
        let used: BTreeSet<&str> = trace.graph.iter().flat_map(weights_in).collect();
        let stored: BTreeSet<&str> = weights.keys().map(String::as_str).collect();
        assert_eq!(
            used, stored,
            "case {case}: exactly the model's weights are used"
        );
        for node in &trace.graph {
            check_node(&trace, node, case);
        }
    }
    for (kind, [step, end_to_end]) in ["floats", "quantized"].iter().zip(worst) {
        println!(
            "{kind}: largest difference {step:.1e} per operation, {end_to_end:.1e} end to end"
        );
    }
    assert_eq!(seen.len(), ALL_OPTIONS, "not every option occurs: {seen:?}");
}

/// Number of tensors in a forward pass, counted from the configuration.
fn tensors_of(config: &ModelConfig) -> usize {
    let count = |condition: bool, n: usize| if condition { n } else { 0 };
    let normed = config.norm != NormKind::None;
    let sandwich = config.has_sandwich_norms();
    // Input, query, key, value, score, attention weight, weighted values, attention output.
    let attention = 8
        + count(config.qk_norm, 2)
        + count(config.position == Position::Rotary, 2)
        + count(normed, 1)
        + count(sandwich, 1);
    // The residual sum, hidden units before and after the activation, the output.
    let feed_forward = count(
        config.feed_forward != FeedForwardKind::None,
        4 + count(config.feed_forward.is_gated(), 1) + count(normed, 1) + count(sandwich, 1),
    );
    let sublayers = 1 + count(config.feed_forward != FeedForwardKind::None, 1);
    let post = normed && config.norm_placement == NormPlacement::Post;
    let sums = count(post, sublayers);
    let layer = attention + feed_forward + sums + 1;
    let has_position_tensor = matches!(config.position, Position::Learned | Position::Sinusoidal);
    let ends = 3 + count(has_position_tensor, 1) + count(config.has_final_norm(), 1);
    ends + count(config.logit_soft_cap.is_some(), 1) + config.n_layers * layer
}

/// Names of the weights that `node` uses.
pub(crate) fn weights_in(node: &Node) -> Vec<&str> {
    match &node.op {
        Op::Embed { table, .. } | Op::LearnedPositions { table } => vec![table],
        Op::Norm { weight, bias, .. }
        | Op::Linear { weight, bias, .. }
        | Op::OutputProjection {
            weight: Some(weight),
            bias,
            ..
        } => std::iter::once(weight.as_str())
            .chain(bias.as_deref())
            .collect(),
        _ => Vec::new(),
    }
}

/// Checks that attention weights sum to one, masked entries are absent and residual sums are sums.
fn check_node(trace: &Trace, node: &Node, case: u64) {
    let value = trace.value(&node.name);
    let label = format!("case {case}, {}", node.name);
    match &node.op {
        Op::Softmax { .. } => {
            for row in value.rows() {
                assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{label}");
            }
        }
        Op::Add { a, b } => {
            let sums = trace.value(a).data.iter().zip(&trace.value(b).data);
            for ((a, b), sum) in sums.zip(&value.data) {
                assert!((a + b - sum).abs() <= 1e-6 * sum.abs().max(1.0), "{label}");
            }
        }
        _ => {}
    }
    if node.is_square() {
        let seq = trace.ids.len();
        for (at, (shown, x)) in trace
            .visible_values(node)
            .iter()
            .zip(&value.data)
            .enumerate()
        {
            let (query, key) = (at / seq % seq, at % seq);
            assert!(
                key <= query || shown.is_none(),
                "{label}: later tokens are masked"
            );
            let masked_value = if matches!(node.op, Op::Scores { .. }) {
                f64::NEG_INFINITY
            } else {
                0.0
            };
            assert!(
                shown.is_some() || x.total_cmp(&masked_value).is_eq(),
                "{label}: {x} is masked"
            );
        }
    }
}

#[test]
fn explained_values_equal_generated_ones_bitwise() {
    for case in 0..CASES {
        let (model, prompt, options) = random_case(case);
        let (trace, _) = trace(&model, &prompt, &options);
        let decode = DecodeOptions {
            sampling: options.sampling.clone(),
            max_tokens: options.max_tokens,
            stop_ids: options.stop_ids.clone(),
            ..DecodeOptions::default()
        };
        let generated = generate_ids(&model, std::slice::from_ref(&prompt), decode, |_| {
            std::ops::ControlFlow::Continue(())
        });
        let tokens = &generated.unwrap()[0].tokens;
        let sampled: Vec<_> = trace.samples.iter().map(|d| d.sampled).collect();
        assert_eq!(&sampled, tokens, "case {case}");

        // One forward pass without a probe or a cache gives the same logits.
        let ids: Vec<i32> = prompt.iter().map(|id| id.cast_signed()).collect();
        let data = TensorData::new(ids, [1, prompt.len()]);
        let ids = Tensor::<2, Int>::from_data(data, &flex());
        let hidden = model.hidden_states(ids, &mut ForwardContext::inference());
        let last = hidden.narrow(1, prompt.len() - 1, 1);
        let plain = weights::to_f32_vec(
            model
                .logits(last, &mut ForwardContext::inference())
                .into_data(),
        );
        let shown = trace.value("logits").row(prompt.len() - 1).iter().copied();
        let plain = plain.into_iter().map(f64::from);
        assert_eq!(bits(shown), bits(plain), "case {case}: {:?}", trace.config);
    }
}

/// Follows the derivation of `address` down to its leaves and returns the number of derivations.
pub(crate) fn follow_to_leaves(
    trace: &Trace,
    all_weights: &Arrays,
    address: &Address,
    tolerance: f64,
) -> usize {
    let text = |id: u32| id.to_string();
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut queue = VecDeque::from([address.clone()]);
    let (mut leaves, mut checked) = (0, 0);
    while let Some(address) = queue.pop_front() {
        if !seen.insert(address.to_string()) {
            continue;
        }
        let found: Derivation = derive(trace, all_weights, &text, &address);
        checked += 1;
        if let (Some(value), Some(result)) = (found.value, found.result) {
            let largest = largest(trace, &address.name);
            assert!(
                (value - result).abs() <= tolerance * largest.max(1.0),
                "{address}: {value} shown, {result} from {}",
                found.filled
            );
        }
        let is_tokens = [TOKENS, SOURCE_TOKENS].contains(&address.name.as_str());
        let is_leaf = is_tokens || all_weights.contains_key(&address.name);
        let has_no_links = found
            .operands
            .iter()
            .all(|operand| operand.address.is_none());
        assert!(
            is_leaf || !has_no_links || matches!(op(trace, &address), Op::Sinusoidal),
            "{address} is not a leaf but has no links"
        );
        leaves += usize::from(is_leaf);
        for operand in &found.operands {
            if let Some(address) = &operand.address {
                let parsed = Address::parse(address, trace, all_weights).unwrap();
                assert_eq!(parsed.to_string(), *address);
                queue.push_back(parsed);
            }
        }
    }
    assert!(leaves > 0, "{address} must lead to weights or token ids");
    checked
}

/// The largest value of a tensor; 0 for weights and token ids, which are exact.
fn largest(trace: &Trace, name: &str) -> f64 {
    let finite = |node: &Node| {
        let values = trace.value(&node.name).data.iter();
        values
            .filter(|x| x.is_finite())
            .fold(0.0_f64, |max, x| max.max(x.abs()))
    };
    trace.node(name).map_or(0.0, finite)
}

fn op<'t>(trace: &'t Trace, address: &Address) -> &'t Op {
    &trace.node(&address.name).unwrap().op
}

#[test]
fn derivations_end_in_weights_and_token_ids() {
    let (mut checked, mut seen) = (0, BTreeSet::new());
    for case in 0..200 {
        let (model, prompt, options) = random_case(case);
        seen.extend(options_used(&model));
        let (trace, weights) = trace(&model, &prompt[..prompt.len().min(3)], &options);
        let last = trace.ids.len() - 1;
        let address = format!("probabilities[position={last},token=1]");
        let address = Address::parse(&address, &trace, &weights).unwrap();
        let tolerance = model.bits().map_or(2e-5, |_| 1e-3);
        checked += follow_to_leaves(&trace, &weights, &address, tolerance);
    }
    assert!(checked > 50_000, "only {checked} derivations were followed");
    assert_eq!(seen.len(), ALL_OPTIONS, "not every option occurs: {seen:?}");
}

#[test]
fn statquest_is_recomputed_to_1e_6() {
    let model = random_model(&presets::statquest(5), 3);
    for prompt in [[0, 1, 2, 4], [2, 1, 0, 4]] {
        let options = TraceOptions {
            max_tokens: 2,
            ..TraceOptions::default()
        };
        let (trace, weights) = trace(&model, &prompt, &options);
        let worst = trace.verification.worst().unwrap();
        assert!(worst.largest <= 1e-6, "{}", trace.verification.summary());
        for node in &trace.graph {
            for at in 0..trace.value(&node.name).data.len() {
                let address = address_of(node, at);
                let address = Address::parse(&address, &trace, &weights).unwrap();
                let found = derive(&trace, &weights, &|id| id.to_string(), &address);
                let (value, result) = (found.value, found.result);
                assert_eq!(value.is_some(), result.is_some(), "{address}");
                if let (Some(value), Some(result)) = (value, result) {
                    assert!(
                        (value - result).abs() <= 1e-6,
                        "{address}: {value}, {result}"
                    );
                }
            }
        }
    }
}

/// The address of the value at flat index `at` of `node`.
pub(crate) fn address_of(node: &Node, mut at: usize) -> String {
    let mut parts = Vec::new();
    for (axis, length) in node.axis_names().iter().zip(&node.shape).rev() {
        parts.push(format!("{axis}={}", at % length));
        at /= length;
    }
    parts.reverse();
    format!("{}[{}]", node.name, parts.join(","))
}
