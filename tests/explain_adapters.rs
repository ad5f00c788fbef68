//! Explanations of models with an adapter: their operations, the base model beside them, and the adapter scaled.

use nextword_explain::{Edit, Explainer, Explanation, ReportOptions, SCHEMA, graph};
use nextword_model::{CounterRng, LoraConfig, Transformer};
use serde_json::Value;

use crate::explain_report::{explainer_of, options};
use crate::explain_schema::validate;
use crate::random_models::random_case_model;

const PROMPT: &str = "w01 w00 w02 w01";

/// A random model, and the same with a random adapter.
pub(crate) fn adapted(case: u64, config: &LoraConfig) -> (Transformer, Transformer) {
    let base = random_case_model(case);
    let new = base.clone().with_new_adapter(config, case).unwrap();
    let mut adapter = new.adapter().unwrap();
    let rng = CounterRng::new(case).named("adapter");
    for (name, module) in &mut adapter.modules {
        let values = rng.named(name);
        for (at, value) in module.b.iter_mut().enumerate() {
            *value = (values.uniform(at as u64) - 0.5) as f32;
        }
        for magnitude in module.magnitude.iter_mut().flatten() {
            *magnitude *= 1.25;
        }
    }
    for saved in adapter.saved.values_mut() {
        saved.values.iter_mut().for_each(|value| *value *= 0.75);
    }
    let tuned = base.clone().with_adapter(&adapter).unwrap();
    (base, tuned)
}

/// The settings of the adapter of a case: of some or all layers, with and without full copies.
pub(crate) fn settings(case: u64) -> LoraConfig {
    LoraConfig {
        rank: 1 + (case % 2) as usize,
        alpha: 1.5,
        use_rslora: case.is_multiple_of(4),
        modules_to_save: if case.is_multiple_of(3) {
            vec!["token_embedding".to_string()]
        } else {
            Vec::new()
        },
        ..LoraConfig::default()
    }
}

fn probabilities(explanation: &Explanation<'_>) -> Vec<f64> {
    explanation.trace.reference[graph::PROBABILITIES]
        .data
        .clone()
}

fn after(explanation: &Explanation<'_>, scale: f64) -> Vec<(u32, f64)> {
    let found = explanation.what_if(&[Edit::Adapter { scale }]).unwrap();
    let positions = found.positions.into_iter();
    positions
        .map(|change| (change.next, change.after))
        .collect()
}

/// The probabilities that `explainer` computes for these tokens after each position of the prompt.
fn at_positions(explainer: &Explainer, tokens: &[(u32, f64)]) -> Vec<(u32, f64)> {
    let explanation = explainer.explain(PROMPT, &options(1)).unwrap();
    let table = &explanation.trace.reference[graph::PROBABILITIES];
    let tokens = tokens.iter().enumerate();
    tokens
        .map(|(position, (next, _))| (*next, table.at(&[position, *next as usize])))
        .collect()
}

fn assert_close(found: &[(u32, f64)], expected: &[(u32, f64)], tolerance: f64, case: u64) {
    assert_eq!(found.len(), expected.len());
    for ((_, found), (_, expected)) in found.iter().zip(expected) {
        let difference = (found - expected).abs();
        assert!(
            difference <= tolerance,
            "case {case}: {found}, expected {expected}"
        );
    }
}

#[test]
fn every_value_of_an_adapted_model_is_verified_and_adds_up() {
    for case in 0..200 {
        let (_, tuned) = adapted(case, &settings(case));
        let explainer = explainer_of(tuned);
        let explanation = explainer.explain(PROMPT, &options(2)).unwrap();
        let trace = &explanation.trace;
        assert!(
            trace.verification.is_verified(),
            "case {case}: {}",
            trace.verification.summary()
        );
        assert!(!trace.adapted.is_empty());
        let contribution = explanation.contribution(3, 1);
        let size: f64 = contribution.parts.iter().map(|part| part.value.abs()).sum();
        let rounding = trace.bits.map_or(1e-5, |_| 1e-3);
        assert!(
            (contribution.sum - contribution.logit).abs() <= rounding * size.max(1.0),
            "case {case}: parts {} of {}",
            contribution.sum,
            contribution.logit
        );
    }
}

#[test]
fn a_scale_of_zero_is_the_base_model_and_of_one_the_adapted_one() {
    for case in 0..60 {
        let use_dora = case % 5 == 1;
        let config = LoraConfig {
            use_dora,
            ..settings(case)
        };
        let (base, tuned) = adapted(case, &config);
        let explainer = explainer_of(tuned);
        let explanation = explainer.explain(PROMPT, &options(1)).unwrap();
        let none = after(&explanation, 0.0);
        assert_close(
            &none,
            &at_positions(&explainer_of(base), &none),
            1e-12,
            case,
        );
        let full = after(&explanation, 1.0);
        assert_close(&full, &at_positions(&explainer, &full), 1e-12, case);
        let report = explanation.report(&ReportOptions::default()).unwrap();
        let adapter = report.adapter.unwrap();
        let last = probabilities(&explanation);
        let vocab = explanation.trace.config.vocab_size;
        for token in &adapter.tokens {
            let tuned = last[(explanation.trace.prompt_len - 1) * vocab + token.id as usize];
            assert!((token.tuned - tuned).abs() < 1e-12, "case {case}");
        }
        assert_eq!(adapter.modules.is_empty(), use_dora);
    }
}

#[test]
fn half_of_an_adapter_is_the_adapter_with_half_its_scale() {
    for case in (1..40).filter(|case| case % 3 != 0) {
        let config = settings(case);
        let (base, tuned) = adapted(case, &config);
        let mut adapter = tuned.adapter().unwrap();
        for module in adapter.modules.values_mut() {
            module.scale *= 0.5;
        }
        let half = base.with_adapter(&adapter).unwrap();
        let explainer = explainer_of(tuned);
        let explanation = explainer.explain(PROMPT, &options(1)).unwrap();
        let found = after(&explanation, 0.5);
        assert_close(
            &found,
            &at_positions(&explainer_of(half), &found),
            1e-7,
            case,
        );
    }
}

#[test]
fn the_reported_change_of_a_first_layer_is_that_of_its_output() {
    let mut checked = 0;
    for case in 1..60 {
        let (base, tuned) = adapted(
            case,
            &LoraConfig {
                rank: 2,
                ..LoraConfig::default()
            },
        );
        let (base, tuned) = (explainer_of(base), explainer_of(tuned));
        let base = base.explain(PROMPT, &options(1)).unwrap();
        let tuned = tuned.explain(PROMPT, &options(1)).unwrap();
        // Its input is the same in both, so that its outputs differ by the update alone.
        let name = "blocks.0.attn.hook_v";
        let (before, with) = (&base.trace.reference[name], &tuned.trace.reference[name]);
        let (heads, positions) = (before.shape[0], before.shape[1]);
        let last = base.trace.prompt_len - 1;
        let rows = (0..heads).map(|head| head * positions + last);
        let squares = rows.flat_map(|row| {
            let pairs = before.row(row).iter().zip(with.row(row));
            pairs
                .map(|(before, with)| (with - before) * (with - before))
                .collect::<Vec<_>>()
        });
        let expected = squares.sum::<f64>().sqrt();
        let report = tuned.report(&ReportOptions::default()).unwrap();
        let modules = report.adapter.unwrap().modules;
        let found = modules.iter().find(|module| module.tensor == name).unwrap();
        // The report has the values that the model computed, in f32.
        let rounding = if tuned.trace.bits.is_some() {
            1e-3
        } else {
            1e-5
        };
        assert!(
            (found.update_norm - expected).abs() <= rounding * expected.max(1.0),
            "case {case}: {found:?}, expected {expected}"
        );
        assert_eq!(found.module, "blocks.0.attention.value");
        checked += usize::from(expected > 0.01);
    }
    assert!(checked > 40, "{checked}");
}

#[test]
fn a_training_step_of_an_adapted_model_changes_the_adapter_alone() {
    let (_, tuned) = adapted(7, &settings(7));
    let explainer = explainer_of(tuned);
    let explanation = explainer.explain(PROMPT, &options(1)).unwrap();
    let report = explanation.report(&ReportOptions::default()).unwrap();
    assert!(!report.training.is_empty());
    for step in &report.training {
        let is_adapter = |name: &str| name.contains(".lora.a") || name.contains(".lora.b");
        assert!(step.norms.iter().all(|norm| is_adapter(&norm.name)));
        assert!(is_adapter(&step.weight), "{}", step.weight);
        let scale = step.gradient.abs().max(1e-3);
        assert!(
            (step.gradient - step.finite_difference).abs() < 1e-5 * scale,
            "{step:?}"
        );
        let why = explanation.why(&step.weight).unwrap();
        assert_eq!(why.formula, "learned in training the adapter");
    }
}

#[test]
fn a_report_of_an_adapted_model_matches_the_schema() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    for case in 0..12 {
        let (_, tuned) = adapted(case, &settings(case));
        let explainer = explainer_of(tuned);
        let explanation = explainer.explain(PROMPT, &options(1)).unwrap();
        let report = explanation.report(&ReportOptions::default()).unwrap();
        let report = serde_json::to_value(&report).unwrap();
        assert!(report["adapter"]["tokens"][0]["base"].is_number());
        validate(&report, &schema, &schema, "report").unwrap();
    }
}

#[test]
fn a_model_without_an_adapter_cannot_scale_one() {
    let explainer = explainer_of(random_case_model(1));
    let explanation = explainer.explain(PROMPT, &options(1)).unwrap();
    let error = explanation
        .what_if(&[Edit::Adapter { scale: 0.0 }])
        .unwrap_err();
    assert!(error.to_string().contains("has no adapter"), "{error}");
    let report = explanation.report(&ReportOptions::default()).unwrap();
    assert!(report.adapter.is_none());
    assert!(
        serde_json::to_value(&report)
            .unwrap()
            .get("adapter")
            .is_none()
    );
}
