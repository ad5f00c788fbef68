//! Reports: contributions to a logit, the logit lens, what-if edits, output formats.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::sync::Arc;

use nextword_data::{TokenizerConfig, TokenizerKind, build_tokenizer};
use nextword_explain::evaluate::evaluate;
use nextword_explain::{
    AttentionKind, Axis, DisabledHead, Edit, ExplainError, Explainer, ReportOptions, SCHEMA,
    TensorValues, Trace, page,
};
use nextword_generate::{SamplingConfig, TextGenerator, TextOptions};
use nextword_model::{
    Architecture, FeedForwardKind, ModelCard, ModelConfig, NormKind, Transformer,
};
use serde_json::Value;

use crate::explain::address_of;
use crate::explain_adapters::{adapted, settings};
use crate::explain_architectures;
use crate::explain_schema::validate;
use crate::random_models::{random_case_model, random_config, random_model};
use crate::test_dir::{TestDir, json_lines};
use crate::util::{root, stderr};

/// An explainer for a random model of `config`.
pub(crate) fn explainer(config: &ModelConfig, seed: u64) -> Explainer {
    explainer_of(random_model(config, seed))
}

/// An explainer for `model` with the words `w00 w01 …`.
pub(crate) fn explainer_of(model: Transformer) -> Explainer {
    let words: Vec<String> = (0..model.config().vocab_size)
        .map(|n| format!("w{n:02}"))
        .collect();
    let tokenizer = TokenizerConfig {
        kind: TokenizerKind::Word,
        eos: String::new(),
        unk: String::new(),
        ..TokenizerConfig::default()
    };
    let tokenizer = build_tokenizer(&tokenizer, std::iter::once(Ok(words.join(" ")))).unwrap();
    Explainer::new(TextGenerator::new(model, Arc::clone(&tokenizer), ModelCard::default()).unwrap())
}

pub(crate) fn options(max_tokens: usize) -> TextOptions {
    TextOptions {
        sampling: SamplingConfig::greedy(),
        max_tokens,
        ..TextOptions::default()
    }
}

#[test]
fn contributions_sum_to_the_logit_in_every_architecture() {
    for case in 0..1000 {
        let explainer = explainer_of(random_case_model(case));
        let explanation = explainer.explain("w01 w00 w02 w01", &options(1)).unwrap();
        for token in 0..3 {
            let contribution = explanation.contribution(3, token);
            let size: f64 = contribution.parts.iter().map(|part| part.value.abs()).sum();
            // The logit is the model's own, in f32; quantized models also round activations.
            let rounding = explanation.trace.bits.map_or(1e-5, |_| 1e-3);
            assert!(
                (contribution.sum - contribution.logit).abs() <= rounding * size.max(1.0),
                "case {case}, {:?}: parts {} of {}",
                explanation.trace.config,
                contribution.sum,
                contribution.logit
            );
        }
    }
}

/// If only sums follow a head, removing it lowers the logit by its contribution.
#[test]
fn removing_a_head_removes_its_contribution() {
    let mut heads = 0;
    for case in 0..1000 {
        let model = random_case_model(case);
        let config = model.config().clone();
        let attention_is_last = config.feed_forward == FeedForwardKind::None || config.parallel;
        if config.norm != NormKind::None || !attention_is_last || !config.residual {
            continue;
        }
        let explainer = explainer_of(model);
        let explanation = explainer.explain("w01 w00 w02", &options(1)).unwrap();
        let (trace, layer) = (&explanation.trace, config.n_layers - 1);
        let name = config
            .logit_soft_cap
            .map_or("logits", |_| "logits_before_cap");
        for head in 0..config.n_heads {
            let off = evaluate(
                &trace.graph,
                explainer.weights(),
                trace.inputs(),
                &[DisabledHead {
                    attention: AttentionKind::SelfAttention,
                    layer,
                    head,
                }],
            );
            let (with, without) = (trace.reference[name].at(&[2, 1]), off[name].at(&[2, 1]));
            let contribution = explanation.contribution(2, 1);
            let mut parts = contribution.parts.iter();
            let part = parts.find(|p| (p.layer, p.head) == (Some(layer), Some(head)));
            let (difference, part) = (with - without, part.unwrap().value);
            let rounding = trace.bits.map_or(1e-5, |_| 1e-3);
            assert!(
                (difference - part).abs() <= rounding * contribution.logit.abs().max(1.0),
                "case {case}, head {head}: {part} of {difference}"
            );
            heads += 1;
        }
    }
    assert!(heads > 50, "only {heads} heads were switched off");
}

#[test]
fn the_last_logit_lens_row_is_the_model_output() {
    for case in 0..60 {
        let explainer = explainer_of(random_case_model(case));
        let explanation = explainer.explain("w00 w02 w01", &options(1)).unwrap();
        let (lens, next) = (explanation.logit_lens(3), explanation.predictions(3));
        let last = &lens.last().unwrap().top;
        for (lens, next) in last.iter().zip(&next) {
            let (a, b) = (lens[0].probability, next.top[0].probability);
            assert!((a - b).abs() < 1e-4, "case {case}: {a}, {b}");
        }
    }
}

#[test]
fn an_edited_token_gives_the_edited_prompt_result() {
    for case in 0..60 {
        let explainer = explainer_of(random_case_model(case));
        let explanation = explainer.explain("w00 w02 w01", &options(1)).unwrap();
        let unchanged = explanation.what_if(&[]).unwrap();
        assert_eq!(unchanged.before, unchanged.after);
        let edit = Edit::Token { position: 1, id: 0 };
        let changed = explanation.what_if(&[edit]).unwrap();
        let other = explainer.explain("w00 w00 w01", &options(1)).unwrap();
        for (a, b) in changed.after.iter().zip(&other.predictions(10)[2].top) {
            assert!((a.probability - b.probability).abs() < 1e-4, "case {case}");
        }
        for token in &changed.tokens {
            for (list, probability) in [
                (&changed.before, token.before),
                (&changed.after, token.after),
            ] {
                let entry = list.iter().find(|entry| entry.id == token.id);
                let lowest = list.last().unwrap().probability;
                assert!(
                    entry.map_or(probability <= lowest, |entry| entry.probability.to_bits()
                        == probability.to_bits())
                );
            }
        }
        let off: Vec<Edit> = (0..explanation.trace.config.n_heads)
            .map(|head| Edit::HeadOff {
                layer: 0,
                head,
                attention: AttentionKind::SelfAttention,
            })
            .collect();
        let config = &explanation.trace.config;
        // Otherwise only the feed-forward output is passed on.
        let attention_only = config.feed_forward == FeedForwardKind::None;
        let has_effect = config.residual || !config.parallel || attention_only;
        assert_eq!(
            has_effect,
            explanation.what_if(&off).unwrap().after != unchanged.before
        );
        let huge = Edit::Embedding {
            id: 0,
            dim: 0,
            value: 1e308,
        };
        if let Ok(found) = explanation.what_if(&[huge]) {
            assert!(found.tokens.iter().all(|token| token.after.is_finite()));
        }
        let invalid = Edit::HeadOff {
            layer: 9,
            head: 0,
            attention: AttentionKind::SelfAttention,
        };
        let invalid = explanation.what_if(&[invalid]);
        assert!(
            matches!(invalid, Err(ExplainError::WhatIf(problem)) if problem.contains("layer 9"))
        );
    }
}

#[test]
fn cached_positions_are_shown_as_reused() {
    let config = ModelConfig {
        vocab_size: 6,
        context_length: 12,
        n_layers: 2,
        n_heads: 2,
        d_model: 8,
        ..ModelConfig::default()
    };
    let explainer = explainer(&config, 1);
    let explanation = explainer.explain("w00 w01", &options(4)).unwrap();
    assert_eq!(explanation.trace.passes, [0, 0, 1, 2, 3]);
    let report = explanation.report(&ReportOptions::default()).unwrap();
    assert_eq!((report.tokens.len(), report.completion.len()), (5, 4));
}

/// The values as JSON; `null` for masked ones.
fn finite(values: impl Iterator<Item = Option<f64>>) -> Value {
    let finite = |x: Option<f64>| x.filter(|x| x.is_finite());
    values.map(finite).collect()
}

#[test]
fn page_arithmetic_matches_the_program() {
    let dir = TestDir::new();
    let files = (0..100).map(|case| {
        let model = match case % 4 {
            1 => explain_architectures::model(Architecture::Prefix, case),
            2 => explain_architectures::model(Architecture::EncoderDecoder, case),
            3 => adapted(case, &settings(case)).1,
            _ => random_case_model(case),
        };
        let explainer = explainer_of(model);
        let explanation = explainer.explain("w00 w02 w01", &options(2)).unwrap();
        let (trace, mut derived) = (&explanation.trace, serde_json::Map::new());
        for node in &trace.graph {
            let indices = 0..trace.value(&node.name).data.len();
            let results = indices.map(|at| explanation.why(&address_of(node, at)).unwrap().result);
            derived.insert(node.name.clone(), finite(results));
        }
        let exact = trace.reference.iter();
        let exact =
            exact.map(|(name, array)| (name.clone(), finite(array.data.iter().copied().map(Some))));
        let removed = [Edit::NoResidual, Edit::NoPositions, Edit::NoMask]
            .into_iter()
            .filter_map(|edit| {
                let positions = explanation
                    .what_if(std::slice::from_ref(&edit))
                    .ok()?
                    .positions;
                Some(serde_json::json!({"edit": edit, "positions": positions}))
            });
        let scaled = [0.0, 0.5].map(|scale| Edit::Adapter { scale });
        let scaled = scaled.into_iter().filter_map(|edit| {
            let found = explanation.what_if(std::slice::from_ref(&edit)).ok()?;
            Some(serde_json::json!({"edit": edit, "positions": found.positions}))
        });
        let data = serde_json::json!({
            "scaled": scaled.collect::<Vec<Value>>(),
            "removed": removed.collect::<Vec<Value>>(),
            "panel": page::Panel::new(&explanation, &ReportOptions::default()).unwrap(),
            "exact": exact.collect::<serde_json::Map<String, Value>>(),
            "derived": derived,
        });
        dir.write(&format!("{case}.json"), data.to_string())
    });
    let mut node = Command::new("node");
    node.arg(root().join("scripts/check_page_math.js"));
    let Ok(output) = node.args(files).output() else {
        eprintln!("the page's arithmetic was not checked: node is not installed");
        return;
    };
    assert!(output.status.success(), "{}", stderr(&output));
}

/// 32 tokens, 4 layers, 4 heads, `d_model` 64.
#[test]
fn a_small_model_is_explained_quickly() {
    let config = ModelConfig {
        vocab_size: 65,
        context_length: 64,
        d_model: 64,
        ..ModelConfig::default()
    };
    let explainer = explainer(&config, 1);
    let prompt: Vec<String> = (0..32).map(|n| format!("w{n:02}")).collect();
    let prompt = prompt.join(" ");
    explainer.explain(&prompt, &options(1)).unwrap();
    let start = std::time::Instant::now();
    let explanation = explainer.explain(&prompt, &options(1)).unwrap();
    let report = explanation.report(&ReportOptions::default()).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    let bytes = serde_json::to_string(&report).unwrap().len();
    eprintln!(
        "explained in {:.1} ms, {bytes} bytes of JSON",
        1e3 * seconds
    );
    assert!(
        report.verification.verified,
        "{}",
        report.verification.summary
    );
    // A tenth of this on an idle machine.
    assert!(seconds < 1.0, "{seconds} s");
}

#[test]
fn large_reports_open_with_a_summary_or_a_suggestion() {
    let explainer = explainer(&random_config(12), 1);
    let explanation = explainer.explain("w00 w02 w01", &options(1)).unwrap();
    let complete = explanation.report(&ReportOptions::default()).unwrap();
    let value_count: usize = complete
        .tensors
        .values()
        .map(|tensor| tensor.data.len())
        .sum();
    let options = |max_values, layers| ReportOptions {
        max_values,
        layers,
        ..ReportOptions::default()
    };
    if explanation.trace.config.n_layers > 1 {
        let summary = explanation.report(&options(value_count - 1, None)).unwrap();
        assert!(summary.tensors.len() < complete.tensors.len());
        assert_eq!(
            summary.steps.len(),
            complete.steps.len(),
            "all steps are listed"
        );
        let layers = 0..explanation.trace.config.n_layers;
        let detail: BTreeMap<_, _> = layers
            .flat_map(|layer| explanation.layer_tensors(layer, value_count).unwrap())
            .collect();
        // Tensors over a large vocabulary are replaced by the most likely tokens.
        let without_token_axis =
            |(_, tensor): &(&String, &TensorValues)| !tensor.axes.contains(&Axis::Token);
        for (name, tensor) in complete.tensors.iter().filter(without_token_axis) {
            let values = summary.tensors.get(name).or_else(|| detail.get(name));
            let values = values.map(|tensor| (&tensor.shape, &tensor.data));
            assert_eq!(values, Some((&tensor.shape, &tensor.data)), "{name}");
        }
        assert!(summary.notes.iter().any(|note| note.contains("--layer")));
    }
    let too_small = explanation.layer_tensors(0, 3);
    assert!(matches!(too_small, Err(ExplainError::TooLarge { .. })));
    let no_layer = explanation.layer_tensors(99, value_count);
    assert!(no_layer.is_err_and(|e| e.to_string().contains("layer 99")));
    let rejected = explanation.report(&options(3, Some(vec![0])));
    assert!(rejected.is_err_and(|e| e.to_string().contains("--layer N")));
}

/// A model whose vocabulary is larger than any list of tokens.
pub(crate) fn large_vocab_config() -> ModelConfig {
    ModelConfig {
        vocab_size: 40,
        context_length: 32,
        n_layers: 6,
        n_heads: 4,
        d_model: 16,
        ..ModelConfig::default()
    }
}

#[test]
fn an_edit_lists_the_same_tokens_before_and_after() {
    let explainer = explainer(&large_vocab_config(), 3);
    let explanation = explainer.explain("w00 w02 w01", &options(1)).unwrap();
    let edit = Edit::Token { position: 2, id: 7 };
    let what_if = explanation.what_if(&[edit]).unwrap();
    assert!(
        what_if.tokens.len() > 10,
        "tokens that are likely before or after"
    );
    let other = explainer.explain("w00 w02 w07", &options(1)).unwrap();
    let probability = |trace: &Trace, id: u32| trace.value("probabilities").at(&[2, id as usize]);
    for token in &what_if.tokens {
        let before = probability(&explanation.trace, token.id);
        let after = probability(&other.trace, token.id);
        assert!((token.before - before).abs() < 1e-4, "{token:?}");
        assert!((token.after - after).abs() < 1e-4, "{token:?}");
    }
}

#[test]
fn one_layer_of_a_large_report_can_be_requested() {
    let config = ModelConfig {
        vocab_size: 400,
        ..large_vocab_config()
    };
    let explainer = explainer(&config, 3);
    let explanation = explainer.explain("w00 w02 w01", &options(1)).unwrap();
    let options = ReportOptions {
        layers: Some(vec![2]),
        max_values: 2_000,
        ..ReportOptions::default()
    };
    let report = explanation.report(&options).unwrap();
    assert!(report.tensors.contains_key("blocks.2.attn.hook_q"));
    assert!(
        !report.tensors.contains_key("logits")
            && !report.tensors.contains_key("blocks.1.attn.hook_q")
    );
    assert_eq!(
        report.predictions.len(),
        3,
        "the most likely tokens are always included"
    );
}

#[test]
fn pages_are_self_contained_and_escape_prompts() {
    let explainer = explainer(&random_config(3), 1);
    let explanation = explainer
        .explain("</script><img src=x onerror=alert(1)>", &options(1))
        .unwrap();
    let panel = page::Panel::new(&explanation, &ReportOptions::default()).unwrap();
    let html = page::render(&page::PageData {
        panels: vec![panel],
        history: None,
    });
    assert_eq!(html.matches("</script>").count(), 2, "only the page's own");
    assert!(!html.contains("<img") && !html.contains("unsafe-inline"));
    assert!(!html.contains("<!--"), "every placeholder is filled");
    let live = page::render_live();
    assert!(
        live.contains("/explain.js") && live.contains("/explain.css") && !live.contains("<!--")
    );
    for external in ["http://", "https://", "src=\"//"] {
        let without_namespace = html.replace("http://www.w3.org/2000/svg", "");
        assert!(!without_namespace.contains(external), "{external}");
    }
}

/// Checks that options without effect and nonexistent layers and positions are rejected.
fn check_ineffective_options_are_rejected(dir: &TestDir) {
    for (options, expected) in [
        (&["--compare", "is"][..], "--format html"),
        (&["--over-training", "--format", "json"], "--format html"),
        (&["--over-training", "--format", "text"], "--format html"),
        (&["--over-training", "--out", "x.txt"], "--format html"),
        (&["--over-training", "--out", "x.json"], "--format html"),
        (&["--what-if", "head=0.0", "--out", "x"], "--out"),
        (
            &[
                "--why",
                "logits[position=0,token=0]",
                "--what-if",
                "head=0.0",
            ],
            "one at a time",
        ),
        (&["--head", "0", "--format", "json"], "everything"),
        (&["--layer", "1"], "no layer 1; valid layers: 0"),
        (&["--position", "9"], "no position 9"),
    ] {
        let output = dir.run(&[&["explain", "runs/statquest", "what"], options].concat());
        assert_eq!(output.status.code(), Some(2), "{options:?}");
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    }
}

#[test]
fn explain_writes_every_format() {
    let dir = TestDir::new();
    let config = root().join("configs/statquest.toml").display().to_string();
    let output = dir.run(&["train", &config, "--quiet"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let prompts = ["what is statquest", "statquest is what"];
    for (prompt, other) in [(prompts[0], prompts[1]), (prompts[1], prompts[0])] {
        let explain = |options: &[&str]| {
            let output = dir.run(&[&["explain", "runs/statquest", prompt], options].concat());
            assert!(output.status.success(), "{}", stderr(&output));
            output
        };
        let text = String::from_utf8(explain(&[]).stdout).unwrap();
        for expected in [
            "token embedding",
            "position encoding",
            "query",
            "key",
            "value",
            "attention scores",
            "attention weights",
            "masked self-attention values",
            "residual connection",
            "output layer",
            "softmax",
            "next token: awesome",
            "next token: <EOS>",
            "the prompt's next token",
            "decode step",
            "KV cache)",
            "verified",
        ] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
        assert!(
            text.lines().all(|line| !line.contains('\u{1b}')),
            "no colours outside a terminal"
        );

        let report = json_lines(&explain(&["--format", "json"])).remove(0);
        let schema: Value = serde_json::from_str(SCHEMA).unwrap();
        validate(&report, &schema, &schema, "report").unwrap();
        assert_eq!(report["answer"][0]["token"]["text"], "awesome");
        for difference in report["verdict"]["differences"].as_array().unwrap() {
            let field = |key: &str| difference[key].as_f64().unwrap();
            assert!(
                field("largest") <= 1e-6 * field("scale").max(1.0),
                "{difference}"
            );
        }

        let address = "blocks.0.attn.hook_pattern[head=0,query=3,key=1]";
        let why = json_lines(&explain(&["--why", address, "--format", "json"])).remove(0);
        assert_eq!(why["address"], address);
        assert_eq!(why["operands"].as_array().unwrap().len(), 4);
        explain(&["--format", "safetensors", "--out", "trace.safetensors"]);
        let tensors = nextword_model::weights::load_tensors(&dir.path("trace.safetensors"));
        assert_eq!(tensors.unwrap()["blocks.0.attn.hook_pattern"].0, [1, 5, 5]);
        let edits: Vec<Value> = [
            "head=0.0",
            "token=0:is",
            "embedding=is.1:0.5",
            "no-residual",
            "no-positions",
            "no-mask",
        ]
        .map(|edit| json_lines(&explain(&["--what-if", edit, "--format", "json"])).remove(0))
        .to_vec();
        dir.write("changes.json", serde_json::to_string(&edits).unwrap());
        explain(&["--over-training", "--compare", other, "--out", "page.html"]);
        assert!(
            fs::read_to_string(dir.path("page.html"))
                .unwrap()
                .contains("\"learning\":{")
        );
    }
    check_ineffective_options_are_rejected(&dir);
    let plot = dir.run(&["plot", "runs/statquest", "--attention"]);
    assert!(plot.status.success(), "{}", stderr(&plot));
    assert!(dir.path("runs/statquest/attention-2.svg").is_file());
    let output = dir.run(&["explain", "runs/statquest", "what", "--why", "nothing[a=1]"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("no tensor `nothing`"),
        "{}",
        stderr(&output)
    );
    // With a Python that has playwright, the page is tested in Chromium.
    if let Some(python) = std::env::var_os("NEXTWORD_CHECK_PAGE") {
        let script = root().join("scripts/check_page.py");
        let output = std::process::Command::new(python)
            .arg(script)
            .arg(dir.path("page.html"))
            .arg("--changes")
            .arg(dir.path("changes.json"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }
}
