//! The preset of two layers with two heads, what-ifs in the terminal, and the size of pages.

use std::fs;

use nextword_explain::{ReportOptions, page};
use nextword_model::ModelConfig;

use crate::explain_report::{explainer, options};
use crate::test_dir::{TestDir, json_lines};
use crate::util::{root, stderr};

fn train(dir: &TestDir, name: &str) {
    let config = root().join(format!("configs/{name}.toml"));
    let output = dir.run(&["train", &config.display().to_string(), "--quiet"]);
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn two_layers_with_two_heads_answer_and_are_explained() {
    let dir = TestDir::new();
    train(&dir, "two-layers");
    for prompt in ["what is statquest", "statquest is what"] {
        let generated = [
            "generate",
            "runs/two-layers",
            prompt,
            "--temperature",
            "0",
            "--json",
        ];
        let completion = json_lines(&dir.run(&generated)).remove(0);
        assert_eq!(completion["text"], "awesome", "{prompt}");
        let output = dir.run(&["explain", "runs/two-layers", prompt]);
        let text = String::from_utf8(output.stdout).unwrap();
        for expected in [
            "── layer 2",
            "head 2",
            "output projection",
            "next token: awesome",
            "one training step",
            "verified",
        ] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
        // The line of the verification names the tensor with the largest difference.
        let named = |line: &&str| line.contains("hook_") && !line.contains("largest difference");
        assert_eq!(text.lines().find(named), None, "--names shows names");
        let output = dir.run(&["explain", "runs/two-layers", prompt, "--names"]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("blocks.1.attn.hook_pattern"), "{text}");
    }
    let page = ["--over-training", "--out", "page.html"];
    let output = dir.run(&[&["explain", "runs/two-layers"], &page[..]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn parts_of_the_model_are_removed_in_the_terminal() {
    let dir = TestDir::new();
    train(&dir, "statquest");
    let run = |edit: &str, more: &[&str]| {
        let command = [
            "explain",
            "runs/statquest",
            "what is statquest",
            "--what-if",
            edit,
        ];
        let output = dir.run(&[&command[..], more].concat());
        assert!(output.status.success(), "{edit}: {}", stderr(&output));
        output
    };
    for edit in ["no-residual", "no-positions", "no-mask"] {
        let text = String::from_utf8(run(edit, &[]).stdout).unwrap();
        assert!(text.contains("at each position"), "{edit}: {text}");
        let found = json_lines(&run(edit, &["--format", "json"])).remove(0);
        assert_eq!(found["positions"].as_array().unwrap().len(), 4, "{found}");
        let changed = found["positions"]
            .as_array()
            .unwrap()
            .iter()
            .any(|position| {
                let probability = |when: &str| position[when].as_f64().unwrap();
                (probability("after") - probability("before")).abs() > 1e-4
            });
        assert!(changed, "{edit}: {found}");
    }
    let both = run("no-mask", &["--what-if", "head=0.0", "--format", "json"]);
    assert_eq!(json_lines(&both)[0]["edits"].as_array().unwrap().len(), 2);
    let invalid = dir.run(&["explain", "runs/statquest", "what", "--what-if", "no-head"]);
    assert_eq!(invalid.status.code(), Some(2));
    assert!(
        stderr(&invalid).contains("no-residual"),
        "{}",
        stderr(&invalid)
    );
}

/// The page of `tokens` tokens through a model of the size of the quickstart.
fn page_len(tokens: usize, compare: bool, vocab_size: usize) -> usize {
    let config = ModelConfig {
        vocab_size,
        context_length: 128,
        n_layers: 4,
        n_heads: 4,
        d_model: 128,
        ..ModelConfig::default()
    };
    let explainer = explainer(&config, 1);
    let prompt = |first: usize| {
        let words = (0..tokens).map(|n| format!("w{:02}", (first + n) % 90));
        words.collect::<Vec<_>>().join(" ")
    };
    let panel = |first| {
        let explanation = explainer.explain(&prompt(first), &options(4)).unwrap();
        page::Panel::new(&explanation, &ReportOptions::default()).unwrap()
    };
    let panels = if compare {
        vec![panel(0), panel(7)]
    } else {
        vec![panel(0)]
    };
    page::render(&page::PageData {
        panels,
        history: None,
    })
    .len()
}

#[test]
fn pages_of_long_prompts_stay_below_five_megabytes() {
    for (tokens, compare, vocab_size) in [
        (30, false, 768),
        (64, false, 300),
        (112, false, 768),
        (112, true, 768),
        (112, false, 300),
        (120, false, 3000),
    ] {
        let bytes = page_len(tokens, compare, vocab_size);
        // A comparison has the values of two prompts.
        let limit = if compare { 5_500_000 } else { 5_000_000 };
        assert!(
            bytes < limit,
            "{bytes} bytes for {tokens} tokens, vocabulary {vocab_size}, compare: {compare}"
        );
    }
}

/// The logarithm of the loss is not a straight line from the first step to the last.
#[test]
fn the_small_presets_record_enough_losses_for_a_plot() {
    for name in ["statquest", "two-layers"] {
        let dir = TestDir::new();
        train(&dir, name);
        let metrics = fs::read_to_string(dir.path(&format!("runs/{name}/metrics.jsonl"))).unwrap();
        let losses = metrics.lines().filter(|line| line.contains("loss")).count();
        assert!(losses >= 40, "{name}: {losses}");
        let output = dir.run(&["plot", &format!("runs/{name}")]);
        assert!(output.status.success(), "{}", stderr(&output));
    }
}
