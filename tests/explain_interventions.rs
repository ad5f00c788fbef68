//! What-if edits of the architecture, and steps of gradient descent, against independent computations.

use nextword_explain::evaluate::evaluate;
use nextword_explain::gradient::gradients;
use nextword_explain::graph::graph;
use nextword_explain::terminal::{View, render};
use nextword_explain::{Array, AttentionKind, Edit, ExplainError, Explanation, Op, ReportOptions};
use nextword_generate::TextGenerator;
use nextword_model::{
    FeedForwardKind, ModelConfig, NormKind, NormPlacement, Position, Transformer,
};

use crate::explain_report::{explainer, options};
use crate::random_models::random_config;

/// The distance for finite differences.
const DISTANCE: f64 = 1e-5;

/// The model of `config` with the weights of `from`.
fn with_weights_of(config: &ModelConfig, from: &Transformer) -> Vec<f64> {
    let nodes = graph(config, 4);
    let weights = nextword_explain::evaluate::weights_of(from);
    let values = evaluate(&nodes, &weights, &[1, 0, 2, 1], &[]);
    values["probabilities"].row(3).to_vec()
}

/// Predictions after an edit, by id, compared with those of a model of another configuration.
fn check(explanation: &Explanation<'_>, edit: &Edit, expected: &[f64]) {
    let found = explanation.what_if(std::slice::from_ref(edit)).unwrap();
    for token in &found.tokens {
        let difference = (token.after - expected[token.id as usize]).abs();
        assert!(difference < 1e-9, "{edit:?}: {token:?}, {difference}");
    }
    let last = found.positions.last().unwrap();
    assert_eq!((found.positions.len(), last.position), (4, 3));
    let listed = found.tokens.iter().find(|token| token.id == last.next);
    assert_eq!(
        listed.map(|token| token.after.to_bits()),
        Some(last.after.to_bits())
    );
}

#[test]
fn removed_parts_give_the_predictions_of_a_model_without_them() {
    let mut counts = [0; 3];
    for case in 0..300 {
        let config = random_config(case);
        let explainer = explainer(&config, case);
        let model: &TextGenerator = explainer.generator();
        let explanation = explainer.explain("w01 w00 w02 w01", &options(2)).unwrap();
        if config.residual && !config.parallel {
            let without = ModelConfig {
                residual: false,
                ..config.clone()
            };
            let expected = with_weights_of(&without, model.model());
            check(&explanation, &Edit::NoResidual, &expected);
            counts[0] += 1;
        }
        let without = ModelConfig {
            position: Position::None,
            ..config.clone()
        };
        // With YaRN, positions also have a factor of the scores, which the edit keeps.
        let has_same_scale =
            |layer| config.score_scale(layer).to_bits() == without.score_scale(layer).to_bits();
        if config.position != Position::None && (0..config.n_layers).all(has_same_scale) {
            let expected = with_weights_of(&without, model.model());
            check(&explanation, &Edit::NoPositions, &expected);
            counts[1] += 1;
        }
        // With one layer, the last token attends to all others with and without the mask.
        let attends_to_all = config.n_layers == 1 && config.window(0).is_none_or(|w| w >= 4);
        if attends_to_all {
            let expected = with_weights_of(&config, model.model());
            check(&explanation, &Edit::NoMask, &expected);
            counts[2] += 1;
        }
    }
    assert!(counts.iter().all(|count| *count > 20), "{counts:?}");
}

/// Parallel sublayers read the same input: without residual connections, their outputs are still added.
#[test]
fn parallel_blocks_without_residuals_keep_both_sublayers() {
    let (mut with_both, mut attending) = (0, 0);
    for case in 0..100 {
        let config = random_config(case);
        let config = ModelConfig {
            parallel: true,
            residual: true,
            norm_placement: match config.norm_placement {
                NormPlacement::Post => NormPlacement::Pre,
                other => other,
            },
            ..config
        };
        let explainer = explainer(&config, case);
        let explanation = explainer.explain("w01 w00 w02 w01", &options(2)).unwrap();
        let mut nodes = graph(&config, 4);
        let has_both = config.feed_forward != FeedForwardKind::None;
        let sum = if has_both {
            "hook_resid_mid"
        } else {
            "hook_resid_post"
        };
        for node in nodes.iter_mut().filter(|node| node.name.ends_with(sum)) {
            let input = node.name.replace(sum, "hook_attn_out");
            node.op = Op::Copy { input };
        }
        let values = evaluate(&nodes, explainer.weights(), &[1, 0, 2, 1], &[]);
        let expected = values["probabilities"].row(3);
        check(&explanation, &Edit::NoResidual, expected);
        with_both += usize::from(has_both);
        if has_both && config.n_layers == 1 {
            // Attention still has an effect: without its heads, the prediction is another one. (A LayerNorm of
            // width 2 can hide it.)
            let heads = (0..config.n_heads).map(|head| Edit::HeadOff {
                layer: 0,
                head,
                attention: AttentionKind::SelfAttention,
            });
            let edits: Vec<Edit> = std::iter::once(Edit::NoResidual).chain(heads).collect();
            let without = explanation.what_if(&edits).unwrap();
            let changed = without
                .tokens
                .iter()
                .any(|token| (token.after - expected[token.id as usize]).abs() > 1e-9);
            attending += usize::from(changed);
        }
    }
    assert!(with_both > 50 && attending > 15, "{with_both}, {attending}");
}

/// Without the mask, the first token attends to all: by hand for one head of width 2.
#[test]
fn without_the_mask_earlier_tokens_attend_to_later_ones() {
    let config = ModelConfig {
        norm: NormKind::None,
        ..nextword_model::presets::statquest(5)
    };
    let explainer = explainer(&config, 4);
    let explanation = explainer.explain("w01 w00 w02", &options(1)).unwrap();
    let found = explanation.what_if(&[Edit::NoMask]).unwrap();
    let (trace, weights) = (&explanation.trace, explainer.weights());
    let value = |name: &str| &trace.reference[&format!("blocks.0.{name}")];
    let (q, k, v) = (
        value("attn.hook_q"),
        value("attn.hook_k"),
        value("attn.hook_v"),
    );
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for position in 0..2 {
        let scores = (0..3).map(|key| dot(q.row(position), k.row(key)) / 2f64.sqrt());
        let exponentials: Vec<f64> = scores.map(f64::exp).collect();
        let sum: f64 = exponentials.iter().sum();
        let mut x = value("hook_resid_pre").row(position).to_vec();
        for (key, e) in exponentials.iter().enumerate() {
            for (x, v) in x.iter_mut().zip(v.row(key)) {
                *x += e / sum * v;
            }
        }
        let head = &weights["head.weight"];
        let logits: Vec<f64> = (0..5)
            .map(|token| {
                let products = x.iter().zip(head.rows()).map(|(x, row)| x * row[token]);
                products.sum::<f64>() + weights["head.bias"].data[token]
            })
            .collect();
        let total: f64 = logits.iter().map(|x| x.exp()).sum();
        let change = &found.positions[position];
        let expected = logits[change.next as usize].exp() / total;
        assert!(
            (change.after - expected).abs() < 1e-12,
            "{change:?}, {expected}"
        );
        let changed = (change.after - change.before).abs() > 1e-6;
        assert!(changed, "{change:?}");
    }
}

#[test]
fn a_part_that_the_model_lacks_cannot_be_removed() {
    let config = ModelConfig {
        residual: false,
        position: Position::None,
        ..random_config(3)
    };
    let explainer = explainer(&config, 3);
    let explanation = explainer.explain("w01 w00", &options(1)).unwrap();
    for (edit, part) in [
        (Edit::NoResidual, "no residual connections"),
        (Edit::NoPositions, "no positions"),
    ] {
        let result = explanation.what_if(&[edit]);
        let Err(ExplainError::WhatIf(problem)) = result else {
            panic!("{result:?}");
        };
        assert!(problem.contains(part), "{problem}");
    }
    assert!(explanation.what_if(&[Edit::NoMask]).is_ok());
}

#[test]
fn edits_have_names_in_json() {
    for (edit, json) in [
        (Edit::NoResidual, r#"{"change":"no_residual"}"#),
        (Edit::NoPositions, r#"{"change":"no_positions"}"#),
        (Edit::NoMask, r#"{"change":"no_mask"}"#),
    ] {
        assert_eq!(serde_json::to_string(&edit).unwrap(), json);
        assert_eq!(serde_json::from_str::<Edit>(json).unwrap(), edit);
    }
}

/// Every weight of random models of every kind.
#[test]
fn gradients_agree_with_finite_differences() {
    let (mut count, mut kinds) = (0, std::collections::BTreeSet::new());
    for case in 0..120 {
        let config = random_config(case);
        if config.parameter_counts().total() > 1500 {
            continue;
        }
        let explainer = explainer(&config, case);
        let mut weights = explainer.weights().clone();
        // Biases begin at 0 and norms at 1: moved, so that no mistake is hidden.
        for (n, value) in weights.values_mut().flat_map(|w| &mut w.data).enumerate() {
            *value += 0.05 * (n as f64 * 1.7).sin();
        }
        let (nodes, ids) = (graph(&config, 4), [1, 0, 2, 1]);
        kinds.extend(
            nodes
                .iter()
                .map(|node| std::mem::discriminant(&node.op))
                .map(|d| format!("{d:?}")),
        );
        let values = evaluate(&nodes, &weights, &ids, &[]);
        let found = gradients(&nodes, &values, &weights, &ids, 2, 1);
        for name in weights.keys().cloned().collect::<Vec<_>>() {
            let size = weights[&name].data.len();
            for at in (0..size).step_by(1 + size / 12) {
                let original = weights[&name].data[at];
                let mut loss = |x: f64| {
                    weights.get_mut(&name).unwrap().data[at] = x;
                    let values = evaluate(&nodes, &weights, &ids, &[]);
                    -values["probabilities"].at(&[2, 1]).ln()
                };
                let exact =
                    (loss(original + DISTANCE) - loss(original - DISTANCE)) / (2.0 * DISTANCE);
                loss(original);
                let ours = found
                    .get(&name)
                    .map_or(0.0, |gradient: &Array| gradient.data[at]);
                // Near the kink of a rectifier, finite differences are inexact.
                assert!(
                    (ours - exact).abs() < 1e-5 * exact.abs().max(1.0),
                    "case {case}, {name} {at}: {ours} instead of {exact} in {config:?}"
                );
                count += 1;
            }
        }
    }
    assert!(
        count > 5_000 && kinds.len() >= 12,
        "{count} of {} kinds",
        kinds.len()
    );
}

#[test]
fn a_training_step_lowers_the_loss_and_its_gradient_is_true() {
    let mut pairs = 0;
    for case in 0..120 {
        let explainer = explainer(&random_config(case), case);
        let explanation = explainer.explain("w01 w00 w02", &options(2)).unwrap();
        let report = explanation.report(&ReportOptions::default()).unwrap();
        // A step that does not lower the loss is left out.
        pairs += usize::from(report.training.len() == 2);
        for step in &report.training {
            assert_eq!(step.position, 2);
            assert!((step.loss + step.probability.ln()).abs() < 1e-12);
            let difference = (step.gradient - step.finite_difference).abs();
            assert!(
                difference < 1e-5 * step.gradient.abs().max(1.0),
                "case {case}: {step:?}"
            );
            let moved = step.value - step.learning_rate * step.gradient;
            assert!((moved - step.new_value).abs() < 1e-12);
            assert!(step.new_loss < step.loss, "case {case}: {step:?}");
            // The value shown is that of the model.
            let value = explanation.why(&step.weight).unwrap().value.unwrap();
            assert!((value - step.value).abs() < 1e-12);
        }
        let reference = &explanation.trace.reference["probabilities"];
        let Some(target) = report.training.iter().find(|step| !step.generated) else {
            continue;
        };
        let probability = reference.at(&[2, target.target as usize]);
        assert!((probability - target.probability).abs() < 1e-12);
    }
    assert!(pairs > 100, "{pairs}");
}

/// A soft cap that all logits exceed makes many tokens equally likely.
#[test]
fn a_tie_at_temperature_0_is_called_a_tie() {
    let mut ties = 0;
    for seed in 0..40 {
        let config = ModelConfig {
            vocab_size: 12,
            logit_soft_cap: Some(1e-3),
            ..nextword_model::presets::statquest(12)
        };
        let explainer = explainer(&config, seed);
        let explanation = explainer.explain("w01 w00", &options(1)).unwrap();
        let report = explanation.report(&ReportOptions::default()).unwrap();
        let text = render(&explanation, &report, &View::default());
        let candidates = &report.completion[0].candidates;
        let best = candidates[0].candidate.adjusted;
        let tied = candidates
            .iter()
            .filter(|info| (info.candidate.adjusted - best).abs() <= 0.0);
        if tied.count() < 2 {
            continue;
        }
        ties += 1;
        assert!(
            text.contains("equally likely, but with a higher id"),
            "{text}"
        );
        assert!(text.contains("of several equally likely"), "{text}");
        // The list of predictions breaks ties as sampling does.
        let prediction = &report.predictions[1];
        assert_eq!(prediction.top[0].id, report.completion[0].token.id);
    }
    assert!(ties > 20, "only {ties} ties");
}

/// Two logits under a soft cap are told apart.
#[test]
fn logits_before_and_after_a_soft_cap_are_named() {
    let mut capped = 0;
    for case in 0..200 {
        let config = random_config(case);
        let explainer = explainer(&config, case);
        let explanation = explainer.explain("w01 w00", &options(1)).unwrap();
        let report = explanation.report(&ReportOptions::default()).unwrap();
        let text = render(&explanation, &report, &View::default());
        let names_both = text.contains("logit before the soft cap:");
        assert_eq!(names_both, config.logit_soft_cap.is_some(), "case {case}");
        capped += usize::from(names_both);
        let contribution = &report.contributions[0];
        let logits = report.completion[0].candidates.iter();
        let id = report.completion[0].token.id;
        let shown = logits.map(|info| info.candidate).find(|c| c.id == id);
        let logit = contribution.capped_logit.unwrap_or(contribution.logit);
        assert!((logit - f64::from(shown.unwrap().logit)).abs() < 1e-6);
        let nodes = &explanation.trace.graph;
        let has_cap = nodes
            .iter()
            .any(|node| matches!(node.op, Op::SoftCap { .. }));
        assert_eq!(has_cap, contribution.capped_logit.is_some());
    }
    assert!(capped > 10, "only {capped} models have a soft cap");
}
