//! Every number that is explained is the model's, follows from others, and in the end from weights.

use std::collections::{BTreeSet, VecDeque};

use burn::tensor::{Int, Tensor, TensorData};
use nextword_explain::derive::derive;
use nextword_explain::evaluate::{Arrays, weights_of};
use nextword_explain::{Address, Derivation, Op, TOKENS, Trace, TraceOptions};
use nextword_generate::{DecodeOptions, SamplingConfig, generate_ids};
use nextword_model::{
    BiasConfig, CounterRng, FeedForwardKind, ModelConfig, NormKind, NormPlacement, Pass, Position,
    Transformer, presets, weights,
};

use crate::util::flex;

/// Any of `of`.
fn pick<T: Copy>(rng: CounterRng, at: u64, of: &[T]) -> T {
    of[(rng.at(at) % of.len() as u64) as usize]
}

/// Any small model: every option of the configuration comes up.
pub(crate) fn any_config(case: u64) -> ModelConfig {
    let rng = CounterRng::new(5).named("models").stream(case);
    let (n_heads, n_kv_heads) = pick(rng, 0, &[(1, 1), (2, 1), (2, 2), (4, 2), (3, 1)]);
    let bit = |at| rng.at(at) & 1 == 1;
    let head_dim = pick(rng, 1, &[2, 4, 6]);
    let own_width = bit(2);
    let d_model = n_heads * head_dim + usize::from(own_width) * 2;
    ModelConfig {
        vocab_size: pick(rng, 3, &[3, 7, 12]),
        context_length: 10,
        n_layers: pick(rng, 4, &[1, 2, 3]),
        n_heads,
        n_kv_heads: Some(n_kv_heads),
        head_dim: Some(head_dim),
        d_model,
        d_ff: bit(5).then_some(5),
        position: pick(
            rng,
            6,
            &[
                Position::Sinusoidal,
                Position::Learned,
                Position::Rotary,
                Position::Alibi,
                Position::None,
            ],
        ),
        norm: pick(rng, 7, &[NormKind::None, NormKind::Layer, NormKind::Rms]),
        norm_placement: pick(rng, 8, &[NormPlacement::Pre, NormPlacement::Post]),
        feed_forward: pick(
            rng,
            9,
            &[
                FeedForwardKind::None,
                FeedForwardKind::Gelu,
                FeedForwardKind::GeluTanh,
                FeedForwardKind::Relu,
                FeedForwardKind::ReluSquared,
                FeedForwardKind::Silu,
                FeedForwardKind::Swiglu,
                FeedForwardKind::Geglu,
            ],
        ),
        bias: BiasConfig {
            qkv: bit(10),
            attention_output: bit(11),
            feed_forward: bit(12),
            norm: bit(13),
            head: bit(14),
        },
        tied_head: bit(15),
        output_projection: own_width || bit(16),
        qk_norm: bit(17),
        logit_soft_cap: bit(18).then_some(3.0),
        windows: pick::<&[usize]>(rng, 19, &[&[], &[3], &[2, 0]]).to_vec(),
        residual: !rng.at(20).is_multiple_of(4),
        init: nextword_model::InitConfig {
            std: 0.5,
            scale_output: false,
        },
        ..ModelConfig::default()
    }
}

/// Weights with biases and norms that are not 0 and 1.
pub(crate) fn any_model(config: &ModelConfig, seed: u64) -> Transformer {
    let mut tensors = weights::NamedTensors::new();
    for (name, shape) in weights::layout(config) {
        let rng = CounterRng::new(seed).named(&name);
        let centre = if name.contains("norm.weight") {
            1.0
        } else {
            0.0
        };
        let n = shape.iter().product::<usize>() as u64;
        let spread = if shape.len() == 1 {
            0.4
        } else {
            (shape[0] as f64).powf(-0.5)
        };
        let value = |i| (centre + spread * rng.normal(i)) as f32;
        let values = (0..n).map(value).collect();
        tensors.insert(name, (shape, values));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    weights::save_tensors(&tensors, &path).unwrap();
    weights::load(config, &path, &flex()).unwrap()
}

/// A model, a prompt for it, and how it answers.
fn any_case(case: u64) -> (Transformer, Vec<u32>, TraceOptions) {
    let config = any_config(case);
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
    };
    (any_model(&config, case), prompt, options)
}

fn trace(model: &Transformer, prompt: &[u32], options: &TraceOptions) -> (Trace, Arrays) {
    let weights = weights_of(model);
    let trace = Trace::record(model, &weights, prompt, options).unwrap();
    (trace, weights)
}

fn bits(values: impl IntoIterator<Item = f64>) -> Vec<u32> {
    values.into_iter().map(|x| (x as f32).to_bits()).collect()
}

/// How many random pairs of model and prompt are tried.
const CASES: u64 = 1000;

#[test]
fn a_thousand_models_and_prompts_are_complete_and_equal_their_recomputation() {
    for case in 0..CASES {
        let (model, prompt, options) = any_case(case);
        let (trace, _) = trace(&model, &prompt, &options);
        let verdict = &trace.verdict;
        assert!(
            verdict.is_verified(),
            "case {case}, {:?}: {}",
            trace.config,
            verdict.sentence()
        );
        assert_eq!(
            verdict.differences.len(),
            trace.graph.iter().filter(|node| node.seen).count()
        );
        for node in &trace.graph {
            check_node(&trace, node, case);
        }
    }
}

/// Rows of percentages sum to one, what is masked is nothing, residual sums are sums.
fn check_node(trace: &Trace, node: &nextword_explain::Node, case: u64) {
    let value = trace.value(&node.name);
    let place = format!("case {case}, {}", node.name);
    match &node.op {
        Op::Softmax { .. } => {
            for row in value.rows() {
                assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{place}");
            }
        }
        Op::Add { a, b } => {
            let sums = trace.value(a).data.iter().zip(&trace.value(b).data);
            for ((a, b), sum) in sums.zip(&value.data) {
                assert!((a + b - sum).abs() <= 1e-6 * sum.abs().max(1.0), "{place}");
            }
        }
        _ => {}
    }
    if node.is_square() {
        let seq = trace.ids.len();
        for (at, (shown, x)) in trace.shown(node).iter().zip(&value.data).enumerate() {
            let (query, key) = (at / seq % seq, at % seq);
            assert!(
                key <= query || shown.is_none(),
                "{place}: the future is hidden"
            );
            let nothing = if matches!(node.op, Op::Scores { .. }) {
                f64::NEG_INFINITY
            } else {
                0.0
            };
            assert!(
                shown.is_some() || x.total_cmp(&nothing).is_eq(),
                "{place}: {x} is masked"
            );
        }
    }
}

#[test]
fn what_is_explained_is_what_generate_computes_bit_for_bit() {
    for case in 0..60 {
        let (model, prompt, options) = any_case(case);
        let (trace, _) = trace(&model, &prompt, &options);
        let decode = DecodeOptions {
            sampling: options.sampling.clone(),
            max_tokens: options.max_tokens,
            stop_ids: options.stop_ids.clone(),
            ..DecodeOptions::default()
        };
        let answer = generate_ids(&model, std::slice::from_ref(&prompt), decode, |_| {
            std::ops::ControlFlow::Continue(())
        });
        let tokens = &answer.unwrap()[0].tokens;
        let drawn: Vec<_> = trace.drawings.iter().map(|d| d.choice).collect();
        assert_eq!(&drawn, tokens, "case {case}");

        // And the whole prompt at once, unwatched and without a cache.
        let ids: Vec<i32> = prompt.iter().map(|id| id.cast_signed()).collect();
        let data = TensorData::new(ids, [1, prompt.len()]);
        let ids = Tensor::<2, Int>::from_data(data, &flex());
        let hidden = model.hidden(ids, &mut Pass::plain());
        let last = hidden.narrow(1, prompt.len() - 1, 1);
        let plain = weights::floats(model.logits(last, &mut Pass::plain()).into_data());
        let shown = trace.value("logits").row(prompt.len() - 1).iter().copied();
        let plain = plain.into_iter().map(f64::from);
        assert_eq!(bits(shown), bits(plain), "case {case}: {:?}", trace.config);
    }
}

/// Follows `address` down to where nothing comes before.
fn follow(trace: &Trace, all_weights: &Arrays, address: &Address, tolerance: f64) -> usize {
    let text = |id: u32| id.to_string();
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut open = VecDeque::from([address.clone()]);
    let (mut ends, mut checked) = (0, 0);
    while let Some(address) = open.pop_front() {
        if !seen.insert(address.to_string()) {
            continue;
        }
        let found: Derivation = derive(trace, all_weights, &text, &address);
        checked += 1;
        if let (Some(value), Some(result)) = (found.value, found.result) {
            assert!(
                (value - result).abs() <= tolerance * value.abs().max(1.0),
                "{address}: {value} shown, {result} from {}",
                found.filled
            );
        }
        let end = address.name == TOKENS || all_weights.contains_key(&address.name);
        let origin = found
            .operands
            .iter()
            .all(|operand| operand.address.is_none());
        assert!(
            end || !origin || matches!(op(trace, &address), Op::Waves),
            "{address} ends the chain"
        );
        ends += usize::from(end);
        for operand in &found.operands {
            if let Some(address) = &operand.address {
                let parsed = Address::parse(address, trace, all_weights).unwrap();
                assert_eq!(parsed.to_string(), *address);
                open.push_back(parsed);
            }
        }
    }
    assert!(ends > 0, "{address} comes from weights and token ids");
    checked
}

fn op<'t>(trace: &'t Trace, address: &Address) -> &'t Op {
    &trace.node(&address.name).unwrap().op
}

#[test]
fn every_derivation_gives_its_number_and_ends_in_weights_and_token_ids() {
    let mut checked = 0;
    for case in 0..40 {
        let (model, prompt, options) = any_case(case);
        let (trace, weights) = trace(&model, &prompt[..prompt.len().min(3)], &options);
        let last = trace.ids.len() - 1;
        let address = format!("probabilities[position={last},token=1]");
        let address = Address::parse(&address, &trace, &weights).unwrap();
        checked += follow(&trace, &weights, &address, 2e-5);
    }
    assert!(checked > 20_000, "{checked} derivations were followed");
}

#[test]
fn statquest_is_recomputed_to_a_millionth_for_both_prompts() {
    let model = any_model(&presets::statquest(5), 3);
    for prompt in [[0, 1, 2, 4], [2, 1, 0, 4]] {
        let options = TraceOptions {
            max_tokens: 2,
            ..TraceOptions::default()
        };
        let (trace, weights) = trace(&model, &prompt, &options);
        let worst = trace.verdict.worst().unwrap();
        assert!(worst.largest <= 1e-6, "{}", trace.verdict.sentence());
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

/// The address of the number at place `at` of `node`.
fn address_of(node: &nextword_explain::Node, mut at: usize) -> String {
    let mut parts = Vec::new();
    for (axis, length) in node.axis_names().iter().zip(&node.shape).rev() {
        parts.push(format!("{axis}={}", at % length));
        at /= length;
    }
    parts.reverse();
    format!("{}[{}]", node.name, parts.join(","))
}
